"""Handshakes with clients: a bounded number under way at once, and one step of one at a time.

A step costs as much CPU as some twenty queries. Were all steps of a burst taken at once, nobody else would be served
meanwhile; so a single one is taken in each round of the event loop.
"""

import asyncio
import ssl
from collections import Counter, OrderedDict, deque
from typing import Final, Protocol

from pooler.tls.connection import Step

PATIENCE_S: Final = 2.0
"""How long a handshake may be under way while a few others wait for its place; less if many do."""

_NOTHING_IN_COMMON: Final = frozenset(
    (
        "NO_PROTOCOLS_AVAILABLE",
        "NO_SHARED_CIPHER",
        "NO_SUITABLE_GROUPS",
        "NO_SUITABLE_KEY_SHARE",
        "NO_SUITABLE_SIGNATURE_ALGORITHM",
        "UNSUPPORTED_PROTOCOL",
        "VERSION_TOO_LOW",
    )
)


class Guest(Protocol):
    """A client that wants TLS."""

    def shake_hands(self) -> None:
        """There is a place for it: begin."""

    def too_slow(self) -> None:
        """Others wait for its place: end."""


class Handshakes:
    """The places, and the turns of those who have one; see TlsConnection's Turns."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.under_way: OrderedDict[Guest, float] = OrderedDict()
        """When the janitor first saw them; 0 = not yet."""
        self.queue: OrderedDict[Guest, None] = OrderedDict()
        self.failed: Counter[str] = Counter()
        """By cause: a word of cause_of(), or the reason for which the connection ended meanwhile."""
        self._steps: deque[Step] = deque()
        self._step_taken = False

    def take_limit(self, most: int) -> None:
        """Let so many be under way at once."""
        self._most = most

    def begin(self, guest: Guest) -> None:
        """Let it shake hands, as soon as there is a place."""
        if len(self.under_way) < self._most:
            self.under_way[guest] = 0.0
            guest.shake_hands()
        else:
            self.queue[guest] = None

    def done(self, guest: Guest, failure: str = "") -> None:
        """Its handshake is over, or it has gone: its place is for whoever has waited longest."""
        if failure:
            self.failed[failure] += 1
        self.queue.pop(guest, None)
        if self.under_way.pop(guest, None) is not None and self.queue:
            following, _ = self.queue.popitem(last=False)
            self.under_way[following] = 0.0
            # Soon, not now: it may fail at once, and so may all those behind it.
            asyncio.get_running_loop().call_soon(self._begin_late, following)

    def _begin_late(self, guest: Guest) -> None:
        if guest in self.under_way:
            guest.shake_hands()

    def sweep(self, now: float) -> None:
        """End those who take long while others wait."""
        patience = PATIENCE_S * self._most / (self._most + len(self.queue))
        for guest, since in list(self.under_way.items()):
            if not since:
                self.under_way[guest] = now
            elif self.queue and now - since >= patience:
                guest.too_slow()

    # --- turns

    def take(self, step: Step) -> bool:
        """See Turns."""
        if self._step_taken:
            self._steps.append(step)
            return False
        self._step_taken = True
        asyncio.get_running_loop().call_soon(self._next_step)
        return True

    def _next_step(self) -> None:
        if not self._steps:
            self._step_taken = False
            return
        asyncio.get_running_loop().call_soon(self._next_step)
        # Those who have gone cost nobody a round: they would come faster than their steps were taken.
        while self._steps and not self._steps.popleft()():
            pass


def cause_of(error: OSError) -> str:
    """Return why a handshake has failed, as one of a few words."""
    reason = error.reason if isinstance(error, ssl.SSLError) else ""
    if not isinstance(error, ssl.SSLError):
        return "client_gone"
    if reason in _NOTHING_IN_COMMON:
        return "nothing_in_common"
    if isinstance(error, ssl.SSLCertVerificationError) or ("CERTIFICATE" in reason and "ALERT" not in reason):
        return "client_certificate"
    if "ALERT" in reason:
        return "refused_by_client"
    return "no_tls"
