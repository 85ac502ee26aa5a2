"""The server session: one connection to Postgres, from its login to its end.

Passes replies on to the client that has borrowed it and goes back to its pool when it is free. Between two borrowers
it may be busy on the pooler's own account: being checked, reset, or cleaned of what a vanished client left behind.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, final

from pooler.pool import Pool
from pooler.reasons import Ending, Reason
from protocol.backend import scan_replies
from protocol.errors import ServerViolation
from protocol.exchange import COPYING_IN, OWED_QUERY, SKIPPING, Exchange
from protocol.frontend import scan_requests
from protocol.kinds import IDLE
from protocol.messages import SYNC, TERMINATE, message, query

# Why a server that is free can't be released right away; bits of ServerSession.hold.
SESSION: Final = 1  # session mode: it stays with its client
CANCELLING: Final = 2  # a CancelRequest is on its way to it
RETIRED: Final = 4  # it is to be closed
CHOKED: Final = 8  # its client reads too slowly, so it is not read from
STUFFED: Final = 16  # it reads too slowly itself, so its client is not read from
RESET: Final = 32  # server_reset_query_always
CHECK: Final = 64  # server_check_delay = 0: checked each time

_ANY_SIZE: Final = 1 << 32
_COPY_FAIL: Final = message(b"f", b"the client has gone\0")


class Borrower(Protocol):
    """The client session that a server session is linked to."""

    transport: asyncio.Transport
    server: "ServerSession | None"

    def end(self, ending: Ending) -> None:
        """Tell the client why, and close its connection."""

    def server_lost(self, reason: Reason, *, told: bool) -> None:
        """The link is cut because the server is gone; `told` if an error from it has been passed on."""

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


@final
class ServerSession(asyncio.Protocol):
    """One connection to Postgres, logged in."""

    __slots__ = (
        "_chore",
        "_chore_errors",
        "_duties",
        "client",
        "connected_at",
        "exchange",
        "hold",
        "id",
        "key",
        "peer",
        "pool",
        "retired_for",
        "seen_at",
        "seen_queries",
        "seen_quiet",
        "since",
        "testing",
        "transport",
    )

    def __init__(
        self,
        id_: int,
        pool: "Pool[ServerSession]",
        transport: asyncio.Transport,
        key: bytes,
        peer: tuple[str, int],
        duties: ServerDuties,
    ) -> None:
        """`key` is the payload of its BackendKeyData, `peer` where a CancelRequest goes."""
        self.id = id_
        self.pool = pool
        self.transport = transport
        self.key = key
        self.peer = peer
        self._duties = duties
        self.exchange = Exchange()
        self.client: Borrower | None = None
        self.hold = SESSION if duties.session_mode else RESET if duties.reset_query else 0
        if duties.check_always:
            self.hold |= CHECK
        self.retired_for: Reason | None = None
        self.connected_at = self.since = duties.now()
        self.testing = False
        # The janitor's notes: how far the conversation was when it looked, and since when it has been there.
        self.seen_queries = 0
        self.seen_quiet = True
        self.seen_at = 0.0
        self._chore: Callable[[bool], None] | None = None
        self._chore_errors = 0

    # --- hot path

    def data_received(self, data: bytes) -> None:
        """Pass a chunk of replies on; release when nothing more is owed."""
        client = self.client
        try:
            free = scan_replies(self.exchange, data)
        except ServerViolation:
            self.end(Reason.SERVER_VIOLATION)
            return
        if client is None:
            self._on_own_replies()
            return
        client.transport.write(data)
        if free:
            if self.hold:
                self._free_on_hold(client)
                return
            client.server = None
            self.client = None
            self.pool.release(self)
        elif self._duties.statement_mode and self.exchange.status != IDLE and self.exchange.quiet:
            client.transaction_in_statement_mode()

    # --- links

    def _free_on_hold(self, client: Borrower) -> None:
        """It is free, but something stands against lending it on, or must be undone first."""
        if self.hold & SESSION:
            self.pool.transactions += 1
            return
        if self.hold & STUFFED:
            return  # it has answered more than it has read: resume_writing() comes back here
        if self.hold & CHOKED:
            # The client has its whole answer in our buffer: it need not read it for the server to be free.
            self.hold &= ~CHOKED
            self.transport.resume_reading()
            client.transport.pause_reading()
        client.server = None
        self.client = None
        self.pool.transactions += 1
        self._rolled_back(done=True)

    def _back_to_pool(self) -> None:
        """Nobody is linked, nothing is owed: put it back into the pool, unless a cancel or its retirement forbid."""
        if self.hold & RETIRED:
            self.end(self.retired_for or Reason.SHUTDOWN)
        elif self.hold & CANCELLING:
            return  # cancel_settled() goes on
        elif self.hold & CHECK:
            self.pool.testing += 1
            self.check()
        else:
            self.pool.put(self)

    def unlink(self) -> None:
        """Its client has sent nothing that it would answer: put it back."""
        client = self.client
        if client is not None and self.hold:
            self._free_on_hold(client)
        elif client is not None:
            client.server = None
            self.client = None
            self.pool.put(self)

    def abandon(self, *, politely: bool) -> None:
        """Its client has gone: bring it into a state in which it can be lent on, or close it.

        `politely` if the client said good-bye, so that what it has sent may still be worth finishing.
        """
        self.client = None
        self.since = self._duties.now()
        if self.hold & CHOKED:
            self.hold &= ~CHOKED
            self.transport.resume_reading()
        if (self.exchange.owed or self.exchange.run) and not politely:
            self._duties.cancel(self)
        if self.exchange.requests_rest:
            self.end(Reason.SERVER_UNCLEAN)  # it waits for the rest of a request that nobody can complete
            return
        self._chore = self._drained
        self._on_own_replies()

    def pause_writing(self) -> None:
        """The server reads too slowly: stop its client."""
        self.hold |= STUFFED
        if self.client is not None:
            self.client.transport.pause_reading()

    def resume_writing(self) -> None:
        """The server has caught up."""
        self.hold &= ~STUFFED
        client = self.client
        if client is not None:
            client.transport.resume_reading()
            if self.exchange.settled and not self.hold & SESSION:
                self._free_on_hold(client)

    def choke(self) -> None:
        """Its client reads too slowly: stop reading from it."""
        self.hold |= CHOKED
        self.transport.pause_reading()

    def unchoke(self) -> None:
        """Its client has caught up."""
        self.hold &= ~CHOKED
        self.transport.resume_reading()

    # --- cancels

    def cancel_sent(self) -> None:
        """A CancelRequest is on its way: until it has arrived, nothing else may be sent that it could hit."""
        self.hold |= CANCELLING

    def cancel_settled(self) -> None:
        """No CancelRequest is on its way any more."""
        self.hold &= ~CANCELLING
        client = self.client
        if client is not None:
            if self.exchange.settled and not self.hold & SESSION:
                self._free_on_hold(client)
            client.proceed()
        elif self._chore is not None:
            self._on_own_replies()
        elif self.exchange.settled:
            self._rolled_back(done=True)

    # --- on the pooler's own account

    def run(self, sql: str, then: Callable[[bool], None]) -> None:
        """Send a query of the pooler's own, and call `then` with True if it went well; its results are not kept."""
        self._chore = then
        self._chore_errors = self.exchange.errors
        self.since = self._duties.now()
        self.exchange.owed.append(OWED_QUERY)
        self.transport.write(query(sql))

    def _on_own_replies(self) -> None:
        chore = self._chore
        if chore is None:
            if self.exchange.error_unanswered:
                self.end(Reason.SERVER_LOST)  # it has announced that it goes
            return  # else: a notice, or a changed parameter
        if chore == self._drained:
            self._finish_requests()
        if self.exchange.quiet and not self.hold & CANCELLING:
            self._chore = None
            chore(self.exchange.status == IDLE and self.exchange.errors == self._chore_errors)

    def _finish_requests(self) -> None:
        """Send what is missing of a vanished client's requests, so that they come to an end."""
        exchange = self.exchange
        missing = b""
        if exchange.mode == COPYING_IN:
            missing = _COPY_FAIL
        if exchange.run:
            # A Sync alone would commit what the run has done.
            missing += SYNC if exchange.mode == SKIPPING else query("ROLLBACK") + SYNC
        if missing:
            scan_requests(exchange, missing, _ANY_SIZE)
            self.transport.write(missing)

    def _drained(self, _: bool) -> None:
        """All that a vanished client has asked for is answered."""
        if self.exchange.status == IDLE:
            self._rolled_back(done=True)
        else:
            self.run("ROLLBACK", self._rolled_back)

    def _rolled_back(self, done: bool) -> None:
        if not done:
            self.end(Reason.SERVER_UNCLEAN)
        elif self._duties.reset_query and not self.hold & (RETIRED | CANCELLING):
            self.run(self._duties.reset_query, self._reset)
        else:
            self._back_to_pool()

    def _reset(self, done: bool) -> None:
        if done:
            self._back_to_pool()
        else:
            self.end(Reason.SERVER_RESET_FAILED)

    def check(self) -> None:
        """See ServerLike.check."""
        self.testing = True
        self.run(self._duties.check_query, self._checked)

    def _checked(self, done: bool) -> None:
        if not done:
            self.end(Reason.SERVER_CHECK_FAILED)
            return
        if self.hold & RETIRED:
            self.end(self.retired_for or Reason.SHUTDOWN)
            return
        self.testing = False
        self.pool.tested(self)

    @property
    def cleaning(self) -> bool:
        """Busy on the pooler's own account."""
        return self._chore is not None

    # --- the end

    def make_room(self) -> None:
        """See ServerLike.make_room."""
        self.retire(Reason.MADE_ROOM)

    def retire(self, reason: Reason) -> None:
        """Close the connection: now if it is idle, else when its client or chore is done with it."""
        if self.client is None and self._chore is None and not self.hold & CANCELLING:
            self.end(reason)
        else:
            self.retire_after_use(reason)

    def retire_after_use(self, reason: Reason) -> None:
        """Close the connection when its client, present or next, is done with it."""
        self.hold |= RETIRED
        self.retired_for = reason

    def end(self, reason: Reason) -> None:
        """Close the connection at once. A linked client is told."""
        if self.transport.is_closing():
            return
        self.transport.write(TERMINATE)
        self._end(reason)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, from whatever side."""
        self._end(Reason.SERVER_LOST)

    def _end(self, reason: Reason) -> None:
        if self not in self.pool.servers:
            return
        self._duties.ended(self, reason)
        self._chore = None
        client, self.client = self.client, None
        self.pool.discard(self, self._duties.now(), testing=self.testing)
        if client is not None:
            client.server = None
            client.server_lost(reason, told=self.exchange.error_unanswered)
