"""What the sessions of one pool have to know to share its servers in spite of session state.

Here is decided what Postgres's answer about a session means: what follows the client, and what pins it. Asking, linking
and sending are the sessions' affair.
"""

import random
from collections.abc import Collection, ItemsView, Iterable, Mapping
from typing import Final, NamedTuple, final

from pooler.session_state.answers import Answers
from pooler.session_state.ledger import Ledger
from pooler.session_state.policy import Policy
from protocol.messages import text_of
from protocol.parameters import IDENTITY, ROLE, SESSION_USER, Profile, Profiles
from protocol.question import Findings, can_be_asked_for
from protocol.sql import State, Verdict
from protocol.statements import Library

_UNTOLD: Final = State.LIBRARY | State.SEQUENCE | State.UNKNOWN
"""What Postgres can't tell of: where it pins, it pins until its client leaves."""
MOST_CUSTOM: Final = 200
"""How many names of custom settings are asked for; Postgres does not list them."""
MOST_FITTED: Final = 1000


class Fitted(NamedTuple):
    """What a set of startup parameters comes to on a server of this pool."""

    profile: Profile | None
    welcome: bytes
    """The ParameterStatus messages for a client with them."""


class Moment(NamedTuple):
    """A point in the conversation with a server."""

    queries: int
    """ReadyForQuerys seen."""
    errors: int
    """ErrorResponses seen."""


@final
class Suspicion:
    """What statements may have done to a session, as far as their texts show it."""

    __slots__ = ("alone", "custom", "dynamic", "leaves", "text")

    def __init__(self, text: bytes, alone: Moment | None = None) -> None:
        self.alone = alone
        """When the transaction is over if there is nothing in it but this one text."""
        self.leaves = State(0)
        self.custom: set[str] = set()
        """Names of custom settings that may have been set."""
        self.dynamic = False
        """A setting may have been set whose name is not known."""
        self.text = text
        """The first of those texts."""

    def add(self, verdict: Verdict) -> None:
        """Unite with what another text may have done."""
        self.leaves |= verdict.leaves
        self.custom.update(verdict.custom)
        self.dynamic |= verdict.dynamic or not all(map(can_be_asked_for, verdict.custom))


class Judgement(NamedTuple):
    """What is made of an answer."""

    profile: Profile | None
    """The client's from now on."""
    session: Profile | None
    """The session's."""
    pins: State
    """Why it has to keep its server; 0 = it need not."""
    hidden: State
    """What no text had given reason to expect."""


