"""The table as a user sees it."""

import io
from collections import Counter

from rich.console import Console

from pooler.demo.report import side_by_side
from pooler.demo.storm import Failure, Outcome

FULL = Failure("53300", "too many connections")
DIRECT = Outcome(
    clients=1000,
    connect_times=[0.2] * 97,
    request_times=[0.001] * 485,
    failures=Counter({FULL: 903}),
    most_server_connections=97,
)
POOLED = Outcome(
    clients=1000,
    connect_times=[n / 1e6 for n in range(1, 1001)],
    request_times=[n / 1e3 for n in range(1, 5001)],
    most_server_connections=20,
)


def rendered(**storms: Outcome) -> dict[str, list[str]]:
    """Return the cells of each row, as printed, by the row's name."""
    screen = io.StringIO()
    Console(file=screen, width=80).print(side_by_side(storms))
    lines = [line for line in screen.getvalue().splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {name: values for name, *values in cells}


def test_the_table_holds_two_storms_against_each_other() -> None:
    assert rendered(direct=DIRECT, pooled=POOLED) == {
        "requests": ["5,000", "5,000"],
        "served": ["485", "5,000"],
        "success rate": ["9.7 %", "100.0 %"],
        "clients": ["1,000", "1,000"],
        "failed": ["903", "0"],
        "53300 too many connections": ["903", "0"],
        "connect p50, ms": ["200.0", "0.5"],
        "connect p95, ms": ["200.0", "0.9"],
        "connect p99, ms": ["200.0", "1.0"],
        "request p50, ms": ["1.0", "2,500.0"],
        "request p95, ms": ["1.0", "4,750.0"],
        "request p99, ms": ["1.0", "4,950.0"],
        "most server connections at once": ["97", "20"],
    }


def test_a_single_failed_request_is_not_rounded_away() -> None:
    outcome = Outcome(clients=10_000, request_times=[0.001] * 49_999)
    assert rendered(pooled=outcome)["success rate"] == ["99.9 %"]


def test_a_storm_that_nobody_survived_shows_dashes() -> None:
    rows = rendered(direct=Outcome(clients=5, failures=Counter({FULL: 5})))
    assert rows["success rate"] == ["0.0 %"]
    assert rows["connect p50, ms"] == rows["request p99, ms"] == ["-"]


def test_each_kind_of_failure_of_any_storm_has_its_row() -> None:
    lost = Failure("-", "connection reset")
    rows = rendered(direct=DIRECT, pooled=Outcome(clients=1000, failures=Counter({lost: 2})))
    assert rows["53300 too many connections"] == ["903", "0"]
    assert rows["- connection reset"] == ["0", "2"]
