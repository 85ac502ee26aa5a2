"""What is done about each class of session state, for one user at one database.

Which state there is, protocol.sql says; doing something about it is the sessions' affair.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self, final

from config.session_state import StatePolicies
from config.settings import Settings
from protocol.sql import State

TRACKED_BY_PGBOUNCER: Final = frozenset(
    ("application_name", "client_encoding", "datestyle", "standard_conforming_strings", "timezone")
)
"""What it keeps track of for each client, in any case. It ignores none of these, whatever it is told."""


class Action(StrEnum):
    """What is done about state that a statement leaves in the session."""

    TRACK = "track"  # it follows its client to other server connections
    PIN = "pin"  # its client keeps the server connection
    REJECT = "reject"  # the statement is refused before it runs
    IGNORE = "ignore"  # it stays behind, for whoever gets the server connection next


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """All classes of session state, by what is done about them: each is in exactly one of these sets."""

    tracked: State
    pinned: State
    rejected: State
    ignored: State

    @classmethod
    def of(cls, policies: StatePolicies) -> Self:
        """Make a policy of the words of a setting that name every class."""
        classes = dict.fromkeys(Action, State(0))
        for name, policy in policies.items():
            classes[Action(policy)] |= State[name.upper()]
        return cls(classes[Action.TRACK], classes[Action.PIN], classes[Action.REJECT], classes[Action.IGNORE])

    def ignoring_all(self) -> Self:
        """Return the policy that neither tracks nor pins."""
        return type(self)(State(0), State(0), self.rejected, ~self.rejected & State(-1))

    def action(self, state: State) -> Action:
        """Return what is done about one class."""
        if state in self.rejected:
            return Action.REJECT
        if state in self.pinned:
            return Action.PIN
        return Action.TRACK if state in self.tracked else Action.IGNORE


def policy_for(settings: Settings, user: str, database: str) -> Policy:
    """Return the policy of a pool. The user's goes before the database's, and that before the one for all."""
    return Policy.of(
        {
            **settings.session_state,
            **settings.session_state_database.get(database, {}),
            **settings.session_state_user.get(user, {}),
        }
    )


def ignored_everywhere(settings: Settings) -> State:
    """Return the classes of session state that are ignored in every pool."""
    ignored = Policy.of(settings.session_state).ignored
    for policies in (*settings.session_state_database.values(), *settings.session_state_user.values()):
        for name, policy in policies.items():
            if Action(policy) is not Action.IGNORE:
                ignored &= ~State[name.upper()]
    return ignored


def tracked_names(settings: Settings) -> frozenset[str]:
    """Return the names, in lower case, of parameters that are tracked whatever else is set."""
    return TRACKED_BY_PGBOUNCER | {name.lower() for name in settings.track_extra_parameters}
