"""What the text of a statement may leave behind in its session, or undo there.

The text decides only whether the server has to be asked; the server's answer decides everything else. So what may
leave state must never be missed, and what is not known to be harmless counts as if it might. No grammar: a statement
is judged by its first words and by the functions that it calls.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntFlag
from typing import Final, NamedTuple

from protocol.fingerprint import fingerprint as fingerprint  # noqa: PLC0414 - part of this module's interface
from protocol.lexer import DOUBT, lex

Tokens = Sequence[bytes]


class State(IntFlag):
    """Classes of session state. The lower-case name is the word in settings, logs and metrics."""

    SETTING = 1
    IDENTITY = 2
    LISTEN = 4
    PREPARED = 8
    CURSOR = 16
    TEMPORARY = 32
    ADVISORY_LOCK = 64
    SEQUENCE = 128
    LIBRARY = 256
    UNKNOWN = 512


NOTHING: Final = State(0)
_EVERYTHING: Final = State(1023) & ~(State.LIBRARY | State.UNKNOWN)


def words(states: State) -> list[str]:
    """Return the classes' names, as settings, logs and metrics have them."""
    return [state.name.lower() for state in State if state in states and state.name]


class Verdict(NamedTuple):
    """What a text may do to the session that runs it."""

    leaves: State = NOTHING
    undoes: State = NOTHING
    asks: bool = False
    """The classes do not tell all: the server has to be asked, whatever they are."""
    executes: bool = False
    """Has an EXECUTE of an SQL-level prepared statement."""
    deallocates: bytes = b""
    """The one name that the text deallocates, as the server reads it, if it does nothing else."""
    drops_statements: bool = False
    """Has a DEALLOCATE ALL or DISCARD ALL."""
    ddl: bool = False
    """May change what other statements return."""
    custom: tuple[str, ...] = ()
    """Settings with a dot in their name that it sets, as the server reads them."""
    dynamic: bool = False
    """Sets a setting whose name the text does not tell."""


HARMLESS: Final = Verdict()
_ASKS: Final = Verdict(asks=True)
_UNKNOWN: Final = Verdict(leaves=State.UNKNOWN, asks=True)
_DDL: Final = Verdict(ddl=True)
_DDL_ASKS: Final = Verdict(asks=True, ddl=True)


class Clause(NamedTuple):
    """One statement of a text, the line that it begins on (the first is 1), and its verdict."""

    text: bytes
    line: int
    verdict: Verdict


# --- texts

_PLAIN_LIMIT: Final = 2048
_HEADERS: Final = tuple(b"Q" + max(size - 1, 0).to_bytes(4, "big") for size in range(_PLAIN_LIMIT))
"""The header of a Query, by the size of the message."""

_PLAIN: Final[Mapping[str, str]] = {
    kind + separator: needle
    for kind, needle in {"select": "into", "insert": "\0", "update": "pg_settings", "delete": "\0"}.items()
    for separator in " \n\r\t"
}
"""The beginnings of harmless statements, and what must not follow in them."""

_PLAIN_WHOLE: Final = frozenset(
    text + end
    for text in (b"", b"begin", b"commit", b"rollback", b"end", b"start transaction", b"begin transaction")
    for end in (b"", b";")
)


def classify(text: bytes) -> Verdict:
    """Judge `text`: SQL without the trailing NUL, in any encoding that extends ASCII. Never raises."""
    lexed = lex(text)
    verdict = HARMLESS if lexed.whole else _UNKNOWN
    for count, (start, end) in enumerate(_statements(lexed.tokens)):
        found = _judge(lexed.tokens[start:end])
        verdict = _unite(verdict, found) if count or not lexed.whole else found
    return verdict


def is_plain_query(data: bytes) -> bool:
    """Tell whether `data` is exactly one Query whose text surely is harmless (but for sequences).

    Hot path: paid for by every simple query. True implies that classify() finds nothing.
    """
    size = len(data)
    if size >= _PLAIN_LIMIT or data[:5] != _HEADERS[size]:
        return False
    # Without its last character: often a semicolon, and nothing that matters is complete without something after it.
    text = data[5:-2].lower().decode("latin-1")
    needle = _PLAIN.get(text[:7])
    if needle is None:
        return data[5:-1].lower() in _PLAIN_WHOLE
    return (
        needle not in text
        and ";" not in text
        and "\\" not in text
        and 'u&"' not in text
        and (
            "(" not in text
            or (
                "set_config" not in text
                and "advisory_" not in text
                and "set_limit" not in text
                and "dblink_con" not in text
                and "replication_" not in text
            )
        )
    )


