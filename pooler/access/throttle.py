"""Those who have failed to log in: each is told so after a while only, which grows with failures from its address.

Nobody else is slowed down by that, from the same address either. While they wait, they cost a connection without
a session; when there are too many of them, who has waited longest is told at once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final

MOST_ADDRESSES: Final = 10_000
"""Addresses whose failures are counted; the one whose last is longest ago is forgotten."""
FORGET_S: Final = 300.0
"""After this long without a failure, an address begins anew."""
MOST_DOUBLINGS: Final = 3


class Throttle:
    """Holds them back."""

    def __init__(
        self,
        delay_s: float,
        most: int,
        linger: Callable[[asyncio.Transport], None],
        now: Callable[[], float],
    ) -> None:
        """`most` may be held at once; `linger` closes a connection when its peer has read what was written."""
        self._delay = delay_s
        self._most = most
        self._linger = linger
        self._now = now
        self._held: OrderedDict[asyncio.Transport, tuple[float, bytes]] = OrderedDict()
        """Until when, and what they are told then."""
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """By address: how many, and when the last one was."""

    def take_delay(self, delay_s: float) -> None:
        """Hold back for so long from now on."""
        self._delay = delay_s

    def turn_away(self, transport: asyncio.Transport, farewell: bytes) -> None:
        """Count a failure, and write `farewell` when it is time."""
        now = self._now()
        delay = self._delay * 2 ** min(self._count(_origin(transport), now) - 1, MOST_DOUBLINGS)
        if not delay:
            self._tell(transport, farewell)
            return
        self._held[transport] = now + delay, farewell
        transport.set_protocol(_Held(self, transport))
        transport.resume_reading()  # else it would not be noticed when the client goes
        if len(self._held) > self._most:
            first, (_, its_farewell) = self._held.popitem(last=False)
            self._tell(first, its_farewell)

    def sweep(self, now: float) -> None:
        """Tell those who have waited long enough."""
        for transport, (until, farewell) in list(self._held.items()):
            if until <= now:
                del self._held[transport]
                self._tell(transport, farewell)

    def close(self) -> None:
        """Tell all of them."""
        while self._held:
            transport, (_, farewell) = self._held.popitem()
            self._tell(transport, farewell)

    def gone(self, transport: asyncio.Transport) -> None:
        """It has not waited."""
        self._held.pop(transport, None)

    def __len__(self) -> int:
        return len(self._held)

    def _tell(self, transport: asyncio.Transport, farewell: bytes) -> None:
        transport.write(farewell)
        self._linger(transport)

    def _count(self, origin: str, now: float) -> int:
        count, last = self._failures.pop(origin, (0, now))
        if now - last > FORGET_S:
            count = 0
        self._failures[origin] = count + 1, now
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        return count + 1


def _origin(transport: asyncio.Transport) -> str:
    """Return what failures are counted by: an address; in IPv6 the network that is one customer's."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return "unix"
    address = ip_address(peer[0].partition("%")[0])
    return address.exploded[:19] if isinstance(address, IPv6Address) and not address.ipv4_mapped else str(address)


class _Held(asyncio.Protocol):
    """Hears nothing, but that the client has gone."""

    def __init__(self, throttle: Throttle, transport: asyncio.Transport) -> None:
        self._throttle = throttle
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._throttle.gone(self._transport)
