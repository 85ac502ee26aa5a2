"""Prepared statements: their texts, kept once for all clients, and which of them a server has under which name.

A client's named statement is a Statement here: text and parameter types. A server that meets it for the first time
parses it under a name of the pooler's, and has it for every client that uses the same. Only bookkeeping: who sends
what is the sessions' affair. Source: PostgreSQL documentation, "Extended Query" and "PREPARE".
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from struct import Struct
from typing import Final, final

from protocol.parameters import Dialect
from protocol.sql import State, Verdict, classify, is_plain_query

NAME_SIZE: Final = 63
"""Bytes of a name that count (NAMEDATALEN - 1 in PostgreSQL)."""
PLAIN: Final[Dialect] = frozenset()
"""The server's own settings."""
PREFIX: Final = b"pgfunnel_"
"""What names of statements on servers begin with."""
TEXT_LIMIT: Final = 1 << 20
"""Bytes. A longer text can't be prepared under a name, and an unnamed statement of that length stays where it is."""
OVERHEAD: Final = 400
"""Bytes that a statement takes beside its text, about."""
NAME_OVERHEAD: Final = 200
"""Bytes that a client's name for a statement takes, about."""

_int32 = Struct("!I").pack


leads_out: Final = re.compile(rb"rollback|commit|abort|\bend\b|prepare", re.IGNORECASE).search
"""Finds what may end a failed transaction; PREPARE TRANSACTION does, too."""


@final
class Statement:
    """What a Parse says, without the name: text and parameter types."""

    __slots__ = ("body", "dialect", "leads_out", "plain", "users", "verdict")

    def __init__(self, body: bytes, verdict: Verdict, dialect: Dialect = PLAIN, *, plain: bool = False) -> None:
        self.body = body
        """The Parse message after the name: the text, a NUL, the parameter types."""
        self.verdict = verdict
        self.plain = plain
        """It leaves nothing behind in a session, so that it need not be watched when it runs."""
        self.leads_out = leads_out(body) is not None
        """It may be what ends a transaction."""
        self.dialect = dialect
        """Clients with different settings don't share what they prepare: it may mean something else."""
        self.users = 0
        """How many names clients have for it, and how many dialects it is spoken in."""

    @property
    def size(self) -> int:
        """Bytes that it takes, about; one in another dialect shares its text."""
        return OVERHEAD if self.dialect else OVERHEAD + len(self.body)

    @property
    def text(self) -> bytes:
        """The SQL."""
        return self.body[: self.body.index(0)]

    def parse(self, name: bytes) -> bytes:
        """Return a Parse message for it under `name`."""
        return b"P" + _int32(len(name) + len(self.body) + 5) + name + b"\0" + self.body


UNSURE: Final = Statement(b"\0\0\0", classify(b""))
"""Stands for an unnamed statement of which it is not known what it is, and whose."""


SHAPE: Final = bytes.maketrans(b"123456789", b"0" * 9)
"""A table for bytes.translate() under which queries that differ in their numbers only become one."""

SHAPE_LIMIT: Final = 256
"""Bytes. The length of a Query up to this is in the last byte of its header, the four before it have no digits."""

_MOST_SHAPES: Final = 1000


class LibraryFullError(Exception):
    """There is no room for another statement's text."""


