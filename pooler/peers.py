"""Other processes that serve the same clients: cancel requests go on to the one that they are for.

To cancel, a client connects anew, and what shares clients out (so_reuseport, a load balancer) may lead it to another
process than its own. So its cancel key says which that is. It does so in the way of PgBouncer, which may be a peer.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from config.databases import Directory, Peer
from config.settings import Settings
from pooler.current import Current
from pooler.upstream.address import Address
from pooler.upstream.dial import dial
from protocol.messages import cancel_request

# Where a cancel key, process id and secret, has what. The first bit of a process id is 0, as of any.
_PEER: Final = slice(1, 3)
_LIVES: Final = 7
_ALL_LIVES: Final = 0b11
"""How often a request may be passed on, so that none goes round and round. Two bits, the others are random."""
_UNLIMITED: Final = 128
"""What a pool_size of 0 comes to."""
MOST_WAITING: Final = 1024
"""Requests that may be under way or wait at once: anybody may send one, for any peer."""


def key_for_peers(peer_id: int, size: int) -> bytes:
    """Return a cancel key of `size` bytes, random but for what says that it is one of this process."""
    key = bytearray(os.urandom(size))
    key[0] &= 0x7F
    key[_PEER] = peer_id.to_bytes(2, "little")
    key[_LIVES] |= _ALL_LIVES
    return bytes(key)


def as_given_out(key: bytes) -> bytes:
    """Return a key of key_for_peers() as it was before it was passed on."""
    return key[:_LIVES] + bytes((key[_LIVES] | _ALL_LIVES,)) + key[_LIVES + 1 :]


class PeerPool:
    """The cancel requests that are on their way to one peer."""

    def __init__(self, peer: Peer, size: int) -> None:
        self.peer = peer
        self.size = size
        self._places = asyncio.Semaphore(size)
        self.waiting = 0
        """Requests that have no place yet."""
        self.connecting = 0
        """Those that have one, and are not sent yet."""
        self.sent = 0
        """Those that are sent, and not confirmed."""

    async def deliver(self, key: bytes) -> None:
        """Send a request, and wait until the peer has done with it. Raises OSError."""
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        try:
            await self._deliver(key)
        finally:
            self._places.release()

    async def _deliver(self, key: bytes) -> None:
        self.connecting += 1
        try:
            conversation = await dial(self.peer.host, self.peer.port)
        finally:
            self.connecting -= 1
        self.sent += 1
        try:
            conversation.transport.write(cancel_request(key))
            await conversation.until_lost()
        finally:
            self.sent -= 1
            conversation.transport.abort()


class Peers:
    """Passes requests on."""

    def __init__(self, current: Current, on_failure: Callable[[int, str], None]) -> None:
        """`on_failure` is told the id of a peer that a request has not reached, and why."""
        self._current = current
        self._on_failure = on_failure
        self._pools: dict[int, PeerPool] = {}
        self._under_way: dict[bytes, asyncio.Task[None]] = {}

    @property
    def own_id(self) -> int:
        """Which of them this process is (peer_id); 0 = none, and there are no others."""
        return self._current.settings.peer_id

    @property
    def pools(self) -> dict[int, PeerPool]:
        """The peers that there are, by their ids, and what is on its way to them."""
        return {peer_id: self._pool(peer_id, peer) for peer_id, peer in self._current.directory.peers.items()}

    def _pool(self, peer_id: int, peer: Peer) -> PeerPool:
        size = _size(peer, self._current.settings)
        pool = self._pools.get(peer_id)
        if pool is None or pool.peer != peer or pool.size != size:
            pool = self._pools[peer_id] = PeerPool(peer, size)
        return pool

    def forward(self, key: bytes) -> asyncio.Task[None] | None:
        """Pass a request on whose key is none of ours; None if it is nobody's."""
        peer_id = int.from_bytes(key[_PEER], "little")
        peer = self._current.directory.peers.get(peer_id)
        if peer is None or peer_id == self.own_id or not key[_LIVES] & _ALL_LIVES:
            return None
        task = self._under_way.get(key)
        if task is None and len(self._under_way) >= MOST_WAITING:
            return None
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._forward(key, peer_id, self._pool(peer_id, peer)))
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return task

    async def _forward(self, key: bytes, peer_id: int, pool: PeerPool) -> None:
        timeout = self._current.settings.cancel_wait_timeout
        try:
            async with asyncio.timeout(timeout or None):
                await pool.deliver(key[:_LIVES] + bytes((key[_LIVES] - 1,)) + key[_LIVES + 1 :])
        except TimeoutError:
            self._on_failure(peer_id, f"not confirmed within {timeout:g} s")
        except OSError as error:
            where = Address(pool.peer.host, pool.peer.port)
            self._on_failure(peer_id, f"can't connect to {where}: {error.strerror or error}")

    async def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._under_way.values()):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def most_connections(directory: Directory, settings: Settings) -> int:
    """Return how many connections there may be to all peers."""
    return sum(_size(peer, settings) for peer in directory.peers.values()) if settings.peer_id else 0


def _size(peer: Peer, settings: Settings) -> int:
    size = settings.default_pool_size if peer.pool_size is None else peer.pool_size
    return size if isinstance(size, int) and size else _UNLIMITED
