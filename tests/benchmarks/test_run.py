"""The order of a run, with poolers that only note what is asked of them."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import cast

import pytest

from benchmarks import __main__, measures, run
from benchmarks.figures import Figure
from benchmarks.measure import Measure
from benchmarks.servers import BareLoop, PgBouncer, PgFunnel, Pooler
from benchmarks.workload import Workload
from pooler.demo.postgres import EmbeddedPostgres

WORKLOAD = Workload(cast("EmbeddedPostgres", None), seconds=4)


class Noted(Measure):
    figures = (Figure("value", "", ""),)

    def __init__(self, name: str = "noted", *, beside_others: bool = True) -> None:
        self.name = name
        self.beside_others = beside_others
        self.asked: list[tuple[str, float]] = []

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        self.asked.append((str(pooler), workload.seconds))
        return {"value": len(self.asked)}


class Failing(Noted):
    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        raise RuntimeError("pgbench exited with 1")


@pytest.fixture(autouse=True)
def poolers_that_are_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "contenders", lambda: (PgFunnel, PgBouncer, BareLoop))
    monkeypatch.setattr(run, "prepare", lambda contender, *_: nullcontext(contender.name))


def measure(*measures: Measure, rounds: int = 2) -> tuple[list[tuple[str, int, str, float]], list[str]]:
    said: list[str] = []
    samples = run.run_all(measures, WORKLOAD, rounds, said.append)
    return [(s.measure, s.round, s.pooler, s.figures["value"]) for s in samples], said


def test_poolers_take_turns_after_a_warm_up_that_is_thrown_away() -> None:
    noted = Noted()
    samples, _ = measure(noted)
    assert samples == [
        ("noted", 1, "pgfunnel", 4),
        ("noted", 1, "PgBouncer", 5),
        ("noted", 1, "bare loop", 6),
        ("noted", 2, "bare loop", 7),
        ("noted", 2, "PgBouncer", 8),
        ("noted", 2, "pgfunnel", 9),
    ]
    assert noted.asked[:4] == [("pgfunnel", 1), ("PgBouncer", 1), ("bare loop", 1), ("pgfunnel", 4)]


def test_a_measure_of_pgfunnel_alone_leaves_the_others_out() -> None:
    samples, _ = measure(Noted(beside_others=False), rounds=1)
    assert samples == [("noted", 1, "pgfunnel", 2)]


def test_the_bare_loop_stays_away_where_passwords_are_asked_for() -> None:
    noted = Noted()
    noted.auth_type = "scram-sha-256"
    samples, _ = measure(noted, rounds=1)
    assert [pooler for _, _, pooler, _ in samples] == ["pgfunnel", "PgBouncer"]


def test_the_bare_loop_stays_away_from_tls() -> None:
    noted = Noted()
    noted.tls = True
    samples, _ = measure(noted, rounds=1)
    assert [pooler for _, _, pooler, _ in samples] == ["pgfunnel", "PgBouncer"]


def test_a_default_run_is_over_in_twenty_minutes() -> None:
    everything = [*measures.all_measures()]
    workload = Workload(WORKLOAD.postgres, __main__.SECONDS)
    assert run.expected_seconds(everything, workload, __main__.ROUNDS) <= 20 * 60


def test_a_measure_with_few_rounds_keeps_to_them() -> None:
    noted = Noted(beside_others=False)
    noted.most_rounds = 1
    samples, _ = measure(noted, rounds=5)
    assert len(samples) == 1


def test_a_measure_that_fails_says_why_and_the_others_go_on() -> None:
    samples, said = measure(Failing("broken"), Noted(beside_others=False), rounds=1)
    assert samples == [("noted", 1, "pgfunnel", 2)]
    assert said[0] == "broken failed: pgbench exited with 1"


def test_every_sample_is_reported_with_the_time_left() -> None:
    _, said = measure(Noted(), rounds=1)
    assert [("left" in line, "value" in line) for line in said] == [(True, True)] * 3
    assert "(about 0:00 left)" in said[-1]
