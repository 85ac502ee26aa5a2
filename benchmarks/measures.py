"""What is measured beside PgBouncer, one small class per load, with the bounds that pgfunnel must keep."""

import asyncio
import random
import sys
from collections.abc import Iterator, Mapping

from benchmarks import clients, pgbench, servers, state
from benchmarks.figures import Against, Bound, Figure
from benchmarks.measure import CpuMeter, Measure
from benchmarks.servers import Pooler
from benchmarks.texts import Texts
from benchmarks.workload import DATABASE, USER, Workload
from tests.support.torture import torture

_CPU_ROUNDS = 5  # CPU varies little from round to round; speed, on shared cores, needs more
_FEW_ROUNDS = 3  # for what hardly varies at all, or is not judged


class SelectCpu(Measure):
    most_rounds = _CPU_ROUNDS

    def __init__(self, protocol: str, *, tls: bool = False, most: float = 1.25) -> None:
        self.name = "tls-select" if tls else f"select-{protocol}"
        self.tls = tls
        self._protocol = protocol
        how = f"{protocol}, TLS" if tls else protocol
        title = f"pgbench -S, {how}, 16 clients, pool 20: CPU per transaction"
        self.figures = (Figure("cpu_us", title, "us", Bound("<=", most)),)

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        meter = CpuMeter(pooler.pid)
        target = workload.through(pooler.port, tls=self.tls)
        report = pgbench.select_only(target, 16, workload.seconds, protocol=self._protocol)
        return meter.per(report.transactions) | {"tps": report.tps}


class SelectCrowded(Measure):
    name = "crowded"
    pool_size = 4
    figures = (Figure("tps", "pgbench -S, 64 clients, pool 4: transactions per second", "/s", Bound(">=", 1.0)),)

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        meter = CpuMeter(pooler.pid)
        report = pgbench.select_only(workload.through(pooler.port), 64, workload.seconds)
        return {"tps": report.tps} | meter.per(report.transactions)


class SelectAlone(Measure):
    name = "alone"
    figures = (Figure("latency_us", "pgbench -S, 1 client: latency", "us", Bound("<=", 1.10)),)

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        meter = CpuMeter(pooler.pid)
        report = pgbench.select_only(workload.through(pooler.port), 1, workload.seconds)
        latency = 1e6 / report.tps  # pgbench prints it in whole microseconds only
        return {"latency_us": latency} | meter.per(report.transactions)


class ManyClients(Measure):
    name = "many"
    figures = (
        Figure("tps", "pgbench -S, 2,000 clients, pool 20: transactions per second", "/s", Bound(">=", 0.95)),
        Figure("p99_ms", "pgbench -S, 2,000 clients, pool 20: p99 latency", "ms", Bound("<=", 1.15)),
    )

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        meter = CpuMeter(pooler.pid)
        report = pgbench.select_only(workload.through(pooler.port), 2000, workload.seconds, percentiles=True)
        return {"tps": report.tps, "p99_ms": report.p99_ms or 0.0} | meter.per(report.transactions)

    def expected_seconds(self, workload: Workload) -> float:
        return workload.seconds + 1


class Reconnect(Measure):
    operation = "connection"

    def __init__(self, name: str, clients: int, *, tps: Bound | None = None, cpu: Bound | None) -> None:
        self.name = name
        self._clients = clients
        who = f"pgbench -C -S, {clients} client{'s' if clients > 1 else ''}, {self._how()}"
        self.figures = (Figure("cpu_us", f"{who}: CPU per connection", "us", cpu),)
        if tps:
            self.figures = (Figure("tps", f"{who}: connections per second", "/s", tps), *self.figures)
        else:
            self.most_rounds = _CPU_ROUNDS if cpu else _FEW_ROUNDS

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        target = workload.through(pooler.port, tls=self.tls)
        meter = CpuMeter(pooler.pid)
        report = pgbench.select_only(target, self._clients, workload.seconds, reconnect=True)
        return {"tps": report.tps} | meter.per(report.transactions)

    def _how(self) -> str:
        return self.auth_type


class ReconnectScram(Reconnect):
    auth_type = "scram-sha-256"


class ReconnectPlain(ReconnectScram):
    """The user list has the password itself: who forgets what SCRAM derives from it, derives it at each login."""

    plain_passwords = True

    def _how(self) -> str:
        return f"{self.auth_type}, plain password in the user list"


class ReconnectTls(Reconnect):
    tls = True

    def _how(self) -> str:
        return "trust, TLS 1.3 with an EC key"


class ReconnectTlsScram(ReconnectScram):
    tls = True

    def _how(self) -> str:
        return f"{self.auth_type}, TLS"


