"""The watch on texts: what they may do to the session is noted before they run, and what is not allowed is refused."""

from collections.abc import Callable
from typing import Final, Protocol, final

from pooler.hold import RESHAPED
from pooler.server import ServerSession
from pooler.session_state.advice import advise
from pooler.session_state.session import application_of, too_many_pinned
from protocol.bound import names_bound, runs_last
from protocol.kinds import FAILED
from protocol.messages import ErrorFields
from protocol.parameters import Profile
from protocol.sql import State, Verdict
from protocol.statements import Statement

UNREAD: Final = Verdict(asks=True)
"""The verdict on what is too long to be read, and on functions that are called by number."""


class Asker(Protocol):
    """The client session, as far as its requests need it."""

    unnamed: Statement | None
    statements: dict[bytes, Statement] | None
    startup: Profile | None
    profile: Profile | None
    ended: bool


@final
class Watch:
    """The watch on what one client sends to one server."""

    def __init__(self, client: Asker, server: ServerSession) -> None:
        self._client = client
        self._server = server
        self._state = server.state
        self._sharing = server.state.sharing

    @property
    def failed(self) -> bool:
        """The transaction has failed already, and nothing is under way that may end it: Postgres refuses what comes."""
        exchange = self._server.exchange
        return exchange.status == FAILED and not exchange.owed and not exchange.run

    @property
    def may_have_failed(self) -> bool:
        """It may have, by what has not been answered yet; the pooler's own does not count: all ends if that fails."""
        exchange = self._server.exchange
        return exchange.status == FAILED or len(exchange.owed) > exchange.hidden

    def note_unread(self, beginning: bytes) -> None:
        """Note a text that is too long to be read, or a function that is called by its number."""
        self._server.suspect(UNREAD, beginning, whole=False)

    def follow(self, text: bytes) -> None:
        """Remember the text for the log, where there are audits."""
        if self._sharing.audit:
            self._state.trail = text

    def deallocates(self, verdict: Verdict) -> bool:
        """Tell whether it is a DEALLOCATE of a statement that Postgres does not have under that name."""
        name = verdict.deallocates
        return bool(name) and name in (self._client.statements or ())

    def refusal(self, verdict: Verdict, text: bytes) -> ErrorFields | None:
        """Return the error for a text that the policy rejects."""
        states = verdict.leaves & self._sharing.policy.rejected
        if not states or self.failed:
            return None
        self._book_refusal(states, text, "reject")
        what = " and ".join(state.name.lower().replace("_", " ") for state in states if state.name)
        return ErrorFields(
            "ERROR",
            "0A000",
            f"session state of class {what} is not allowed in this pool (session_state)",
            hint=advise(states),
        )

    def too_many(self, verdict: Verdict, text: bytes) -> ErrorFields | None:
        """Return the error for a text that would pin one client too many."""
        states = verdict.leaves & self._sharing.pinning
        if not states or self._state.pins or not self._sharing.full or self.failed:
            return None
        self._book_refusal(states, text, "max_pinned")
        ending = too_many_pinned(self._sharing, states)
        return ErrorFields("ERROR", ending.sqlstate, ending.message, hint=ending.hint)

    def _book_refusal(self, states: State, text: bytes, why: str) -> None:
        pool = self._server.pool
        self._sharing.ledger.refused(pool.user, pool.database, application_of(self._client.profile), states, text, why)

    def note(self, verdict: Verdict, text: bytes, *, alone: bool = True) -> None:
        """Note what a text that is about to run may do; not `alone`: it may be rolled back, or never run."""
        server, state = self._server, self._state
        if verdict.ddl:
            self._sharing.library.schema_epoch += 1
            server.hold |= RESHAPED
        if verdict.leaves & State.PREPARED and (verdict.asks or verdict.leaves & ~State.PREPARED):
            state.risky = True
        if self._sharing.relevant(verdict, state.pins) or (verdict.executes and state.risky):
            server.suspect(verdict, text, whole=alone and verdict is not UNREAD)

    def drop_statements(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Take it that client and server have no statements any more: DEALLOCATE ALL or DISCARD ALL is about to run.

        Return what undoes that, if it does not run after all, and what is left to do if it does.
        """
        client, state = self._client, self._state
        copies, asks_by_name = state.statements.take_all(), state.asks_by_name
        library = self._sharing.library
        statements, client.statements = client.statements or {}, None
        state.asks_by_name = False

        def undo() -> None:
            state.statements.put_back(copies)
            state.asks_by_name = asks_by_name
            if client.ended:
                done()
                return
            for name, statement in (client.statements or {}).items():
                if name in statements:
                    library.release(statements[name])
                statements[name] = statement
            client.statements = statements

        def done() -> None:
            for statement in statements.values():
                library.release(statement)

        return undo, done

    def note_bound(self, statement: Statement, data: bytes, end: int, portal: bytes, names_end: int) -> None:
        """Note what a statement that is not plain may do; its Bind to `portal` is `data[:end]`."""
        verdict, text = statement.verdict, statement.text
        names = names_bound(text, data, names_end) if verdict.dynamic else None
        if names is not None:
            verdict = verdict._replace(custom=verdict.custom + names, dynamic=False)
        self.note(verdict, text, alone=runs_last(data, end, portal))
