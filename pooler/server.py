"""The server session: one connection to Postgres, from its login to its end.

Passes replies on to the client that has borrowed it and goes back to its pool when it is free. Between two borrowers
it may be busy on the pooler's own account: asked what its session holds, cleaned of what a vanished client left behind,
reset, or checked.
"""

import asyncio
from collections.abc import Mapping
from typing import final

from pooler.borrower import Borrower, ServerDuties
from pooler.figures.statistics import IDLING, RESTING, Work
from pooler.hold import (
    AHEAD,
    ASK,
    ASKING,
    AUDIT,
    CANCELLING,
    CHECK,
    CHOKED,
    DRESSING,
    NEWS,
    PARTING,
    PINNED,
    RESET,
    RESETTING,
    RESHAPED,
    RETIRED,
    SESSION,
    STALLED,
    STUFFED,
)
from pooler.pool import Pool
from pooler.reasons import Ending, Reason
from pooler.session_state.session import SessionState
from pooler.session_state.sharing import Moment
from pooler.upstream.address import Address
from pooler.way_back import Fit, Step, WayBack
from protocol.alter import alter_replies
from protocol.backend import scan_replies
from protocol.errors import ServerViolation
from protocol.exchange import Exchange
from protocol.kinds import IDLE
from protocol.messages import TERMINATE, read_error
from protocol.parameters import Profile, change
from protocol.sql import Verdict
from protocol.statements import Statement


