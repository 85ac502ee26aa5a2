"""The server session: one connection to Postgres, from its login to its end.

Passes replies on to the client that has borrowed it and goes back to its pool when it is free. Between two borrowers
it may be busy on the pooler's own account: being checked, reset, or cleaned of what a vanished client left behind.
"""

import asyncio
from collections.abc import Callable
from enum import IntEnum, auto
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
PARTING: Final = 128  # its client has said good-bye, and goes when it has its answers

_ANY_SIZE: Final = 1 << 32
_COPY_FAIL: Final = message(b"f", b"the client has gone\0")


class Step(IntEnum):
    """Where a server is on its way from one client back to the pool; each step may be left out."""

    DRAIN = auto()  # all that its client has asked for is to be answered, and no cancel to be on its way
    ROLLBACK = auto()  # what its client has left open is to be undone
    RESET = auto()  # server_reset_query
    CHECK = auto()  # server_check_query
    HOME = auto()  # it is free, or lent


_FAILED: Final = {
    Step.ROLLBACK: Reason.SERVER_UNCLEAN,
    Step.RESET: Reason.SERVER_RESET_FAILED,
    Step.CHECK: Reason.SERVER_CHECK_FAILED,
}


class Borrower(Protocol):
    """The client session that a server session is linked to."""

    transport: asyncio.Transport
    server: "ServerSession | None"

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


