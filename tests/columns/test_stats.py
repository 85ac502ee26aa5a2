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
    "server_assignment_count": 2 * PREPARED + 3,
    "xact_count": 2 * PREPARED + 3,
    "query_count": 2 * PREPARED + 6,
    "client_parse_count": PREPARED,
    "server_parse_count": PREPARED,
    "bind_count": 2 * PREPARED,
    "client_login_count": LOGINS,
}
TIMED = {"xact_time": "xact_count", "query_time": "query_count", "wait_time": "server_assignment_count"}
"""What each is an average of."""


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
    assert {name: row[f"total_{name}"] for name in COUNTED} == COUNTED
    assert (row["total_received"], row["total_sent"]) == (busy.received, busy.sent)
    assert SLEPT <= row["total_query_time"] <= row["total_xact_time"] < 10 * SLEPT
    assert SLEPT <= row["total_wait_time"] < 10 * SLEPT


def test_stats_shows_averages(console: Console) -> None:
    row = stats(console)
    for name, of in TIMED.items():
        assert row[f"avg_{name}"] == row[f"total_{name}"] // row[f"total_{of}"] > 0
    seconds = row["total_received"] / row["avg_recv"]  # a figure large enough to tell
    assert row["avg_sent"] == pytest.approx(row["total_sent"] / seconds, rel=0.01)
    for name, count in COUNTED.items():
        assert 0 < row[f"avg_{name}"] == pytest.approx(count / seconds, abs=1.1)


def test_stats_totals_and_averages_show_the_same(console: Console) -> None:
    both, totals, means = (stats(console, table) for table in ("STATS", "STATS_TOTALS", "STATS_AVERAGES"))
    names = {"received": "bytes_received", "sent": "bytes_sent"}
    only = ("client_parse_count", "server_parse_count", "bind_count")
    for name in (*COUNTED, *TIMED, "received", "sent"):
        assert totals[names.get(name, name)] == both[f"total_{name}"], name
        short = "recv" if name == "received" else name
        mean = means[f"avg_{name}" if name in only else names.get(name, name)]
        assert mean == pytest.approx(both[f"avg_{short}"], rel=0.1, abs=1.1), name  # time goes on


def test_totals_shows_the_sums_by_name_with_their_value(console: Console, busy: Busy) -> None:
    shown = {row["name"]: row["value"] for row in console.show("TOTALS")}
    assert (shown["total_client_bytes"], shown["total_server_bytes"]) == (busy.received, busy.sent)
    assert shown["total_ps_bind_count"] == COUNTED["bind_count"]
    assert shown["total_query_time"] == stats(console)["total_query_time"]
    assert shown["avg_client_bytes"] > 0


def test_latency_shows_percentiles_of_each_measure(console: Console) -> None:
    counts = {
        "wait": 1,
        "query": COUNTED["query_count"],
        "transaction": COUNTED["xact_count"],
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
    assert slept["p50_us"] < SLEPT / 2
    assert slept["p90_us"] < SLEPT / 2
    assert slept["avg_us"] == pytest.approx(stats(console)["total_query_time"] / COUNTED["query_count"], abs=1)
