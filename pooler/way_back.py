"""The way of a server from one client back to the pool, and whatever else it does on the pooler's own account.

What its client has left under way is brought to an end, Postgres is asked what the session holds, what nobody can use
any more is discarded; then it is reset and checked where that is wanted, and lent on. It stays with its client if the
answer says that this one can't go on elsewhere.
"""

from collections.abc import Callable, Mapping
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Final, final

from pooler.figures.statistics import IDLING
from pooler.hold import ASK, ASKING, CANCELLING, CHOKED, PINNED, RETIRED, STUFFED
from pooler.reasons import Reason
from pooler.session_state.answers import Answer, Circumstances
from pooler.session_state.sharing import Fitted, own_settings
from protocol.errors import ProtocolViolation
from protocol.exchange import COPYING_IN, OWED_QUERY, SKIPPING
from protocol.frontend import scan_requests
from protocol.kinds import ERROR_RESPONSE, IDLE, NOTIFICATION_RESPONSE, QUERY
from protocol.messages import SYNC, ErrorFields, all_of_kind, first_message, message, query, read_error
from protocol.parameters import IDENTITY, fit
from protocol.question import Findings, read_answer
from protocol.sql import State
from protocol.statements import UNSURE

if TYPE_CHECKING:
    from pooler.borrower import Borrower, ServerDuties
    from pooler.server import ServerSession

_ANY_SIZE: Final = 1 << 32
_MAX_ANSWER: Final = 1 << 24
_DISCARD: Final = "DISCARD ALL"
_COPY_FAIL: Final = message(b"f", b"the client has gone\0")

Fit = Callable[[Fitted | ErrorFields | None], None]
"""Is told what startup parameters come to, or Postgres's objection; None if the server was lost."""


class Step(IntEnum):
    """Where a server is on its way from one client back to the pool; each step may be left out."""

    DRAIN = auto()  # all that its client has asked for is to be answered, and no cancel to be on its way
    ROLLBACK = auto()  # what its client has left open is to be undone
    ASK = auto()  # what the session holds
    ASK_FULLY = auto()  # the same, where the session's own time limit or role was in the way
    DISCARD = auto()  # what had pinned a client that is gone
    PROOF = auto()  # that nothing of it is left
    FIT = auto()  # a client's startup parameters are tried on
    RESET = auto()  # server_reset_query
    CHECK = auto()  # server_check_query
    HOME = auto()  # it is free, or lent


_FAILED: Final = {
    Step.ROLLBACK: Reason.SERVER_UNCLEAN,
    Step.ASK: Reason.SERVER_UNCLEAN,
    Step.ASK_FULLY: Reason.SERVER_UNCLEAN,
    Step.DISCARD: Reason.SERVER_UNCLEAN,
    Step.PROOF: Reason.SERVER_UNCLEAN,
    Step.RESET: Reason.SERVER_RESET_FAILED,
    Step.CHECK: Reason.SERVER_CHECK_FAILED,
}


