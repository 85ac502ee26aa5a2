"""The backend scanner: strikes off what a chunk from the server answers, on its way to the client.

Hot path: called once per chunk; one header look-up per message, and far less for rows of equal length.
"""

import re
from struct import Struct
from typing import Final

from protocol.errors import ServerViolation
from protocol.exchange import OWED_COPY_END, OWED_QUERY, Exchange
from protocol.kinds import (
    AUTHENTICATION,
    BACKEND_KEY_DATA,
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    COMMAND_COMPLETE,
    COPY_BOTH_RESPONSE,
    COPY_DATA,
    COPY_DONE,
    COPY_IN_RESPONSE,
    COPY_OUT_RESPONSE,
    DATA_ROW,
    EMPTY_QUERY_RESPONSE,
    ERROR_RESPONSE,
    FUNCTION_CALL_RESPONSE,
    IDLE,
    NEGOTIATE_PROTOCOL_VERSION,
    NO_DATA,
    NOTICE_RESPONSE,
    NOTIFICATION_RESPONSE,
    PARAMETER_DESCRIPTION,
    PARAMETER_STATUS,
    PARSE_COMPLETE,
    PORTAL_SUSPENDED,
    READY_FOR_QUERY,
    ROW_DESCRIPTION,
)
from protocol.statements import PREFIX

_header = Struct("!BI").unpack_from

# What to do with a reply, by its kind. The first two are also how many requests it closes.
_PASS: Final = 0
_CLOSING: Final = 1  # the closing reply of an extended request
_ROW: Final = 2
_READY: Final = 3
_RARE: Final = 4
_INVALID: Final = 5


def _actions() -> bytes:
    table = bytearray([_INVALID]) * 256
    for kind in (
        AUTHENTICATION,
        BACKEND_KEY_DATA,
        COPY_BOTH_RESPONSE,
        COPY_DONE,
        COPY_OUT_RESPONSE,
        FUNCTION_CALL_RESPONSE,
        NEGOTIATE_PROTOCOL_VERSION,
        NOTICE_RESPONSE,
        NOTIFICATION_RESPONSE,
        PARAMETER_DESCRIPTION,
    ):
        table[kind] = _PASS
    for kind in (
        PARSE_COMPLETE,
        BIND_COMPLETE,
        CLOSE_COMPLETE,
        NO_DATA,
        ROW_DESCRIPTION,
        COMMAND_COMPLETE,
        EMPTY_QUERY_RESPONSE,
        PORTAL_SUSPENDED,
    ):
        table[kind] = _CLOSING
    table[READY_FOR_QUERY] = _READY
    table[ERROR_RESPONSE] = table[COPY_IN_RESPONSE] = table[PARAMETER_STATUS] = _RARE
    table[DATA_ROW] = table[COPY_DATA] = _ROW
    return bytes(table)


_ACTIONS: Final = _actions()
_READY_LENGTH: Final = 5
_SHORTEST: Final = 4
_STATEMENT_LOST: Final = re.compile(rb"\0C26000\0.*" + PREFIX + rb"\d+(?![\d?])", re.DOTALL).search
_STALE_PLAN: Final = b"\0RRevalidateCachedQuery\0"
"""In an ErrorResponse: what a prepared statement returns is not what it was (routine, in whatever language)."""
_LONGEST_PARAMETER: Final = 1 << 16
_FIRST_COUNT: Final = 16
_LARGEST_COUNT: Final = 4096


