"""How session state is measured: pgfunnel with it against pgfunnel without."""

import re
from collections.abc import Iterator
from typing import ClassVar, cast

import pytest

from benchmarks import state
from benchmarks.pgbench import PgbenchReport
from benchmarks.servers import Pooler
from benchmarks.state import Compared, SetsAtStart
from benchmarks.workload import DATABASE, USER, Workload
from pooler.demo.postgres import EmbeddedPostgres


class FakePooler:
    pid = 1
    port = 2


POOLER = cast("Pooler", FakePooler())


class Noted(Compared):
    name = "noted"

    def __init__(self) -> None:
        self.loads: list[tuple[bool, float]] = []

    def load(self, port: int, workload: Workload, *, stateful: bool) -> PgbenchReport:
        self.loads.append((stateful, workload.seconds))
        return PgbenchReport(transactions=10, tps=100 + len(self.loads), latency_ms=1)


class Meter:
    costs: ClassVar[Iterator[float]]

    def __init__(self, pid: int) -> None:
        pass

    def per(self, count: int) -> dict[str, float]:
        return {"cpu_us": next(self.costs)}


def test_loads_with_and_without_state_take_turns_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "CpuMeter", Meter)
    Meter.costs = iter([9.0, 12.0, 14.0, 11.0])
    noted = Noted()
    workload = Workload(cast("EmbeddedPostgres", None), seconds=8)
    assert noted.sample(POOLER, workload) == {"of_stateless": 1.3, "cpu_us": 12.0, "tps": 102}
    assert noted.loads == [(False, 2), (True, 2), (True, 2), (False, 2)]


@pytest.fixture
def postgres_that_logs() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings={"log_statement": "all"}) as postgres:
        postgres.psql(f"CREATE ROLE {USER} SUPERUSER LOGIN")
        postgres.psql(f"CREATE DATABASE {DATABASE}")
        postgres.psql("CREATE TABLE pgbench_accounts (aid int, abalance int)", DATABASE)
        yield postgres


@pytest.mark.parametrize(("differs", "values"), [(False, 1), (True, 16)])
def test_each_client_says_set_once_and_goes_on(
    postgres_that_logs: EmbeddedPostgres, *, differs: bool, values: int
) -> None:
    measure = SetsAtStart("sets", 20, differs=differs, bound=None)
    workload = Workload(postgres_that_logs, seconds=1)
    stateless = measure.load(postgres_that_logs.port, workload, stateful=False)
    assert "SET work_mem" not in postgres_that_logs.log_file.read_text()
    stateful = measure.load(postgres_that_logs.port, workload, stateful=True)
    said = re.findall(r"SET work_mem = (\d+)", postgres_that_logs.log_file.read_text())
    assert (len(said), len({*said})) == (16, values)
    assert min(stateless.transactions, stateful.transactions) > 10 * 16
