"""A model of one PostgreSQL session: statements, portals, settings, transactions, and just enough SQL to try them.

Every row that a SELECT returns tells all that the session holds, so that whatever is lost, or leaks, shows in the next
answer. Written from the protocol documentation, without the pooler's shortcuts; the pooler's questions it answers, too.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from struct import pack, unpack_from
from typing import Final

from protocol.messages import ErrorFields, error_response
from tests.protocol.model import message

REPORTED: Final = ("application_name", "TimeZone")
"""Settings of which the client is told when they change, just before a ReadyForQuery."""
_EXITS: Final = (b"commit", b"rollback")
_QUESTION: Final = b"SELECT s.k,"


class SqlError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.reply = error_response(ErrorFields("ERROR", code, text))


@dataclass(frozen=True)
class Held:
    """What a transaction that is rolled back puts back."""

    settings: Mapping[str, str] = field(default_factory=dict)
    listening: frozenset[str] = frozenset()
    temporary: frozenset[str] = frozenset()
    cursors: frozenset[str] = frozenset()


@dataclass
class Portal:
    text: bytes
    custom: list[str]
    done: bool = False


class SessionModel:
    """Takes requests one at a time and returns the reply's bytes."""

    def __init__(self, startup: Mapping[str, str] | None = None, stumbles: Callable[[], bool] = lambda: False) -> None:
        """`startup` are the settings that it logged in with; what the pooler asks of it fails when it `stumbles`."""
        self.defaults = dict(startup or {})
        self._stumbles = stumbles
        self.held = Held(dict(self.defaults))
        self.before: Held | None = None
        """As it was before the transaction; None = there is none."""
        self.block = self.failed = self.skipping = False
        self.prepared: dict[str, bytes] = {}
        self.locks = 0
        self.loaded = False
        self.statements: dict[bytes, bytes] = {}
        self.portals: dict[bytes, Portal] = {}
        self.reported = self.told_at_login = self._reported()

    @property
    def idle(self) -> bool:
        return self.before is None and not self.skipping

    @property
    def pins(self) -> set[str]:
        """What no other session has."""
        held = self.held
        found = {"listen": held.listening, "temporary": held.temporary, "cursor": held.cursors}
        found |= {"prepared": frozenset(self.prepared), "advisory_lock": frozenset(["x"] * self.locks)}
        return {name for name, what in found.items() if what}

    def visible(self) -> bytes:
        """All that it holds."""
        held = self.held
        settings = ",".join(f"{name}={value}" for name, value in sorted(held.settings.items()) if value)
        rest = (held.listening, held.temporary, held.cursors, self.prepared, [str(self.locks)])
        return "/".join((settings, *(",".join(sorted(each)) for each in rest))).encode()

    # --- requests

    def answer(self, kind: str, payload: bytes) -> bytes:
        if kind == "S":
            self.skipping = False
            return self._ready()
        if self.skipping or kind in "HdcfX":
            return b""
        try:
            return self._query(payload[:-1]) if kind == "Q" else self._extended(kind, payload)
        except SqlError as error:
            self._abort()
            if kind == "Q":
                return error.reply + self._ready()
            self.skipping = True
            return error.reply

    def _ready(self) -> bytes:
        if not self.block:
            self.before = None
            self.portals.clear()
        reported = self._reported()
        changed = [name for name in REPORTED if reported[name] != self.reported[name]]
        self.reported = reported
        told = b"".join(message("S", f"{name}\0{reported[name]}\0".encode()) for name in changed)
        return told + message("Z", b"E" if self.failed else b"T" if self.block else b"I")

    def _reported(self) -> dict[str, str]:
        return {name: self.held.settings.get(name, "") for name in REPORTED}

    def _abort(self) -> None:
        if self.before is not None:
            self.held = self.before
        self.failed = self.block
        self.portals.clear()

    def _begin(self) -> None:
        if self.before is None:
            self.before = self.held

    def _query(self, text: bytes) -> bytes:
        self.statements.pop(b"", None)
        self.portals.pop(b"", None)
        self._begin()
        texts = [part.strip() for part in text.split(b";") if part.strip()]
        if text.startswith((b"BEGIN;", b"ROLLBACK", b"DISCARD ALL")):
            self._stumble(in_block=text.startswith(b"BEGIN;"))
        if text.startswith(b"BEGIN;") and _QUESTION in text:
            aside = _row("setting", "role", self.held.settings.get("role", "none"))
            names = re.findall(rb'"([^"]+)"', text[text.index(b"'{") :])
            told = aside + self._ask(names, aside=True)
            return message("C", b"BEGIN\0") + told + message("C", b"COMMIT\0") + self._ready()
        for each in texts:
            _check_syntax(each)
        told = b"".join(self._row_type(each) + self._run(each, alone=len(texts) == 1) for each in texts)
        return (told or message("I")) + self._ready()

    def _extended(self, kind: str, payload: bytes) -> bytes:
        self._begin()
        if kind == "P":
            return self._parse(*payload.split(b"\0", 2)[:2])
        if kind == "B":
            return self._bind(payload)
        if kind == "E":
            return self._execute(payload[: payload.index(0)])
        what, name = payload[:1], payload[1:-1]
        if kind == "C":
            (self.statements if what == b"S" else self.portals).pop(name, None)
            return message("3")
        if what == b"P":
            return self._row_type(self._portal(name).text) or message("n")
        row_type = self._row_type(self._statement(name))
        if row_type and self.failed:
            raise _aborted()
        return message("t", b"\0\0") + (row_type or message("n"))

    def _parse(self, name: bytes, text: bytes) -> bytes:
        if not name:
            self.statements.pop(b"", None)
        _check_syntax(text)
        self._check_failed(text)
        if name in self.statements:
            raise SqlError("42P05", f'prepared statement "{name.decode()}" already exists')
        self.statements[name] = text
        return message("1")

    def _bind(self, payload: bytes) -> bytes:
        portal, name, rest = payload.split(b"\0", 2)
        text = self._statement(name)
        self._check_failed(text)
        names = []
        if unpack_from("!H", rest, 2) != (0,):
            names = re.findall(rb'"([^"]+)"', rest)
        self.portals[portal] = Portal(text, [each.decode() for each in names])
        return message("2")

    def _execute(self, name: bytes) -> bytes:
        portal = self._portal(name)
        self._check_failed(portal.text)
        if portal.done:
            return message("C", b"SELECT 0\0")
        portal.done = True
        if portal.text.startswith(_QUESTION):
            self._stumble()
            return self._ask(each.encode() for each in portal.custom)
        return self._run(portal.text, alone=True) if portal.text else message("I")

    def _statement(self, name: bytes) -> bytes:
        if name not in self.statements:
            raise SqlError("26000", f'prepared statement "{name.decode()}" does not exist')
        return self.statements[name]

    def _portal(self, name: bytes) -> Portal:
        if name not in self.portals:
            raise SqlError("34000", f'portal "{name.decode()}" does not exist')
        return self.portals[name]

    def _check_failed(self, text: bytes) -> None:
        if self.failed and text not in _EXITS:
            raise _aborted()

    # --- what the pooler asks

    def _stumble(self, *, in_block: bool = False) -> None:
        """Fail, now and then, in what is written as only the pooler writes."""
        if self._stumbles():
            self.block |= in_block
            raise SqlError("57014", "canceling statement")

    def _ask(self, custom: Iterable[bytes], *, aside: bool = False) -> bytes:
        held = self.held
        hidden = {name for name in held.settings if "." in name} - {name.decode() for name in custom}
        hidden |= {"role"} if aside else set()
        rows = [("setting", name, value) for name, value in held.settings.items() if name not in hidden]
        rows.append(("user", "session_authorization", "alice"))
        rows += [("listen", each, "") for each in held.listening]
        rows += [("temporary", each, "") for each in held.temporary]
        rows += [("cursor", each, "") for each in held.cursors]
        rows += [("prepared", each, "") for each in self.prepared]
        rows += [("advisory_lock", "1", "")] * bool(self.locks)
        return b"".join(_row(*row) for row in rows) + message("C", b"SELECT %d\0" % len(rows))

    # --- SQL

    def _row_type(self, text: bytes) -> bytes:
        return message("T", b"\0\0") if text.lower().startswith((b"select", b"execute")) else b""

    def _run(self, text: bytes, *, alone: bool) -> bytes:
        self._check_failed(text)
        for pattern, run in _STATEMENTS:
            found = pattern.fullmatch(text)
            if found:
                tag = run(self, *(part.decode() for part in found.groups() if part is not None))
                break
        else:
            tag = self._control(text, alone=alone)
        rows = message("D", b"\0\1" + pack("!I", 0) + text + b"|" + self.visible()) if self._row_type(text) else b""
        return rows + message("C", tag.encode() + b"\0")

    def _control(self, text: bytes, *, alone: bool) -> str:
        if text.startswith(b"select fail"):
            raise SqlError("22012", "division by zero")
        low = text.lower()
        if low == b"begin":
            self.block = True
        elif low == b"commit":
            self._end_transaction(self.before if self.failed else self.held)
        elif low == b"rollback":
            self._end_transaction(self.before or self.held)
        elif low == b"discard all":
            if self.block or not alone:
                raise SqlError("25001", "DISCARD ALL cannot run inside a transaction block")
            self.held = Held(dict(self.defaults) | dict.fromkeys(filter(_is_custom, self.held.settings), ""))
            self._deallocate_all()
            self.locks = 0
        return low.decode().upper()

    def _end_transaction(self, held: Held | None) -> None:
        self.held = held or self.held
        self.before = self.held
        self.block = self.failed = False

    def _set(self, name: str, value: str) -> str:
        settings = {**self.held.settings, name: value}
        if value == "none":
            del settings[name]
        self.held = replace(self.held, settings=settings)
        return "SET"

    def _reset(self, name: str) -> str:
        name = name.replace('"', "") if '"' in name else name.lower()
        settings = dict(self.held.settings)
        settings.pop(name, None)
        if name in self.defaults:
            settings[name] = self.defaults[name]
        elif _is_custom(name):
            settings[name] = ""  # for good
        self.held = replace(self.held, settings=settings)
        return "RESET"

    def _listen(self, channel: str) -> str:
        self.held = replace(self.held, listening=self.held.listening | {channel})
        return "LISTEN"

    def _unlisten(self, channel: str = "") -> str:
        listening = self.held.listening - {channel} if channel else frozenset()
        self.held = replace(self.held, listening=listening)
        return "UNLISTEN"

    def _create(self, name: str) -> str:
        self.held = replace(self.held, temporary=self.held.temporary | {name})
        return "CREATE TABLE"

    def _drop(self, name: str) -> str:
        self.held = replace(self.held, temporary=self.held.temporary - {name})
        return "DROP TABLE"

    def _declare(self, name: str) -> str:
        self.held = replace(self.held, cursors=self.held.cursors | {name})
        return "DECLARE CURSOR"

    def _close(self, name: str) -> str:
        self.held = replace(self.held, cursors=self.held.cursors - {name})
        return "CLOSE CURSOR"

    def _prepare(self, name: str, text: str) -> str:
        if name in self.prepared:
            raise SqlError("42P05", f'prepared statement "{name}" already exists')
        self.prepared[name] = text.encode()
        return "PREPARE"

    def _execute_prepared(self, name: str) -> str:
        if name not in self.prepared:
            raise SqlError("26000", f'prepared statement "{name}" does not exist')
        return "SELECT 1"

    def _deallocate(self, name: str) -> str:
        if name in self.prepared:
            del self.prepared[name]
        elif self.statements.pop(name.encode(), None) is None:
            raise SqlError("26000", f'prepared statement "{name}" does not exist')
        return "DEALLOCATE"

    def _deallocate_all(self) -> str:
        self.prepared.clear()
        self.statements = {name: text for name, text in self.statements.items() if not name}
        return "DEALLOCATE ALL"

    def _lock(self) -> str:
        self.locks += 1
        return "SELECT 1"

    def _unlock(self) -> str:
        self.locks = 0
        return "SELECT 1"

    def _load(self) -> str:
        self.loaded = True
        return "LOAD"