def scan_replies(exchange: Exchange, data: bytes) -> bool:  # noqa: C901, PLR0912, PLR0915 - flat for speed
    """Strike off what `data` answers; True if the server is free to be released after it (Exchange.settled).

    Raises ServerViolation for what no server may send. Long and flat because it runs for every chunk.
    """
    if exchange.replies_head:
        # Rare: a header was cut. Its bytes are counted again here, not sent again.
        data = exchange.replies_head + data
        exchange.replies_head = b""
    end = len(data)
    at = exchange.replies_rest
    if at:
        if at > end:
            exchange.replies_rest = at - end
            return False
        exchange.replies_rest = 0
    answered = exchange.answered
    last = end - 5
    row_size = 0
    first_count = end  # as many rows as there are, the first time
    while at <= last:
        kind, length = _header(data, at)
        action = _ACTIONS[kind]
        if length < _SHORTEST:
            raise ServerViolation(f"invalid length {length} of a message of type {chr(kind)!r}", at)
        if action <= _CLOSING:
            answered += action
            at += length + 1
        elif action == _ROW:
            # Rows of one length come in runs, and a run can be hopped over at a few nanoseconds a row. Two rows in
            # a row are no run yet: look where the header would be a few rows on before trying.
            if length > exchange.max_row:
                raise ServerViolation(f"a row of {length} bytes, more than max_packet_size ({exchange.max_row})", at)
            length += 1
            if length == row_size and data[at : at + 5] == data[at + 7 * length : at + 7 * length + 5]:
                at = _hop_run(data, at, length, first_count)
                first_count = _FIRST_COUNT
            else:
                row_size = length
                at += length
        elif action == _READY:
            if length != _READY_LENGTH:
                raise ServerViolation(f"invalid length {length} of a ReadyForQuery", at)
            if at + 6 > end:
                break
            exchange.status = status = data[at + 5]
            exchange.queries += 1
            if status != IDLE:
                exchange.in_block += 1
            answered = 0
            owed = exchange.owed
            if not owed:
                raise ServerViolation("the server sent a ReadyForQuery that nobody had asked for", at)
            head = owed.popleft()
            if head < OWED_QUERY:
                exchange.on_ready(head)
            if owed and owed[0] == OWED_COPY_END:
                exchange.drop_stray_copy_ends()
            at += 6
        elif action == _RARE:
            exchange.answered = answered
            if kind == ERROR_RESPONSE:
                exchange.on_error()
                error = data[at : at + length + 1]
                if _STALE_PLAN in error:
                    exchange.on_stale_plan()
                if _STATEMENT_LOST(error):
                    exchange.on_statement_lost()
            elif kind == COPY_IN_RESPONSE:
                exchange.on_copy_in()
            elif length > _LONGEST_PARAMETER:
                raise ServerViolation(f"a ParameterStatus of {length} bytes", at)
            elif at + length < end:
                exchange.on_parameter(data[at + 5 : at + length + 1])
            else:
                break  # cut: look again when it is whole
            answered = exchange.answered
            at += length + 1
        else:
            raise ServerViolation(f"invalid backend message type {kind}", at)
    exchange.answered = answered
    if at == end:
        return not exchange.owed and exchange.status == IDLE and not exchange.run and not exchange.requests_rest
    if at < end:
        exchange.replies_head = data[at:]
    else:
        exchange.replies_rest = at - end
    return False


def _hop_run(data: bytes, at: int, size: int, count: int) -> int:
    """Return the offset after the run of messages that starts at `at`, all of one kind and `size` bytes long.

    If each of n headers that stand `size` bytes apart reads the same, kind and length, then by induction each of
    them is a header. The five bytes of n headers are compared at once, as five slices with stride `size`; n begins
    with `count` and grows while the run lasts. What is compared in vain is then little more than what was hopped over,
    except the first time in a chunk, when the caller stakes the whole chunk on it.
    """
    header = data[at : at + 5]
    end = len(data)
    while True:
        count = min(count, (end - at - 5) // size + 1)  # headers that are wholly there
        stop = at + count * size - size + 1
        hopped = count
        for offset in range(5):
            column = data[at + offset : stop + offset : size]
            byte = header[offset : offset + 1]
            if column != byte * count:
                hopped = min(hopped, count - len(column.lstrip(byte)))
        at += hopped * size
        if hopped < count or at + 5 > end:
            return at
        count = min(count * 4, _LARGEST_COUNT)
