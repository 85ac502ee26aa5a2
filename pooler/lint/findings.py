"""What lint has found: which statements leave which state in the session, and what a policy does about that."""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pooler.lint.statements import Statement
from pooler.session_state.policy import Action, Policy
from protocol.sql import State, fingerprint

MOST: Final = 10_000
"""Findings that are told apart; of further statements only the class is kept."""
OTHERS: Final = "(other statements)"


class Outcome(StrEnum):
    """What happens to a statement, or because of it; the gravest first."""

    REFUSED = "refused"
    PINNED = "pinned"
    ASKED = "asked"  # nothing by itself: Postgres is asked what it has left
    TRACKED = "tracked"
    IGNORED = "ignored"


_OUTCOMES: Final = {
    Action.REJECT: Outcome.REFUSED,
    Action.PIN: Outcome.PINNED,
    Action.TRACK: Outcome.TRACKED,
    Action.IGNORE: Outcome.IGNORED,
}


@dataclass(slots=True)
class Finding:
    """A statement (its fingerprint) that leaves state of a class; how often it was seen, and where first."""

    outcome: Outcome
    state: State
    statement: str
    first: str
    times: int = 0


class Findings:
    """All findings under one policy. Their number is bounded."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.statements = 0
        """How many statements there were, harmless ones included."""
        self.totals: Counter[Outcome] = Counter()
        self._found: dict[tuple[State, str], Finding] = {}

    def add(self, statement: Statement) -> None:
        """Judge a statement."""
        self.statements += statement.times
        verdict = statement.verdict
        states = verdict.leaves or (State.UNKNOWN if verdict.asks else State(0))
        if states:
            text = fingerprint(statement.text)
            for state in states:
                self._add(state, text, statement)

    def _add(self, state: State, text: str, statement: Statement) -> None:
        finding = self._found.get((state, text))
        if finding is None:
            if len(self._found) >= MOST:
                text = OTHERS
            finding = self._found.setdefault(
                (state, text), Finding(self._outcome(state), state, text, f"{statement.source}:{statement.line}")
            )
        finding.times += statement.times
        self.totals[finding.outcome] += statement.times

    def _outcome(self, state: State) -> Outcome:
        action = self.policy.action(state)
        if state is State.UNKNOWN and action is Action.IGNORE:
            return Outcome.ASKED
        return _OUTCOMES[action]

    def gravest_first(self) -> list[Finding]:
        """Return what was found, the gravest outcome first, then the most frequent."""
        order = list(Outcome)
        return sorted(self._found.values(), key=lambda each: (order.index(each.outcome), -each.times))