def clauses(text: bytes) -> Iterator[Clause]:
    """Judge each statement of `text` for itself."""
    tokens, starts, whole = lex(text)
    line = 1
    counted = 0
    for start, end in _statements(tokens):
        first = starts[start]
        last = starts[end - 1] + len(tokens[end - 1])
        line += text.count(b"\n", counted, first)
        counted = first
        yield Clause(text[first:last], line, _judge(tokens[start:end]))
    if not whole:
        yield Clause(text[counted:], line, _UNKNOWN)


def _statements(tokens: Tokens) -> Iterator[tuple[int, int]]:
    """Yield where each statement that is not empty begins and ends."""
    start = 0
    for at, token in enumerate(tokens):
        if token == b";":
            if at > start:
                yield start, at
            start = at + 1
    if len(tokens) > start:
        yield start, len(tokens)


def _unite(one: Verdict, other: Verdict) -> Verdict:
    many = len(one.custom) > 100
    return Verdict(
        leaves=one.leaves | other.leaves,
        undoes=one.undoes | other.undoes,
        asks=one.asks or other.asks,
        executes=one.executes or other.executes,
        drops_statements=one.drops_statements or other.drops_statements,
        ddl=one.ddl or other.ddl,
        custom=one.custom if many else one.custom + tuple(name for name in other.custom if name not in one.custom),
        dynamic=one.dynamic or other.dynamic or many,
    )


# --- statements


def _judge(tokens: Tokens) -> Verdict:
    """Judge one statement: by its kind, and by the functions that it calls."""
    verdict = _kind(tokens)
    if not _MENTIONED.isdisjoint(tokens):
        called = _calls(tokens)
        if called is not HARMLESS:
            verdict = _unite(verdict, called)
    if DOUBT in tokens:
        verdict = _unite(verdict, _ASKS)
    return verdict


def _kind(tokens: Tokens) -> Verdict:
    at = 0
    while at < len(tokens) and tokens[at] in (b"(", DOUBT):
        at += 1
    tokens = tokens[at:]
    if not tokens:
        return HARMLESS
    first = tokens[0]
    if first in _HARMLESS_KINDS:
        return HARMLESS
    judge = _KINDS.get(first)
    return judge(tokens) if judge else _UNKNOWN


def _word(tokens: Tokens, at: int) -> bytes:
    return tokens[at] if at < len(tokens) else b""


def _has(tokens: Tokens, *sequence: bytes) -> int:
    """Return the offset of the first place where `sequence` stands in `tokens`; -1 if it does nowhere."""
    size = len(sequence)
    wanted = list(sequence)
    for at, token in enumerate(tokens):
        if token == sequence[0] and list(tokens[at : at + size]) == wanted:
            return at
    return -1


def _select(tokens: Tokens) -> Verdict:
    """SELECT, and WITH, VALUES, TABLE: an INTO makes a table of the result, but not after INSERT or MERGE."""
    for at, token in enumerate(tokens):
        if token == b"into" and _word(tokens, at - 1) not in (b"insert", b"merge"):
            after = at + 1
            while _word(tokens, after) in (b"local", b"global"):
                after += 1
            if _word(tokens, after) in _TEMPORARY or _is_temporary_schema(tokens, after):
                return Verdict(leaves=State.TEMPORARY)
            return _DDL_ASKS
    return HARMLESS


def _is_temporary_schema(tokens: Tokens, at: int) -> bool:
    name = _word(tokens, at)
    at += name in (b"table", b"unlogged")
    name = _word(tokens, at).strip(b'"')
    return name.startswith(b"pg_temp") and _word(tokens, at + 1) == b"."


def _create(tokens: Tokens) -> Verdict:
    at = 1
    while _word(tokens, at) in (b"or", b"replace", b"local", b"global"):
        at += 1
    executes = _has(tokens, b"as", b"execute") >= 0
    if _word(tokens, at) in _TEMPORARY:
        drop = _has(tokens, b"on", b"commit", b"drop")
        if drop >= 0 and _word(tokens, at + 1) == b"table" and b"as" not in tokens[:drop]:
            return Verdict(executes=executes)
        return Verdict(leaves=State.TEMPORARY, executes=executes)
    if any(_is_temporary_schema(tokens, at) for at in range(len(tokens))):
        return Verdict(leaves=State.TEMPORARY, asks=True, executes=executes)
    return Verdict(asks=True, executes=executes, ddl=True)


