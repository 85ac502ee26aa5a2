"""What logins need of the rest of the pooler, as functions and shapes: they do not know who does it for them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pooler.access.gate import Gate
from pooler.client import ClientDuties, Clients, ClientSession
from pooler.current import Current
from pooler.entrance.fitting import Fittings
from pooler.pool import Pool
from pooler.reasons import Ending
from pooler.replication import Passage, Passages
from pooler.server import ServerSession
from pooler.tls.handshakes import Handshakes
from pooler.tls.watched import WatchedContext
from protocol.startup import StartupMemory

if TYPE_CHECKING:
    from pooler.entrance.login import ClientLogin


class TlsOffer(NamedTuple):
    """TLS, as clients may have it or have to."""

    identity: WatchedContext
    handshakes: Handshakes
    required: bool


class Reception(Protocol):
    """Where those go who want the console."""

    welcome: bytes
    """The ParameterStatus messages for them."""

    def knows(self, login: "ClientLogin") -> bool:
        """Tell whether it need not prove who it is."""

    def receive(self, login: "ClientLogin", key: bytes) -> asyncio.Protocol | Ending:
        """Make a session of one that has proven it, or say why it may not have any. `key` is its cancel key."""


class LoginDuties(NamedTuple):
    """What logins need of the rest of the pooler; one for all of them."""

    arrived: "Callable[[ClientLogin], None]"
    """A connection has been accepted."""
    identified: "Callable[[ClientLogin], None]"
    """It has said who it is: go_on() is called once there is a place for it."""
    left: "Callable[[ClientLogin, Ending | None], None]"
    """It has become a session (None), or has ended: forget it, log and count."""
    joined: "Callable[[ClientSession, ClientLogin], None]"
    """Log and count."""
    passed_on: "Callable[[Passage, ClientLogin], None]"
    """The same for who replicates."""
    cancel: Callable[[bytes, Callable[[], None]], None]
    """Cancel what the client with this cancel key is doing, and call back."""
    new_key: Callable[[int, int], bytes]
    """Make a cancel key for a client's id, with a secret of so many bytes."""
    pool_of: "Callable[[str, str], Pool[ServerSession] | Ending]"
    """The pool of a user and a database, or why there is none."""
    fittings: Fittings
    passages: Passages
    current: Current
    linger: Callable[[asyncio.Transport], None]
    turn_away: Callable[[asyncio.Transport, bytes], None]
    """Tell those whose login has failed so, when they have waited for it."""
    now: Callable[[], float]
    next_id: Callable[[], int]
    gate: Gate
    startups: StartupMemory
    clients: Clients
    client_duties: Mapping[str, ClientDuties]
    """What sessions have to do, by the mode of their pool."""
    reception: Reception
    tls: TlsOffer | None = None
    """None: there is no TLS here."""
