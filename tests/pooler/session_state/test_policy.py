"""What is done about session state, as an operator has said it for all, for a database, for a user."""

from typing import Final

import pytest

from config.session_state import CLASSES, DEFAULTS, POLICIES, TRACKABLE, StateClass
from config.settings import Settings
from pooler.session_state.advice import ADVICE, advise
from pooler.session_state.policy import Action, Policy, policy_for
from protocol.sql import State, words

EVERYTHING: Final = ~State(0)


def policy(user: str = "app", database: str = "orders", **settings: object) -> Policy:
    return policy_for(Settings.model_validate({"upstream": "postgresql://app@db", **settings}), user, database)


def test_settings_and_lexer_name_the_same_classes() -> None:
    assert list(CLASSES) == words(EVERYTHING)
    assert set(POLICIES) == set(Action)


def test_by_default_what_can_follow_its_client_does_and_nothing_is_refused() -> None:
    default = policy()
    assert default.tracked == State.SETTING | State.IDENTITY
    assert default.ignored == State.SEQUENCE | State.UNKNOWN
    assert default.rejected == State(0)
    assert words(default.pinned) == ["listen", "prepared", "cursor", "temporary", "advisory_lock", "library"]


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("word", CLASSES.values())
def test_every_class_is_in_exactly_one_set(word: StateClass, action: Action) -> None:
    if action is Action.TRACK and word not in TRACKABLE:
        action = Action.PIN
    state = State[word.upper()]
    changed = policy(session_state=f"{word}={action}")
    sets = (changed.tracked, changed.pinned, changed.rejected, changed.ignored)
    assert changed.action(state) is action
    assert sum(sets, State(0)) == EVERYTHING
    assert [state in each for each in sets].count(True) == 1


def test_the_user_goes_before_the_database_and_that_before_the_one_for_all_class_by_class() -> None:
    settings = {
        "session_state": "listen=reject, cursor=reject, temporary=reject",
        "session_state_database": {"orders": "listen=pin, cursor=pin"},
        "session_state_user": {"app": "listen=ignore"},
    }
    states = (State.LISTEN, State.CURSOR, State.TEMPORARY, State.LIBRARY)

    def actions(user: str, database: str) -> list[str]:
        return [policy(user, database, **settings).action(state).value for state in states]

    assert actions("app", "orders") == ["ignore", "pin", "reject", "pin"]
    assert actions("app", "other") == ["ignore", "reject", "reject", "pin"]
    assert actions("bob", "orders") == ["pin", "pin", "reject", "pin"]
    assert actions("bob", "other") == ["reject", "reject", "reject", "pin"]


def test_every_class_has_its_policy_and_its_advice() -> None:
    assert list(DEFAULTS) == list(CLASSES)
    assert list(ADVICE) == list(State)
    assert advise(State.LISTEN | State.CURSOR) == f"{ADVICE[State.LISTEN]} {ADVICE[State.CURSOR]}"
