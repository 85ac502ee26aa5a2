"""Requests that are more than plain forwarding: named statements, and texts that may leave something in the session.

The scanner stops before each of them. Named statements go out under the names that the server has them under, parsed
there first if need be; what the policy does not allow is refused; about what may leave something, the server is told
to ask. Source: PostgreSQL documentation, "Extended Query".
"""

from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Final

from pooler.hold import RESETTING, STALLED
from pooler.server import ServerSession
from pooler.watch import UNREAD, Asker, Watch
from protocol.edits import Edit, Op
from protocol.errors import ClientViolation
from protocol.exchange import NORMAL
from protocol.frontend import HOLD_LIMIT, scan_requests
from protocol.kinds import BIND, CLOSE, FUNCTION_CALL, PARSE, QUERY
from protocol.messages import ErrorFields, error_response, message, query
from protocol.sql import State, Verdict
from protocol.statements import (
    NAME_SIZE,
    PLAIN,
    PREFIX,
    TEXT_LIMIT,
    UNSURE,
    Copy,
    LibraryFullError,
    Statement,
    close_statement,
)
from protocol.unnamed import change_unnamed, end_unnamed, replace_unnamed, unnamed_in_doubt

FOREIGN: Final = b"?"
"""Put behind a client's own name that could be one of the pooler's."""

_header = Struct("!BI").unpack_from
_int32 = Struct("!I")

_PARSE_COMPLETE: Final = message(b"1", b"")
_DEALLOCATED: Final = message(b"C", b"DEALLOCATE\0")
_ALL: Final = b"\0"
"""Stands for all names of a client's, and is none."""
_NO_TEXT: Final = b"\0\0\0"
_STAND_IN: Final = "UNLISTEN pgfunnel_nothing"
"""Sent in place of what the pooler carries out: it does nothing, but is refused where Postgres would refuse that."""
_REFUSED: Final = "pgfunnel has refused a statement"
"""Sent in place of what is refused: no SQL, so that Postgres does all that an error brings with it."""
_AT_LOGIN: Final = State.SETTING | State.IDENTITY
"""What a client may have logged in with."""
_SHOWN: Final = 1000
"""Bytes of a text too long to be read that are kept for the log."""
_LARGE_OBJECTS: Final = frozenset(
    (715, 764, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172)
)  # the functions of libpq's large object interface (pg_proc.dat)


def take_care(client: Asker, server: ServerSession, data: bytes, at: int, max_size: int) -> tuple[bytes, int]:
    """Book the requests in `data` from `at` on, where scan_requests() has stopped.

    Return what is to be sent in place of `data`, and how many bytes of that are to be sent now, as scan_requests().
    Raises ClientViolation, with what came before it sent.
    """
    exchange = server.exchange
    library = server.state.sharing.library
    done = [data[:at]]
    rest = data[at:]
    care: _Care | None = None
    try:
        while True:
            size = _bind_as_usual(client, server, rest, done)
            if not size:
                care = care or _Care(client, server, max_size)
                size = care.take(rest, done)
                if not size and not care.told():
                    end = 0
                    break
            rest = rest[size:]
            if server.hold & RESETTING:
                end = 0
                break
            end = scan_requests(exchange, rest, max_size, client, library)
            if end >= 0:
                break
            done.append(rest[:~end])
            rest = rest[~end:]
    except ClientViolation as violation:
        server.transport.write(b"".join(done) + rest[: violation.offset])
        raise ClientViolation(violation.message) from None
    if care is not None:
        care.told()
    out = b"".join(done)
    return out + rest, len(out) + end


def _bind_as_usual(client: Asker, server: ServerSession, data: bytes, done: list[bytes]) -> int:
    """Book the Bind at the beginning of `data` if there is nothing more to it than another name: as _Care.take().

    That would do the same in three times the time, and this is what most chunks of an application that prepares begin
    with. 0 = it is for _Care to look at.
    """
    state, exchange, statements = server.state, server.exchange, client.statements
    length: int
    kind, length = _header(data)
    if kind != BIND or length >= len(data) or not statements or state.unsettled:
        return 0
    if exchange.mode != NORMAL or data[5:6] != b"\0":
        return 0
    end = data.find(0, 6)
    statement = statements.get(data[6:end])
    if statement is None or not statement.plain or end > length:
        return 0
    name = state.statements.use(statement, exchange.edits)
    if not name:
        return 0
    exchange.run += 1
    server.pool.stats.bind_count += 1
    done.append(b"B" + _int32.pack(length + len(name) + 6 - end) + b"\0" + name + data[end : length + 1])
    return length + 1


