"""What to change in an application that leaves state in its session: words for logs, hints and lint."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from protocol.sql import State

ADVICE: Final[Mapping[State, str]] = MappingProxyType(
    {
        State.SETTING: "Use SET LOCAL inside the transaction, or set it for good with ALTER ROLE ... SET.",
        State.IDENTITY: "Use SET LOCAL ROLE inside the transaction, or log in as that role.",
        State.LISTEN: "LISTEN on one connection for the whole process, straight to Postgres or through a pool in "
        "session mode, and UNLISTEN on the others.",
        State.PREPARED: "Let the driver prepare statements, which are shared where they come by the protocol, or "
        "DEALLOCATE what is no longer needed.",
        State.CURSOR: "Leave out WITH HOLD and read the cursor inside its transaction, or CLOSE it once it is read.",
        State.TEMPORARY: "Add ON COMMIT DROP and use it inside one transaction, or DROP it once it is not needed.",
        State.ADVISORY_LOCK: "Use pg_advisory_xact_lock() or pg_try_advisory_xact_lock(), which end with the "
        "transaction, or unlock soon.",
        State.SEQUENCE: "Use INSERT ... RETURNING, or what nextval() returned, instead of currval() and lastval() in a "
        "later transaction; call setseed() where random() follows.",
        State.LIBRARY: "Have Postgres load it, by session_preload_libraries or shared_preload_libraries.",
        State.UNKNOWN: "The text does not show what it leaves in the session, so Postgres is asked each time. Nothing "
        "has to change.",
    }
)
"""A sentence for each class."""


def advise(states: State) -> str:
    """Return the advice about some classes."""
    return " ".join(ADVICE[state] for state in states)
