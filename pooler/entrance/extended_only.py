"""disable_pqexec: a client session that takes no simple queries, in which one message may have several statements.

Stands between such a client's transport and its session, so that others pay nothing for it.
"""

import asyncio
from typing import Final, final

from pooler.client import ClientSession
from pooler.reasons import Ending, Reason
from protocol.boundaries import Boundaries
from protocol.errors import ProtocolViolation
from protocol.kinds import QUERY

_REFUSED: Final = Ending(
    Reason.CLIENT_VIOLATION,
    "08P01",
    "PQexec disallowed",
    detail="The simple query protocol is turned off (disable_pqexec).",
    hint="Use the extended query protocol: most drivers do so for queries with parameters.",
)


@final
class ExtendedOnly(asyncio.Protocol):
    """What the transport of such a client calls."""

    __slots__ = ("_requests", "_session")

    def __init__(self, session: ClientSession) -> None:
        """What the session has received before is followed up to where it is now."""
        self._session = session
        rest = session.server.exchange.requests_rest if session.server is not None else 0
        self._requests = Boundaries(bytes((QUERY,)), rest)
        self._requests.follow(session.pending)

    def data_received(self, data: bytes) -> None:
        """Hand requests on, up to the first that is a simple query."""
        try:
            at = self._requests.follow(data)
        except ProtocolViolation:
            at = -1  # the session finds that, too, and says so
        if at:
            self._session.data_received(data if at < 0 else data[:at])
        if at >= 0:
            self._session.end(_REFUSED)

    def pause_writing(self) -> None:
        """See ClientSession."""
        self._session.pause_writing()

    def resume_writing(self) -> None:
        """See ClientSession."""
        self._session.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ClientSession."""
        self._session.connection_lost(exc)


def protocol_of(session: ClientSession, *, simple_queries: bool) -> asyncio.Protocol:
    """Return what a client's transport is to call, whether it may send simple queries or not."""
    return session if simple_queries else ExtendedOnly(session)
