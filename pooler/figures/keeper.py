"""Keeps the statistics of all pools: what the janitor does for them on each round, and the line of log_stats."""

from collections.abc import Callable, Iterable
from typing import Final

from pooler.current import Current
from pooler.figures.slow import Slow
from pooler.figures.statistics import Histogram, Period, averages, sum_of
from pooler.log import Log
from pooler.upstream.opening import ServerPool


class Keeper:
    """One for all pools."""

    def __init__(
        self,
        current: Current,
        pools: Iterable[ServerPool],
        period: Period,
        slow: Slow,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self._current = current
        self._pools = pools
        self._period = period
        self._slow = slow
        self._log = log
        self._now = now
        self.lag: Final = Histogram()
        """Seconds by which the janitor's timer was late: how long a callback has to wait for the event loop."""

    def late(self, seconds: float) -> None:
        """The janitor's timer was that late."""
        self.lag.note(max(0.0, seconds))

    def round(self) -> None:
        """Sort in what was noted, and at the end of a stats_period begin another."""
        self.lag.fold()
        for pool in self._pools:
            pool.stats.fold()
        self._slow.round()
        now = self._now()
        settings = self._current.settings
        if self._period.over(now, settings.stats_period):
            self._period.turn(now, (pool.stats for pool in self._pools))
            if settings.log_stats:
                self._write_line(now)

    def _write_line(self, now: float) -> None:
        """PgBouncer's line: rates, bytes of and to clients, and microseconds each."""
        statistics = [pool.stats for pool in self._pools]
        average = averages(
            sum_of(stats.totals for stats in statistics),
            sum_of(stats.older for stats in statistics),
            self._period.seconds(now),
        )
        self._log.info(
            "stats",
            xacts_per_s=average.xact_count,
            queries_per_s=average.query_count,
            client_parses_per_s=average.client_parse_count,
            server_parses_per_s=average.server_parse_count,
            binds_per_s=average.bind_count,
            in_bytes_per_s=average.received,
            out_bytes_per_s=average.sent,
            xact_us=average.xact_time,
            query_us=average.query_time,
            wait_us=average.wait_time,
        )
