"""SHOW STATS, its totals and averages, and LATENCY: what was done, and how long it took."""

from collections.abc import Iterable, Iterator
from typing import Final

from pooler.admin.office import Office
from pooler.admin.results import Row, columns
from pooler.admin.show.pools import CONSOLE
from pooler.admin.show.table import Table
from pooler.figures.statistics import Histogram, Statistics, Totals, averages, sum_of
from protocol.console import Column, Kind

_NUMERIC, _TEXT, _INT8 = Kind.NUMERIC, Kind.TEXT, Kind.INT8

_DATABASE: Final = Column("database", _TEXT)
_IN_TOTALS: Final = {"received": "bytes_received", "sent": "bytes_sent"}
_IN_TOTAL_ROWS: Final = {
    "received": "client_bytes",
    "sent": "server_bytes",
    "client_parse_count": "ps_client_parse_count",
    "server_parse_count": "ps_server_parse_count",
    "bind_count": "ps_bind_count",
}
"""Names that PgBouncer has in one SHOW only."""
_AVERAGE_ONLY: Final = ("client_parse_count", "server_parse_count", "bind_count")


def _figures(prefix: str, names: Iterable[str] = Totals._fields) -> tuple[Column, ...]:
    return tuple(Column(prefix + name, _NUMERIC) for name in names)


_STATS: Final = (
    _DATABASE,
    *_figures("total_"),
    *_figures("avg_", ("recv" if name == "received" else name for name in Totals._fields)),
)
_STATS_TOTALS: Final = (_DATABASE, *_figures("", (_IN_TOTALS.get(name, name) for name in Totals._fields)))
_STATS_AVERAGES: Final = (
    _DATABASE,
    *_figures("", (f"avg_{name}" if name in _AVERAGE_ONLY else _IN_TOTALS.get(name, name) for name in Totals._fields)),
)
_TOTALS: Final = columns(name=_TEXT, value=_NUMERIC)
_LATENCY: Final = columns(
    database=_TEXT,
    user=_TEXT,
    measure=_TEXT,
    count=_INT8,
    avg_us=_INT8,
    p50_us=_INT8,
    p90_us=_INT8,
    p99_us=_INT8,
    p999_us=_INT8,
    max_us=_INT8,
)


def _by_database(office: Office) -> Iterator[tuple[str, Totals, Totals]]:
    """Yield each database with its totals, and those of the beginning of the time that averages are about."""
    statistics: dict[str, list[Statistics]] = {}
    for pool in office.pools:
        statistics.setdefault(pool.database, []).append(pool.stats)
    for database, each in sorted(statistics.items()):
        yield database, sum_of(stats.totals for stats in each), sum_of(stats.older for stats in each)
    yield CONSOLE, office.consoles.totals, Totals()


def _stats(office: Office) -> Iterator[Row]:
    seconds = office.period.seconds(office.now())
    for database, totals, before in _by_database(office):
        yield (database, *totals, *averages(totals, before, seconds))


def _stats_totals(office: Office) -> Iterator[Row]:
    for database, totals, _ in _by_database(office):
        yield (database, *totals)


def _stats_averages(office: Office) -> Iterator[Row]:
    seconds = office.period.seconds(office.now())
    for database, totals, before in _by_database(office):
        yield (database, *averages(totals, before, seconds))


def _totals(office: Office) -> Iterator[Row]:
    by_database = list(_by_database(office))
    totals = sum_of(totals for _, totals, _ in by_database)
    average = averages(totals, sum_of(before for _, _, before in by_database), office.period.seconds(office.now()))
    for prefix, figures in (("total_", totals), ("avg_", average)):
        for name, value in zip(Totals._fields, figures, strict=True):
            yield (prefix + _IN_TOTAL_ROWS.get(name, name), value)


def _latency(office: Office) -> Iterator[Row]:
    for pool in office.pools:
        stats = pool.stats
        for measure, histogram in (
            ("wait", stats.waits),
            ("query", stats.queries),
            ("transaction", stats.transactions),
            ("client_login", stats.logins),
            ("server_connect", stats.connects),
        ):
            yield (pool.database, pool.user, measure, *_percentiles(histogram))


def _percentiles(histogram: Histogram) -> Row:
    count = histogram.count
    seconds = (
        histogram.sum / count if count else 0.0,
        *(histogram.percentile(q) for q in (0.5, 0.9, 0.99, 0.999)),
        histogram.max,
    )
    return (count, *(round(each * 1_000_000) for each in seconds))


TABLES: Final = {
    "stats": Table("What databases have done since the start, and on average in the last stats_period", _STATS, _stats),
    "stats_totals": Table("The totals alone", _STATS_TOTALS, _stats_totals),
    "stats_averages": Table("The averages alone", _STATS_AVERAGES, _stats_averages),
    "totals": Table("The same over all databases, one figure per row", _TOTALS, _totals),
    "latency": Table(
        "How long waits, queries, transactions, logins and connects took per pool, in us", _LATENCY, _latency
    ),
}