@final
class ServerSession(asyncio.Protocol):
    """One connection to Postgres, logged in."""

    __slots__ = (
        "_duties",
        "_errors_before",
        "_step",
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
        self.exchange = Exchange(duties.max_packet_size)
        self.client: Borrower | None = None
        self.hold = SESSION if duties.session_mode else RESET if duties.reset_query else 0
        if duties.check_always:
            self.hold |= CHECK
        self.retired_for = Reason.SHUTDOWN
        self.connected_at = self.since = duties.now()
        self.testing = False
        # The janitor's notes: how far the conversation was when it looked, and since when it has been there.
        self.seen_queries = 0
        self.seen_quiet = True
        self.seen_at = 0.0
        self._step = Step.HOME
        self._errors_before = 0

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
            if self._step is not Step.HOME:
                self._advance()
            elif self.exchange.error_unanswered or not self.exchange.quiet:
                self.end(Reason.SERVER_LOST)  # it announces that it goes; or half a message came that nobody can lend
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
        """Take it back from a client whose transaction is over, where that is not all there is to do."""
        self.pool.transactions += 1
        if self.hold & PARTING:
            client.depart()
            return
        if self.hold & SESSION:
            self.since = 0.0
            return
        self._part(client)
        self._drain()

    def unlink(self) -> None:
        """Take it back from a client that has sent nothing that it would answer."""
        client = self.client
        if client is None or self.hold & SESSION:
            return
        self._part(client)
        if self.hold & ~(RESET | CHECK):
            self._drain()
        else:
            self.pool.put(self)

    def _part(self, client: Borrower) -> None:
        """Cut the link; what either side's slowness has stopped on the other goes on."""
        if self.hold & CHOKED:
            # The client has its whole answer in our buffer: it need not read that for the server to be free.
            self.unchoke()
            client.transport.pause_reading()
        if self.hold & STUFFED:
            client.transport.resume_reading()
        client.server = None
        self.client = None

    def abandon(self, *, politely: bool) -> None:
        """Its client has gone: bring it into a state in which it can be lent on, or close it.

        `politely` if the client said good-bye, so that what it has sent may still be worth finishing.
        """
        self.client = None
        self.hold &= ~PARTING
        if self.hold & CHOKED:
            self.unchoke()
        if not politely and not self.exchange.quiet:
            self._duties.cancel(self)
        if self.exchange.requests_rest:
            self.end(Reason.SERVER_UNCLEAN)  # it waits for the rest of a request that nobody can complete
        else:
            self._drain()

    def pause_writing(self) -> None:
        """The server reads too slowly: stop its client."""
        self.hold |= STUFFED
        if self.client is not None:
            self.client.transport.pause_reading()

    def resume_writing(self) -> None:
        """The server has caught up."""
        self.hold &= ~STUFFED
        if self.client is not None:
            self.client.transport.resume_reading()
        elif self._step is not Step.HOME:
            self._advance()

    def choke(self) -> None:
        """Its client reads too slowly: stop reading from it."""
        self.hold |= CHOKED
        self.transport.pause_reading()

    def unchoke(self) -> None:
        """Its client has caught up."""
        self.hold &= ~CHOKED
        self.transport.resume_reading()

    def cancel_sent(self) -> None:
        """A CancelRequest is on its way: until it has arrived, nothing else may be sent that it could hit."""
        self.hold |= CANCELLING

    def cancel_settled(self) -> None:
        """No CancelRequest is on its way any more."""
        self.hold &= ~CANCELLING
        if self.client is not None:
            self.client.proceed()
        elif self._step is not Step.HOME:
            self._advance()

    # --- on the way back to the pool

    def _drain(self) -> None:
        self._step = Step.DRAIN
        self.since = self._duties.now()
        self._advance()

    def _advance(self) -> None:
        """Go on with the way back as far as it goes now; called whenever something on it has changed."""
        exchange = self.exchange
        duties = self._duties
        if self._step is Step.DRAIN:
            self._finish_requests()
        if not exchange.quiet or self.hold & (CANCELLING | STUFFED):
            return
        if self._step is Step.DRAIN:
            if exchange.status != IDLE:
                self._query(Step.ROLLBACK, "ROLLBACK")
                return
        elif exchange.status != IDLE or exchange.errors != self._errors_before:
            self.end(_FAILED[self._step])
            return
        if self.hold & RETIRED:
            self.end(self.retired_for)
        elif self._step < Step.RESET and duties.reset_query:
            self._query(Step.RESET, duties.reset_query)
        elif self._step < Step.CHECK and duties.check_always:
            self.pool.testing += 1
            self.check()
        else:
            self._step = Step.HOME
            if self.testing:
                self.testing = False
                self.pool.tested(self)
            else:
                self.pool.put(self)

    def _finish_requests(self) -> None:
        """Send what is missing of a vanished client's requests, so that they come to an end."""
        exchange = self.exchange
        missing = b""
        if exchange.mode == COPYING_IN:
            missing = _COPY_FAIL
        if exchange.unsynced:
            # A Sync alone would commit what the run has done.
            missing += SYNC if exchange.mode == SKIPPING else query("ROLLBACK") + SYNC
        if missing:
            scan_requests(exchange, missing, _ANY_SIZE)
            self.transport.write(missing)

    def _query(self, step: "Step", sql: str) -> None:
        """Send a query of the pooler's own; of its results only errors count."""
        self._step = step
        self._errors_before = self.exchange.errors
        self.since = self._duties.now()
        self.exchange.owed.append(OWED_QUERY)
        self.transport.write(query(sql))

    def check(self) -> None:
        """See ServerLike.check."""
        self.testing = True
        self._query(Step.CHECK, self._duties.check_query)

    @property
    def cleaning(self) -> bool:
        """It is on the way back to the pool, or being checked."""
        return self._step is not Step.HOME

    # --- the end

    def make_room(self) -> None:
        """See ServerLike.make_room."""
        self.retire(Reason.MADE_ROOM)

    def retire(self, reason: Reason) -> None:
        """Close the connection: now if it is free, else when it comes back."""
        if self.client is None and self._step is Step.HOME:
            self.end(reason)
        else:
            self.retire_after_use(reason)

    def retire_after_use(self, reason: Reason) -> None:
        """Close the connection when it comes back from its client, present or next."""
        self.hold |= RETIRED
        self.retired_for = reason

    @property
    def retired(self) -> bool:
        """It will be closed when it comes back."""
        return bool(self.hold & RETIRED)

    def end(self, reason: Reason) -> None:
        """Close the connection at once. A linked client is told."""
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it does not read: a Terminate would wait behind what it has not read
        elif not self.exchange.requests_rest:
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
        self._step = Step.HOME
        client, self.client = self.client, None
        self.pool.discard(self, self._duties.now(), testing=self.testing)
        if client is not None:
            exchange = self.exchange
            client.server = None
            # In the middle of a message nothing can be told.
            told = exchange.error_unanswered or bool(exchange.replies_rest or exchange.replies_head)
            client.server_lost(reason, told=told)
