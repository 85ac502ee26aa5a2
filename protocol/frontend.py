"""The frontend scanner: books the requests in a chunk that a client sent, on their way to its server.

Hot path: called once per chunk; one header look-up per message, no payload is sliced but the texts of statements. It
stops before what is more than plain forwarding: named statements, and texts that may leave something in the session.
"""

from collections.abc import Mapping
from struct import Struct
from typing import Final, final

from protocol.edits import Holder
from protocol.errors import ClientViolation
from protocol.exchange import NORMAL, OWED_QUERY, Exchange
from protocol.kinds import (
    BIND,
    CLOSE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DESCRIBE,
    EXECUTE,
    FLUSH,
    FUNCTION_CALL,
    PARSE,
    QUERY,
    SYNC,
    TERMINATE,
)
from protocol.statements import SHAPE, SHAPE_LIMIT, Library, Statement
from protocol.unnamed import change_unnamed, end_unnamed

HOLD_LIMIT: Final = 16 * 1024
"""Bytes. A request up to this size is sent on only once it is whole, so that half a message never holds a server."""

SHORT_LIMIT: Final = 10_000
"""Bytes. Requests that carry no user data are no longer than this (PQ_SMALL_MESSAGE_LIMIT in PostgreSQL's libpq.h)."""

_header = Struct("!BI").unpack_from

# What to do with a request, by its kind; 0 = there is no such request.
_EXTENDED: Final = 1
_SYNC: Final = 2
_QUERY: Final = 3
_COPY_DATA: Final = 4
_COPY_END: Final = 5
_FLUSH: Final = 6
_TERMINATE: Final = 7
# What to look at more closely, where session state is watched; all of these are greater than those above.
_ANY_QUERY: Final = 8
_PARSE: Final = 9
_BIND: Final = 10
_NAMED: Final = 11


def _actions() -> bytes:
    table = bytearray(256)
    for kind in (PARSE, BIND, DESCRIBE, EXECUTE, CLOSE):
        table[kind] = _EXTENDED
    for kind in (QUERY, FUNCTION_CALL):
        table[kind] = _QUERY
    for kind in (COPY_DONE, COPY_FAIL):
        table[kind] = _COPY_END
    table[SYNC] = _SYNC
    table[COPY_DATA] = _COPY_DATA
    table[FLUSH] = _FLUSH
    table[TERMINATE] = _TERMINATE
    return bytes(table)


def _watched_actions() -> bytes:
    table = bytearray(_actions())
    table[QUERY] = table[FUNCTION_CALL] = _ANY_QUERY
    table[PARSE] = _PARSE
    table[BIND] = _BIND
    table[DESCRIBE] = table[CLOSE] = _NAMED
    return bytes(table)


_ACTIONS: Final = _actions()
_WATCHED_ACTIONS: Final = _watched_actions()
_STATEMENT: Final = ord("S")  # in Describe and Close; P = a portal
_SHORT_KINDS: Final = frozenset((DESCRIBE, EXECUTE, CLOSE, SYNC, FLUSH, COPY_DONE, COPY_FAIL, TERMINATE))


@final
class _Nobody:
    """Whose session state is not watched."""

    unnamed: Statement | None = None


_NOBODY: Final = _Nobody()
_UNWATCHED: Final[Mapping[bytes, Statement]] = {}


