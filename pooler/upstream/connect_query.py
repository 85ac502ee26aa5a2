"""connect_query: what a new server connection runs before any client gets it.

What it sets holds for every client of the pool, like startup parameters of theirs, so it is asked for once it has run.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

from pooler.reasons import Reason
from pooler.upstream.connect import Login, reported
from pooler.upstream.dial import ConnectFailedError, Conversation
from protocol.errors import ProtocolViolation
from protocol.kinds import (
    COPY_BOTH_RESPONSE,
    COPY_IN_RESPONSE,
    DATA_ROW,
    ERROR_RESPONSE,
    IDLE,
    PARAMETER_STATUS,
    READY_FOR_QUERY,
)
from protocol.messages import ErrorFields, message, query, read_error
from protocol.question import full_question, read_answer
from protocol.sql import classify

_WAITS_FOR_DATA: Final = (COPY_IN_RESPONSE, COPY_BOTH_RESPONSE)


async def run_connect_query(login: Login, user: str, sql: str, timeout_s: float) -> Login:
    """Run it, and return the login with what is left of it. Raises ConnectFailedError; it is then closed.

    What Postgres objects to does no harm, as in PgBouncer: Login.objection has it. A connection that is not idle
    afterwards is of no use.
    """
    conversation = Conversation()
    conversation.connection_made(login.transport)
    login.transport.set_protocol(conversation)
    try:
        async with asyncio.timeout(timeout_s or None):
            return await _run(login, conversation, user, sql)
    except TimeoutError:
        login.transport.abort()
        raise _failed(f"took more than {timeout_s:g} s (server_connect_timeout)") from None
    except ProtocolViolation as violation:
        login.transport.abort()
        raise _failed(f"the server does not speak the protocol: {violation}") from None
    except BaseException:
        login.transport.abort()
        raise


async def _run(login: Login, conversation: Conversation, user: str, sql: str) -> Login:
    outcome = await _ask(conversation, query(sql))
    if outcome.status != IDLE:
        raise _failed("it leaves a transaction open")
    custom = classify(sql.encode("utf-8", "surrogateescape")).custom
    answer = await _ask(conversation, full_question(custom))
    if answer.error is not None:
        raise _failed(f"what it leaves can't be found out: {answer.error}")
    return login._replace(
        parameters={**login.parameters, **outcome.parameters},
        left=read_answer(answer.rows, user),
        objection=outcome.error,
    )


def _failed(why: str) -> ConnectFailedError:
    return ConnectFailedError(Reason.SERVER_CONNECT_FAILED, f"connect_query: {why}")


class _Outcome(NamedTuple):
    """What a Query has come to."""

    status: int
    rows: bytes
    """Its DataRow messages."""
    parameters: Mapping[str, str]
    """What was reported meanwhile."""
    error: ErrorFields | None


async def _ask(conversation: Conversation, request: bytes) -> _Outcome:
    conversation.transport.write(request)
    rows: list[bytes] = []
    parameters: dict[str, str] = {}
    error = None
    while True:
        kind, payload = await conversation.next_message()
        if kind == DATA_ROW:
            rows.append(message(b"D", payload))
        elif kind == PARAMETER_STATUS:
            name, value = reported(payload)
            parameters[name] = value
        elif kind == ERROR_RESPONSE:
            error = read_error(payload)
            if error.severity in ("FATAL", "PANIC"):
                raise _failed(str(error))
        elif kind in _WAITS_FOR_DATA:
            raise _failed("it waits for data to copy")
        elif kind == READY_FOR_QUERY and len(payload) == 1:
            return _Outcome(payload[0], b"".join(rows), parameters, error)
