"""What the console sees of the rest of the pooler, and may do with it."""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from pooler.admin.consoles import Consoles
from pooler.cancel import Canceller
from pooler.client import Clients
from pooler.current import Current
from pooler.databases import Databases
from pooler.entrance.lobby import Lobby
from pooler.figures.statistics import Period
from pooler.peers import Peers
from pooler.pools import Pools
from pooler.replication import Passages
from pooler.session_state.ledger import Ledger
from pooler.shutdown import Shutdown
from pooler.upstream.resolver import Resolver
from protocol.statements import Library


class Service(Protocol):
    """The pooler as a whole."""

    @property
    def stopping(self) -> bool:
        """It is shutting down."""

    def shut_down(self, how: Shutdown) -> None:
        """Begin to, or go on otherwise."""

    def try_reload(self) -> None:
        """Read the configuration again. Raises ConfigurationError; then nothing has changed."""

    def set(self, name: str, text: str) -> None:
        """Change one setting. Raises ConfigurationError; then nothing has changed."""


class Office(NamedTuple):
    """Everything there is to see, and the door to what is not the console's own."""

    service: Service
    current: Current
    pools: Pools
    databases: Databases
    clients: Clients
    consoles: Consoles
    lobby: Lobby
    canceller: Canceller
    peers: Peers
    ledger: Ledger
    library: Library
    period: Period
    passages: Passages
    resolver: Resolver
    now: Callable[[], float]

    def wall_clock(self, moment: float) -> float:
        """Return a moment of `now` in seconds since 1970."""
        return time.time() - (self.now() - moment)
