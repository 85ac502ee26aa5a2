"""What session state costs: prepared statements and settings that follow their client, in transaction mode.

PgBouncer below 1.21 can do neither, so pgfunnel is held against itself without them, within one sample.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from benchmarks import pgbench
from benchmarks.figures import Against, Bound, Figure
from benchmarks.measure import CpuMeter, Measure
from benchmarks.pgbench import PgbenchReport
from benchmarks.servers import Pooler
from benchmarks.workload import ACCOUNTS, Workload

_CLIENTS = 16


class Compared(Measure):
    """pgfunnel with session state against pgfunnel without."""

    beside_others = False
    most_rounds = 3  # each is a comparison of its own

    @abstractmethod
    def load(self, port: int, workload: Workload, *, stateful: bool) -> PgbenchReport:
        """Load what listens on the port, with or without session state."""

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        part = _part(workload)
        # There and back, so that drift favours neither.
        runs = [self._cost(pooler, part, stateful=stateful) for stateful in (False, True, True, False)]
        without, once, again, without_again = (cost["cpu_us"] for cost in runs)
        return {"of_stateless": (once + again) / (without + without_again), **runs[1]}

    def expected_seconds(self, workload: Workload) -> float:
        return 4 * (pgbench.whole(_part(workload).seconds) + 0.1)

    def _cost(self, pooler: Pooler, workload: Workload, *, stateful: bool) -> dict[str, float]:
        meter = CpuMeter(pooler.pid)
        report = self.load(pooler.port, workload, stateful=stateful)
        return meter.per(report.transactions) | {"tps": report.tps}


class Prepared(Compared):
    name = "prepared"
    figures = (
        Figure(
            "of_stateless",
            "pgbench -S, prepared, 16 clients, pool 20: CPU per transaction, times that of extended "
            "(PgBouncer before 1.21 can't)",
            "",
            Bound("<=", 1.15, Against.NOTHING),
        ),
        Figure("of_direct", "the same: transactions per second, times those straight at Postgres", ""),
    )

    def load(self, port: int, workload: Workload, *, stateful: bool) -> PgbenchReport:
        protocol = "prepared" if stateful else "extended"
        return pgbench.select_only(workload.through(port), _CLIENTS, workload.seconds, protocol=protocol)

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        sample = super().sample(pooler, workload)
        direct = self.load(workload.postgres.port, _part(workload), stateful=True)
        return {**sample, "of_direct": sample["tps"] / direct.tps}

    def expected_seconds(self, workload: Workload) -> float:
        return super().expected_seconds(workload) * 5 / 4


class SetsAtStart(Compared):
    """Each client says SET once, and then does what the others do."""

    # A client's variables outlive a run of the script: only its first run says SET.
    script = f"""
        \\if :sets
        \\set value 4096 + :differs * :client_id
        SET work_mem = :value;
        \\set sets 0
        \\endif
        \\set aid random(1, {ACCOUNTS})
        SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
    """

    def __init__(self, name: str, pool_size: int, *, differs: bool, bound: Bound | None) -> None:
        self.name = name
        self.pool_size = pool_size
        self._differs = differs
        says = f"each begins with {'another SET' if differs else 'the same SET'}"
        title = f"pgbench, {_CLIENTS} clients, pool {pool_size}, {says}: CPU per transaction, times that without"
        self.figures = (Figure("of_stateless", title, "", bound),)

    def load(self, port: int, workload: Workload, *, stateful: bool) -> PgbenchReport:
        variables = {"sets": int(stateful), "differs": int(self._differs)}
        return pgbench.script(workload.through(port), self.script, _CLIENTS, workload.seconds, variables)


def _part(workload: Workload) -> Workload:
    """Let a sample that loads four times take about as long as one that loads once."""
    return replace(workload, seconds=workload.seconds / 4)
