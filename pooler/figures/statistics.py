"""What a pool has done for its clients: PgBouncer's counters, and how long things took.

Nothing is computed where it happens. Server connections count what passes through them, durations are put aside, and
whoever asks gets the sums. The pooler's own queries, and what they carry, are in none of the figures.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable
from itertools import accumulate
from math import sqrt
from typing import Final, NamedTuple, Protocol, final

_STEPS: Final = (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8)
_DECADES: Final = range(-5, 3)
BOUNDS: Final = tuple(float(f"{step}e{decade}") for decade in _DECADES for step in _STEPS)
"""Seconds. The upper bounds of a histogram's buckets: ten a decade, 10 us to 800 s, so that the middle of a bucket is
less than 14 % away from everything in it."""

_US: Final = 1_000_000

# Instead of the time when a query was begun: none runs, within a transaction or outside of one.
RESTING: Final = -1.0
IDLING: Final = -2.0


class Totals(NamedTuple):
    """Counters under PgBouncer's names, since the start or of some time; or averages, see averages()."""

    server_assignment_count: int = 0
    """How often a client was given a server connection."""
    xact_count: int = 0
    query_count: int = 0
    """Answered with a ReadyForQuery each: what was asked for with a Query, a FunctionCall or a Sync."""
    received: int = 0
    """Bytes of requests of clients that were sent on."""
    sent: int = 0
    """Bytes that were sent to clients, after their login."""
    xact_time: int = 0
    """Microseconds that servers have spent in transactions."""
    query_time: int = 0
    """Microseconds that servers have spent on queries."""
    wait_time: int = 0
    """Microseconds that clients have waited for a server, of those that got one."""
    client_parse_count: int = 0
    """Named statements that clients have prepared; this and the next two only where max_prepared_statements is set."""
    server_parse_count: int = 0
    """How often one of them was prepared on a server."""
    bind_count: int = 0
    """How often one of them was bound."""
    client_login_count: int = 0

    def plus(self, other: "Totals") -> "Totals":
        """Return the sums."""
        return Totals(*(one + two for one, two in zip(self, other, strict=True)))


def sum_of(totals: Iterable[Totals]) -> Totals:
    """Return the sums."""
    return Totals(*map(sum, zip(Totals(), *totals, strict=True)))


def averages(totals: Totals, before: Totals, seconds: float) -> Totals:
    """Return what PgBouncer calls averages: counts and bytes per second, times per transaction, query and assignment.

    `before` are the totals of `seconds` ago.
    """
    grown = [now - then for now, then in zip(totals, before, strict=True)]
    rates = Totals(*(int(each / seconds) if seconds > 0 else 0 for each in grown))
    of = Totals(*grown)
    return rates._replace(
        xact_time=of.xact_time // of.xact_count if of.xact_count else 0,
        query_time=of.query_time // of.query_count if of.query_count else 0,
        wait_time=of.wait_time // of.server_assignment_count if of.server_assignment_count else 0,
    )


@final
class Histogram:
    """Durations in seconds, by size."""

    __slots__ = ("_max", "_sum", "buckets", "note", "pending")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0
        self._max = 0.0
        self.pending: list[float] = []
        """Noted, and not yet sorted in."""
        self.note: Callable[[float], None] = self.pending.append

    def fold(self) -> None:
        """Sort in what was noted."""
        if self.pending:
            durations = sorted(self.pending)
            self.pending.clear()
            self.add(durations)

    def add(self, durations: list[float]) -> None:
        """Sort in `durations`, which are in order."""
        self._sum += sum(durations)
        self._max = max(self._max, durations[-1])
        buckets = self.buckets
        done = 0
        for bucket in range(bisect_left(BOUNDS, durations[0]), bisect_left(BOUNDS, durations[-1])):
            upto = bisect_right(durations, BOUNDS[bucket], done)
            buckets[bucket] += upto - done
            done = upto
        buckets[bisect_left(BOUNDS, durations[-1])] += len(durations) - done

    def absorb(self, other: "Histogram") -> None:
        """Add what another has."""
        other.fold()
        self.buckets = [one + two for one, two in zip(self.buckets, other.buckets, strict=True)]
        self._sum += other.sum
        self._max = max(self._max, other.max)

    @property
    def count(self) -> int:
        """How many there were."""
        self.fold()
        return sum(self.buckets)

    @property
    def sum(self) -> float:
        """Seconds, all together."""
        self.fold()
        return self._sum

    @property
    def max(self) -> float:
        """The longest; 0 if there was none."""
        self.fold()
        return self._max

    def percentile(self, q: float) -> float:
        """Return what a share `q` of them did not exceed, 0 to 1, to within a bucket; 0 if there was none."""
        wanted = q * self.count
        seen = 0
        for bucket, count in enumerate(self.buckets):
            seen += count
            if count and seen >= wanted:
                if not bucket or bucket == len(BOUNDS):
                    return min(self._max, BOUNDS[0]) if not bucket else self._max
                return min(self._max, sqrt(BOUNDS[bucket - 1] * BOUNDS[bucket]))
        return 0.0

    def upto(self, places: Iterable[int]) -> list[int]:
        """Return how many took no longer than each of BOUNDS at `places`."""
        self.fold()
        counts = list(accumulate(self.buckets))
        return [counts[place] for place in places]


