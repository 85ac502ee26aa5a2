"""The backend scanner's slow sibling: passes replies on one by one, as the edits that were noted for them say."""

from struct import Struct
from typing import Final

from protocol.backend import scan_replies
from protocol.edits import Op
from protocol.errors import ServerViolation
from protocol.exchange import Exchange
from protocol.kinds import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    COMMAND_COMPLETE,
    EMPTY_QUERY_RESPONSE,
    ERROR_RESPONSE,
    NO_DATA,
    NOTIFICATION_RESPONSE,
    PARAMETER_STATUS,
    PARSE_COMPLETE,
    PORTAL_SUSPENDED,
    READY_FOR_QUERY,
    ROW_DESCRIPTION,
)
from protocol.messages import message

_header = Struct("!BI").unpack_from

MAX_HELD: Final = 1 << 20
"""Bytes. No reply that has to be whole before it can be passed on, or hidden, is longer."""

_CLOSING: Final = frozenset(
    (
        PARSE_COMPLETE,
        BIND_COMPLETE,
        CLOSE_COMPLETE,
        NO_DATA,
        ROW_DESCRIPTION,
        COMMAND_COMPLETE,
        EMPTY_QUERY_RESPONSE,
        PORTAL_SUSPENDED,
    )
)
_NEEDED_WHOLE: Final = frozenset((COMMAND_COMPLETE, ERROR_RESPONSE, READY_FOR_QUERY, PARAMETER_STATUS))
_READY: Final = READY_FOR_QUERY.to_bytes()
_READY_SIZE: Final = 6
_UNLISTENED: Final = message(b"C", b"UNLISTEN\0")
_DROPPED: Final = (b"DISCARD ALL\0", b"DEALLOCATE ALL\0")


def alter_replies(exchange: Exchange, data: bytes) -> tuple[bytes, bool]:
    """Strike off what `data` answers, as scan_replies() does, where there are edits.

    Return what the client is told, and whether the server is free. What can't be told about until it is whole is kept
    in exchange.held. Raises ServerViolation.
    """
    if exchange.held:
        data = exchange.held + data
        exchange.hold(b"")
    told: list[bytes] = []
    free = False
    end = len(data)
    at = min(_begun(exchange, data), end)
    if at:
        if exchange.replies_head[:1] == _READY and len(exchange.replies_head) + at == _READY_SIZE:
            exchange.finish_head()
        free = scan_replies(exchange, data[:at])
        told += (data[:at], exchange.take_inserts())
    while at < end:
        if end - at < 5:
            exchange.hold(data[at:])
            break
        kind, length = _header(data, at)
        after = at + length + 1
        hidden = exchange.hidden and kind != NOTIFICATION_RESPONSE
        if after > end and (hidden or kind in _NEEDED_WHOLE):
            if length > MAX_HELD:
                raise ServerViolation(f"a message of type {chr(kind)!r} is {length} bytes long", at)
            exchange.hold(data[at:])
            break
        reply = data[at:after]
        if hidden:
            if kind == ERROR_RESPONSE:
                exchange.hidden_error = reply[5:]
        else:
            told += (exchange.take_inserts(), _altered(exchange, kind, reply))
        if kind == READY_FOR_QUERY:
            exchange.finish_head()
        free = scan_replies(exchange, reply)
        at = min(after, end)
        told.append(exchange.take_inserts())
    return b"".join(told), free and not exchange.held


def _begun(exchange: Exchange, data: bytes) -> int:
    """Return how many bytes at the beginning of `data` belong to a reply that has been passed on in part."""
    head = exchange.replies_head
    if not head:
        return exchange.replies_rest
    if len(head) + len(data) < 5:
        return len(data)
    length: int = _header(head + data[:5])[1]
    return length + 1 - len(head)


def _altered(exchange: Exchange, kind: int, reply: bytes) -> bytes:
    """Return what the client is told instead of `reply`; the edit is done with that."""
    answered = exchange.answered
    for edit in exchange.head_edits:
        op = edit.op
        if kind == ERROR_RESPONSE:
            # on_error() drops the edit.
            if op is Op.ERROR and edit.at <= answered:
                return edit.reply
            if op is Op.NAME and edit.at == answered:
                name, _, own = edit.reply.partition(b"\0")
                return message(b"E", reply[5:].replace(name, own))
        elif op is Op.STAND_IN:
            if edit.at < answered and reply == _UNLISTENED:
                exchange.done(edit)
                return edit.reply
        elif op is Op.DROP:
            if kind == COMMAND_COMPLETE and reply[5:].startswith(_DROPPED):
                exchange.done(edit)
                return reply
        elif kind in _CLOSING and edit.at == answered and op in (Op.SWALLOW, Op.WATCH, Op.NAME):
            exchange.done(edit)
            return b"" if op is Op.SWALLOW else reply
    return reply
