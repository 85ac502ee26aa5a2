"""A question of the pooler's own, to a Postgres that has just let it in."""

import asyncio
from struct import Struct
from typing import Final

from pooler.reasons import Reason
from pooler.upstream.connect import Login
from pooler.upstream.dial import ConnectFailedError, Conversation
from protocol.errors import ProtocolViolation
from protocol.kinds import DATA_ROW, ERROR_RESPONSE, READY_FOR_QUERY
from protocol.messages import query, read_error, text_of

_int32: Final = Struct("!i")

Row = list[str]


async def ask(login: Login, sql: str, timeout_s: float) -> list[Row]:
    """Return the rows of the answer; NULL is an empty text. Raises ConnectFailedError: the connection is closed."""
    conversation = Conversation()
    conversation.connection_made(login.transport)
    login.transport.set_protocol(conversation)
    try:
        async with asyncio.timeout(timeout_s or None):
            return await _answer(conversation, sql)
    except TimeoutError:
        login.transport.abort()
        message = f"no answer of {login.peer} within {timeout_s:g} s (server_connect_timeout)"
        raise ConnectFailedError(Reason.SERVER_CONNECT_TIMEOUT, message) from None
    except ProtocolViolation as violation:
        login.transport.abort()
        message = f"the server does not speak the protocol: {violation}"
        raise ConnectFailedError(Reason.SERVER_VIOLATION, message) from None
    except BaseException:
        login.transport.abort()
        raise


async def _answer(conversation: Conversation, sql: str) -> list[Row]:
    if conversation.transport.is_closing():
        raise ConnectFailedError(Reason.SERVER_CONNECT_FAILED, "the server closed the connection after the login")
    conversation.transport.write(query(sql))
    rows: list[Row] = []
    while True:
        kind, payload = await conversation.next_message()
        if kind == DATA_ROW:
            rows.append(_columns(payload))
        elif kind == ERROR_RESPONSE:
            raise ConnectFailedError(Reason.SERVER_CONNECT_FAILED, str(read_error(payload)))
        elif kind == READY_FOR_QUERY:
            return rows


def _columns(payload: bytes) -> Row:
    columns: Row = []
    at = 2
    while at + 4 <= len(payload):
        (length,) = _int32.unpack_from(payload, at)
        at += 4
        columns.append(text_of(payload[at : at + max(0, length)]))
        at += max(0, length)
    return columns