_STATEMENTS: Final[list[tuple[re.Pattern[bytes], Callable[..., str]]]] = [
    (re.compile(pattern, re.IGNORECASE), run)
    for pattern, run in (
        (rb"set ([\w.]+) to '?([\w ]*)'?", SessionModel._set),
        (rb"select (?:pg_catalog\.)?set_config\('([^']*)', ?'([^']*)', ?false\)", SessionModel._set),
        (rb"reset ([\w.\"]+)", SessionModel._reset),
        (rb"listen (\w+)", SessionModel._listen),
        (rb"do 'listen (\w+)'", SessionModel._listen),
        (rb"unlisten \*", SessionModel._unlisten),
        (rb"unlisten (\w+)", SessionModel._unlisten),
        (rb"create temp table (\w+)\(\)", SessionModel._create),
        (rb"drop table (\w+)", SessionModel._drop),
        (rb"declare (\w+) cursor with hold for select 1", SessionModel._declare),
        (rb"close (\w+)", SessionModel._close),
        (rb"prepare (\w+) as (.*)", SessionModel._prepare),
        (rb"execute (\w+)", SessionModel._execute_prepared),
        (rb"deallocate all", SessionModel._deallocate_all),
        (rb"deallocate (\w+)", SessionModel._deallocate),
        (rb"select pg_advisory_lock\(1\)", SessionModel._lock),
        (rb"select pg_advisory_unlock_all\(\)", SessionModel._unlock),
        (rb"load 'plpgsql'", SessionModel._load),
    )
]


def _aborted() -> SqlError:
    return SqlError("25P02", "current transaction is aborted, commands ignored until end of transaction block")


def _check_syntax(text: bytes) -> None:
    if text.startswith((b"bad", b"pgfunnel")):
        raise SqlError("42601", "syntax error")


def _is_custom(name: str) -> bool:
    return "." in name


def _row(what: str, name: str, value: str) -> bytes:
    """A row of the answer to the pooler's question."""
    columns = (what, name.encode().hex(), value.encode().hex())
    return message("D", pack("!H", 3) + b"".join(pack("!I", len(each)) + each.encode() for each in columns))
