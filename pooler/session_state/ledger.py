"""The books on session state: who is pinned and by which statement, what was refused, what was found hidden.

It knows no sockets and decides nothing. Statements are kept as fingerprints only: no value that a client has sent is
in here. Metrics, console and pages read it at any time; everything in it is bounded.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, final

from pooler.log import Log
from pooler.session_state.advice import advise
from protocol.sql import State, fingerprint, words

OTHER: Final = "other"
MOST_TOTALS: Final = 1000
MOST_LINES: Final = 1000
QUIET_S: Final = 60.0
"""How long a line of the log is not repeated."""
_LONGEST_APPLICATION: Final = 63  # Postgres cuts application_name, too


@final
@dataclass(frozen=True, slots=True)
class Pin:
    """A client that keeps its server connection: since when (monotonic seconds), for which classes of state.

    `statement` is the fingerprint of the one that pinned it first.
    """

    client: int
    user: str
    database: str
    application: str
    states: State
    since: float
    statement: str


@final
class Totals(Counter[tuple[str, str, str]]):
    """How often, by (class, fingerprint, application): the frequent ones; the rest is (class, "other", "other")."""

    def count(self, key: tuple[str, str, str]) -> None:
        """Count one more. When there are too many keys, the less frequent half becomes "other"."""
        self[key] += 1
        if len(self) > MOST_TOTALS:
            for rare, times in self.most_common()[MOST_TOTALS // 2 :]:
                del self[rare]
                self[rare[0], OTHER, OTHER] += times


@final
class Account:
    """How often something has happened: by pool for the metrics, by statement for people.

    A statement that leaves state of two classes counts in both.
    """

    def __init__(self) -> None:
        self.by_pool: Counter[tuple[str, str, str]] = Counter()
        """By (database, user, class)."""
        self.by_statement = Totals()

    def add(self, user: str, database: str, application: str, states: State, statement: str) -> None:
        """Count one more."""
        for word in words(states):
            self.by_pool[database, user, word] += 1
            self.by_statement.count((word, statement, application))


class _Line(NamedTuple):
    """What makes two lines of the log the same."""

    event: str
    states: State
    statement: str
    application: str


@final
class _Repetitions:
    """Lets each line into the log once per QUIET_S, and counts what is held back."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._written: dict[_Line, float] = {}  # oldest first
        self._held_back: Counter[_Line] = Counter()

    def admit(self, line: _Line) -> int | None:
        """Return how often this line was held back since it was last written, or None to hold it back."""
        now = self._now()
        written = self._written.get(line)
        if written is None and len(self._written) >= MOST_LINES and not self._forget_one(now):
            line = _Line(line.event, State(0), OTHER, OTHER)
            written = self._written.get(line)
        if written is not None and now - written < QUIET_S:
            self._held_back[line] += 1
            return None
        self._written.pop(line, None)
        self._written[line] = now
        return self._held_back.pop(line, 0)

    def _forget_one(self, now: float) -> bool:
        oldest, written = next(iter(self._written.items()))
        if now - written < QUIET_S:
            return False
        del self._written[oldest]
        self._held_back.pop(oldest, None)
        return True


