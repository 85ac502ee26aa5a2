"""The words of session_state: the classes of session state, their policies, and the text that gives one to the other.

What a class is made of is known to protocol.sql, which has the same words; what a policy does, to the pooler.
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

StateClass = Literal[
    "setting",
    "identity",
    "listen",
    "prepared",
    "cursor",
    "temporary",
    "advisory_lock",
    "sequence",
    "library",
    "unknown",
]
StatePolicy = Literal["track", "pin", "reject", "ignore"]
StatePolicies = Mapping[StateClass, StatePolicy]

CLASSES: Final[Mapping[str, StateClass]] = {word: word for word in get_args(StateClass)}
POLICIES: Final[Mapping[str, StatePolicy]] = {word: word for word in get_args(StatePolicy)}
TRACKABLE: Final[frozenset[StateClass]] = frozenset({"setting", "identity"})
"""What can follow its client to another server connection. What SQL's PREPARE has prepared can't."""

DEFAULTS: Final[StatePolicies] = {
    "setting": "track",
    "identity": "track",
    "listen": "pin",
    "prepared": "pin",
    "cursor": "pin",
    "temporary": "pin",
    "advisory_lock": "pin",
    "sequence": "ignore",
    "library": "pin",
    "unknown": "ignore",
}


def parse(text: str) -> StatePolicies:
    """Parse class=policy, class=policy, ...

    Raises ValueError, whose message completes "VALUE ...".
    """
    policies: dict[StateClass, StatePolicy] = {}
    for entry in text.split(",") if text.strip() else []:
        word, equals, policy = map(str.strip, entry.partition("="))
        if not equals:
            raise ValueError(f"has {entry.strip()!r} where class=policy should be")
        name = CLASSES.get(word)
        if name is None:
            raise ValueError(f"names {word!r}, which is no class of session state (one of {', '.join(CLASSES)})")
        if name in policies:
            raise ValueError(f"names {name} twice")
        if policy not in POLICIES or (policy == "track" and name not in TRACKABLE):
            choices = [each for each in POLICIES if each != "track" or name in TRACKABLE]
            raise ValueError(f"gives {name} the policy {policy!r}, which is not one of {', '.join(choices)}")
        policies[name] = POLICIES[policy]
    return policies


def write(policies: StatePolicies) -> str:
    """Return the text that parse() reads."""
    return ", ".join(f"{name}={policy}" for name, policy in policies.items())