class _Care:
    """The care that is taken of one client's requests; take() does one of them."""

    def __init__(self, client: Asker, server: ServerSession, max_size: int) -> None:
        self._client = client
        self._server = server
        self._exchange = server.exchange
        self._state = server.state
        self._sharing = server.state.sharing
        self._library = server.state.sharing.library
        self._stats = server.pool.stats
        self._watch = Watch(client, server)
        self._max_size = max_size

    def told(self) -> bool:
        """Tell the client what it can be told now; True if that was what its next request had stalled for."""
        exchange, server = self._exchange, self._server
        inserts = exchange.take_inserts() if exchange.edited else b""
        if not inserts or server.client is None:
            return False
        server.tell(server.client, inserts)
        stalled = bool(server.hold & STALLED)
        server.hold &= ~STALLED
        return stalled

    def take(self, data: bytes, done: list[bytes]) -> int:  # noqa: PLR0911 - one for each kind of request
        """Book the request at the beginning of `data`, append what goes to the server to `done`.

        Return how many bytes of `data` that were; 0 = it is not whole yet, and has to be.
        """
        kind, length = _header(data)
        if self._exchange.skipping:
            return self._plain(data, length, done)
        if kind == QUERY:
            return self._query(data, length, done)
        if kind == FUNCTION_CALL:
            return self._function_call(data, length, done)
        if kind == BIND:
            return self._bind(data, length, done)
        if length >= len(data):
            return 0 if length < TEXT_LIMIT or len(data) < 6 else self._too_long(data, length, done)
        if kind != PARSE and data.find(0, 6) != length:
            return self._plain(data, length, done)  # malformed: for Postgres to say so
        if kind == PARSE:
            return self._parse(data[: length + 1], done)
        if kind == CLOSE:
            return self._close(data[: length + 1], done)
        return self._describe(data[: length + 1], done)

    def _plain(self, data: bytes, length: int, done: list[bytes]) -> int:
        """Book a request that goes out as it is."""
        end = scan_requests(self._exchange, data[: length + 1], self._max_size)
        done.append(data[:end])
        return end

    # --- texts

    def _query(self, data: bytes, length: int, done: list[bytes]) -> int:
        if length >= len(data):
            if length >= HOLD_LIMIT:
                self._watch.note_unread(data[5:_SHOWN])
                end_unnamed(self._exchange, self._client)
            return self._plain(data, length, done)
        library = self._library
        text = data[5:length]
        self._watch.follow(text)
        verdict = None
        if not library.is_plain_query(data[: length + 1]):
            verdict = library.verdict(text)
            if library.is_plain(verdict):
                verdict = None
            elif self._stalls_on(verdict):
                return 0
        end_unnamed(self._exchange, self._client)
        if verdict is not None and self._replaced(verdict, text, done):
            return length + 1
        return self._plain(data, length, done)

    def _replaced(self, verdict: Verdict, text: bytes, done: list[bytes]) -> bool:
        """Send a Query that is not plain, or something in its place; False if it is to go out as all do."""
        if self._watch.deallocates(verdict):
            self._exchange.owe_edited_query(
                Edit(Op.STAND_IN, _DEALLOCATED, *self._give_up(verdict.deallocates, object()))
            )
            done.append(query(_STAND_IN))
            return True
        refusal = self._watch.refusal(verdict, text) or self._watch.too_many(verdict, text)
        if refusal is not None:
            self._exchange.owe_edited_query(Edit(Op.ERROR, error_response(refusal)))
            done.append(query(_REFUSED))
            return True
        self._watch.note(verdict, text)
        edits = []
        if verdict.drops_statements:
            edits.append(Edit(Op.DROP, b"", *self._give_up_all(object())))
        if verdict.undoes & _AT_LOGIN and self._client.startup is not None:
            # Reset is what the server has by itself: its client's own have to be put on before anything else runs.
            self._server.hold |= RESETTING
            edits.append(Edit(Op.LAST, b"", self._reset))
        if edits:
            self._exchange.owe_edited_query(*edits)
            done.append(message(b"Q", text + b"\0"))
        return bool(edits)

    def _reset(self) -> None:
        """What had to wait goes on."""
        if self._server.hold & RESETTING:
            self._server.hold = (self._server.hold & ~RESETTING) | STALLED

    def _function_call(self, data: bytes, length: int, done: list[bytes]) -> int:
        if len(data) < 9:
            return 0
        if _int32.unpack_from(data, 5)[0] not in _LARGE_OBJECTS:
            self._watch.note_unread(b"FunctionCall")
        return self._plain(data, length, done)

    # --- statements

    def _parse(self, request: bytes, done: list[bytes]) -> int:
        end = request.find(0, 5) + 1
        if not end or request.find(0, end) < 0:
            return self._plain(request, len(request) - 1, done)  # malformed: for Postgres to say so
        name, body = request[5 : end - 1][:NAME_SIZE], request[end:]
        if name and self._stalls(name):
            return 0
        if name and self._sharing.max_prepared:
            self._parse_named(name, body, done)
            return len(request)
        size = len(request)
        statement = self._library.find(body)
        refusal = self._watch.refusal(statement.verdict, statement.text)
        if refusal is not None:
            if not name:
                change_unnamed(self._exchange, self._client, None)
            self._refuse(refusal, done)
            return size
        if name:  # passed on under its name
            if not self._library.is_plain(statement.verdict):
                self._watch.note(statement.verdict, statement.text, alone=False)
                self._sharing.unseen_names = True
        else:
            change_unnamed(self._exchange, self._client, statement)
        self._book(request, done)
        return size

    def _parse_named(self, name: bytes, body: bytes, done: list[bytes]) -> None:
        client, exchange, known = self._client, self._exchange, self._state.statements
        if client.statements is None:
            client.statements = {}
        refusal: ErrorFields | None
        if name in client.statements:
            # Postgres will object to the text, or to the name.
            server_name = self._resolve(name, done) or name
            exchange.edit(Op.NAME, server_name + b"\0" + name)
            self._book(message(b"P", server_name + b"\0" + body), done)
            return
        try:
            statement = self._library.find_named(body, client.profile.dialect if client.profile is not None else PLAIN)
        except LibraryFullError:
            refusal = ErrorFields(
                "ERROR",
                "53400",
                "there is no room for another prepared statement (max_statement_memory)",
                hint="Close prepared statements that are not needed any more, or raise max_statement_memory.",
            )
            self._refuse(refusal, done)
            return
        refusal = self._watch.refusal(statement.verdict, statement.text)
        if refusal is not None:
            self._library.release(statement)
            self._refuse(refusal, done)
            return
        client.statements[name] = statement
        self._stats.client_parse_count += 1
        undo: Callable[[], None] = partial(self._unprepare, name, settled=True)
        settled = self._await(name, exchange.edits)
        if known.has_current(statement, exchange.edits) and not self._watch.may_have_failed:
            exchange.edit(Op.INSERT, _PARSE_COMPLETE, undo, settled)
        else:
            copy = self._make_room(statement, done)
            undo = partial(_both, undo, partial(known.forget, statement, copy))
            exchange.edit(Op.WATCH, b"", undo, partial(_both, settled, copy.confirm))
            self._book(statement.parse(copy.name), done)

    def _await(self, name: bytes, run: object) -> Callable[[], None]:
        """Have later runs wait until it is seen what becomes of `name` in this one; return what ends that."""
        _, count = self._state.unsettled.get(name, (None, 0))
        self._state.unsettled[name] = (run, count + 1)
        return partial(self._settled, name)

    def _settled(self, name: bytes) -> None:
        run, count = self._state.unsettled.pop(name)
        if count > 1:
            self._state.unsettled[name] = (run, count - 1)

    def _stalls(self, name: bytes) -> bool:
        """Tell whether it has yet to be seen what becomes of `name` in an earlier run; proceed() goes on then."""
        exchange, unsettled = self._exchange, self._state.unsettled
        if name:
            stalls = any(key in unsettled and unsettled[key][0] is not exchange.edits for key in (name, _ALL))
        else:
            stalls = unnamed_in_doubt(exchange) and exchange.watch_replies()
        if stalls:
            self._server.hold |= STALLED
        return stalls

    def _stalls_on(self, verdict: Verdict) -> bool:
        """Tell the same for a text that deallocates."""
        if verdict.drops_statements:
            return any(self._stalls(name) for name in self._state.unsettled)
        return bool(verdict.deallocates) and self._stalls(verdict.deallocates)

    def _unprepare(self, name: bytes, *, settled: bool = False) -> None:
        if settled:
            self._settled(name)
        statement = self._client.statements.pop(name, None) if self._client.statements else None
        if statement is not None:
            self._library.release(statement)

    def _give_up(self, name: bytes, run: object) -> tuple[Callable[[], None], Callable[[], None]]:
        """Take it that a statement of the client's is closed; return what undoes that, and what is done if it is."""
        statement = (self._client.statements or {}).pop(name)
        settled = self._await(name, run)
        return partial(self._keep, name, statement), partial(_both, settled, partial(self._library.release, statement))

    def _give_up_all(self, run: object) -> tuple[Callable[[], None], Callable[[], None]]:
        """Take it that all of them are; return the same."""
        undo, done = self._watch.drop_statements()
        settled = self._await(_ALL, run)
        return partial(_both, settled, undo), partial(_both, settled, done)

    def _keep(self, name: bytes, statement: Statement) -> None:
        """It was not closed after all."""
        self._settled(name)
        if self._client.statements is not None and name not in self._client.statements:
            self._client.statements[name] = statement
        else:
            self._library.release(statement)

    def _make_room(self, statement: Statement, done: list[bytes]) -> Copy:
        """Return what `statement` is to be parsed as; close what has to give way."""
        known = self._state.statements
        self._stats.server_parse_count += 1
        copy = known.add(statement, self._exchange.edits)
        for old in known.surplus():
            self._exchange.edit(Op.SWALLOW, undo=partial(known.return_surplus, old))
            self._book(close_statement(old), done)
        return copy

    def _bind(self, data: bytes, length: int, done: list[bytes]) -> int:  # noqa: PLR0911 - it may be cut, or not go out
        exchange = self._exchange
        portal_end = data.find(0, 5)
        end = data.find(0, portal_end + 1) if portal_end > 0 else -1
        whole = length < len(data)
        if not whole and (length < HOLD_LIMIT or (end < 0 and len(data) < HOLD_LIMIT)):
            return 0
        if end < 0 or end > length:
            return self._plain(data, length, done)
        if self._stalls(data[portal_end + 1 : end][:NAME_SIZE]):
            return 0
        statement = self._statement(data[portal_end + 1 : end])
        if statement is not None and not statement.plain and self._stalls_on(statement.verdict):
            return 0
        name = self._resolve(data[portal_end + 1 : end], done)
        if name is None:
            if self._sharing.unseen_names and data[portal_end + 1] and not self._sharing.max_prepared:
                self._watch.note_unread(b"a statement that is known by its name only")
            return self._plain(data, length, done)
        if statement is not None and not statement.plain:
            refusal = self._watch.too_many(statement.verdict, statement.text) if whole else None
            if refusal is not None:
                self._refuse(refusal, done)
                return length + 1
            if self._watch.deallocates(statement.verdict):
                name = self._bind_nothing(statement.verdict.deallocates, done)
            else:
                self._watch.follow(statement.text)
                self._watch.note_bound(statement, data, length + 1, data[5:portal_end], end)
                if statement.verdict.drops_statements:
                    exchange.edit(Op.DROP, b"", *self._give_up_all(exchange.edits))
        self._stats.bind_count += portal_end + 1 < end
        rest = data[end : length + 1]
        size = length + len(name) - (end - portal_end - 1)
        exchange.book_extended()
        done.append(b"B" + _int32.pack(size) + data[5 : portal_end + 1] + name + rest)
        if not whole:
            exchange.requests_rest = length + 1 - len(data)
            return len(data)
        return length + 1

    def _bind_nothing(self, name: bytes, done: list[bytes]) -> bytes:
        """Return the name of a statement that does nothing, to be bound in place of one that deallocates `name`."""
        exchange = self._exchange
        exchange.unnamed = UNSURE
        exchange.edit(Op.SWALLOW)
        self._book(message(b"P", b"\0" + _STAND_IN.encode() + _NO_TEXT), done)
        exchange.edit(Op.STAND_IN, _DEALLOCATED, *self._give_up(name, exchange.edits))
        return b""

    def _describe(self, request: bytes, done: list[bytes]) -> int:
        if self._stalls(request[6:-1][:NAME_SIZE]):
            return 0
        name = self._resolve(request[6:-1], done)
        if name is None:
            return self._plain(request, len(request) - 1, done)
        self._book(message(b"D", b"S" + name + b"\0"), done)
        return len(request)

    def _close(self, request: bytes, done: list[bytes]) -> int:
        """A statement stays on the server for the others; Postgres takes a Close of what does not exist."""
        name = request[6:-1][:NAME_SIZE]
        client = self._client
        if name and self._stalls(name):
            return 0
        if not name:
            change_unnamed(self._exchange, client, None)
        elif client.statements and name in client.statements:
            self._exchange.edit(Op.WATCH, b"", *self._give_up(name, self._exchange.edits))
        self._book(message(b"C", b"S" + self._foreign(name) + b"\0"), done)
        return len(request)

    def _statement(self, name: bytes) -> Statement | None:
        """Return what the client calls `name`."""
        client = self._client
        if not name:
            return client.unnamed
        return client.statements.get(name[:NAME_SIZE]) if client.statements else None

    def _resolve(self, name: bytes, done: list[bytes]) -> bytes | None:
        """Return the name on the server of a client's statement, parsed there now if need be.

        None: it is to go out as it is; Postgres has it, or will say that it does not exist.
        """
        exchange = self._exchange
        if not name:
            return self._resolve_unnamed(done)
        statement = self._statement(name)
        if statement is None:
            foreign = self._foreign(name)
            if foreign is name:
                return None
            exchange.edit(Op.NAME, foreign + b"\0" + name)
            return foreign
        known = self._state.statements
        server_name = known.use(statement, exchange.edits)
        if not server_name:
            copy = self._make_room(statement, done)
            server_name = copy.name
            exchange.edit(Op.SWALLOW, b"", partial(known.forget, statement, copy), copy.confirm)
            self._book(statement.parse(server_name), done)
        return server_name

    def _resolve_unnamed(self, done: list[bytes]) -> bytes | None:
        exchange = self._exchange
        statement = self._client.unnamed
        if statement is None or (statement.verdict is UNREAD and exchange.unnamed is not statement):
            if exchange.unnamed is not None:
                replace_unnamed(exchange, None)  # it may be another client's
                self._book(close_statement(b""), done)
            return None
        if exchange.unnamed is not statement:
            replace_unnamed(exchange, statement)
            self._book(statement.parse(b""), done)
        return b""

    def _foreign(self, name: bytes) -> bytes:
        """Return `name` such that it is none of the pooler's own on the server."""
        return name + FOREIGN if name.startswith(PREFIX) and self._sharing.max_prepared else name

    def _book(self, request: bytes, done: list[bytes]) -> None:
        self._exchange.book_extended()
        done.append(request)

    def _refuse(self, error: ErrorFields, done: list[bytes]) -> None:
        """Have the server fail in place of an extended request, and the client told why."""
        self._exchange.edit(Op.ERROR, error_response(error))
        self._book(message(b"P", PREFIX + b"refused\0" + _REFUSED.encode() + _NO_TEXT), done)

    def _too_long(self, data: bytes, length: int, done: list[bytes]) -> int:
        """A Parse too long to be kept."""
        if data[5:6] != b"\0" and self._sharing.max_prepared:
            raise ClientViolation(
                f"a statement of {length} bytes can't be prepared under a name (no more than {TEXT_LIMIT})"
            )
        change_unnamed(self._exchange, self._client, Statement(data[6:_SHOWN] + _NO_TEXT, UNREAD))
        return self._plain(data, length, done)


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    second()
    first()
