"""The client session: one connection of a client that has logged in.

Sends requests on to the server that it borrows for a transaction, waits for one in the queue of its pool, and tells
the client why it ends. Knows its pool and its server; nothing of how they are opened.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, final

from pooler.figures.slow import Slow
from pooler.figures.statistics import IDLING
from pooler.hold import AHEAD, ASKING, BLOCKED, DRESSING, PARTING, RESETTING, STALLED, WAITING
from pooler.reasons import CLIENT_GONE, CLIENT_QUIT, Ending, Reason
from pooler.requests import take_care
from protocol.errors import ClientViolation
from protocol.frontend import first_unit, has_request, is_terminate, scan_requests
from protocol.messages import READY_IDLE, TERMINATE, ErrorFields, error_response, fatal
from protocol.parameters import Profile
from protocol.startup import Startup
from protocol.statements import Library, Statement, leads_out

if TYPE_CHECKING:
    from pooler.pool import Pool
    from pooler.server import ServerSession

PENDING_LIMIT: Final = 64 * 1024
"""Bytes. A client that waits is not read from any more once it has sent this much."""


Clients = dict[bytes, "ClientSession"]
"""The clients that are logged in, by their cancel keys."""


class ClientDuties(NamedTuple):
    """What client sessions need of the rest of the pooler; one for all of them."""

    ended: "Callable[[ClientSession, Ending], None]"
    """Forget it, log and count."""
    linger: Callable[[asyncio.Transport], None]
    """Close the connection such that what has been written still arrives."""
    now: Callable[[], float]
    max_packet_size: int
    library: Library | None
    """The statements of all clients; None in session mode, where session state is the client's own affair."""
    slow: Slow


