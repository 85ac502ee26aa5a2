"""The doors: listening on all addresses, and closing them such that nobody is lost who has knocked."""

import asyncio
import ctypes
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import pack
from typing import Final

from config.settings import Settings
from pooler.sockets import inherited_sockets, keep_alive, listening_sockets, place_of

_ROUNDS: Final = 100
"""of the loop, in each of which the system hands over all who have come: none of them can keep it busy for ever."""
Make = Callable[[], asyncio.Protocol]

HANDSHAKES_S: Final = 0.5
"""How long connections have to come about that have begun to: a round trip. Less than the second after which whoever
gets no answer tries again."""

# https://www.kernel.org/doc/html/latest/networking/filter.html: a classic BPF program for TCP segments, whose 14th
# byte has the flags. Drops what has SYN and not ACK set: whoever begins to connect.
_SO_ATTACH_FILTER: Final = 26
_INSTRUCTION: Final = 8
_NO_NEW_ONES: Final = b"".join(
    pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags
        (0x54, 0, 0, 0x12),  # and them with SYN | ACK
        (0x15, 0, 1, 0x02),  # if that is SYN alone,
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFF_FFFF),  # keep it
    )
)


class Doors:
    """The sockets on which clients come in."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._listeners: list[asyncio.Server] = []
        self._shared = False
        """Another process may listen on the same port."""
        self._inherited = False
        """Whoever has opened the sockets keeps them, and who has come waits there for the next process."""

    async def open(self, settings: Settings, over_tcp: Make, local: Make) -> list[str]:
        """Listen everywhere, or where the service manager does; return where. Raises ListenError."""
        loop = asyncio.get_running_loop()
        self._shared = settings.so_reuseport
        inherited = inherited_sockets()
        self._inherited = bool(inherited)
        # First all of them, so that nobody is let in if one address can't be listened on.
        self._sockets = inherited or list(listening_sockets(settings))
        self.follow(settings)
        places = [place_of(sock) for sock in self._sockets]
        for sock in self._sockets:
            if sock.family == socket.AF_UNIX:
                listener = await loop.create_unix_server(local, sock=sock, backlog=settings.listen_backlog)
            else:
                listener = await loop.create_server(over_tcp, sock=sock, backlog=settings.listen_backlog)
            self._listeners.append(listener)
        return places

    def follow(self, settings: Settings) -> None:
        """Let who comes from now on have the TCP options that these settings say."""
        for sock in self._sockets:
            if sock.family != socket.AF_UNIX:
                keep_alive(sock, settings)

    async def close(self, *, at_once: bool = False) -> None:
        """Listen no more."""
        if not self._inherited:
            await self._let_the_last_in(at_once=at_once)
        for listener in self._listeners:
            listener.close()
        self._sockets.clear()

    async def _let_the_last_in(self, *, at_once: bool) -> None:
        """Accept who has connected, who would be reset else.

        First nobody new comes here. Where another process listens, who begins to connect meanwhile gets no answer,
        tries again after a second, and comes there.
        """
        for sock in self._sockets:
            _let_nobody_begin(sock, shared=self._shared)
        if self._shared and not at_once:
            await asyncio.sleep(HANDSHAKES_S)
        for _ in range(_ROUNDS):
            if not any(map(_has_knocked, self._sockets)):
                break
            await asyncio.sleep(0)


def _let_nobody_begin(sock: socket.socket, *, shared: bool) -> None:
    if sock.family == socket.AF_UNIX:
        place = place_of(sock)
        if not place.startswith("@"):
            Path(place).unlink(missing_ok=True)  # before it is closed: by then another process may have one there
    elif shared:
        program = ctypes.create_string_buffer(_NO_NEW_ONES, len(_NO_NEW_ONES))
        # Where the system has no such thing, the few are reset who connect in the last moment.
        with suppress(OSError):
            filter_ = pack("HP", len(_NO_NEW_ONES) // _INSTRUCTION, ctypes.addressof(program))
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


def _has_knocked(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