@final
class ServerSession(asyncio.Protocol):
    """One connection to Postgres, logged in."""

    __slots__ = (
        "_duties",
        "_slow",
        "_undressed",
        "_way",
        "asked",
        "asker",
        "client",
        "connected_at",
        "exchange",
        "hold",
        "id",
        "key",
        "own_queries",
        "own_transactions",
        "peer",
        "pool",
        "profile",
        "received",
        "request",
        "retired_for",
        "seen_at",
        "seen_queries",
        "seen_quiet",
        "sent",
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
        peer: Address,
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
        self._slow = duties.slow
        self.exchange = Exchange(duties.max_packet_size)
        self.client: Borrower | None = None
        self.hold = _standing(duties)
        self.retired_for = Reason.SHUTDOWN
        self.connected_at = self.since = duties.now()
        self.testing = False
        # The janitor's notes: how far the conversation was when it looked, and since when it has been there.
        self.seen_queries = 0
        self.seen_quiet = True
        self.seen_at = 0.0
        self._way = WayBack(self, duties)
        self.state = state
        self.profile: Profile | None = None
        """The settings that its session has."""
        self._undressed: Profile | None = None
        """What it had before the last client was linked."""
        self.asker: Borrower | None = None
        """The client that keeps it while it is asked."""
        self.asked = 0.0
        """When the query that runs was begun; 0 = it is the first one since it was lent."""
        self.request = b""
        """The beginning of it, or of the last one."""
        self.received = 0
        """Bytes of clients' requests."""
        self.sent = 0
        """Bytes that clients were told."""
        # ReadyForQuerys that were for the pooler itself, and transactions that these have ended.
        self.own_queries = 0
        self.own_transactions = 0
        self.exchange.on_parameter = self._parameter_reported
        self.exchange.on_unnamed = self._unnamed_stays
        self.exchange.on_statement_lost = state.statements_lost
        self.exchange.on_stale_plan = state.sharing.library.plans_are_stale
        if state.sharing.audit and not duties.session_mode:
            self.hold |= AUDIT

    def take_duties(self, duties: ServerDuties) -> None:
        """From now on, do these."""
        self._duties = duties
        self._way.take_duties(duties)
        self.hold = self.hold & ~(RESET | CHECK) | _standing(duties)

    # --- hot path

    def data_received(self, data: bytes) -> None:  # noqa: C901, PLR0912 - flat for speed
        """Pass a chunk of replies on; release when nothing more is owed."""
        client = self.client
        exchange = self.exchange
        try:
            if exchange.edited:
                told, free = alter_replies(exchange, data)
                if exchange.hidden_error is not None:
                    self._not_dressed(client)
                if client is not None:
                    self._pass_altered(client, told, free=free)
                    return
            else:
                free = scan_replies(exchange, data)
        except ServerViolation:
            self.end(Reason.SERVER_VIOLATION)
            return
        if client is None:
            if self._way.step is not Step.HOME:
                self._way.take(data)
            elif exchange.error_unanswered or not exchange.quiet:
                self.end(Reason.SERVER_LOST)  # it announces that it goes; or half a message came that nobody can lend
            return
        client.transport.write(data)
        self.sent += len(data)
        if free:
            if self.hold:
                self._free_on_hold(client)
                return
            pool = self.pool
            now = pool.clock()
            took = now - self.since
            if self.asked or took >= self._slow.least:
                self._look_back(client, now)
                pool.stats.links += 1
            else:
                pool.stats.single.append(took)
            client.server = None
            self.client = None
            if pool.waiters:  # as pool.release()
                pool.put(self)
            else:
                self.since = now
                pool.idle.append(self)
        elif exchange.status != IDLE and not exchange.owed:
            self._rest(client)

    # --- links

    def _pass_altered(self, client: Borrower, data: bytes, *, free: bool) -> None:
        """Pass a chunk of replies on of which its client is not told all, or told more."""
        if self.client is None:
            return  # it has just been ended
        exchange = self.exchange
        kept = self.hold & (STALLED if exchange.hidden else STALLED | AHEAD)
        self.hold &= ~kept
        self.tell(client, data)
        if self.hold & DRESSING and not exchange.hidden:
            self.hold &= ~DRESSING
            if not self.hold & PARTING:  # nothing has been sent behind the settings: it has waited for them
                client.proceed()
                return
        if free and self.hold:
            self._free_on_hold(client)
        elif free:
            now = self.pool.clock()
            self._look_back(client, now)
            self.pool.stats.links += 1
            client.server = None
            self.client = None
            self.pool.release(self, now)
        elif exchange.status != IDLE and not exchange.owed:
            self._rest(client)
        if kept:
            client.proceed()

    def tell(self, client: Borrower, data: bytes) -> None:
        """Send `data` to the client that it is linked to, or its asker."""
        client.transport.write(data)
        self.sent += len(data)

    # --- what is counted and timed

    def _rest(self, client: Borrower) -> None:
        """A query is over, its transaction is not, unless there is more to come of what answers it."""
        if self._duties.statement_mode:
            if self.exchange.quiet:
                client.transaction_in_statement_mode()
            return
        if self.asked == RESTING or self.exchange.run:
            return
        pool = self.pool
        took = pool.clock() - (self.asked or self.since)
        pool.stats.inner.append(took)
        if took >= self._slow.query:
            self._slow.queried(pool, client, self.request, took)
        self.asked = RESTING

    def _query_over(self, client: Borrower, now: float) -> None:
        pool = self.pool
        took = now - (self.asked or self.since)
        pool.stats.inner.append(took)
        if took >= self._slow.query:
            self._slow.queried(pool, client, self.request, took)

    def _look_back(self, client: Borrower, now: float) -> None:
        """A transaction is over, and maybe its last query with it."""
        if self.asked != RESTING:
            self._query_over(client, now)
        self.asked = 0.0
        pool = self.pool
        took = now - self.since
        pool.stats.note_transaction(took)
        if took >= self._slow.transaction:
            self._slow.transacted(pool, client, self.request, took)

    def _count_lost(self) -> None:
        """What is under way for a client counts, though it will not be answered."""
        step = self._way.step
        if self.client is not None:
            query, transaction = self.asked >= 0, self.asked != IDLING
        else:
            query, transaction = step is Step.DRAIN and not self.exchange.quiet, step < Step.ASK
        self.own_queries -= query
        self.own_transactions -= transaction
        if self.client is not None and transaction:
            self._look_back(self.client, self.pool.clock())

    def _let_go(self) -> None:
        """It is lent no more, other than by a plain release."""
        self.asked = 0.0
        self.pool.stats.links += 1

    @property
    def work(self) -> Work:
        """See ServerLike.work."""
        exchange = self.exchange
        own_queries = self.own_queries + exchange.hidden_queries
        own_transactions = self.own_transactions + exchange.hidden_queries
        return Work(
            assignments=int(self.client is not None or self.asker is not None),
            transactions=exchange.transactions - own_transactions,
            queries=exchange.queries - own_queries,
            received=self.received,
            sent=self.sent,
        )

    def _free_on_hold(self, client: Borrower) -> None:
        """Take it back from a client whose transaction is over, where that is not all there is to do."""
        if self.asked != IDLING:  # else Postgres has said something of its own accord
            self._look_back(client, self.pool.clock())
            self.asked = IDLING
        if self.hold & PARTING:
            client.depart()
        elif self.hold & SESSION:
            self.since = 0.0
        elif self.in_doubt():
            self._settle(client)
        elif self.hold & PINNED:
            self.since = 0.0
        else:
            self.part(client)
            self._way.begin()

    def _settle(self, client: Borrower) -> None:
        """Find out what the transaction that is over has left in the session, if that is not known from before."""
        state = self.state
        circumstances = state.circumstances(
            Moment(self.exchange.queries, self.exchange.errors), self.profile, client.startup
        )
        if client.profile is not self.profile:
            circumstances = None
        answer = state.sharing.answers.find(circumstances) if circumstances is not None else None
        if answer is None:
            self.client = None
            self.asker = client
            self.hold |= ASK | ASKING
            self._way.ask(circumstances)
            return
        state.answered()
        self.hold &= ~ASK
        client.profile, self.profile = answer
        self.tell(client, state.untold(client.profile, self.profile))
        self.part(client)
        self._way.begin()

    def unlink(self) -> None:
        """Take it back from a client that has sent nothing that it would answer."""
        client = self.client
        if client is None:
            return
        if self.hold & (SESSION | PINNED):
            self.asked = IDLING
            return
        self.part(client)
        if self.hold & ~(RESET | CHECK | AUDIT):
            self._way.begin()
        else:
            self.pool.put(self)

    def part(self, client: Borrower) -> None:
        """Cut the link; what either side's slowness has stopped on the other goes on."""
        if self.hold & CHOKED:
            # The client has its whole answer in our buffer: it need not read that for the server to be free.
            self.unchoke()
            client.transport.pause_reading()
        elif self.hold & STUFFED:
            client.transport.resume_reading()
        client.server = None
        self.client = None
        self._let_go()

    def abandon(self, *, politely: bool) -> None:
        """Its client has gone: bring it into a state in which it can be lent on, or close it.

        `politely` if the client said good-bye, so that what it has sent may still be worth finishing.
        """
        if self.client is not None and self.asked != IDLING:
            self._look_back(self.client, self.pool.clock())
        self.client = None
        self._let_go()
        self.hold &= ~(PARTING | DRESSING | AHEAD | RESETTING | STALLED)
        if self.hold & CHOKED:
            self.unchoke()
        if self.asker is not None:
            self.asker = None  # on the way back already
            self.hold &= ~ASKING
            return
        if not politely and not self.exchange.quiet:
            self._duties.cancel(self)
        if self.exchange.requests_rest:
            self.end(Reason.SERVER_UNCLEAN)  # it waits for the rest of a request that nobody can complete
        else:
            self._way.begin(in_doubt=not self.hold & SESSION)

    def pause_writing(self) -> None:
        """The server reads too slowly: stop its client."""
        self.hold |= STUFFED
        if self.client is not None:
            self.client.transport.pause_reading()

    def resume_writing(self) -> None:
        """The server has caught up."""
        self.hold &= ~STUFFED
        client = self.client or self.asker
        if client is not None:
            client.transport.resume_reading()
        if self.client is None and self._way.step is not Step.HOME:
            self._way.advance()

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
        elif self._way.step is not Step.HOME:
            self._way.advance()

    @property
    def mid_reply(self) -> bool:
        """Its client has been told the beginning of a message, and would take anything else for the rest."""
        exchange = self.exchange
        begun = bool(exchange.replies_rest or exchange.replies_head)
        told = self.client is not None or (self.asker is not None and self._way.step is Step.DRAIN)
        return begun and told and exchange.hidden_error is None

    # --- on the pooler's own account

    @property
    def cleaning(self) -> bool:
        """It is on the way back to the pool, or being checked."""
        return self._way.step is not Step.HOME

    def check(self) -> None:
        """See ServerLike.check."""
        self._way.check()

    def try_on(self, parameters: Mapping[str, str], done: Fit) -> None:
        """Find out what a client's startup parameters come to."""
        self._way.try_on(parameters, done)

    def dress(self, profile: Profile | None) -> None:
        """Give the session the settings of the client that is being linked, ahead of what that sends."""
        self.exchange.owe_hidden_query()
        self.transport.write(change(self.profile, profile))
        self._undressed = self.profile
        self.profile = profile

    def _not_dressed(self, client: Borrower | None) -> None:
        """Its client's settings could not be applied; what that has sent behind them was not carried out."""
        self.profile = self._undressed
        self.own_transactions -= 1  # it is not over, for Postgres
        self.hold = (self.hold | ASK) & ~(DRESSING | AHEAD)
        if client is not None:
            error = read_error(self.exchange.hidden_error or b"")
            client.end(
                Ending(
                    Reason.SETTINGS_LOST,
                    error.sqlstate,
                    f"the settings of this session could not be applied to the server connection: {error.message}",
                    hint="Nothing of what was sent last has been carried out. Connect again.",
                )
            )
        self.exchange.hidden_error = None

    def suspect(self, verdict: Verdict, text: bytes, *, whole: bool = True) -> None:
        """After the transaction, have Postgres asked what a statement has left in the session."""
        exchange = self.exchange
        alone = None
        begins = exchange.status == IDLE and exchange.run <= 1  # no more than its Parse comes before it
        if whole and begins and (not exchange.owed or (exchange.hidden and len(exchange.owed) == 1)):
            alone = Moment(exchange.queries + len(exchange.owed) + 1, exchange.errors)
        self.state.suspect(verdict, text, alone)
        self.hold |= ASK

    def _unnamed_stays(self, statement: Statement | None) -> None:
        """An error has kept its client from changing its unnamed statement."""
        if self.client is not None:
            self.client.unnamed = statement

    def _parameter_reported(self, payload: bytes) -> None:
        by_client = (self.client is not None or self._way.finishing) and not self.exchange.hidden
        if self.state.report(payload, by_client=by_client):
            self.hold |= NEWS

    def in_doubt(self) -> bool:
        """Tell whether it is not known what the transaction that is over has left in the session."""
        hold = self.hold
        self.hold &= ~(NEWS | RESHAPED)
        if hold & RESHAPED:
            self.state.sharing.library.schema_epoch += 1
        changed = self.state.take_changes() if hold & NEWS else False
        return bool(hold & ASK) or changed or (bool(hold & AUDIT) and self.state.sharing.audits())

    # --- the end

    def make_room(self) -> None:
        """See ServerLike.make_room."""
        self.retire(Reason.MADE_ROOM)

    def retire(self, reason: Reason) -> None:
        """Close the connection: now if it is free, else when it comes back."""
        if self.client is None and self._way.step is Step.HOME:
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
        client = self.client or self.asker
        self._count_lost()
        if client is not None:
            self._let_go()
        # In the middle of a message nothing can be told.
        told = self.mid_reply or (self.client is not None and self.exchange.error_unanswered)
        self.exchange.give_up()
        self._way.step = Step.HOME
        self.state.left()
        self.client = self.asker = None
        self.pool.discard(self, self._duties.now(), testing=self.testing)
        if client is not None:
            client.server = None
            client.server_lost(reason, told=told)
        self._way.cut_short()


def _standing(duties: ServerDuties) -> int:
    """Return the bits of hold that are always set."""
    hold = SESSION if duties.session_mode else RESET if duties.reset_query else 0
    return hold | CHECK if duties.check_always else hold