@final
class ClientSession(asyncio.Protocol):
    """One client, from its login to its end. There may be thousands: what it holds is counted in bytes."""

    __slots__ = (
        "_duties",
        "choked",
        "connected_at",
        "ended",
        "id",
        "idle_since",
        "key",
        "leaving",
        "login",
        "pending",
        "pool",
        "profile",
        "server",
        "startup",
        "statements",
        "transport",
        "unnamed",
        "waiting",
        "waiting_since",
    )

    def __init__(
        self,
        id_: int,
        pool: "Pool[ServerSession]",
        transport: asyncio.Transport,
        key: bytes,
        duties: ClientDuties,
        login: Startup,
        startup: Profile | None = None,
    ) -> None:
        """`key` is the cancel key that the client was given, `startup` are the settings that it logged in with."""
        self.id = id_
        self.pool = pool
        self.transport = transport
        self.key = key
        self._duties = duties
        self.login = login
        self.connected_at = duties.now()
        self.server: ServerSession | None = None
        self.pending = b""
        """Received, and not sent on: a request that is not yet whole, or that waits for a server."""
        self.waiting = False
        self.waiting_since = 0.0
        self.idle_since = self.connected_at
        """When it connected, or when the janitor first saw it idle; 0 = it has been served since."""
        self.choked = False
        """It does not read what we have written."""
        self.leaving = False
        """It has said good-bye, and waits for answers."""
        self.ended = False
        self.startup = self.profile = startup
        self.unnamed: Statement | None = None
        """Its unnamed statement, wherever it was parsed."""
        self.statements: dict[bytes, Statement] | None = None
        """Its named statements."""

    def take_duties(self, duties: ClientDuties) -> None:
        """From now on, do these."""
        self._duties = duties

    # --- hot path

    def data_received(self, data: bytes) -> None:  # noqa: C901, PLR0912 - flat for speed
        """Send a chunk of requests on, to the server linked or one that is free; else wait for one."""
        if self.pending:
            if self.leaving:
                return
            data = self.pending + data
            if self.waiting:
                self._keep(data)
                return
            self.pending = b""
        server = self.server
        if server is None:
            if data == TERMINATE:
                self._quit()
                return
            pool = self.pool
            server = pool.take() if pool.idle else None  # as pool.borrow()
            if server is None:
                self._wait(data)
                return
            if server.profile is not self.profile:
                self._link_other(server, data)
                return
            server.since = pool.clock()
            server.request = data
            server.client = self
            self.server = server
            self.idle_since = 0.0
        elif server.hold & BLOCKED and (server.hold & WAITING or server.exchange.quiet):
            if data == TERMINATE and (server.hold & ASKING or server.exchange.quiet):
                self._quit()
            elif data == TERMINATE and server.hold & AHEAD:
                self._leave(server)
            else:
                self._keep(data)  # it would be hit by the cancel, or come in between: proceed() goes on
            return
        elif server.asked < 0:  # another query of its transaction, or another transaction
            now = self.pool.clock()
            if server.asked == IDLING:
                server.since = now
            server.asked = now
            server.request = data
        self._forward(server, data)

    def _forward(self, server: "ServerSession", data: bytes) -> None:
        """Send `data` to the linked server."""
        exchange = server.exchange
        duties = self._duties
        size = len(data)
        server.received += size
        try:
            end = scan_requests(exchange, data, duties.max_packet_size, self, duties.library)
            if end < 0:
                data, end = take_care(self, server, data, ~end, duties.max_packet_size)
                size = len(data)
        except ClientViolation as violation:
            server.received -= size - violation.offset
            if violation.offset:
                server.transport.write(data[: violation.offset])
            self.end(Ending(Reason.CLIENT_VIOLATION, violation.sqlstate, violation.message))
            return
        if end == size:
            server.transport.write(data)
        else:
            # What is left is a good-bye, or a request that is not yet whole.
            if end:
                server.transport.write(data[:end])
            self.pending = data[end:]
            server.received -= size - end
            if server.hold & (STALLED | RESETTING) and len(self.pending) > PENDING_LIMIT:
                self.transport.pause_reading()
            if is_terminate(data, end):
                self._leave(server)
                return
        if not exchange.owed and exchange.settled:
            server.unlink()

    # --- rarer than a query

    def _link_other(self, server: "ServerSession", data: bytes) -> None:
        """Send `data` to an idle server that has this client's settings; else give them to `server` ahead of it."""
        profile = self.profile
        server = self.pool.swap(server, lambda other: other.profile is profile)
        server.since = self.pool.clock()
        server.request = data
        server.client = self
        self.server = server
        self.idle_since = 0.0
        if server.profile is profile:
            self._forward(server, data)
        else:
            self._send_dressed(server, data)

    def _send_dressed(self, server: "ServerSession", data: bytes) -> None:
        """Send `data` to the linked server behind this client's settings.

        If these can't be applied, the server is left in a failed transaction, where nothing else is carried out. What
        may lead out of that has to wait until they are, and so has what comes after `data`.
        """
        server.dress(self.profile)
        if leads_out(data) or (self.statements and any(each.leads_out for each in self.statements.values())):
            server.hold |= DRESSING
            self._keep(data)
            return
        server.hold |= AHEAD
        self._forward(server, data)

    def serve(self, server: "ServerSession") -> None:
        """See pool.Waiter.serve."""
        pool = self.pool
        now = pool.clock()
        waited = now - self.waiting_since
        pool.stats.waits.note(waited)
        slow = self._duties.slow
        if waited >= slow.wait:
            slow.waited(pool, self, waited, len(pool.waiters))
        self.waiting = False
        data = self.pending
        server.since = now
        server.request = data
        server.client = self
        self.server = server
        self.idle_since = 0.0
        self.pending = b""
        if len(data) > PENDING_LIMIT:
            self.transport.resume_reading()
        if server.profile is self.profile:
            self._forward(server, data)
        else:
            self._send_dressed(server, data)

    def _wait(self, data: bytes) -> None:
        """There is no free server: join the queue, unless this is half a request, that would be in the way there."""
        self._keep(data)
        if has_request(data):
            self.waiting = True
            self.pool.wait(self, self._duties.now())

    def _keep(self, data: bytes) -> None:
        self.pending = data
        if len(data) > PENDING_LIMIT:
            self.transport.pause_reading()

    def proceed(self) -> None:
        """See Borrower.proceed."""
        data = self.pending
        if data and not (self.waiting or self.leaving or self.ended or self.choked):
            self.pending = b""
            if len(data) > PENDING_LIMIT:
                self.transport.resume_reading()
            self.data_received(data)

    def pause_writing(self) -> None:
        """The client reads too slowly: stop its server, and nothing else; what it asks for next waits, too."""
        self.choked = True
        if self.server is not None:
            self.server.choke()
        else:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.choked = False
        if self.server is not None:
            self.server.unchoke()
            self.proceed()
        elif not self.ended and not self.waiting:
            self.transport.resume_reading()
            self.proceed()

    def cancel_waiting(self) -> None:
        """The client asks to cancel what it waits for: it gives up its place, and gets the answer Postgres gives."""
        error = ErrorFields("ERROR", "57014", "canceling statement due to user request")
        unit = first_unit(self.pending)
        if not unit:
            # Its request goes on in what we have not received: there is no telling where an answer would belong.
            self.end(Ending(Reason.CANCELLED, error.sqlstate, error.message))
            return
        self.pool.leave(self)
        self.waiting = False
        self.tell(error_response(error) + READY_IDLE)
        if len(self.pending) > PENDING_LIMIT and not self.choked:
            self.transport.resume_reading()
        self.pending = self.pending[unit:]
        self.proceed()

    # --- the end

    def _leave(self, server: "ServerSession") -> None:
        """The client has said good-bye; what it has asked for before is still answered."""
        if server.exchange.quiet:
            self._quit()
        else:
            self.leaving = True
            server.hold |= PARTING

    def depart(self) -> None:
        """See Borrower.depart."""
        self._quit()

    def _quit(self) -> None:
        self._finish(CLIENT_QUIT)
        self.transport.close()

    def end(self, ending: Ending) -> None:
        """End the session: tell the client why, as far as that can be told, and close the connection."""
        if self.ended:
            return
        server = self.server
        mid_reply = server is not None and server.mid_reply
        self._finish(ending)
        if ending.sqlstate and not mid_reply:
            self.tell(fatal(ending.sqlstate, ending.message, ending.detail, ending.hint))
        self._duties.linger(self.transport)

    def tell(self, data: bytes) -> None:
        """Send the client something of the pooler's own."""
        self.transport.write(data)
        self.pool.stats.sent += len(data)

    def server_lost(self, reason: Reason, *, told: bool) -> None:
        """See Borrower.server_lost."""
        if told:
            self.end(Ending(reason))
            return
        self.end(
            Ending(
                reason,
                "08006",
                "the connection to the server was lost",
                hint="What was sent last may or may not have been carried out. Connect again, and look.",
            )
        )

    def transaction_in_statement_mode(self) -> None:
        """See Borrower.transaction_in_statement_mode."""
        self.end(
            Ending(
                Reason.STATEMENT_MODE,
                "0A000",
                "transaction blocks are not allowed in statement pooling mode",
                hint="Send single statements, or connect to a pool in transaction mode.",
            )
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has closed the connection, or it broke."""
        self._finish(CLIENT_QUIT if self.leaving else CLIENT_GONE)

    def _finish(self, ending: Ending) -> None:
        if self.ended:
            return
        self.ended = True
        self.pending = b""
        self.forget_statements()
        if self.waiting:
            self.waiting = False
            self.pool.leave(self)
        server, self.server = self.server, None
        if server is not None:
            server.abandon(politely=ending.reason is Reason.CLIENT_QUIT)
        self._duties.ended(self, ending)

    def forget_statements(self) -> None:
        """It has no named statements any more."""
        library = self._duties.library
        if self.statements and library is not None:
            for statement in self.statements.values():
                library.release(statement)
        self.statements = None
