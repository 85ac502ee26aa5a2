"""The server session: one connection to Postgres, from its login to its end.

Passes replies on to the client that has borrowed it and goes back to its pool when it is free. Between two borrowers
it may be busy on the pooler's own account: asked what its session holds, cleaned of what a vanished client left behind,
reset, or checked.
"""

import asyncio
from collections.abc import Callable, Mapping
from enum import IntEnum, auto
from typing import Final, NamedTuple, Protocol, final

from pooler.pool import Pool
from pooler.reasons import Ending, Reason
from pooler.session import SessionState
from pooler.sharing import Fitted
from protocol.alter import alter_replies
from protocol.backend import scan_replies
from protocol.errors import ProtocolViolation, ServerViolation
from protocol.exchange import COPYING_IN, SKIPPING, Exchange
from protocol.frontend import scan_requests
from protocol.kinds import ERROR_RESPONSE, IDLE, NOTIFICATION_RESPONSE
from protocol.messages import SYNC, TERMINATE, ErrorFields, all_of_kind, first_message, message, query, read_error
from protocol.parameters import Profile, change, fit
from protocol.question import Findings, read_answer
from protocol.sql import State, Verdict

# Why a server that is free can't be released right away; bits of ServerSession.hold.
SESSION: Final = 1  # session mode: it stays with its client
CANCELLING: Final = 2  # a CancelRequest is on its way to it
RETIRED: Final = 4  # it is to be closed
CHOKED: Final = 8  # its client reads too slowly, so it is not read from
STUFFED: Final = 16  # it reads too slowly itself, so its client is not read from
RESET: Final = 32  # server_reset_query_always
CHECK: Final = 64  # server_check_delay = 0: checked each time
PARTING: Final = 128  # its client has said good-bye, and goes when it has its answers
ASK: Final = 256  # its client may have left something in the session
ASKING: Final = 512  # it is asked on account of its client, who has to wait
PINNED: Final = 1024  # its client has left something that no other server has
AUDIT: Final = 2048  # it is asked now and then, whatever its clients do
NEWS: Final = 4096  # Postgres has told of a setting that it reports
RESHAPED: Final = 8192  # a statement has run that may have changed what others return

BLOCKED: Final = CANCELLING | ASKING
"""While one of these is set, a client that is linked may have to wait."""

_ANY_SIZE: Final = 1 << 32
_MAX_ANSWER: Final = 1 << 24
_DISCARD: Final = "DISCARD ALL"
_COPY_FAIL: Final = message(b"f", b"the client has gone\0")


class Step(IntEnum):
    """Where a server is on its way from one client back to the pool; each step may be left out."""

    DRAIN = auto()  # all that its client has asked for is to be answered, and no cancel to be on its way
    ROLLBACK = auto()  # what its client has left open is to be undone
    ASK = auto()  # what the session holds
    ASK_PATIENTLY = auto()  # the same, where the session's own limits were in the way
    DISCARD = auto()  # what had pinned a client that is gone
    PROOF = auto()  # that nothing of it is left
    FIT = auto()  # a client's startup parameters are tried on
    RESET = auto()  # server_reset_query
    CHECK = auto()  # server_check_query
    HOME = auto()  # it is free, or lent


_FAILED: Final = {
    Step.ROLLBACK: Reason.SERVER_UNCLEAN,
    Step.ASK: Reason.SERVER_UNCLEAN,
    Step.ASK_PATIENTLY: Reason.SERVER_UNCLEAN,
    Step.DISCARD: Reason.SERVER_UNCLEAN,
    Step.PROOF: Reason.SERVER_UNCLEAN,
    Step.RESET: Reason.SERVER_RESET_FAILED,
    Step.CHECK: Reason.SERVER_CHECK_FAILED,
}