def _set(tokens: Tokens) -> Verdict:
    at = 1
    if _word(tokens, 1) in (b"local", b"session") and _word(tokens, 2) not in _AFTER_A_NAME:
        if tokens[1] == b"local":
            return HARMLESS
        if _word(tokens, 2) not in (b"authorization", b"characteristics"):
            at = 2
    if _word(tokens, at) in (b"transaction", b"constraints") and _word(tokens, at + 1) not in _AFTER_A_NAME:
        return HARMLESS
    default = tokens[-1] in (b"default", b"local", b"none") or tokens[at:] == [b"names"]
    return _setting(tokens, at, undoes=default)


def _reset(tokens: Tokens) -> Verdict:
    return _setting(tokens, 1, undoes=True)


def _setting(tokens: Tokens, at: int, *, undoes: bool) -> Verdict:
    """Judge a SET or RESET of the setting whose name begins at `at`."""
    name = _name(_word(tokens, at))
    if name == b"session" and _word(tokens, at + 1) == b"authorization":
        name = b"session_authorization"
    custom: tuple[str, ...] = ()
    if _word(tokens, at + 1) == b".":
        while _word(tokens, at + 1) == b".":
            name += b"." + _name(_word(tokens, at + 2))
            at += 2
        custom = (_text(name),)
    state = _class_of_setting(name)
    return Verdict(leaves=state, undoes=state if undoes else NOTHING, asks=undoes, custom=custom)


def _class_of_setting(name: bytes) -> State:
    return State.IDENTITY if name.lower() in (b"role", b"session_authorization") else State.SETTING


def _discard(tokens: Tokens) -> Verdict:
    what = _word(tokens, 1)
    if what == b"all":
        return Verdict(leaves=State.SETTING, undoes=_EVERYTHING, asks=True, drops_statements=True)
    if what in _TEMPORARY:
        return Verdict(undoes=State.TEMPORARY)
    return Verdict(undoes=State.SEQUENCE) if what == b"sequences" else HARMLESS


def _prepare(tokens: Tokens) -> Verdict:
    if _word(tokens, 1) == b"transaction" and b"as" not in tokens:
        return HARMLESS
    begin = _has(tokens, b"as")
    inner = _inner(tokens[begin + 1 :]) if begin > 0 else _UNKNOWN
    return _unite(Verdict(leaves=State.PREPARED), inner)


def _deallocate(tokens: Tokens) -> Verdict:
    at = 2 if _word(tokens, 1) == b"prepare" and len(tokens) > 2 else 1
    token = _word(tokens, at)
    if token == b"all":
        return Verdict(undoes=State.PREPARED, drops_statements=True)
    name = _name(token) if len(tokens) == at + 1 else b""
    return Verdict(undoes=State.PREPARED, asks=not name, deallocates=name)


def _declare(tokens: Tokens) -> Verdict:
    return Verdict(leaves=State.CURSOR) if _has(tokens, b"with", b"hold") > 0 else HARMLESS


def _explain(tokens: Tokens) -> Verdict:
    at = 1
    runs = False
    if _word(tokens, 1) == b"(" and _word(tokens, 2) not in _QUERIES:
        at = tokens.index(b")") + 1 if b")" in tokens else len(tokens)
        runs = any(_name(token) in _ANALYZE for token in tokens[:at])
    while _word(tokens, at) in (b"analyze", b"analyse", b"verbose"):
        runs = runs or tokens[at] != b"verbose"
        at += 1
    inner = _inner(tokens[at:])
    return inner if runs else Verdict(executes=inner.executes)


def _inner(tokens: Tokens) -> Verdict:
    """Judge a statement inside of another: neither PREPARE nor EXPLAIN takes one that has a statement inside itself."""
    return _UNKNOWN if _word(tokens, 0) in (b"prepare", b"explain") else _kind(tokens)


def _always(verdict: Verdict) -> Callable[[Tokens], Verdict]:
    return lambda _: verdict


_TEMPORARY: Final = frozenset((b"temp", b"temporary"))
_AFTER_A_NAME: Final = frozenset((b".", b"=", b"to", b""))
_QUERIES: Final = frozenset((b"select", b"values", b"table", b"with", b"("))
_ANALYZE: Final = frozenset((b"analyze", b"analyse"))

_HARMLESS_KINDS: Final = frozenset(
    b"insert update delete merge begin start commit rollback end abort savepoint release show fetch move notify copy "
    b"lock truncate vacuum analyze analyse cluster reindex checkpoint comment grant revoke reassign refresh "
    b"security".split()
)

