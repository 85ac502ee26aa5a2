"""Replication: a client and a server connection of its own, passed through one to one until either of them ends.

What replicates can't be shared: it streams without an end, and physical replication knows no SQL to clean up with. So
it is opened with what the client has come with, takes a place in its pool and under the limits, and is used once.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Final, NamedTuple, Protocol, final

from pooler.credentials.source import SourceFailedError
from pooler.figures.statistics import Work
from pooler.pool import Pool
from pooler.reasons import CLIENT_GONE, CLIENT_QUIT, REPLACED, Ending, Reason
from pooler.server import ServerSession
from pooler.upstream.connect import Login, LoginRefusedError
from pooler.upstream.dial import ConnectFailedError
from protocol.boundaries import Boundaries
from protocol.errors import ProtocolViolation
from protocol.kinds import COPY_BOTH_RESPONSE, ERROR_RESPONSE, READY_FOR_QUERY, TERMINATE
from protocol.messages import TERMINATE as GOOD_BYE
from protocol.messages import fatal
from protocol.startup import Replication, Startup

FIRST_RETRY_S: Final = 0.1
"""The pause after a failed attempt to reach Postgres; it doubles up to server_login_retry."""

_TOLD_BY_SERVER: Final = bytes((READY_FOR_QUERY, COPY_BOTH_RESPONSE, ERROR_RESPONSE))


class Guest(Protocol):
    """A client that has proven who it is, and wants to replicate."""

    id: int
    startup: Startup
    transport: asyncio.Transport

    def pass_on(self, passage: "Passage", welcome: bytes) -> None:
        """Its server connection is there. `welcome` are its ParameterStatus messages."""

    def end(self, ending: Ending) -> None:
        """There will be none."""


class PassageDuties(NamedTuple):
    """What passages need of the rest of the pooler."""

    log_in: "Callable[[Pool[ServerSession], Mapping[str, str]], Awaitable[Login]]"
    """Log in with these startup parameters, as for a connection of this pool."""
    wait_s: "Callable[[Pool[ServerSession]], float]"
    """How long its clients may wait for a connection; 0 = no limit."""
    retry_s: Callable[[], float]
    """The longest pause after a failed attempt."""
    ended: "Callable[[Passage, Ending], None]"
    """Log and count."""
    linger: Callable[[asyncio.Transport], None]
    """Close a connection such that what has been written still arrives."""
    now: Callable[[], float]
    next_id: Callable[[], int]


class Passages:
    """All that is open, and all that is about to be."""

    def __init__(self, duties: PassageDuties) -> None:
        self.duties = duties
        self._closed_for: Ending | None = None
        """What who comes too late is told."""
        self._open: dict[bytes, Passage] = {}
        """By the cancel keys of the clients."""
        self._openings: dict[Guest, _Opening] = {}

    def __iter__(self) -> "Iterator[Passage]":
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, guest: Guest, pool: Pool[ServerSession], parameters: Mapping[str, str]) -> None:
        """Open a connection for `guest`, whose pass_on() or end() will be called."""
        if self._closed_for is not None:
            guest.end(self._closed_for)
            return
        opening = self._openings[guest] = _Opening(self, guest, pool, parameters)
        opening.begin()

    def leave(self, guest: Guest) -> None:
        """`guest` does not wait any more."""
        opening = self._openings.pop(guest, None)
        if opening is not None:
            opening.give_up()

    def opened(self, opening: "_Opening", login: Login) -> None:
        """A connection is there for a guest that still waits."""
        guest = opening.guest
        del self._openings[guest]
        passage = Passage(self, guest, opening.pool, opening.era, login)
        guest.pass_on(passage, login.welcome)

    def joined(self, passage: "Passage") -> None:
        """Its client has been given a cancel key."""
        self._open[passage.key] = passage
        passage.pool.stats.beside.add(passage)

    def ended(self, passage: "Passage", ending: Ending) -> None:
        """It is over."""
        del self._open[passage.key]
        passage.pool.stats.beside.remove(passage)
        passage.pool.stats.keep(passage)
        self.duties.ended(passage, ending)
        passage.pool.give_back_aside(self.duties.now())

    def turn_away(self, pools: Collection[Pool[ServerSession]], ending: Ending) -> None:
        """End those who wait for a connection of one of these pools."""
        for guest, opening in list(self._openings.items()):
            if opening.pool in pools:
                guest.end(ending)

    def server_of(self, key: bytes) -> Login | None:
        """Return the server connection of the client with this cancel key, if there is such a client here."""
        passage = self._open.get(key)
        return passage.server if passage is not None else None

    def sweep(self) -> None:
        """End what leads to where its pool does not lead any more: unlike others, it never comes back by itself.

        A pause waits for a command that comes to an end.
        """
        for passage in self:
            if passage.era != passage.pool.era and not (passage.pool.paused and passage.busy):
                passage.end(REPLACED)

    def drain(self, ending: Ending) -> bool:
        """End those that are idle, or stream for ever; True if some are left, such as a backup."""
        for passage in self:
            if not passage.busy:
                passage.end(ending)
        return bool(self._open)

    def close(self, ending: Ending) -> None:
        """End them all."""
        self._closed_for = ending
        for guest in list(self._openings):
            guest.end(ending)
        for passage in self:
            passage.end(ending)


class _PausedError(Exception):
    """No connections of the pool are opened for now."""


@final
class _Opening:
    """A guest that waits for a place, then for a login."""

    def __init__(
        self, passages: Passages, guest: Guest, pool: Pool[ServerSession], parameters: Mapping[str, str]
    ) -> None:
        self._passages = passages
        self._duties = passages.duties
        self.guest = guest
        self.pool = pool
        self.era = pool.era
        self._parameters = parameters
        self._failure = ""
        self._placed = False
        self._task: asyncio.Task[None] | None = None
        self.waiting_since = self._duties.now()

    def begin(self) -> None:
        if self.pool.take_aside():
            self._log_in()
        else:
            self.pool.wait(self, self.waiting_since)

    def serve(self, server: ServerSession) -> None:
        """See pool.Waiter.serve."""
        self.pool.swap_aside(server)
        self._log_in()

    def end(self, ending: Ending) -> None:
        """See pool.Queued.end."""
        self.guest.end(ending)

    def give_up(self) -> None:
        """The guest has gone."""
        self.pool.leave(self)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if self._placed:
            self._placed = False
            self.pool.give_back_aside(self._duties.now())

    def _log_in(self) -> None:
        self._placed = True
        self._task = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        most = self._duties.wait_s(self.pool)
        left = self.waiting_since + most - self._duties.now() if most else None
        try:
            async with asyncio.timeout(left):
                login = await self._login()
        except LoginRefusedError as refusal:
            error = refusal.error
            self.end(Ending(Reason.SERVER_REFUSED, error.sqlstate, error.message, error.detail, error.hint))
        except TimeoutError:
            self.end(
                Ending(
                    Reason.QUERY_WAIT_TIMEOUT,
                    "57014",
                    f"waited {most:g} s for a server connection to replicate over (query_wait_timeout)",
                    hint=f"No connection to Postgres could be opened: {self._failure or 'no answer'}.",
                )
            )
        except _PausedError:
            self._stand_in_line()
        else:
            self._passages.opened(self, login)

    def _stand_in_line(self) -> None:
        """Give up the place, for a pause waits until all are free, and wait like everybody."""
        self._placed = False
        self._task = None
        self.pool.give_back_aside(self._duties.now())
        self.pool.wait(self, self.waiting_since)

    async def _login(self) -> Login:
        pause = FIRST_RETRY_S
        while True:
            if self.pool.paused:
                raise _PausedError
            self.era = self.pool.era
            try:
                return await self._duties.log_in(self.pool, self._parameters)
            except (ConnectFailedError, SourceFailedError) as failure:
                self._failure = str(failure)
            await asyncio.sleep(min(pause, self._duties.retry_s()) * random.uniform(0.75, 1.25))  # noqa: S311
            pause *= 2


@final
class Passage:
    """One client that replicates, and its server connection. Ends when either of them does."""

    __slots__ = (
        "_asked",
        "_goodbyes",
        "_passages",
        "_received",
        "_replies",
        "_sent",
        "connected_at",
        "ended",
        "era",
        "id",
        "key",
        "login",
        "pool",
        "server",
        "server_id",
        "transport",
    )

    def __init__(self, passages: Passages, guest: Guest, pool: Pool[ServerSession], era: int, login: Login) -> None:
        self._passages = passages
        self.id = guest.id
        self.server_id = passages.duties.next_id()
        self.pool = pool
        self.era = era
        self.login = guest.startup
        """As the client came."""
        self.transport = guest.transport
        self.server = login
        self.key = b""
        """The cancel key that the client was given."""
        self.connected_at = passages.duties.now()
        self.ended = False
        self._received = self._sent = 0
        self._asked = False
        """The client has sent something since the server was last ready for it."""
        self._goodbyes = Boundaries(bytes((TERMINATE,)))
        self._replies = Boundaries(_TOLD_BY_SERVER)

    def begin(self, key: bytes, early: bytes) -> None:
        """The client has its welcome: from now on everything is passed on, `early` is what it has sent already."""
        self.key = key
        self._passages.joined(self)
        server = self.server.transport
        asking = _Side(server, self._asks, self._client_lost)
        self.transport.set_protocol(asking)
        server.set_protocol(_Side(self.transport, self._answers, self._server_lost))
        if server.is_closing():
            self._server_lost()
        elif early:
            self.transport.resume_reading()
            asking.data_received(early)

    @property
    def kind(self) -> Replication:
        """Logical or physical."""
        return self.login.replication

    @property
    def busy(self) -> bool:
        """A command runs that comes to an end by itself: it is neither idle nor streams."""
        return self._asked and self._replies.last != COPY_BOTH_RESPONSE

    @property
    def work(self) -> Work:
        """See statistics.Worker."""
        return Work(1, 0, self._replies.seen[READY_FOR_QUERY], self._received, self._sent)

    # --- what passes

    def _asks(self, data: bytes) -> bool:
        """Note what the client sends; False if that is not to be passed on."""
        self._asked = True
        self._received += len(data)
        try:
            self._goodbyes.follow(data)
        except ProtocolViolation as violation:
            self.end(Ending(Reason.CLIENT_VIOLATION, violation.sqlstate, violation.message))
        return not self.ended

    def _answers(self, data: bytes) -> bool:
        """Note what the server sends; False if that is not to be passed on."""
        self._sent += len(data)
        try:
            if self._replies.follow(data) >= 0 and self._replies.last == READY_FOR_QUERY:
                self._asked = False
        except ProtocolViolation:
            self.end(Ending(Reason.SERVER_VIOLATION, "08006", "the server does not speak the protocol"))
        return not self.ended

    # --- the end

    def end(self, ending: Ending) -> None:
        """Tell the client why, as far as that can be told, and close both connections."""
        if self.ended:
            return
        self._finish(ending)
        if ending.sqlstate and self._replies.between:
            self.transport.write(fatal(ending.sqlstate, ending.message, ending.detail, ending.hint))
        self._passages.duties.linger(self.transport)
        server = self.server.transport
        if self._goodbyes.between and self._goodbyes.last != TERMINATE and not server.is_closing():
            server.write(GOOD_BYE)
        self._passages.duties.linger(server)

    def _client_lost(self) -> None:
        self.end(CLIENT_QUIT if self._goodbyes.last == TERMINATE else CLIENT_GONE)

    def _server_lost(self) -> None:
        if self._goodbyes.last == TERMINATE:
            self.end(CLIENT_QUIT)
        elif self._replies.last == ERROR_RESPONSE:
            self.end(Ending(Reason.SERVER_LOST))  # it has said why itself
        else:
            self.end(
                Ending(Reason.SERVER_LOST, "08006", "the connection to the server was lost", hint="Connect again.")
            )

    def _finish(self, ending: Ending) -> None:
        self.ended = True
        self._passages.ended(self, ending)


@final
class _Side(asyncio.Protocol):
    """One of the two connections: what comes is sent on over the other, no faster than that takes it."""

    __slots__ = ("_heard", "_lost", "_other")

    def __init__(self, other: asyncio.Transport, heard: Callable[[bytes], bool], lost: Callable[[], None]) -> None:
        self._other = other
        self._heard = heard
        self._lost = lost

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._heard(data):
            self._other.write(data)

    def pause_writing(self) -> None:
        """It reads slowly: stop the other."""
        self._other.pause_reading()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._lost()
