"""Histograms and averages: near enough where they are said to be near, exact where they are said to be exact."""

import random
from collections.abc import Callable

import pytest

from pooler.figures.pool_metrics import LES
from pooler.figures.statistics import BOUNDS, Histogram, Period, Statistics, Totals, averages, sum_of

SHAPES: dict[str, Callable[[random.Random], float]] = {
    "all alike": lambda _: 0.0123,
    "evenly spread": lambda rng: rng.uniform(0.001, 2),
    "a long tail": lambda rng: rng.lognormvariate(-7, 2),
    "two kinds": lambda rng: rng.choice((0.0002, 30.0)) * rng.uniform(0.9, 1.1),
}


def filled(durations: list[float]) -> Histogram:
    histogram = Histogram()
    for duration in durations:
        histogram.note(duration)
    return histogram


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 10, 5000])
def test_percentiles_are_a_fifth_off_at_most(shape: str, count: int) -> None:
    rng = random.Random(count)
    durations = sorted(SHAPES[shape](rng) for _ in range(count))
    histogram = filled(durations)
    for q in (0.5, 0.9, 0.95, 0.99, 1.0):
        true = durations[max(0, -int(-q * count // 1) - 1)]
        assert histogram.percentile(q) == pytest.approx(true, rel=0.2)
    assert histogram.max == durations[-1]
    assert histogram.sum == pytest.approx(sum(durations))


def test_what_is_beyond_the_buckets_has_percentiles_still() -> None:
    histogram = filled([1e-7, 1e-6, 5000.0, 6000.0])
    assert histogram.percentile(0.25) <= BOUNDS[0]
    assert histogram.percentile(0.99) == 6000.0
    assert histogram.upto([BOUNDS.index(50)]) == [2]


def test_nothing_has_percentiles_of_nothing() -> None:
    histogram = Histogram()
    assert (histogram.percentile(0.5), histogram.max, histogram.count, histogram.sum) == (0, 0, 0, 0)


def test_the_buckets_told_to_prometheus_are_exact() -> None:
    rng = random.Random(1)
    durations = [rng.lognormvariate(-5, 3) for _ in range(2000)] + list(LES)
    histogram = filled(durations)
    assert histogram.upto(map(BOUNDS.index, LES)) == [sum(duration <= le for duration in durations) for le in LES]
    assert set(LES) <= set(BOUNDS)


def test_it_does_not_matter_when_notes_are_sorted_in() -> None:
    rng = random.Random(2)
    durations = [rng.lognormvariate(-5, 3) for _ in range(500)]
    at_once, bit_by_bit = filled(durations), Histogram()
    for duration in durations:
        bit_by_bit.note(duration)
        if rng.randrange(3) == 0:
            bit_by_bit.fold()
    everywhere = range(len(BOUNDS))
    assert bit_by_bit.upto(everywhere) == at_once.upto(everywhere)
    assert bit_by_bit.sum == pytest.approx(at_once.sum)
    assert not at_once.pending


def test_averages_are_pgbouncers() -> None:
    """Counts and bytes per second, times per transaction, query and assignment; whole numbers all."""
    before = Totals(xact_count=10, query_count=10, xact_time=1000)
    now = Totals(
        server_assignment_count=4,
        xact_count=31,
        query_count=50,
        received=1005,
        sent=99,
        xact_time=22_000,
        query_time=1001,
        wait_time=10,
        bind_count=20,
    )
    assert averages(now, before, 10) == Totals(
        server_assignment_count=0,
        xact_count=2,
        query_count=4,
        received=100,
        sent=9,
        xact_time=1000,
        query_time=25,
        wait_time=2,
        bind_count=2,
    )
    assert (
        averages(now, now, 10) == averages(now, before, 0)._replace(xact_time=0, query_time=0, wait_time=0) == Totals()
    )


def test_averages_are_about_the_last_whole_period_and_what_has_passed_since() -> None:
    stats = Statistics(())
    period = Period(100.0)
    assert period.seconds(100.0) == 1
    assert not period.over(159.9, 60)
    assert period.over(160.0, 60)
    stats.bind_count = 6
    period.turn(160.0, [stats])
    assert (period.seconds(160.0), stats.older) == (60, Totals())
    stats.bind_count = 9
    period.turn(220.0, [stats])
    assert stats.older == Totals(bind_count=6)
    assert period.seconds(230.0) == 70


def test_sums_of_nothing_are_nothing() -> None:
    assert sum_of([]) == Totals()
    assert sum_of([Totals(sent=1), Totals(sent=2, received=3)]) == Totals(sent=3, received=3)
