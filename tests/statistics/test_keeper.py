"""What happens to statistics on the janitor's rounds: sorting in, another stats_period, and the line of log_stats."""

import asyncio
import io
from types import SimpleNamespace
from typing import Any, cast

import pytest

from config.settings import Settings
from pooler.figures.keeper import Keeper
from pooler.figures.slow import Slow
from pooler.figures.statistics import Period
from pooler.janitor import ROUND_S, Janitor
from pooler.log import make_log
from pooler.pool import Pool
from tests.support.configuration import current


class Desk:
    """A keeper with one pool and a clock that the test moves."""

    def __init__(self, *, log_stats: bool = True) -> None:
        self.time = 1000.0
        self.out = io.StringIO()
        log = make_log("text", "info", self.out)
        self.pool: Pool[Any] = Pool("alice", "shop", lambda _: None, size=1)
        self.period = Period(self.time)
        settings = Settings(upstream="postgresql://db/", stats_period=10, log_stats=log_stats)
        self.keeper = Keeper(current(settings), [self.pool], self.period, Slow(log), log, self.now)

    def now(self) -> float:
        return self.time

    def lines(self) -> list[str]:
        self.keeper.round()
        return [line.split("event=")[1] for line in self.out.getvalue().splitlines()]


def test_the_line_of_log_stats_has_pgbouncers_figures_of_the_last_period() -> None:
    desk = Desk()
    desk.time += 9.9
    assert desk.lines() == []
    desk.time += 0.1
    stats = desk.pool.stats
    stats.bind_count, stats.client_parse_count, stats.server_parse_count, stats.sent = 20, 10, 30, 12345
    for _ in range(10):
        stats.single.append(0.25)
    stats.waits.note(2.0)
    (line,) = desk.lines()
    assert line == (
        "stats xacts_per_s=0 queries_per_s=0 client_parses_per_s=1 server_parses_per_s=3 binds_per_s=2 "
        "in_bytes_per_s=0 out_bytes_per_s=1234 xact_us=0 query_us=0 wait_us=200000"
    )
    desk.time += 10
    assert "binds_per_s=0" in desk.lines()[1]


def test_without_log_stats_periods_pass_in_silence() -> None:
    desk = Desk(log_stats=False)
    desk.pool.stats.bind_count = 7
    for _ in range(2):
        desk.time += 10
        assert desk.lines() == []
    assert desk.pool.stats.older.bind_count == 7
    assert desk.period.seconds(desk.time) == 10


def test_a_round_sorts_in_what_was_noted() -> None:
    desk = Desk()
    desk.pool.stats.single += [0.1, 0.2]
    desk.pool.stats.inner.append(0.3)
    desk.keeper.late(0.5)
    desk.keeper.round()
    assert desk.pool.stats.single == desk.pool.stats.inner == desk.keeper.lag.pending == []
    assert (desk.pool.stats.queries.count, desk.pool.stats.transactions.count) == (3, 2)


async def test_how_late_the_loop_is_is_noted_by_the_janitor(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    janitor = Janitor(cast("Any", SimpleNamespace(now=desk.now, keeper=desk.keeper)))
    walked = asyncio.Event()
    monkeypatch.setattr(Janitor, "round", lambda _: walked.set())
    janitor.start()
    desk.time += ROUND_S + 0.2
    await asyncio.wait_for(walked.wait(), 10)
    janitor.stop()
    assert desk.keeper.lag.max == pytest.approx(0.2)
