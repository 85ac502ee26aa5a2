"""The metrics of pools and of databases, as text: there may be thousands of lines each second.

Clients choose names with `*`, so that the number of labels has a bound: the rest has figures together, as `other`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from pooler.databases import Databases
from pooler.figures.statistics import BOUNDS, Histogram, Statistics, Totals, sum_of
from pooler.upstream.opening import ServerPool

MOST: Final = 100
"""How many pairs of a database and a user have figures of their own."""
OTHER: Final = ("other", "other")

LES: Final = tuple(float(f"{step}e{decade}") for decade in range(-4, 2) for step in (1, 2.5, 5))
"""Seconds: the buckets that are told, 100 us to 50 s. Each is a bound of a histogram's own."""
_PLACES: Final = tuple(map(BOUNDS.index, LES))

_COUNTERS: Final = (
    ("pgfunnel_server_assignments", "How often a client was given a server", "server_assignment_count"),
    ("pgfunnel_transactions", "Transactions served", "xact_count"),
    ("pgfunnel_queries", "Queries answered", "query_count"),
    ("pgfunnel_received_bytes", "Requests of clients that were sent on", "received"),
    ("pgfunnel_sent_bytes", "Sent to clients after their login", "sent"),
    ("pgfunnel_client_logins", "Clients that have logged in", "client_login_count"),
    ("pgfunnel_prepared_statement_client_parses", "Named statements prepared by clients", "client_parse_count"),
    ("pgfunnel_prepared_statement_parses", "How often one was prepared on a server", "server_parse_count"),
    ("pgfunnel_prepared_statement_binds", "How often one was bound", "bind_count"),
)
_HISTOGRAMS: Final = (
    ("pgfunnel_queue_wait_seconds", "How long clients waited for a server, that had to and got one", "waits"),
    ("pgfunnel_transaction_seconds", "How long transactions took", "transactions"),
    ("pgfunnel_query_seconds", "How long queries took", "queries"),
    ("pgfunnel_client_login_seconds", "From a client's connection to the end of its login", "logins"),
    ("pgfunnel_server_connect_seconds", "How long it took to connect and log in at Postgres", "connects"),
)
_STATES: Final = ("active", "idle", "stale", "tested", "cleaning", "login", "replication")


class Pairs:
    """Which pairs of a database and a user have labels of their own: the first that came.

    When there are too many, those make room whose pools are gone. What `other` has counted of pools that are gone
    stays in it, for a counter must not fall.
    """

    def __init__(self) -> None:
        self._own: dict[tuple[str, str], tuple[str, str]] = {}
        self._others: dict[ServerPool, Statistics] = {}
        self.gone = Statistics(())
        """Of the pools that were among `other`."""

    def of(self, database: str, user: str) -> tuple[str, str]:
        """Return the labels of a pair."""
        return self._own.get((database, user), OTHER)

    def group(self, pools: Iterable[ServerPool]) -> Mapping[tuple[str, str], list[ServerPool]]:
        """Return the pools by their labels."""
        pools = list(pools)
        present = {(pool.database, pool.user) for pool in pools}
        groups: dict[tuple[str, str], list[ServerPool]] = {}
        for pool in pools:
            pair = (pool.database, pool.user)
            if pair not in self._own and pool not in self._others:
                self._settle(pool, pair, present)
            groups.setdefault(self.of(*pair), []).append(pool)
        for pool in self._others.keys() - set(pools):
            self.gone.absorb(self._others.pop(pool))
        return groups

    def _settle(self, pool: ServerPool, pair: tuple[str, str], present: set[tuple[str, str]]) -> None:
        if len(self._own) >= MOST:
            for old in [old for old in self._own if old not in present]:
                del self._own[old]
        if len(self._own) < MOST:
            self._own[pair] = (_readable(pair[0]), _readable(pair[1]))
        else:
            self._others[pool] = pool.stats


class _Group(NamedTuple):
    """What has one pair of labels."""

    labels: str
    pools: list[ServerPool]
    statistics: list[Statistics]
    totals: Totals


