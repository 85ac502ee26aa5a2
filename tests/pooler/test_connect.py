"""Logging in at Postgres: what is answered, what may be tried again, and what can't succeed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from pooler.connect import LoginRefusedError, Target, log_in
from pooler.credentials.credential import Password
from pooler.dial import ConnectFailedError
from pooler.reasons import Reason
from protocol.messages import (
    AUTHENTICATION_CLEARTEXT,
    AUTHENTICATION_OK,
    READY_IDLE,
    authentication_md5,
    backend_key_data,
    fatal,
    message,
    parameter_status,
)

GREETING = parameter_status("server_version", "18.0") + backend_key_data(b"\0\0\0\1key!") + READY_IDLE


@asynccontextmanager
async def postgres(*says: bytes) -> AsyncIterator[tuple[Target, list[bytes]]]:
    """Say one thing after each message of the client, the startup packet first; yield where, and what it heard."""
    heard: list[bytes] = []
    gone = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            for number, each in enumerate(says):
                head = await reader.readexactly(4 if number == 0 else 5)
                heard.append(await reader.readexactly(int.from_bytes(head[-4:], "big") - 4))
                writer.write(each)
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        try:
            yield Target("127.0.0.1", port, "alice", "shop", Password("hush")), heard
        finally:
            await gone.wait()


async def enter(target: Target, most_s: float = 5) -> bytes:
    login = await log_in(target, {}, most_s)
    login.transport.abort()
    assert login.key == b"\0\0\0\1key!"
    return login.welcome


async def test_a_login_without_a_password() -> None:
    async with postgres(AUTHENTICATION_OK + GREETING) as (target, heard):
        assert await enter(target) == parameter_status("server_version", "18.0")
    assert b"user\0alice\0database\0shop\0" in heard[0]


async def test_a_login_with_a_plain_password() -> None:
    async with postgres(AUTHENTICATION_CLEARTEXT, AUTHENTICATION_OK + GREETING) as (target, heard):
        await enter(target)
    assert heard[1] == b"hush\0"


async def test_a_login_with_md5() -> None:
    async with postgres(authentication_md5(b"salt"), AUTHENTICATION_OK + GREETING) as (target, heard):
        await enter(target)
    assert heard[1].startswith(b"md5")
    assert b"hush" not in heard[1]


@pytest.mark.parametrize("sqlstate", ["53300", "57P03", "08006", "58000"])
async def test_a_refusal_that_may_pass_is_for_another_attempt(sqlstate: str) -> None:
    async with postgres(fatal(sqlstate, "not now")) as (target, _):
        with pytest.raises(ConnectFailedError, match="not now"):
            await enter(target)


@pytest.mark.parametrize("sqlstate", ["28P01", "3D000", "28000", "42501"])
async def test_a_refusal_for_good_is_in_postgres_words(sqlstate: str) -> None:
    async with postgres(fatal(sqlstate, "never", hint="do this")) as (target, _):
        with pytest.raises(LoginRefusedError) as caught:
            await enter(target)
    assert (caught.value.error.sqlstate, caught.value.error.hint) == (sqlstate, "do this")


@pytest.mark.parametrize(
    "says",
    [
        b"\xff" * 100,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        message(b"R", b""),
        AUTHENTICATION_OK + message(b"S", b"no terminator") + READY_IDLE,
        AUTHENTICATION_OK + message(b"S", b"") + READY_IDLE,
        AUTHENTICATION_OK + message(b"K", b"\0\0\0\1key!") + message(b"Z", b""),
        AUTHENTICATION_OK + READY_IDLE + b"and more",
        message(b"R", b"\0\0\0\5") * 2,
        message(b"R", b"\0\0\0\x0a"),
        message(b"R", b"\0\0\0\x63"),
    ],
)
async def test_whatever_else_a_server_says_is_one_of_two_failures(says: bytes) -> None:
    async with postgres(says) as (target, _):
        with pytest.raises((ConnectFailedError, LoginRefusedError)):
            await enter(target, 0.3)


async def test_a_server_that_says_nothing_times_out() -> None:
    async with postgres(b"") as (target, _):
        with pytest.raises(ConnectFailedError) as caught:
            await enter(target, 0.1)
    assert caught.value.reason is Reason.SERVER_CONNECT_TIMEOUT


def test_a_target_does_not_show_its_password() -> None:
    assert "hush" not in repr(Target("h", 1, "alice", "shop", Password("hush")))