class Work(NamedTuple):
    """What a server connection has done for clients."""

    assignments: int
    transactions: int
    queries: int
    received: int
    sent: int


class Worker(Protocol):
    """A server connection, as the statistics see it."""

    @property
    def work(self) -> Work:
        """What it has done so far; none of it ever gets less."""


@final
class Statistics:
    """Those of one pool."""

    __slots__ = (
        "_queries",
        "_transactions",
        "_workers",
        "beside",
        "bind_count",
        "client_login_count",
        "client_parse_count",
        "connects",
        "done",
        "inner",
        "links",
        "logins",
        "newer",
        "note_transaction",
        "older",
        "sent",
        "server_parse_count",
        "single",
        "singles",
        "waits",
    )

    def __init__(self, workers: Collection[Worker]) -> None:
        """`workers` are the connections that are open."""
        self._workers = workers
        self.beside: set[Worker] = set()
        """Connections that are open, and not in the pool: they replicate."""
        self.done = Work(0, 0, 0, 0, 0)
        self._transactions = Histogram()
        self._queries = Histogram()
        self.singles = 0
        self.note_transaction = self._transactions.note
        self.inner = self._queries.pending
        """Queries in transactions of several."""
        self.single: list[float] = []
        """Transactions of one query, after which the server was released at once. Nearly all are, so that each is noted
        for both histograms and as an assignment in one go."""
        self.links = 0
        """How often another server was let go of."""
        self.sent = 0
        """Bytes that clients were told by the pooler itself."""
        self.waits = Histogram()
        """Of clients that wait for a server, and get one."""
        self.logins = Histogram()
        """From a client's first packet to the end of its login."""
        self.connects = Histogram()
        """Of server connections: from the first try to the end of the login."""
        self.client_parse_count = 0
        self.server_parse_count = 0
        self.bind_count = 0
        self.client_login_count = 0
        self.older = self.newer = Totals()
        """As they were when the last stats_period but one, and the last one, ended."""

    def keep(self, worker: Worker) -> None:
        """A connection ends: what it has done counts on."""
        self.done = Work(*map(sum, zip(self.done, worker.work, strict=True)))

    def absorb(self, other: "Statistics") -> None:
        """Add what another has, whose pool is gone."""
        other.fold()
        self.older = self.older.plus(other.older)
        self.newer = self.newer.plus(other.newer)
        self.done = Work(*map(sum, zip(self.done, other.done, strict=True)))
        self.singles += other.singles
        self.links += other.links
        self.sent += other.sent
        self.client_parse_count += other.client_parse_count
        self.server_parse_count += other.server_parse_count
        self.bind_count += other.bind_count
        self.client_login_count += other.client_login_count
        for mine, theirs in zip(self.histograms, other.histograms, strict=True):
            mine.absorb(theirs)

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """All of them; see fold()."""
        return self._transactions, self._queries, self.waits, self.logins, self.connects

    @property
    def totals(self) -> Totals:
        """The counters since the start."""
        self.fold()
        workers = (*self._workers, *self.beside)
        work = Work(*map(sum, zip(self.done, *(worker.work for worker in workers), strict=True)))
        return Totals(
            work.assignments + self.links + self.singles,
            work.transactions,
            work.queries,
            work.received,
            work.sent + self.sent,
            int(self.transactions.sum * _US),
            int(self.queries.sum * _US),
            int(self.waits.sum * _US),
            self.client_parse_count,
            self.server_parse_count,
            self.bind_count,
            self.client_login_count,
        )

    def fold(self) -> None:
        """Sort in what was noted since the last time; the janitor does that each round, which bounds it."""
        if self.single:
            durations = sorted(self.single)
            self.single.clear()
            self.singles += len(durations)
            self._transactions.add(durations)
            self._queries.add(durations)
        for histogram in self.histograms:
            histogram.fold()

    @property
    def transactions(self) -> Histogram:
        """How long they took. Those that clients send while another runs are one with it."""
        self.fold()
        return self._transactions

    @property
    def queries(self) -> Histogram:
        """The same of queries, wherever."""
        self.fold()
        return self._queries


class Period:
    """The clock of stats_period: averages are those since the end of the last period but one, as PgBouncer's."""

    def __init__(self, now: float) -> None:
        self._older = now - 1.0
        self._newer = now

    def over(self, now: float, length: float) -> bool:
        """Tell whether a period of `length` seconds has ended."""
        return now - self._newer >= length

    def turn(self, now: float, pools: Iterable[Statistics]) -> None:
        """Begin another."""
        self._older, self._newer = self._newer, now
        for stats in pools:
            stats.older, stats.newer = stats.newer, stats.totals

    def seconds(self, now: float) -> float:
        """How long ago `Statistics.older` was."""
        return now - self._older