_KINDS: Final[Mapping[bytes, Callable[[Tokens], Verdict]]] = {
    b"select": _select,
    b"with": _select,
    b"values": _select,
    b"table": _select,
    b"create": _create,
    b"alter": _always(_DDL),
    b"drop": _always(Verdict(undoes=State.TEMPORARY, ddl=True)),
    b"import": _always(_DDL),
    b"set": _set,
    b"reset": _reset,
    b"discard": _discard,
    b"listen": _always(Verdict(leaves=State.LISTEN)),
    b"unlisten": _always(Verdict(undoes=State.LISTEN)),
    b"prepare": _prepare,
    b"execute": _always(Verdict(executes=True)),
    b"deallocate": _deallocate,
    b"declare": _declare,
    b"close": _always(Verdict(undoes=State.CURSOR)),
    b"load": _always(Verdict(leaves=State.LIBRARY)),
    b"explain": _explain,
    b"do": _always(_ASKS),
    b"call": _always(_ASKS),
}


# --- functions


def _calls(tokens: Tokens) -> Verdict:
    verdict = HARMLESS
    for at, token in enumerate(tokens):
        name = _name(token)
        if name == b"pg_settings" and b"update" in tokens:
            # A rule of this view turns an UPDATE into calls of set_config (documentation, "pg_settings").
            verdict = _unite(verdict, Verdict(leaves=State.SETTING, asks=True))
        elif name in _FUNCTIONS and _word(tokens, at + 1) == b"(":
            found = _set_config(tokens, at + 2) if name == b"set_config" else _FUNCTIONS[name]
            verdict = _unite(verdict, found)
    return verdict


def _set_config(tokens: Tokens, at: int) -> Verdict:
    """Judge a set_config() whose first argument begins at `at`."""
    arguments: list[list[bytes]] = [[]]
    depth = 0
    for token in tokens[at : at + 64]:  # any more, and it is no literal
        if token == b")" and not depth:
            break
        if token == b"," and not depth:
            arguments.append([])
            continue
        depth += (token == b"(") - (token == b")")
        arguments[-1].append(token)
    if len(arguments) == 3 and _is_true(arguments[2]):
        return HARMLESS
    name = _literal(arguments[0])
    if not name:
        return Verdict(leaves=State.SETTING, asks=True, dynamic=True)
    return Verdict(leaves=_class_of_setting(name), custom=(_text(name),) if b"." in name else ())


def _literal(argument: list[bytes]) -> bytes:
    """Return what a plain string literal says, with a cast to text if it has one; b"" for anything else."""
    if len(argument) == 3 and argument[1:] == [b"::", b"text"]:
        argument = argument[:1]
    if len(argument) != 1 or argument[0][:1] != b"'" or b"\\" in argument[0]:
        return b""
    return argument[0][1:-1].replace(b"''", b"'")


def _is_true(argument: list[bytes]) -> bool:
    if len(argument) == 3 and argument[1] == b"::" and argument[2] in (b"bool", b"boolean"):
        argument = argument[:1]
    return len(argument) == 1 and argument[0].lower() in (b"true", b"'true'", b"'t'", b"'on'", b"'yes'", b"'1'")


_FUNCTIONS: Final[Mapping[bytes, Verdict]] = {
    b"set_config": Verdict(leaves=State.SETTING),
    b"set_limit": Verdict(leaves=State.SETTING),
    **dict.fromkeys(
        (b"pg_advisory_lock", b"pg_advisory_lock_shared", b"pg_try_advisory_lock", b"pg_try_advisory_lock_shared"),
        Verdict(leaves=State.ADVISORY_LOCK),
    ),
    **dict.fromkeys(
        (b"pg_advisory_unlock", b"pg_advisory_unlock_shared", b"pg_advisory_unlock_all"),
        Verdict(undoes=State.ADVISORY_LOCK),
    ),
    **dict.fromkeys((b"nextval", b"currval", b"lastval", b"setval", b"setseed"), Verdict(leaves=State.SEQUENCE)),
    **dict.fromkeys(
        b"dblink_connect dblink_connect_u pg_replication_origin_session_setup pg_create_logical_replication_slot "
        b"pg_create_physical_replication_slot pg_copy_logical_replication_slot "
        b"pg_copy_physical_replication_slot".split(),
        _UNKNOWN,
    ),
}

_NAMES: Final = (*_FUNCTIONS, b"pg_settings")
_MENTIONED: Final = frozenset(_NAMES) | {b'"' + name + b'"' for name in _NAMES}


# --- names


def _name(token: bytes) -> bytes:
    """Return what an identifier says."""
    return token[1:-1].replace(b'""', b'"') if token[:1] == b'"' else token


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
