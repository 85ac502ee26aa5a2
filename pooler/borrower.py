"""Whom a server session deals with: the client that has borrowed it, and the rest of the pooler."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pooler.figures.slow import Slow
from pooler.reasons import Ending, Reason
from protocol.parameters import Profile
from protocol.statements import Statement

if TYPE_CHECKING:
    from pooler.server import ServerSession


class Borrower(Protocol):
    """The client session that a server session is linked to."""

    id: int
    transport: asyncio.Transport
    server: "ServerSession | None"
    startup: Profile | None
    """Its settings at login."""
    profile: Profile | None
    """Its settings now."""
    unnamed: Statement | None
    """Its unnamed statement."""
    statements: dict[bytes, Statement] | None
    """Its named statements."""
    pending: bytes
    """Requests that have not been sent on."""

    def end(self, ending: Ending) -> None:
        """Tell the client why, and close its connection."""

    def server_lost(self, reason: Reason, *, told: bool) -> None:
        """The link is cut because the server is gone; `told` if it has said so itself, or nothing can be said."""

    def depart(self) -> None:
        """The client, which has said good-bye, has all its answers."""

    def proceed(self) -> None:
        """What kept the client's requests from the linked server is over."""

    def transaction_in_statement_mode(self) -> None:
        """The client has opened a transaction where that is not allowed."""


class ServerDuties(NamedTuple):
    """What server sessions need of the rest of the pooler; one for all of them."""

    cancel: "Callable[[ServerSession], object]"
    """Send a CancelRequest, and call cancel_settled() in the end."""
    ended: "Callable[[ServerSession, Reason], None]"
    """Log and count."""
    now: Callable[[], float]
    check_query: str
    check_always: bool
    reset_query: str
    """Run before a server is lent to another client; empty = nothing."""
    session_mode: bool
    statement_mode: bool
    max_packet_size: int
    slow: Slow