class Library:
    """The statements in use, each text once; `limit` is in bytes.

    What no client has under a name is only there to be recognised: of that a quarter of the room is kept, the oldest
    is forgotten first, and all of it when the room is needed.
    """

    def __init__(self, limit: int, ignored: State, *, watch_all: bool = False) -> None:
        """Texts that leave nothing but `ignored` behind are plain; with `watch_all` none is taken for that."""
        self._set_limits(limit, ignored, watch_all=watch_all)
        self.shapes: set[bytes] = set()
        """Short plain Queries that were seen before, with SHAPE applied. Whether one is plain hangs on no digit."""
        self._known: dict[bytes, Statement] = {}
        self._dialects: dict[tuple[bytes, Dialect], Statement] = {}
        self._unused: OrderedDict[Statement, None] = OrderedDict()
        self._unused_bytes = 0
        self.plain: dict[bytes, Statement] = {}
        """Those, by body, that leave nothing behind in a session: all that the hot path needs to know."""
        self._verdicts: dict[bytes, Verdict] = {}
        self.bytes = 0
        """What texts and names take, in all, about."""
        self.evicted = 0
        """How many have been forgotten."""
        self.parses = 0
        """How often one was prepared on a server."""
        self.schema_epoch = 0
        """How often a statement has passed that may have changed what others return."""
        self.plan_epoch = 0
        """How often a server has found that out by itself ("cached plan must not change result type")."""

    def _set_limits(self, limit: int, ignored: State, *, watch_all: bool) -> None:
        self.limit = limit
        self._ignored = ignored
        self._watch_all = watch_all
        by_sight = State.SEQUENCE in ignored and not watch_all
        self.is_plain_query = self._is_plain_at_sight if by_sight else self._is_plain_query
        """Tells whether a chunk is one Query that leaves nothing behind in a session."""

    def reconsider(self, limit: int, ignored: State, *, watch_all: bool = False) -> None:
        """Judge all texts anew, by other limits."""
        if (limit, ignored, watch_all) == (self.limit, self._ignored, self._watch_all):
            return
        self._set_limits(limit, ignored, watch_all=watch_all)
        self.shapes.clear()
        self.plain.clear()
        for body, statement in self._known.items():
            statement.plain = self.is_plain(statement.verdict) and not watch_all
            if statement.plain:
                self.plain[body] = statement
        for statement in self._dialects.values():
            statement.plain = self.is_plain(statement.verdict) and not watch_all

    def __iter__(self) -> Iterator[Statement]:
        """Return those that are known, in all dialects."""
        return iter([*self._known.values(), *self._dialects.values()])

    @property
    def count(self) -> int:
        """How many statements are known."""
        return len(self._known) + len(self._dialects)

    def find(self, body: bytes) -> Statement:
        """Return the statement with this body."""
        statement = self._known.get(body)
        if statement is None:
            verdict = classify(body[: body.index(0)])
            statement = Statement(body, verdict, plain=self.is_plain(verdict) and not self._watch_all)
            if self._make_room(statement.size):
                self._known[body] = statement
                self.bytes += statement.size
                self._put_aside(statement)
                if statement.plain:
                    self.plain[body] = statement
        return statement

    def find_named(self, body: bytes, dialect: Dialect) -> Statement:
        """Return the statement for clients with these settings, to be kept for one of them: see release().

        Raises LibraryFullError.
        """
        statement = self.find(body)
        if self._known.get(body) is not statement:
            raise LibraryFullError
        self.keep(statement)
        if dialect:
            base, statement = statement, self._in_dialect(statement, dialect)
            self.keep(statement)
            self.release(base)
        if not self._make_room(0):
            self.release(statement)
            self._make_room(0)
            raise LibraryFullError
        return statement

    def _in_dialect(self, base: Statement, dialect: Dialect) -> Statement:
        statement = self._dialects.get((base.body, dialect))
        if statement is None:
            statement = Statement(base.body, base.verdict, dialect, plain=base.plain)
            self._dialects[base.body, dialect] = statement
            self.bytes += statement.size
            self._put_aside(statement)
            self.keep(base)  # for as long as it is spoken
        return statement

    def keep(self, statement: Statement) -> None:
        """A client has `statement` under a name."""
        if not statement.users:
            del self._unused[statement]
            self._unused_bytes -= statement.size
        statement.users += 1
        self.bytes += NAME_OVERHEAD

    def release(self, statement: Statement) -> None:
        """A client does not have `statement` under a name any more."""
        statement.users -= 1
        self.bytes -= NAME_OVERHEAD
        if not statement.users:
            self._put_aside(statement)

    def _put_aside(self, statement: Statement) -> None:
        self._unused[statement] = None
        self._unused_bytes += statement.size

    def _make_room(self, size: int) -> bool:
        """Forget what nobody uses, until there is room for `size` bytes; False if there is none."""
        while self._unused and (self.bytes + size > self.limit or self._unused_bytes + size > self.limit // 4):
            statement, _ = self._unused.popitem(last=False)
            self._unused_bytes -= statement.size
            self.bytes -= statement.size
            self.evicted += 1
            if statement.dialect:
                del self._dialects[statement.body, statement.dialect]
                self.release(self._known[statement.body])
            else:
                del self._known[statement.body]
                self.plain.pop(statement.body, None)
        return self.bytes + size <= self.limit

    def plans_are_stale(self) -> None:
        """A server has found a statement to return something else: each server parses each of them anew."""
        self.plan_epoch += 1

    def is_plain(self, verdict: Verdict) -> bool:
        """Tell whether a text with this verdict need not be watched."""
        asks, executes = verdict.asks, verdict.executes or verdict.ddl or verdict.deallocates
        return not (asks or executes or verdict.undoes or verdict.leaves & ~self._ignored)

    def _is_plain_at_sight(self, data: bytes) -> bool:
        plain = is_plain_query(data)
        if plain and len(data) <= SHAPE_LIMIT:
            if len(self.shapes) >= _MOST_SHAPES:
                self.shapes.clear()
            self.shapes.add(data.translate(SHAPE))
        return plain

    def _is_plain_query(self, data: bytes) -> bool:
        return not self._watch_all and is_plain_query(data) and self.is_plain(self.verdict(data[5:-1]))

    def verdict(self, text: bytes) -> Verdict:
        """Return the verdict on a text, remembered for those that come again."""
        verdict = self._verdicts.get(text)
        if verdict is None:
            verdict = classify(text)
            if len(text) <= 1024:
                if len(self._verdicts) >= 2000:
                    self._verdicts.clear()
                self._verdicts[text] = verdict
        return verdict


@final
class Copy:
    """A statement on a server."""

    __slots__ = ("name", "plan_epoch", "run", "schema_epoch")

    def __init__(self, name: bytes, library: Library, run: object) -> None:
        self.name = name
        self.schema_epoch = library.schema_epoch
        self.plan_epoch = library.plan_epoch
        self.run: object | None = run
        """What it is parsed in, and what may fail before: only there it can be counted on. None = it is there."""

    def confirm(self) -> None:
        """It has been parsed."""
        self.run = None


@final
class ServerStatements:
    """What one server has prepared, the one used last at the end; `most` of them.

    At least one: when a reload turns them off, clients go on with what they have prepared.
    """

    __slots__ = ("_copies", "_library", "_made", "_most", "_surplus")

    def __init__(self, library: Library, most: int) -> None:
        self._library = library
        self._most = max(1, most)
        self._copies: OrderedDict[Statement, Copy] = OrderedDict()
        self._made = 0
        self._surplus: list[bytes] = []

    def __len__(self) -> int:
        return len(self._copies)

    def __iter__(self) -> Iterator[Statement]:
        return iter(list(self._copies))

    def use(self, statement: Statement, run: object) -> bytes:
        """Return the name that the server has it under; empty if it is not there, or not fit for use in `run`."""
        copy = self._copies.get(statement)
        if copy is None or copy.plan_epoch != self._library.plan_epoch or not (copy.run is None or copy.run is run):
            return b""
        self._copies.move_to_end(statement)
        return copy.name

    def has_current(self, statement: Statement, run: object) -> bool:
        """Tell whether it is there in `run`, and as it would be if it were parsed now."""
        return bool(self.use(statement, run)) and self._copies[statement].schema_epoch == self._library.schema_epoch

    def add(self, statement: Statement, run: object) -> Copy:
        """Return it with a name under which it is to be parsed now, in `run`; what that replaces becomes surplus()."""
        self._drop(statement)
        if len(self._copies) >= self._most:
            self._drop(next(iter(self._copies)))
        self._made += 1
        self._library.parses += 1
        copy = self._copies[statement] = Copy(PREFIX + b"%d" % self._made, self._library, run)
        return copy

    def _drop(self, statement: Statement) -> None:
        copy = self._copies.pop(statement, None)
        if copy is not None:
            self._surplus.append(copy.name)

    def surplus(self) -> list[bytes]:
        """Return the names that are to be closed on the server, once."""
        surplus, self._surplus = self._surplus, []
        return surplus

    def return_surplus(self, name: bytes) -> None:
        """It was not closed after all."""
        self._surplus.append(name)

    def forget(self, statement: Statement, copy: Copy) -> None:
        """It was not parsed after all."""
        if self._copies.get(statement) is copy:
            del self._copies[statement]

    def take_all(self) -> "OrderedDict[Statement, Copy]":
        """The server is about to drop all of them: forget and return them, in case it does not; see put_back()."""
        copies, self._copies = self._copies, OrderedDict()
        return copies

    def put_back(self, copies: "OrderedDict[Statement, Copy]") -> None:
        """It has not."""
        self._surplus += [copy.name for statement, copy in copies.items() if statement in self._copies]
        there = {statement: copy for statement, copy in copies.items() if copy.run is None}  # the others have failed
        self._copies = OrderedDict({**there, **self._copies})
        while len(self._copies) > self._most:
            self._drop(next(iter(self._copies)))

    def doubt(self) -> None:
        """It is not known any more which of them are there: all are closed sometime, and parsed anew."""
        self._surplus += [copy.name for copy in self._copies.values()]
        self._copies.clear()

    def clear(self) -> None:
        """The server has dropped all of them."""
        self._copies.clear()
        self._surplus.clear()


def close_statement(name: bytes) -> bytes:
    """Return a Close of a prepared statement."""
    return b"C" + _int32(len(name) + 6) + b"S" + name + b"\0"
