"""A TCP proxy between pgfunnel and Postgres that cuts, stalls, refuses and splits on command.

It runs an event loop in a thread of its own; its methods are called from other threads, and return when done.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Self, cast


class FaultProxy:
    """Listens on a free port and forwards to (host, port), at most `chunk_size` bytes in one send."""

    def __init__(self, host: str, port: int, *, chunk_size: int = 65536) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.connections = 0  # accepted so far
        self._target = (host, port)
        self._chunk_size = chunk_size
        self._stalled = False
        self._ends: set[_End] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, dbname: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@{self.host}:{self.port}/{dbname}"

    def accept(self) -> None:
        """Take connections (again), always on the same port."""
        self._run(self._accept())

    def refuse(self) -> None:
        """From now on new connections are refused; those open go on."""
        self._run(self._refuse())

    def cut(self, *, reset: bool = False) -> None:
        """End every open connection on both sides, with FIN or with RST."""
        self._run(self._cut(reset=reset))

    def stall(self) -> None:
        """Keep and accept connections but forward nothing, as a network that swallows packets."""
        self._run(self._stall(stalled=True))

    def resume(self) -> None:
        self._run(self._stall(stalled=False))

    def _run(self, command: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(command, self._loop).result(timeout=10)

    async def _accept(self) -> None:
        self._server = await self._loop.create_server(self._connected, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _cut(self, *, reset: bool) -> None:
        ends = tuple(self._ends)
        for end in ends:
            end.cut(reset=reset)
        await asyncio.gather(*(end.lost.wait() for end in ends))

    async def _stall(self, *, stalled: bool) -> None:
        self._stalled = stalled
        for end in self._ends:
            end.stall(stalled=stalled)

    def _connected(self) -> "_End":
        self.connections += 1
        near, far = _End(self._ends, self._chunk_size), _End(self._ends, self._chunk_size)
        near.other, far.other = far, near
        near.connecting = self._loop.create_task(self._connect(near, far))
        return near

    async def _connect(self, near: "_End", far: "_End") -> None:
        try:
            await self._loop.create_connection(lambda: far, *self._target)
        except OSError:
            near.cut(reset=True)
        else:
            near.stall(stalled=self._stalled)
            far.stall(stalled=self._stalled)


class _End(asyncio.Protocol):
    """One side of a forwarded connection."""

    def __init__(self, ends: set["_End"], chunk_size: int) -> None:
        self.other: _End
        self.connecting: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()
        self._transport: asyncio.Transport
        self._ends = ends
        self._chunk_size = chunk_size

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ends.add(self)
        if self.connecting is not None:
            self._transport.pause_reading()  # until the other side is there

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), self._chunk_size):
            self.other._transport.write(data[start : start + self._chunk_size])

    def pause_writing(self) -> None:
        self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        self.other._transport.resume_reading()

    def stall(self, *, stalled: bool) -> None:
        if stalled:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def cut(self, *, reset: bool) -> None:
        if reset:
            sock: socket.socket = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self.lost.set()
        self._ends.discard(self)
        if self.other in self._ends:
            self.other._transport.close()  # what was received before is still delivered