@final
class WayBack:
    """One server's; begin() sets out, and advance() is called whenever something on the way has changed."""

    __slots__ = (
        "_answer",
        "_circumstances",
        "_due",
        "_duties",
        "_errors_before",
        "_fitting",
        "_in_doubt",
        "_queries",
        "_server",
        "_transactions",
        "_tried_on",
        "step",
    )

    def __init__(self, server: "ServerSession", duties: "ServerDuties") -> None:
        self._server = server
        self._duties = duties
        self.step = Step.HOME
        self._answer = b""
        self._errors_before = 0
        self._queries = 0
        self._transactions = 0
        """How many there had been when the step was begun, or last looked at."""
        self._due = -1
        """How many ReadyForQuerys a client has caused in the end that had a run unfinished; -1 if none had."""
        self._circumstances: Circumstances | None = None
        self._in_doubt = False
        self._fitting: Fit | None = None
        self._tried_on: Mapping[str, str] = {}

    def take_duties(self, duties: "ServerDuties") -> None:
        """From now on, do these."""
        self._duties = duties

    def take(self, data: bytes) -> None:
        """Postgres has said something, and there is no client."""
        server = self._server
        asker = server.asker
        if Step.ASK <= self.step <= Step.FIT:
            self._answer += data
        elif asker is not None and self.step is Step.DRAIN:
            server.tell(asker, data)  # it has all its answers: this is a notification, or a warning
        self.advance()

    def cut_short(self) -> None:
        """The connection has ended."""
        self.step = Step.HOME
        fitting, self._fitting = self._fitting, None
        if fitting is not None:
            fitting(None)

    @property
    def finishing(self) -> bool:
        """What its last client has asked for is not over yet."""
        return self.step < Step.ASK

    def begin(self, *, in_doubt: bool = False) -> None:
        """Set out: the client has let go of the server, or is its asker.

        With `in_doubt` it is to be found out, when all is over, whether there is reason to ask.
        """
        server = self._server
        self._in_doubt = in_doubt
        self.step = Step.DRAIN
        server.since = self._duties.now()
        if server.hold & CHOKED:
            server.transport.resume_reading()
        self.advance()

    def ask(self, circumstances: Circumstances | None) -> None:
        """Set out with the server's asker; the answer is remembered if it depends on `circumstances` alone."""
        self._circumstances = circumstances
        self.begin()

    def advance(self) -> None:
        """Go on with the way back as far as it goes now; called whenever something on it has changed."""
        server = self._server
        exchange = server.exchange
        step = self.step
        if step is Step.DRAIN:
            self._finish_requests()
        else:
            self._count_own()
        if not exchange.quiet or server.hold & (CANCELLING | STUFFED):
            if len(self._answer) > _MAX_ANSWER:
                server.end(Reason.SERVER_VIOLATION)
            return
        self._count_rollback()
        failed = step is not Step.DRAIN and exchange.errors != self._errors_before
        if step is Step.FIT:
            self._fitted(failed=failed)
        elif failed and step is Step.ASK:
            self._ask(Step.ASK_FULLY)
        elif failed or (exchange.status != IDLE and step is not Step.DRAIN):
            server.end(_FAILED[step])
        elif exchange.status != IDLE:
            self._query(Step.ROLLBACK, "ROLLBACK")
        elif step in (Step.ASK, Step.ASK_FULLY, Step.PROOF):
            self._take_answer()
        elif step is Step.DISCARD:
            server.state.discarded()
            self._ask(Step.PROOF)
        elif step < Step.ASK and ((self._in_doubt and server.in_doubt()) or server.hold & (ASK | PINNED)):
            self._ask(Step.ASK)
        else:
            self._go_home()

    def _go_home(self) -> None:
        """Of what is in the session the pool knows: take the last steps of the way back."""
        server = self._server
        duties = self._duties
        if self.step is Step.RESET and duties.reset_query.strip(" ;").upper() == _DISCARD:
            server.profile = None
            server.state.discarded()
        client, server.asker = server.asker, None
        if client is not None:
            server.hold &= ~ASKING
            server.part(client)
        if server.hold & RETIRED:
            server.end(server.retired_for)
        elif self.step < Step.RESET and duties.reset_query:
            self._query(Step.RESET, duties.reset_query)
        elif self.step < Step.CHECK and duties.check_always:
            server.pool.testing += 1
            self.check()
        else:
            self.step = Step.HOME
            if server.testing:
                server.testing = False
                server.pool.tested(server)
            else:
                server.pool.put(server)
        if client is not None:
            client.proceed()

    def _finish_requests(self) -> None:
        """Send what is missing of a vanished client's requests, so that they come to an end."""
        server = self._server
        exchange = server.exchange
        missing = b""
        if exchange.mode == COPYING_IN:
            missing = _COPY_FAIL
        if exchange.unsynced:
            # A Sync alone would commit what the run has done.
            self._due = exchange.queries + sum(entry >= OWED_QUERY for entry in exchange.owed) + 1
            missing += SYNC if exchange.mode == SKIPPING else query("ROLLBACK") + SYNC
        if missing:
            exchange.unnamed = UNSURE
            scan_requests(exchange, missing, _ANY_SIZE)
            server.transport.write(missing)

    def _count_own(self) -> None:
        """What has been answered was the pooler's own; but what a ROLLBACK ends is a client's transaction."""
        server = self._server
        exchange = server.exchange
        server.own_queries += exchange.queries - self._queries
        if self.step is not Step.ROLLBACK:
            server.own_transactions += exchange.transactions - self._transactions
        self._queries, self._transactions = exchange.queries, exchange.transactions

    def _count_rollback(self) -> None:
        """The one that has closed a client's run was the pooler's own, too, unless Postgres has skipped it."""
        closed = 0 <= self._due < self._server.exchange.queries
        self._server.own_queries += closed
        self._server.own_transactions += closed
        self._due = -1

    def _query(self, step: Step, sql: str) -> None:
        """Send a query of the pooler's own; of its results only errors count."""
        self._send(step, query(sql))

    def _send(self, step: Step, requests: bytes) -> None:
        server = self._server
        self.step = step
        exchange = server.exchange
        self._errors_before = exchange.errors
        self._queries, self._transactions = exchange.queries, exchange.transactions
        self._answer = b""
        server.since = self._duties.now()
        scan_requests(exchange, requests, _ANY_SIZE)
        if requests[0] == QUERY:
            exchange.unnamed = None  # a Query ends it
        server.transport.write(requests)

    def check(self) -> None:
        """See ServerLike.check."""
        server = self._server
        server.testing = True
        self._query(Step.CHECK, self._duties.check_query)

    def _ask(self, step: Step) -> None:
        server = self._server
        state, pool = server.state, server.pool
        profiles = (server.profile, server.asker.profile if server.asker is not None else None)
        full = step is Step.ASK_FULLY
        if full:
            self._pass_notifications()
        self._send(step, state.full_question(*profiles) if full else state.question(*profiles))
        state.sharing.ledger.asked(pool.user, pool.database)

    def _take_answer(self) -> None:
        """Postgres has said what the session holds."""
        server = self._server
        client = server.asker
        try:
            findings = server.state.sharing.beside_base(read_answer(self._answer, server.pool.user))
        except ProtocolViolation:
            server.end(Reason.SERVER_VIOLATION)
            return
        if self.step is Step.ASK and not IDENTITY.isdisjoint(findings.settings):
            self._ask(Step.ASK_FULLY)  # there are settings that not every role may see
            return
        circumstances, self._circumstances = self._circumstances, None
        server.hold &= ~ASK
        server.profile = server.state.sharing.profiles.of(own_settings(findings))
        if client is None:
            self._clean(findings)
            return
        self._pass_notifications()
        judgement, ending = server.state.judge(
            findings, client.id, client.startup, client.profile, (server.pool.user, server.pool.database)
        )
        client.profile = judgement.profile
        server.profile = judgement.session
        server.tell(client, server.state.untold(client.profile, server.profile))
        if ending is not None:
            client.end(ending)
            self._clean(findings)
        elif judgement.pins:
            self._link_again(client)
        else:
            if circumstances is not None and not findings.states:
                server.state.sharing.answers.keep(circumstances, Answer(client.profile, server.profile))
            server.hold &= ~PINNED
            self._go_home()

    def _pass_notifications(self) -> None:
        """What has come for the asker amid the answer is not to be lost."""
        server = self._server
        client = server.asker
        if client is not None and (notifications := all_of_kind(self._answer, NOTIFICATION_RESPONSE)):
            server.tell(client, notifications)

    def _link_again(self, client: "Borrower") -> None:
        """Its client keeps it."""
        server = self._server
        self.step = Step.HOME
        server.asker = None
        server.client = client
        server.asked = IDLING
        server.since = 0.0
        server.hold = (server.hold | PINNED) & ~ASKING
        if server.hold & CHOKED:
            server.transport.pause_reading()
        if server.profile is not client.profile:
            server.dress(client.profile)  # what it has reset is what it logged in with
        client.proceed()

    def _clean(self, findings: Findings) -> None:
        """Its client has gone: discard what only that client could use."""
        server = self._server
        pins = server.state.pins
        server.state.left()
        server.hold &= ~PINNED
        if server.state.loaded:
            server.end(Reason.LIBRARY_LOADED)
        elif not (findings.states or server.state.nameless or State.SEQUENCE in pins):
            self._go_home()
        elif self.step is Step.PROOF or server.state.sharing.base_states:
            server.end(Reason.SERVER_UNCLEAN)
        else:
            self._query(Step.DISCARD, _DISCARD)

    def try_on(self, parameters: Mapping[str, str], done: Fit) -> None:
        """See ServerSession.try_on."""
        server = self._server
        self._fitting = done
        self._tried_on = parameters = server.state.sharing.with_base(parameters)
        self._send(Step.FIT, fit(server.profile, parameters) + server.state.question(server.profile, custom=parameters))

    def _fitted(self, *, failed: bool) -> None:
        server = self._server
        outcome: Fitted | ErrorFields
        if failed and server.exchange.status == IDLE and server.state.asks_by_name:
            # Not the parameters: the question was not there any more, or what they set hid or stopped it.
            self._send(Step.FIT, server.state.full_question(server.profile, custom=self._tried_on))
            return
        if failed:
            first = first_message(all_of_kind(self._answer, ERROR_RESPONSE), _MAX_ANSWER)
            outcome = read_error(first[1] if first is not None else b"")
            server.state.asks_by_name = False
            server.hold |= ASK
        else:
            try:
                findings = read_answer(self._answer, server.pool.user)
            except ProtocolViolation:
                server.end(Reason.SERVER_VIOLATION)
                return
            own = own_settings(findings, {name.lower() for name in self._tried_on})
            server.profile = server.state.sharing.profiles.of(own)
            outcome = Fitted(server.profile, server.state.welcome)
        done, self._fitting = self._fitting, None
        if done is not None:
            done(outcome)
        self.begin()
