"""SHOW STATS, its totals and averages, TOTALS and LATENCY show what was done, and how long it took."""

from collections.abc import Iterator

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.console import Console, Shown
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import bind, execute, parse, query, sync

PREPARED = 30
LOGINS = 20
SLEPT = 300_000
"""Microseconds."""
COUNTED = {
    "total_server_assignment_count": 2 * PREPARED + 3,
    "total_xact_count": 2 * PREPARED + 3,
    "total_query_count": 2 * PREPARED + 6,
    "total_client_parse_count": PREPARED,
    "total_server_parse_count": PREPARED,
    "total_bind_count": 2 * PREPARED,
    "total_client_login_count": LOGINS,
}
PER_SECOND = {
    "avg_server_assignment_count": "total_server_assignment_count",
    "avg_xact_count": "total_xact_count",
    "avg_query_count": "total_query_count",
    "avg_recv": "total_received",
    "avg_sent": "total_sent",
    "avg_client_parse_count": "total_client_parse_count",
    "avg_server_parse_count": "total_server_parse_count",
    "avg_bind_count": "total_bind_count",
    "avg_client_login_count": "total_client_login_count",
}
PER_ONE = {
    "avg_xact_time": ("total_xact_time", "total_xact_count"),
    "avg_query_time": ("total_query_time", "total_query_count"),
    "avg_wait_time": ("total_wait_time", "total_server_assignment_count"),
}


class Busy:
    """A pooler whose clients have done what is COUNTED; averages are over all of it."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.pooler = Pgfunnel(
            postgres.url(), default_pool_size=1, auth_type="any", admin_users="postgres", stats_period=3600
        )
        self.received = self.sent = 0

    def work(self) -> None:
        for _ in range(LOGINS - 2):
            self.pooler.login().terminate()
        with self.pooler.login() as wire, self.pooler.login() as other:

            def ask(*requests: bytes) -> None:
                wire.send(*requests)
                self.received += sum(map(len, requests))
                self.sent += sum(len(each.raw) for each in wire.read_until())

            ask(query("SELECT 1"))
            for number in range(PREPARED):
                name = f"statement{number}"
                ask(parse(f"SELECT {number}", name), bind(statement=name), execute(), sync())
                ask(bind(statement=name), execute(), sync())
            ask(query("BEGIN"))
            ask(query("SELECT 3"))
            late = query("SELECT 4")
            other.send(late)
            eventually(lambda: self.pooler.waiting() == 1)
            ask(query(f"SELECT pg_sleep({SLEPT / 1_000_000})"))
            ask(query("COMMIT"))
            self.received += len(late)
            self.sent += sum(len(each.raw) for each in other.read_until())


@pytest.fixture(scope="module")
def busy(postgres: EmbeddedPostgres) -> Iterator[Busy]:
    busy = Busy(postgres)
    with busy.pooler:
        busy.work()
        yield busy


@pytest.fixture
def console(busy: Busy) -> Iterator[Console]:
    with Console(busy.pooler) as console:
        yield console


def stats(console: Console, table: str = "STATS") -> Shown:
    row = console.one(table, database="postgres")
    return {name: int(value) for name, value in row.items() if name != "database"}


def test_stats_shows_totals(console: Console, busy: Busy) -> None:
    row = stats(console)
    assert {name: row[name] for name in COUNTED} == COUNTED
    assert (row["total_received"], row["total_sent"]) == (busy.received, busy.sent)
    assert SLEPT <= row["total_query_time"] <= row["total_xact_time"] < 10 * SLEPT
    assert SLEPT <= row["total_wait_time"] < 10 * SLEPT


def test_stats_shows_averages(console: Console) -> None:
    row = stats(console)
    for average, (time, count) in PER_ONE.items():
        assert 0 < row[average] == row[time] // row[count]
    seconds = row["total_received"] / row["avg_recv"]  # a figure large enough to tell
    for average, total in PER_SECOND.items():
        assert 0 < row[average] == pytest.approx(row[total] / seconds, rel=0.01, abs=1.1)


# What SHOW STATS_TOTALS and STATS_AVERAGES call what SHOW STATS has under other names.
TOTALS = {
    "server_assignment_count": "total_server_assignment_count",
    "xact_count": "total_xact_count",
    "query_count": "total_query_count",
    "bytes_received": "total_received",
    "bytes_sent": "total_sent",
    "xact_time": "total_xact_time",
    "query_time": "total_query_time",
    "wait_time": "total_wait_time",
    "client_parse_count": "total_client_parse_count",
    "server_parse_count": "total_server_parse_count",
    "bind_count": "total_bind_count",
    "client_login_count": "total_client_login_count",
}
AVERAGES = {
    "server_assignment_count": "avg_server_assignment_count",
    "xact_count": "avg_xact_count",
    "query_count": "avg_query_count",
    "bytes_received": "avg_recv",
    "bytes_sent": "avg_sent",
    "xact_time": "avg_xact_time",
    "query_time": "avg_query_time",
    "wait_time": "avg_wait_time",
    "avg_client_parse_count": "avg_client_parse_count",
    "avg_server_parse_count": "avg_server_parse_count",
    "avg_bind_count": "avg_bind_count",
    "client_login_count": "avg_client_login_count",
}


def test_stats_totals_shows_the_same(console: Console) -> None:
    both = stats(console)
    assert stats(console, "STATS_TOTALS") == {name: both[same] for name, same in TOTALS.items()}


def test_stats_averages_shows_the_same(console: Console) -> None:
    both, means = stats(console), stats(console, "STATS_AVERAGES")
    assert means.keys() == AVERAGES.keys()
    for name, same in AVERAGES.items():
        assert means[name] == pytest.approx(both[same], rel=0.1, abs=1.1), name  # time goes on


def test_totals_shows_the_sums_by_name_with_their_value(console: Console, busy: Busy) -> None:
    shown = {row["name"]: row["value"] for row in console.show("TOTALS")}
    assert (shown["total_client_bytes"], shown["total_server_bytes"]) == (busy.received, busy.sent)
    assert shown["total_ps_bind_count"] == COUNTED["total_bind_count"]
    assert shown["total_query_time"] == stats(console)["total_query_time"]
    assert shown["avg_client_bytes"] > 0


def test_latency_shows_percentiles_of_each_measure(console: Console) -> None:
    counts = {
        "wait": 1,
        "query": COUNTED["total_query_count"],
        "transaction": COUNTED["total_xact_count"],
        "client_login": LOGINS,
        "server_connect": 1,
    }
    for measure, count in counts.items():
        row = console.one("LATENCY", database="postgres", user="postgres", measure=measure)
        assert row["count"] == count
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"] <= row["p999_us"]
        assert 0 < row["avg_us"] <= row["max_us"] < 10 * SLEPT
    slept = console.one("LATENCY", measure="query")
    assert slept["max_us"] >= SLEPT
    assert 0.8 * SLEPT < slept["p999_us"] < 10 * SLEPT
    assert slept["p50_us"] <= slept["p90_us"] < SLEPT / 2
    assert slept["avg_us"] == pytest.approx(stats(console)["total_query_time"] / COUNTED["total_query_count"], abs=1)
