"""The storm's statistics; its clients are seen at work in test_demo."""

import asyncpg
import pytest

from pooler.demo.storm import Failure, Outcome, percentile


@pytest.mark.parametrize(
    ("values", "rank", "expected"),
    [
        ([5.0], 50, 5.0),
        ([5.0], 99, 5.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 75, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 76, 4.0),
        ([float(n) for n in range(1, 101)], 95, 95.0),
        ([float(n) for n in range(1, 1001)], 99, 990.0),
        ([1.0, 2.0], 0, 1.0),
        ([1.0, 2.0], 100, 2.0),
    ],
)
def test_a_percentile_is_a_measured_value(values: list[float], rank: float, expected: float) -> None:
    assert percentile(values, rank) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 50) is None


def test_requests_of_clients_that_never_connected_count_as_not_served() -> None:
    outcome = Outcome(clients=10, request_times=[0.1] * 5)
    assert (outcome.requests, outcome.served) == (50, 5)


@pytest.mark.parametrize(
    ("error", "sqlstate", "meaning"),
    [
        (asyncpg.TooManyConnectionsError(), "53300", "too many connections"),
        (asyncpg.AdminShutdownError(), "57P01", "admin shutdown"),
        (ConnectionRefusedError(), "-", "connection refused"),
        (TimeoutError(), "-", "timeout"),
    ],
)
def test_a_failure_is_named_by_its_sqlstate_if_a_server_gave_one(error: Exception, sqlstate: str, meaning: str) -> None:
    assert Failure.of(error) == (sqlstate, meaning)