class PoolPage:
    """The text of all that has a database for a label."""

    def __init__(
        self,
        pools: Iterable[ServerPool],
        databases: Databases,
        clients_of: Mapping[ServerPool, int],
        pairs: Pairs,
        now: Callable[[], float],
    ) -> None:
        self._pools = pools
        self._databases = databases
        self._clients_of = clients_of
        self._pairs = pairs
        self._now = now

    def render(self) -> str:
        """Return it."""
        return "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        groups = list(self._groups())
        yield from self._gauges(groups)
        for name, text, field in _COUNTERS:
            yield _header(f"{name}_total", text, "counter")
            for group in groups:
                yield f"{name}_total{{{group.labels}}} {getattr(group.totals, field)}\n"
        for name, text, field in _HISTOGRAMS:
            yield _header(name, text, "histogram")
            lines = _HistogramLines(name)
            for group in groups:
                yield lines.of(group.labels, [getattr(stats, field) for stats in group.statistics])
        yield from self._of_databases()

    def _groups(self) -> Iterator[_Group]:
        for pair, pools in self._pairs.group(self._pools).items():
            statistics = [pool.stats for pool in pools]
            if pair == OTHER:
                statistics.append(self._pairs.gone)
            totals = sum_of(stats.totals for stats in statistics)
            yield _Group(_labels(database=pair[0], user=pair[1]), pools, statistics, totals)

    def _gauges(self, groups: list[_Group]) -> Iterator[str]:
        now = self._now()
        yield _header("pgfunnel_pool_servers", "Server connections, by what they do", "gauge")
        for group in groups:
            for state, count in zip(_STATES, map(sum, zip(*map(_servers, group.pools), strict=True)), strict=True):
                yield f'pgfunnel_pool_servers{{{group.labels},state="{state}"}} {count}\n'
        figures: tuple[tuple[str, str, Callable[[list[ServerPool]], float]], ...] = (
            ("size", "How many servers there may be; 0 = no limit", lambda pools: sum(pool.size for pool in pools)),
            (
                "clients",
                "Clients that are logged in",
                lambda pools: sum(self._clients_of.get(pool, 0) for pool in pools),
            ),
            (
                "clients_waiting",
                "Clients that wait for a server",
                lambda pools: sum(len(pool.waiters) + len(pool.newcomers) for pool in pools),
            ),
            (
                "maxwait_seconds",
                "How long the first of them has waited",
                lambda pools: max(max(0.0, now - pool.waiting_since) for pool in pools),
            ),
        )
        for name, text, figure in figures:
            yield _header(f"pgfunnel_pool_{name}", text, "gauge")
            for group in groups:
                yield f"pgfunnel_pool_{name}{{{group.labels}}} {figure(group.pools)}\n"

    def _of_databases(self) -> Iterator[str]:
        sums: dict[str, list[int]] = {}
        for database in self._databases:
            figures = (
                int(self._databases.is_paused(database.name)),
                int(database.disabled),
                database.cap.limit,
                database.cap.count,
            )
            name = database.name if len(sums) < MOST else OTHER[0]
            sums[name] = [one + two for one, two in zip(sums.get(name, (0,) * 4), figures, strict=True)]
        for index, (metric, text) in enumerate(
            (
                ("pgfunnel_database_paused", "1 = PAUSE holds its clients up"),
                ("pgfunnel_database_disabled", "1 = DISABLE turns new clients away"),
                ("pgfunnel_database_max_connections", "How many server connections there may be; 0 = no limit"),
                ("pgfunnel_database_connections", "How many there are"),
            )
        ):
            yield _header(metric, text, "gauge")
            for name, values in sums.items():
                yield f"{metric}{{{_labels(database=_readable(name))}}} {values[index]}\n"


class _HistogramLines:
    """The lines of a histogram: twenty for each pool, so that they are filled in all at once."""

    def __init__(self, name: str) -> None:
        buckets = "".join(f'{name}_bucket{{\0,le="{le}"}} %d\n' for le in (*map("{:g}".format, LES), "+Inf"))
        self._lines = f"{buckets}{name}_count{{\0}} %d\n{name}_sum{{\0}} %r\n"

    def of(self, labels: str, histograms: list[Histogram]) -> str:
        """Return them for one histogram, or for several together."""
        counts = map(sum, zip(*(histogram.upto(_PLACES) for histogram in histograms), strict=True))
        count = sum(histogram.count for histogram in histograms)
        values = (*counts, count, count, sum(histogram.sum for histogram in histograms))
        return self._lines.replace("\0", labels.replace("%", "%%")) % values


def histogram_family(name: str, text: str, histogram: Histogram) -> str:
    """Return the text of a histogram that has no labels."""
    return _header(name, text, "histogram") + _HistogramLines(name).of("", [histogram]).replace("{,", "{").replace(
        "{}", ""
    )


def _servers(pool: ServerPool) -> tuple[int, ...]:
    return (
        sum(server.client is not None for server in pool.servers),
        len(pool.idle),
        len(pool.stale),
        pool.testing,
        sum(server.cleaning and not server.testing for server in pool.servers),
        pool.opening,
        pool.aside,
    )


def _header(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _labels(**labels: str) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _readable(name: str) -> str:
    """Clients choose the names, and not all bytes are UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