class IdleClients(Measure):
    most_rounds = _FEW_ROUNDS

    def __init__(self, name: str, clients: int, most_kb: float, *, tls: bool = False) -> None:
        self.name = name
        self.tls = tls
        self._clients = clients
        title = f"{clients:,} idle {'TLS ' if tls else ''}clients: resident memory each"
        self.figures = (Figure("kb", title, "KB", Bound("<=", most_kb, Against.NOTHING)),)

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        pooler.restart()
        count = round(self._clients * workload.scale)
        address = (servers.HOST, pooler.port)
        # The first hundred pay for what every process loads once, and leave.
        with clients.connected(address, USER, DATABASE, 100, tls=self.tls):
            pass
        before = servers.resident_kib(pooler.pid)
        with clients.connected(address, USER, DATABASE, count, tls=self.tls):
            grown = servers.resident_kib(pooler.pid) - before
        return {"kb": grown / count}

    def expected_seconds(self, workload: Workload) -> float:
        seconds = self._clients / (1_000 if self.tls else 18_000)
        return 1 + seconds * workload.scale


class CopyOut(Measure):
    operation = "1,000 rows"
    most_rounds = _FEW_ROUNDS

    def __init__(self, name: str, rows: int, line: str, what: str, bound: Bound | None) -> None:
        """`line` is the SQL expression of a row's text, without its newline."""
        self.name = name
        self._rows = rows
        self._line = line
        title = f"COPY out, {rows:,} rows of {what}: CPU per 1,000 rows"
        self.figures = (Figure("cpu_us", title, "us", bound),)

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        rows = round(self._rows * workload.scale)
        copy = clients.query_message(f"COPY (SELECT {self._line} FROM generate_series(1, {rows}) AS i) TO STDOUT")
        with clients.connected((servers.HOST, pooler.port), USER, DATABASE) as [client]:
            meter = CpuMeter(pooler.pid)
            client.sendall(copy)
            clients.drain(client)
            return meter.per(rows // 1000)

    def expected_seconds(self, workload: Workload) -> float:
        return 0.2 + self._rows * workload.scale / 3e6


class Torture(Measure):
    name = "torture"
    beside_others = False
    most_rounds = 1
    figures = (
        Figure(
            "failures",
            "60 s of leak torture: answers to the wrong client, and other failures",
            "",
            Bound("<=", 0, Against.NOTHING),
        ),
    )

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        seed = random.randrange(1_000_000)
        work = torture(
            servers.HOST,
            pooler.port,
            user=USER,
            dbname=DATABASE,
            seconds=self._duration(workload),
            clients=100,
            seed=seed,
        )
        report = asyncio.run(work)
        if report.failures:
            print(f"seed {seed}: {report}", file=sys.stderr)
        return {
            "failures": len(report.failures),
            "tokens": report.tokens,
            "connections": report.connections,
            "cancelled": report.cancelled,
            "seed": seed,
        }

    def expected_seconds(self, workload: Workload) -> float:
        return self._duration(workload) + 1

    def _duration(self, workload: Workload) -> float:
        return 60 * workload.scale


def all_measures() -> Iterator[Measure]:
    """Every measure, in the table's order."""
    yield SelectCpu("simple")
    yield SelectCpu("extended")
    yield state.Prepared()
    yield state.SetsAtStart("sets-alike", 20, differs=False, bound=Bound("<=", 1.05, Against.NOTHING))
    yield state.SetsAtStart("sets-apart", 4, differs=True, bound=None)
    yield SelectCrowded()
    yield SelectAlone()
    yield ManyClients()
    yield Reconnect("connect-trust", 16, tps=Bound(">=", 0.95), cpu=Bound("<=", 1.15))
    yield Reconnect("connect-paced", 1, cpu=Bound("<=", 1.15))
    yield ReconnectScram("connect-scram", 16, cpu=Bound("<=", 1.15))
    yield ReconnectPlain("connect-scram-plain", 16, cpu=None)
    yield SelectCpu("simple", tls=True, most=1.3)
    yield ReconnectTls("tls-connect", 16, tps=Bound(">=", 0.95), cpu=None)
    yield ReconnectTlsScram("tls-connect-scram", 16, cpu=Bound("<=", 1.15))
    yield IdleClients("idle", 9_000, 2.5)
    yield IdleClients("tls-idle", 2_000, 22, tls=True)
    yield CopyOut("copy-wide", 1_000_000, "repeat('x', 96)", "97 bytes", Bound("<=", 1.15))
    yield CopyOut("copy-narrow", 5_000_000, "'1'", "2 bytes", Bound("<=", 2.5))
    # Not asked for, but no two neighbours are alike here: it shows what a shortcut for equal rows would hide.
    yield CopyOut("copy-mixed", 1_000_000, "repeat('x', i * 37 % 191 + 1)", "2 to 192 bytes", bound=None)
    yield Texts()
    yield Torture()
