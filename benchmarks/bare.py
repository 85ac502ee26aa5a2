"""The least that a transaction-mode pooler in pure Python on uvloop can do: a measuring device, not a pooler.

What it costs beside PgBouncer is the price of uvloop, the interpreter and the kernel; what pgfunnel costs beyond that
is pgfunnel's own. Only with COPY it is no floor: it hops every row's header one by one, and nothing forbids better. It
has no authentication, timeouts, cancels, reconnects, limits or figures, and it trusts clients to send whole requests,
one at a time, and to stay for the answer.

    python -m benchmarks.bare LISTEN_PORT SERVER_PORT POOL_SIZE USER DATABASE
"""

import asyncio
import sys
from collections import deque
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, Self, cast

import uvloop

from benchmarks.clients import READY, startup_message
from benchmarks.servers import HOST

_header = Struct("!BI").unpack_from
_SSL_REQUEST: Final = b"\0\0\0\x08\x04\xd2\x16\x2f"
_TERMINATE: Final = ord("X")
_READY_FOR_QUERY: Final = ord("Z")
_IDLE: Final = ord("I")


@dataclass(slots=True)
class Pool:
    """Servers that wait for work, last one first, and clients that wait for servers, first one first."""

    idle: "list[Server]" = field(default_factory=list)
    waiting: "deque[tuple[Client, bytes]]" = field(default_factory=deque)
    greeting: bytes = b""
    """What Postgres answered to a server's login; every client is told the same."""

    def release(self, server: "Server") -> None:
        if self.waiting:
            client, data = self.waiting.popleft()
            server.client, client.server = client, server
            server.transport.write(data)
        else:
            self.idle.append(server)


class _Session(asyncio.Protocol):
    __slots__ = ("pool", "transport")
    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)


class Server(_Session):
    __slots__ = ("client", "greeted", "kind", "rest", "skip")

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.client: Client | None = None
        self.kind = 0  # of the message that came last
        self.skip = 0  # bytes of it that have not come yet
        self.rest = b""  # a header that was cut

    @classmethod
    async def connect(cls, pool: Pool, port: int, startup: bytes) -> Self:
        """Log in at a Postgres that trusts."""
        transport, server = await asyncio.get_running_loop().create_connection(lambda: cls(pool), HOST, port)
        transport.write(startup)
        await server.greeted
        return server

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client is None:
            self._greeted(data)
            return
        if self.rest:
            data, self.rest = self.rest + data, b""
        at, end, kind = self.skip, len(data), self.kind
        while at + 5 <= end:
            kind, size = _header(data, at)
            at += size + 1
        if at < end:
            data, self.rest, end = data[:at], data[at:], at
            if not data:
                return
        client.transport.write(data)
        self.kind, self.skip = kind, at - end
        if at == end and kind == _READY_FOR_QUERY and data[-1] == _IDLE:
            self.client = client.server = None
            self.pool.release(self)

    def _greeted(self, data: bytes) -> None:
        self.rest += data
        if self.rest.endswith(READY):
            self.pool.greeting, self.rest = self.rest, b""
            self.greeted.set_result(None)


class Client(_Session):
    __slots__ = ("logged_in", "paused", "server")

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.logged_in = False
        self.server: Server | None = None
        self.paused: Server | None = None

    def data_received(self, data: bytes) -> None:
        server = self.server
        if server is None:
            if not self.logged_in:
                self.logged_in = data != _SSL_REQUEST
                self.transport.write(self.pool.greeting if self.logged_in else b"N")
                return
            if data[0] == _TERMINATE:
                self.transport.close()
                return
            if not self.pool.idle:
                self.pool.waiting.append((self, data))
                return
            server = self.server = self.pool.idle.pop()
            server.client = self
        server.transport.write(data)

    def pause_writing(self) -> None:
        self.paused = self.server
        if self.paused is not None:
            self.paused.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.paused is not None:
            self.paused.transport.resume_reading()


async def serve(port: int, server_port: int, pool_size: int, user: str, database: str) -> None:
    """Log in at Postgres as often as the pool is large, then serve for ever."""
    pool = Pool()
    startup = startup_message(user, database)
    for _ in range(pool_size):
        pool.release(await Server.connect(pool, server_port, startup))
    listener = await asyncio.get_running_loop().create_server(lambda: Client(pool), HOST, port, backlog=4096)
    await listener.serve_forever()


if __name__ == "__main__":
    listen_port, upstream_port, size = map(int, sys.argv[1:4])
    uvloop.run(serve(listen_port, upstream_port, size, *sys.argv[4:6]))
