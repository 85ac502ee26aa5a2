"""What the session of one server connection holds: settings, statements, and whatever pins its client.

Bookkeeping only: the server session asks Postgres and sends, this says what for, and what the answer means.
"""

from collections.abc import Iterable, Mapping
from typing import Final, final

from pooler.reasons import Ending, Reason
from pooler.session_state.advice import advise
from pooler.session_state.answers import Circumstances
from pooler.session_state.sharing import Judgement, Moment, Sharing, Suspicion
from protocol.messages import parameter_status, text_of
from protocol.parameters import Profile
from protocol.question import Findings, full_question, question
from protocol.sql import State, Verdict
from protocol.statements import ServerStatements

APPLICATION_NAME: Final = "application_name"


@final
class SessionState:
    """See module."""

    __slots__ = (
        "_changed",
        "_counted",
        "_pinned_client",
        "_suspicion",
        "asks_by_name",
        "loaded",
        "nameless",
        "pins",
        "reported",
        "risky",
        "sharing",
        "statements",
        "trail",
        "unsettled",
    )

    def __init__(self, sharing: Sharing, reported: Mapping[str, str]) -> None:
        """`reported` are the settings that Postgres has told at the login."""
        self.sharing = sharing
        self.statements = ServerStatements(sharing.library, sharing.max_prepared)
        self.reported = dict(reported)
        """What Postgres has last said about the settings that it reports."""
        self.pins = State(0)
        """What pins its client."""
        self.risky = False
        """There is an SQL-level prepared statement that may leave something when it is executed."""
        self.trail = b""
        """The text that was sent last, where there are audits."""
        self.asks_by_name = False
        """The question has been prepared."""
        self.unsettled: dict[bytes, tuple[object, int]] = {}
        """Names that its client has prepared or closed, with the run that may still fail, and how often there."""
        self.loaded = False
        """A library may have been loaded, or what else nothing is known to undo."""
        self.nameless = False
        """Custom settings have been set whose names are not known: only DISCARD ALL gets rid of them."""
        self._suspicion: Suspicion | None = None
        self._changed: dict[str, str | None] = {}
        self._pinned_client = 0
        self._counted = False
        """It counts among those that are pinned."""

    @property
    def pinned(self) -> bool:
        """Its client keeps it."""
        return bool(self.pins)

    @property
    def welcome(self) -> bytes:
        """The ParameterStatus messages for a client with the settings that the session has."""
        return b"".join(parameter_status(name, value) for name, value in self.reported.items())

    # --- while a client has it

    def suspect(self, verdict: Verdict, text: bytes, alone: Moment | None = None) -> None:
        """Note what a statement may leave behind; `alone` as in Suspicion."""
        if self._suspicion is None:
            self._suspicion = Suspicion(text, alone)
        else:
            self._suspicion.alone = None
        self._suspicion.add(verdict)
        self.loaded |= bool(verdict.leaves & (State.LIBRARY | State.UNKNOWN) & self.sharing.pinning)

    def circumstances(self, now: Moment, session: Profile | None, startup: Profile | None) -> Circumstances | None:
        """Return what the answer to the question depends on, if it depends on the one text that has run."""
        suspicion = self._suspicion
        if suspicion is None or suspicion.alone != now or suspicion.dynamic:
            return None
        return (
            None
            if self.pins or self.nameless or self.sharing.audit
            else Circumstances(suspicion.text, session, startup)
        )

    def answered(self) -> None:
        """The answer is known, and there is nothing that could pin."""
        self._suspicion = None

    def report(self, payload: bytes, *, by_client: bool) -> bool:
        """Take a ParameterStatus: Postgres was asked to change a setting, or did so inside a function.

        Return whether something is reported otherwise than at the beginning of the transaction, if that is the
        client's doing.
        """
        name, _, rest = payload.partition(b"\0")
        key, value = text_of(name), text_of(rest.rstrip(b"\0"))
        before = self.reported.get(key)
        self.reported[key] = value
        if by_client and self._changed.setdefault(key, before) == value:
            del self._changed[key]  # as after SET LOCAL
        return bool(self._changed)

    def take_changes(self) -> bool:
        """Tell, once, whether a client's transaction has changed what is reported."""
        changed = bool(self._changed)
        self._changed.clear()
        return changed

    # --- the question

    def question(self, *profiles: Profile | None, custom: Iterable[str] = ()) -> bytes:
        """Return the messages that ask what the session holds; `custom` settings are asked for by name.

        Until the answer a pin does not count: its client may just have undone it, and nobody is refused for that.
        """
        self._count(pinned=False)
        names = self.sharing.custom_names(self._suspicion, *profiles) | self.sharing.remember_custom(custom)
        prepare, self.asks_by_name = not self.asks_by_name, True
        return question(names, prepare=prepare)

    def full_question(self, *profiles: Profile | None, custom: Iterable[str] = ()) -> bytes:
        """Return the same for where the question was cancelled, is not prepared after all, or not all was seen."""
        self.asks_by_name = False
        names = self.sharing.custom_names(self._suspicion, *profiles) | self.sharing.remember_custom(custom)
        return full_question(names)

    def judge(
        self, findings: Findings, client: int, startup: Profile | None, before: Profile | None, pool: tuple[str, str]
    ) -> tuple[Judgement, Ending | None]:
        """Take the answer; return what it means for the client, and how that is ended if it can't be pinned.

        `startup` and `before` are the client's settings at login and before the transaction, `pool` user and database.
        """
        sharing, ledger = self.sharing, self.sharing.ledger
        suspicion, self._suspicion = self._suspicion, None
        self.nameless |= suspicion is not None and suspicion.dynamic
        judgement = sharing.judge(findings, suspicion, startup, before, self.pins, nameless=self.nameless)
        application = application_of(judgement.profile)
        text = suspicion.text if suspicion is not None else self.trail
        if judgement.hidden and suspicion is None and self.trail:
            ledger.hidden(client, *pool, application, judgement.hidden, text)
        if not judgement.pins:
            self.unpin("undone")
        elif not self.pins and sharing.full:
            ledger.refused(*pool, application, judgement.pins, text, "max_pinned")
            return judgement, too_many_pinned(sharing, judgement.pins)
        else:
            self._count(pinned=True)
            self.pins = judgement.pins
            self._pinned_client = client
            ledger.remaining(client, judgement.pins)
            ledger.pinned(client, *pool, application, judgement.pins, text)
        return judgement, None

    def _count(self, *, pinned: bool) -> None:
        self.sharing.pinned += pinned - self._counted
        self._counted = pinned

    def unpin(self, why: str) -> None:
        """Its client can go on elsewhere, or has gone."""
        if self.pins:
            self.pins = State(0)
            self._count(pinned=False)
            self.sharing.ledger.unpinned(self._pinned_client, why)
        self.risky = False

    def untold(self, client: Profile | None, session: Profile | None) -> bytes:
        """Return the ParameterStatus messages for what a client has, but its session has been reset from."""
        return b"".join(
            parameter_status(name, text_of(value))
            for name, value in (client.settings if client is not None else {}).items()
            if name in self.reported and (session is None or session.settings.get(name) != value)
        )

    def statements_lost(self) -> None:
        """The server lacks a statement that it was given: a function has deallocated what is not its own."""
        self.statements.doubt()
        self.asks_by_name = False

    # --- the client has gone

    def left(self) -> None:
        """Its client has gone, and whatever that may have done is no longer anybody's affair."""
        self.unpin("client_gone")
        suspicion, self._suspicion = self._suspicion, None
        self.nameless |= suspicion is not None and suspicion.dynamic

    def discarded(self) -> None:
        """DISCARD ALL has run."""
        self.statements.clear()
        self.asks_by_name = False
        self.nameless = False


def application_of(profile: Profile | None) -> str:
    """Return the application_name of a client, as far as it has one of its own."""
    return text_of(profile.get(APPLICATION_NAME)) if profile is not None else ""


def too_many_pinned(sharing: Sharing, states: State) -> Ending:
    """Return how a client is ended, or its statement refused, that can't be pinned because of the others."""
    return Ending(
        Reason.MAX_PINNED,
        "53400",
        f"{sharing.pinned} of the pool's clients keep a server connection already (max_pinned)",
        hint=advise(states),
    )
