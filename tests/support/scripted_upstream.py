"""A stand-in for Postgres inside of the test's own event loop, for logins that a real one would not play.

A script is a coroutine that is given each new connection, as a Peer, and says from top to bottom what it hears and
says; the connection is closed when it returns.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Self

from protocol.messages import AUTHENTICATION_OK, READY_IDLE, SSL_REQUEST, backend_key_data, fatal, parameter_status
from tests.support.certificates import Pair

KEY: Final = b"\0\0\0\1key!"
WELCOME: Final = parameter_status("server_version", "18.0")
GREETING: Final = AUTHENTICATION_OK + WELCOME + backend_key_data(KEY) + READY_IDLE


class Peer:
    """One connection, `number` counting them from 1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self._reader = reader
        self._writer = writer
        self._plain = writer.transport
        self.number = number
        self.encrypted = False

    async def packet(self) -> bytes:
        """Return a packet without its length: a StartupMessage, an SSLRequest, a CancelRequest."""
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        return await self._reader.readexactly(size - 4)

    async def message(self) -> bytes:
        """Return the payload of a message."""
        await self._reader.readexactly(1)
        return await self.packet()

    async def some_bytes(self) -> bytes:
        return await self._reader.read(65536)

    def say(self, *messages: bytes) -> None:
        self._writer.write(b"".join(messages))

    def say_in_clear(self, data: bytes) -> None:
        """Say it beside the TLS that has begun, as somebody in between would."""
        self._plain.write(data)

    async def encrypt(self, context: ssl.SSLContext) -> Self:
        await self._writer.start_tls(context)
        self.encrypted = True
        return self

    async def accept_tls(self, context: ssl.SSLContext) -> Self:
        """Hear an SSLRequest, and agree."""
        assert await self.packet() == SSL_REQUEST[4:]
        self.say(b"S")
        await self._writer.drain()
        return await self.encrypt(context)

    async def refuse_tls(self) -> Self:
        """Hear an SSLRequest, and say that there is none."""
        assert await self.packet() == SSL_REQUEST[4:]
        self.say(b"N")
        return self

    async def let_in(self) -> None:
        """Hear a StartupMessage, and ask for nothing."""
        await self.packet()
        self.say(GREETING)
        await self.until_gone()

    async def turn_away(self, sqlstate: str, text: str) -> None:
        """Hear a StartupMessage, and refuse."""
        await self.packet()
        self.say(fatal(sqlstate, text))
        await self.until_gone()

    async def until_gone(self) -> None:
        await self._reader.read()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedUpstream:
    """Where the script is played; `peers` are those who have come."""

    host = "127.0.0.1"

    def __init__(self, port: int, peers: list[Peer]) -> None:
        self.port = port
        self.peers = peers


@asynccontextmanager
async def scripted_upstream(script: Script) -> AsyncIterator[ScriptedUpstream]:
    """Play the script with every connection; what fails in it fails the test."""
    peers: list[Peer] = []
    plays: list[asyncio.Task[None]] = []

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(reader, writer, len(peers) + 1))
        task = asyncio.current_task()
        assert task is not None
        plays.append(task)
        try:
            # The peer may leave at any time, also in the middle of a handshake.
            with suppress(ConnectionError, EOFError, ssl.SSLError):
                await script(peers[-1])
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    async with server:
        yield ScriptedUpstream(server.sockets[0].getsockname()[1], peers)
        async with asyncio.timeout(10):
            await asyncio.gather(*plays)


def tls_context(pair: Pair, *, client_ca: Path | None = None, alpn: str = "postgresql") -> ssl.SSLContext:
    """Return what a server with this certificate uses; `client_ca`: clients have to show one from there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if alpn:
        context.set_alpn_protocols([alpn])
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