class Borrower(Protocol):
    """The client session that a server session is linked to."""

    id: int
    transport: asyncio.Transport
    server: "ServerSession | None"
    startup: Profile | None
    """Its settings at login."""
    profile: Profile | None
    """Its settings now."""

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
        "_answer",
        "_counted",
        "_duties",
        "_errors_before",
        "_fitting",
        "_step",
        "asker",
        "client",
        "connected_at",
        "exchange",
        "hold",
        "id",
        "key",
        "peer",
        "pool",
        "profile",
        "retired_for",
        "seen_at",
        "seen_queries",
        "seen_quiet",
        "since",
        "state",
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
        state: SessionState,
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
        self._counted = 0
        self.state = state
        self.profile: Profile | None = None
        """The settings that its session has."""
        self.asker: Borrower | None = None
        """The client that keeps it while it is asked."""
        self._answer = b""
        self._fitting: Callable[[Fitted | ErrorFields | None], None] | None = None
        self.exchange.on_parameter = self._parameter_reported
        if state.sharing.audit and not duties.session_mode:
            self.hold |= AUDIT

    # --- hot path

    def data_received(self, data: bytes) -> None:
        """Pass a chunk of replies on; release when nothing more is owed."""
        client = self.client
        exchange = self.exchange
        try:
            if exchange.edited:
                data, free = alter_replies(exchange, data)
                if exchange.hidden_error is not None and client is not None:
                    self._not_dressed(client)
                    return
            else:
                free = scan_replies(exchange, data)
        except ServerViolation:
            self.end(Reason.SERVER_VIOLATION)
            return
        if client is None:
            if self._step is not Step.HOME:
                if Step.ASK <= self._step <= Step.FIT:
                    self._answer += data
                self._advance()
            elif exchange.error_unanswered or not exchange.quiet:
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
        elif self._duties.statement_mode and exchange.status != IDLE and exchange.quiet:
            client.transaction_in_statement_mode()

    # --- links

    def _free_on_hold(self, client: Borrower) -> None:
        """Take it back from a client whose transaction is over, where that is not all there is to do."""
        if self.exchange.queries != self._counted:  # else Postgres has said something of its own accord
            self.pool.transactions += 1
            self._counted = self.exchange.queries
        if self.hold & PARTING:
            client.depart()
        elif self.hold & SESSION:
            self.since = 0.0
        elif self._in_doubt():
            self.client = None
            self.asker = client
            self.hold |= ASK | ASKING
            self._drain()
        elif self.hold & PINNED:
            self.since = 0.0
        else:
            self._part(client)
            self._drain()

    def unlink(self) -> None:
        """Take it back from a client that has sent nothing that it would answer."""
        client = self.client
        if client is None or self.hold & (SESSION | PINNED):
            return
        self._part(client)
        if self.hold & ~(RESET | CHECK | AUDIT):
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
        if self.asker is not None:
            self.asker = None  # on the way back already
            self.hold &= ~ASKING
            return
        if not self.hold & SESSION and self._in_doubt():
            self.hold |= ASK
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
        """Its client reads too slowly: stop reading from it, unless what comes is for the pooler."""
        self.hold |= CHOKED
        if self.asker is None:
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
        if self.hold & CHOKED:
            self.transport.resume_reading()
        self._advance()

    def _advance(self) -> None:
        """Go on with the way back as far as it goes now; called whenever something on it has changed."""
        exchange = self.exchange
        step = self._step
        if step is Step.DRAIN:
            self._finish_requests()
        if not exchange.quiet or self.hold & (CANCELLING | STUFFED):
            if len(self._answer) > _MAX_ANSWER:
                self.end(Reason.SERVER_VIOLATION)
            return
        failed = step is not Step.DRAIN and exchange.errors != self._errors_before
        if step is Step.FIT:
            self._fitted(failed=failed)
        elif failed and step is Step.ASK:
            self._ask(Step.ASK_PATIENTLY)
        elif failed or (exchange.status != IDLE and step is not Step.DRAIN):
            self.end(_FAILED[step])
        elif exchange.status != IDLE:
            self._query(Step.ROLLBACK, "ROLLBACK")
        elif step in (Step.ASK, Step.ASK_PATIENTLY, Step.PROOF):
            self._take_answer()
        elif step is Step.DISCARD:
            self.state.discarded()
            self._ask(Step.PROOF)
        elif step < Step.ASK and self.hold & (ASK | PINNED):
            self._ask(Step.ASK)
        else:
            self._go_home()

    def _go_home(self) -> None:
        """Of what is in the session the pool knows: take the last steps of the way back."""
        duties = self._duties
        if self._step is Step.RESET and duties.reset_query.strip(" ;").upper() == _DISCARD:
            self.profile = None
            self.state.discarded()
        client, self.asker = self.asker, None
        if client is not None:
            self.hold &= ~ASKING
            self._part(client)
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
        if client is not None:
            client.proceed()

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
        self._send(step, query(sql))

    def _send(self, step: Step, requests: bytes) -> None:
        self._step = step
        self._errors_before = self.exchange.errors
        self._answer = b""
        self.since = self._duties.now()
        scan_requests(self.exchange, requests, _ANY_SIZE)
        self.exchange.unnamed = None
        self.transport.write(requests)

    def check(self) -> None:
        """See ServerLike.check."""
        self.testing = True
        self._query(Step.CHECK, self._duties.check_query)

    @property
    def cleaning(self) -> bool:
        """It is on the way back to the pool, or being checked."""
        return self._step is not Step.HOME

    # --- session state

    def dress(self, profile: Profile | None) -> None:
        """Give the session the settings of the client that is being linked, ahead of what that sends."""
        self.exchange.owe_hidden_query()
        self.transport.write(change(self.profile, profile))
        self.profile = profile

    def _not_dressed(self, client: Borrower) -> None:
        """Its client's settings could not be applied; what that has sent behind them was not carried out."""
        error = read_error(self.exchange.hidden_error or b"")
        self.exchange.hidden_error = None
        self.hold |= ASK
        client.end(
            Ending(
                Reason.SETTINGS_LOST,
                error.sqlstate,
                f"the settings of this session could not be applied to the server connection: {error.message}",
                hint="Nothing of what was sent last has been carried out. Connect again.",
            )
        )

    def suspect(self, verdict: Verdict, text: bytes) -> None:
        """After the transaction, have Postgres asked what a statement has left in the session."""
        self.state.suspect(verdict, text)
        self.hold |= ASK

    def _parameter_reported(self, payload: bytes) -> None:
        if self.state.report(payload, by_client=self.client is not None and not self.exchange.hidden):
            self.hold |= NEWS

    def _in_doubt(self) -> bool:
        """Tell whether it is not known what the transaction that is over has left in the session."""
        hold = self.hold
        self.hold &= ~(NEWS | RESHAPED)
        if hold & RESHAPED:
            self.state.sharing.library.schema_epoch += 1
        changed = self.state.take_changes() if hold & NEWS else False
        return bool(hold & ASK) or changed or (bool(hold & AUDIT) and self.state.sharing.audits())

    def _ask(self, step: Step) -> None:
        state, pool = self.state, self.pool
        profiles = (self.profile, self.asker.profile if self.asker is not None else None)
        patient = step is Step.ASK_PATIENTLY
        self._send(step, state.patient_question(*profiles) if patient else state.question(*profiles))
        state.sharing.ledger.asked(pool.user, pool.database)

    def _take_answer(self) -> None:
        """Postgres has said what the session holds."""
        client = self.asker
        try:
            findings = read_answer(self._answer, self.pool.user)
            notifications = all_of_kind(self._answer, NOTIFICATION_RESPONSE)
        except ProtocolViolation:
            self.end(Reason.SERVER_VIOLATION)
            return
        self.hold &= ~ASK
        self.profile = self.state.sharing.profiles.of(findings.settings)
        if client is None:
            self._clean(findings)
            return
        if notifications:
            client.transport.write(notifications)
        judgement, ending = self.state.judge(
            findings, client.id, client.startup, client.profile, (self.pool.user, self.pool.database)
        )
        client.profile = judgement.profile
        if ending is not None:
            client.end(ending)
            self._clean(findings)
        elif judgement.pins:
            self._link_again(client)
        else:
            self.hold &= ~PINNED
            self._go_home()

    def _link_again(self, client: Borrower) -> None:
        """Its client keeps it."""
        self._step = Step.HOME
        self.asker = None
        self.client = client
        self.since = 0.0
        self.hold = (self.hold | PINNED) & ~ASKING
        if self.hold & CHOKED:
            self.transport.pause_reading()
        client.proceed()

    def _clean(self, findings: Findings) -> None:
        """Its client has gone: discard what only that client could use."""
        loaded = State.LIBRARY in self.state.pins
        self.state.left()
        self.hold &= ~PINNED
        if loaded:
            self.end(Reason.LIBRARY_LOADED)
        elif not findings.states:
            self._go_home()
        elif self._step is Step.PROOF:
            self.end(Reason.SERVER_UNCLEAN)
        else:
            self._query(Step.DISCARD, _DISCARD)

    def try_on(self, parameters: Mapping[str, str], done: Callable[[Fitted | ErrorFields | None], None]) -> None:
        """Find out what a client's startup parameters come to, or Postgres's objection; None if the server is lost."""
        self._fitting = done
        self._send(Step.FIT, fit(self.profile, parameters) + self.state.question(self.profile))

    def _fitted(self, *, failed: bool) -> None:
        done, self._fitting = self._fitting, None
        outcome: Fitted | ErrorFields
        if failed:
            first = first_message(all_of_kind(self._answer, ERROR_RESPONSE), _MAX_ANSWER)
            outcome = read_error(first[1] if first is not None else b"")
            self.state.asks_by_name = False
            self.hold |= ASK
        else:
            findings = read_answer(self._answer, self.pool.user)
            self.profile = self.state.sharing.profiles.of(findings.settings)
            outcome = Fitted(self.profile, self.state.welcome)
        if done is not None:
            done(outcome)
        self._drain()

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
        self.state.left()
        client = self.client or self.asker
        self.client = self.asker = None
        fitting, self._fitting = self._fitting, None
        self.pool.discard(self, self._duties.now(), testing=self.testing)
        if client is not None:
            exchange = self.exchange
            client.server = None
            # In the middle of a message nothing can be told.
            told = exchange.error_unanswered or bool(exchange.replies_rest or exchange.replies_head)
            client.server_lost(reason, told=told)
        if fitting is not None:
            fitting(None)