def scan_requests(  # noqa: C901, PLR0911, PLR0912, PLR0915 - flat for speed
    exchange: Exchange, data: bytes, max_size: int, holder: Holder = _NOBODY, library: Library | None = None
) -> int:
    """Book the requests in `data`, and return how many of its bytes are to be sent to the server now.

    What is left after that is a Terminate, or the beginning of a request that is not yet whole: hand it in again
    with what follows it. With a `holder` and a `library` the session state is watched: a negative result ~at means
    that the request at `at` may have to do with it, and that everything before it is booked.

    Raises ClientViolation, whose `offset` tells how many bytes before it were booked. Long and flat because it runs
    for every chunk.
    """
    end = len(data)
    at = exchange.requests_rest
    if at:
        if at >= end:
            exchange.requests_rest = at - end
            return end
        exchange.requests_rest = 0
    if library is None:
        actions, plain = _ACTIONS, _UNWATCHED
    else:
        actions, plain = _WATCHED_ACTIONS, library.plain
        if (
            end
            and data[0] == QUERY
            and not at
            and (
                (end <= SHAPE_LIMIT and data.translate(SHAPE) in library.shapes and data[4] == end - 1)
                or library.is_plain_query(data)
            )
        ):
            if exchange.owed or exchange.run:
                end_unnamed(exchange, holder)
            else:
                holder.unnamed = exchange.unnamed = None
            if exchange.mode == NORMAL and not exchange.run:
                exchange.owed.append(OWED_QUERY)
            else:
                exchange.book_query()
            return end
    parsed = False
    last = end - 5
    while at <= last:
        kind, length = _header(data, at)
        action = actions[kind]
        after = at + length + 1
        if after > end or not action or not 4 <= length <= SHORT_LIMIT:
            check_request(kind, length, max_size, at)
            if after > end:
                if action > _TERMINATE:
                    return ~at
                if length < HOLD_LIMIT and action != _COPY_DATA:
                    return at
                exchange.requests_rest = after - end
        if action > _TERMINATE:
            if action == _BIND:
                if not parsed or data[at + 5] or data[at + 6]:
                    return ~at
            elif action == _NAMED:
                if data[at + 5] == _STATEMENT:
                    return ~at
            elif action == _PARSE:
                statement = None if data[at + 5] else plain.get(data[at + 6 : after])
                if statement is None:
                    return ~at
                if exchange.owed or exchange.run:
                    change_unnamed(exchange, holder, statement)
                else:
                    holder.unnamed = exchange.unnamed = statement
                    exchange.first_parse = exchange.queries
                parsed = True
            else:
                return ~at
            action = _EXTENDED
        if action == _EXTENDED:
            if exchange.mode == NORMAL:
                exchange.run += 1
            else:
                exchange.book_extended()
        elif action == _SYNC:
            parsed = False  # what comes next may be carried out where that was skipped
            if exchange.mode == NORMAL and not exchange.changes:
                exchange.owed.append(exchange.run)
                exchange.run = 0
            else:
                exchange.book_sync()
        elif action == _QUERY:
            if exchange.mode == NORMAL and not exchange.run:
                exchange.owed.append(OWED_QUERY)
            else:
                exchange.book_query()
        elif action == _COPY_END:
            exchange.book_copy_end()
        elif action == _TERMINATE:
            return at
        if after >= end:
            return end
        at = after
    return at


def check_request(kind: int, length: int, max_size: int, at: int) -> None:
    """Raise ClientViolation if no request at offset `at` may have this kind and length."""
    if not 4 <= length <= max_size or not _ACTIONS[kind] or (length > SHORT_LIMIT and kind in _SHORT_KINDS):
        raise ClientViolation(_complaint(kind, length, max_size), at)


def is_terminate(data: bytes, at: int) -> bool:
    """Tell whether what scan_requests left at `at` is a Terminate."""
    return data[at : at + 1] == b"X"


def has_request(data: bytes) -> bool:
    """Tell whether `data`, at whose beginning a request begins, has enough of it to be sent to a server.

    What is no request at all counts: it is for scan_requests() to say so.
    """
    if len(data) < 5:
        return False
    length: int = _header(data)[1]
    return length < len(data) or length >= HOLD_LIMIT


def first_unit(data: bytes) -> int:
    """Return the offset after the first request in `data` that ends with a ReadyForQuery; 0 if none is whole."""
    at = 0
    while at <= len(data) - 5:
        kind, length = _header(data, at)
        at += length + 1
        if kind in (QUERY, FUNCTION_CALL, SYNC):
            return at if at <= len(data) else 0
    return 0


def _complaint(kind: int, length: int, max_size: int) -> str:
    if not _ACTIONS[kind]:
        return f"invalid frontend message type {kind}"
    if length > max_size:
        return f"message of type {chr(kind)!r} is {length} bytes long, more than max_packet_size ({max_size}) allows"
    return f"invalid length {length} of a message of type {chr(kind)!r}"