@final
class Sharing:
    """For one pool: policy, what is known of its clients' settings, how many may be pinned."""

    __slots__ = (
        "_custom",
        "always_tracked",
        "answers",
        "audit",
        "base",
        "base_states",
        "fitted",
        "ledger",
        "library",
        "max_pinned",
        "max_prepared",
        "pinned",
        "pinning",
        "policy",
        "profiles",
        "unseen_names",
    )

    def __init__(
        self,
        policy: Policy,
        library: Library,
        profiles: Profiles,
        ledger: Ledger,
        *,
        max_prepared: int,
        max_pinned: int,
        audit: float = 0.0,
        always_tracked: frozenset[str] = frozenset(),
    ) -> None:
        """`max_prepared` is per server, 0 = names pass unchanged; `max_pinned` 0 = no limit; `audit` a share of 1.

        `always_tracked` are settings, in lower case, that follow their client also where settings are ignored.
        """
        self.policy = policy
        self.always_tracked = always_tracked
        self.library = library
        self.profiles = profiles
        self.ledger = ledger
        self.max_prepared = max_prepared
        self.max_pinned = max_pinned
        self.audit = audit
        self.pinned = 0
        """How many clients are pinned now."""
        self.pinning = policy.pinned | policy.rejected
        """The classes that pin. What is rejected and has come about all the same, in a function, is among them."""
        self.base: Profile | None = None
        """What connect_query sets: each client begins with it, and has it back after a RESET."""
        self.base_states = State(0)
        """What else it leaves in each session. It is everybody's, and pins nobody."""
        self.fitted: dict[tuple[tuple[str, str], ...], Fitted] = {}
        self.answers = Answers()
        self.unseen_names = False
        """Clients have prepared, under names that pass as they are, what may leave something when it runs."""
        self._custom: set[str] = set()

    def take_base(self, left: Findings | None) -> Profile | None:
        """Take what connect_query has left in a new session, if it was run; return that session's profile."""
        base = self.profiles.of(own_settings(left)) if left is not None else None
        states = left.states if left is not None else State(0)
        if (base, states) != (self.base, self.base_states):
            self.base, self.base_states = base, states
            self.fitted.clear()
            self.answers = Answers()
        return base

    def with_base(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Return what to give a client that comes with these startup parameters."""
        base = self.base.settings if self.base is not None else {}
        return {**{name: text_of(value) for name, value in base.items()}, **parameters}

    def beside_base(self, findings: Findings) -> Findings:
        """Return the findings without what is in each session."""
        return findings._replace(states=findings.states & ~self.base_states)

    @property
    def full(self) -> bool:
        """No further client may be pinned."""
        return 0 < self.max_pinned <= self.pinned

    def audits(self) -> bool:
        """Tell whether to ask after this transaction, although nothing gave reason to."""
        return random.random() < self.audit  # noqa: S311 - a sample, no secret

    def remember_fitted(self, parameters: tuple[tuple[str, str], ...], fitted: Fitted) -> None:
        """Remember what startup parameters come to, as functions always come with the same."""
        if len(self.fitted) >= MOST_FITTED:
            self.fitted.clear()
        self.fitted[parameters] = fitted

    def relevant(self, verdict: Verdict, pinned: State) -> bool:
        """Tell whether Postgres is to be asked after a text, by a client that `pinned` pins already."""
        return bool(verdict.asks or verdict.leaves & ~self.policy.ignored or verdict.undoes & pinned)

    def custom_names(self, suspicion: Suspicion | None, *profiles: Profile | None) -> set[str]:
        """Return the names of custom settings to ask for: of this client, its server, and all that were seen before."""
        names = self.remember_custom(suspicion.custom if suspicion is not None else ())
        for profile in profiles:
            if profile is not None:
                names.update(name for name in profile.settings if "." in name)
        return names

    def remember_custom(self, names: Iterable[str]) -> set[str]:
        """Return `names`, in lower case, and all that were seen in this pool before."""
        found = {name.lower() for name in names if "." in name}
        if len(self._custom) < MOST_CUSTOM:
            self._custom |= found
        return found | self._custom

    def judge(
        self,
        findings: Findings,
        suspicion: Suspicion | None,
        startup: Profile | None,
        before: Profile | None,
        held: State,
        *,
        nameless: bool = False,
    ) -> Judgement:
        """Say what the answer about a client's session means.

        `startup` and `before` are its settings at login and before the transaction, `held` is what pinned it before.
        With `nameless` it has set custom settings of unknown names, which can't be asked for.
        """
        touched = {name.lower() for name in suspicion.custom} if suspicion is not None else set()
        if before is not None:
            touched |= before.settings.keys()
        own = own_settings(findings, touched)
        if startup is not None:
            # A custom setting that was reset is left empty: one that was there at login is taken to have been that.
            own = {
                name: value for name, value in own.items() if value or "." not in name or name not in startup.settings
            }
        settings = {**(startup.settings if startup else {}), **own}
        if SESSION_USER in own and ROLE not in own:
            settings.pop(ROLE, None)  # SET SESSION AUTHORIZATION has ended the role of the login, too
        after = self.profiles.of(settings)
        # What it was reset to is what it logged in with: on the server it is gone, for the client it is not.
        changed = State(0)
        for name in {*settings, *(before.settings if before else {})}:
            if settings.get(name) != (before.settings.get(name) if before else None):
                changed |= State.IDENTITY if name in IDENTITY else State.SETTING
        expected = suspicion.leaves if suspicion is not None else State(0)
        unknown = suspicion is not None and suspicion.leaves == 0  # DO, CALL and the like: not for their text to show
        hidden = (findings.states & ~held | changed) & ~expected
        pins = findings.states & self.pinning
        pins |= self._pinned_settings(after, startup)
        pins |= (expected | held) & _UNTOLD & self.pinning
        if nameless:
            pins |= State.SETTING & ~self.policy.ignored
        profile = self._settings_after(before, after) if changed & self.policy.ignored else after
        return Judgement(profile, self.profiles.of(own), pins, State(0) if unknown else hidden)

    def _pinned_settings(self, after: Profile | None, startup: Profile | None) -> State:
        pins = State(0)
        if self.pinning & (State.SETTING | State.IDENTITY) and after is not startup:
            for name, value in (after.settings if after else {}).items():
                if startup is None or startup.settings.get(name) != value:
                    pins |= State.IDENTITY if name in IDENTITY else State.SETTING
        return pins & self.pinning

    def _settings_after(self, before: Profile | None, after: Profile | None) -> Profile | None:
        """Return a client's settings where they are ignored: but for some, they stay behind with the server."""
        always = self.always_tracked
        stay = {name: value for name, value in _items(before) if name.lower() not in always}
        follow = {name: value for name, value in _items(after) if name.lower() in always}
        return self.profiles.of({**stay, **follow})


def _items(profile: Profile | None) -> ItemsView[str, bytes]:
    settings: Mapping[str, bytes] = profile.settings if profile is not None else {}
    return settings.items()


def own_settings(findings: Findings, touched: Collection[str] = ()) -> dict[str, bytes]:
    """Return what of the settings found belongs to a client that has had its hands on those in `touched`.

    A custom setting can't be unset: after another client it is left empty, where on a new connection it would not be
    there. So an empty one counts only if it is this client's.
    """
    found = findings.settings.items()
    return {name: value for name, value in found if value or "." not in name or name in touched}