@final
class Ledger:
    """Who is pinned now, and what has happened since the start.

    `pins_made`, `refusals` and `finds` are Accounts; `questions` is how often Postgres was asked what is left in a
    session, by (database, user).
    """

    def __init__(self, now: Callable[[], float], log: Log, *, log_pins: bool = True) -> None:
        self._now = now
        self._log = log
        self._log_pins = log_pins
        self._repetitions = _Repetitions(now)
        self._pins: dict[int, Pin] = {}
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.pins_made = Account()
        self.refusals = Account()
        self.finds = Account()
        self.questions: Counter[tuple[str, str]] = Counter()

    # --- what the sessions tell

    def pinned(
        self, client_id: int, user: str, database: str, application: str, states: State, statement_text: bytes
    ) -> None:
        """Book that a client has been pinned by this statement, or is for further classes now."""
        pin = self._pins.get(client_id)
        new = states if pin is None else states & ~pin.states
        if not new:
            return
        application, statement = application[:_LONGEST_APPLICATION], fingerprint(statement_text)
        if pin is None:
            pin = Pin(client_id, user, database, application, new, self._now(), statement)
        else:
            pin = replace(pin, states=pin.states | new)
        self._pins[client_id] = pin
        self.pins_made.add(user, database, application, new, statement)
        line = _Line("pinned", new, statement, application)
        if self._log_pins and (suppressed := self._repetitions.admit(line)) is not None:
            self._log.info(
                "pinned", client=client_id, **_about(line, user, database), advice=advise(new), **_if_any(suppressed)
            )

    def remaining(self, client_id: int, states: State) -> None:
        """Book that of the classes which pin a client only these are left."""
        pin = self._pins.get(client_id)
        if pin is not None:
            self._pins[client_id] = replace(pin, states=states & pin.states)

    def unpinned(self, client_id: int, why: str) -> None:
        """Book that a client is no longer pinned, if it was: "undone", "client_gone" or another word."""
        pin = self._pins.pop(client_id, None)
        if pin is None:
            return
        held = self._now() - pin.since
        self._seconds[pin.database, pin.user] += held
        line = _Line("unpinned", pin.states, pin.statement, pin.application)
        if self._log_pins and (suppressed := self._repetitions.admit(line)) is not None:
            about = _about(line, pin.user, pin.database)
            self._log.info("unpinned", client=client_id, **about, why=why, held_s=round(held, 3), **_if_any(suppressed))

    def refused(
        self, user: str, database: str, application: str, states: State, statement_text: bytes, why: str
    ) -> None:
        """Book that a statement was refused, since it would have pinned: by policy ("reject") or "max_pinned"."""
        line = _Line("pin_refused", states, fingerprint(statement_text), application[:_LONGEST_APPLICATION])
        self.refusals.add(user, database, line.application, states, line.statement)
        if (suppressed := self._repetitions.admit(line)) is not None:
            about = _about(line, user, database)
            self._log.warning("pin_refused", **about, why=why, advice=advise(states), **_if_any(suppressed))

    def hidden(
        self, client_id: int, user: str, database: str, application: str, states: State, statement_text: bytes
    ) -> None:
        """Book that a statement has left state of which its text shows nothing: pin_audit has found it."""
        line = _Line("hidden_state", states, fingerprint(statement_text), application[:_LONGEST_APPLICATION])
        self.finds.add(user, database, line.application, states, line.statement)
        if (suppressed := self._repetitions.admit(line)) is not None:
            about = _about(line, user, database)
            self._log.warning("hidden_state", client=client_id, **about, advice=advise(states), **_if_any(suppressed))

    def asked(self, user: str, database: str) -> None:
        """Book that Postgres was asked what is left in a session."""
        self.questions[database, user] += 1

    # --- what people read

    @property
    def pins(self) -> list[Pin]:
        """Who is pinned now, oldest first."""
        return sorted(self._pins.values(), key=lambda pin: pin.since)

    @property
    def totals(self) -> Mapping[tuple[str, str, str], int]:
        """How often clients were pinned, by (class, fingerprint, application); at most MOST_TOTALS and the others."""
        return self.pins_made.by_statement

    def pinned_seconds(self) -> Mapping[tuple[str, str], float]:
        """Return for how long clients have been pinned, in all and up to now, by (database, user)."""
        seconds, now = self._seconds.copy(), self._now()
        for pin in self._pins.values():
            seconds[pin.database, pin.user] += now - pin.since
        return seconds


def _about(line: _Line, user: str, database: str) -> dict[str, str | None]:
    return {
        "user": user,
        "database": database,
        "application": line.application or None,
        "states": ",".join(words(line.states)),
        "statement": line.statement,
    }


def _if_any(suppressed: int) -> dict[str, int]:
    return {"suppressed": suppressed} if suppressed else {}
