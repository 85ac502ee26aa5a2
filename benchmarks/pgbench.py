"""Runs Postgres's own pgbench, read-only, and reads what it reports.

Knows nothing of poolers: it is given a port. What pgbench costs in CPU is not its business either.
"""

import math
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import clean_environment

_TRANSACTIONS = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)
_TPS = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)
_LATENCY = re.compile(r"^latency average = ([\d.]+) ms", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Target:
    """Where pgbench connects, and as whom."""

    bin_dir: Path
    host: str
    port: int
    database: str
    user: str
    password: str
    tls: bool = False


@dataclass(frozen=True, slots=True)
class PgbenchReport:
    """What one run did. `p99_ms` only when the run was asked to log every transaction."""

    transactions: int
    tps: float
    latency_ms: float
    p99_ms: float | None = None


def initialise(target: Target, scale: int) -> None:
    """Create pgbench's tables."""
    _call(target, ["-i", "-q", "-s", str(scale)])


def select_only(
    target: Target,
    clients: int,
    seconds: float,
    *,
    protocol: str = "simple",
    reconnect: bool = False,
    percentiles: bool = False,
) -> PgbenchReport:
    """Run `pgbench -S`: one indexed SELECT per transaction, as many as the clients can do in the time."""
    arguments = ["-S", "-M", protocol, *_load(clients, seconds)]
    if reconnect:
        arguments.append("-C")
    if not percentiles:
        return parse_report(_call(target, arguments))
    with tempfile.TemporaryDirectory(prefix="pgfunnel-bench-") as logs:
        output = _call(target, [*arguments, "-l", f"--log-prefix={logs}/txn"])
        latencies = [latency for log in Path(logs).iterdir() for latency in parse_log(log.open())]
    return parse_report(output, p99_ms=percentile(latencies, 99) / 1000)


def script(
    target: Target, commands: str, clients: int, seconds: float, variables: Mapping[str, int] | None = None
) -> PgbenchReport:
    """Run a script of pgbench's over and over. Each client has its own `variables`, and keeps them from run to run."""
    defined = [option for name, value in (variables or {}).items() for option in ("-D", f"{name}={value}")]
    with tempfile.NamedTemporaryFile("w", prefix="pgfunnel-bench-", suffix=".sql") as file:
        file.write(commands)
        file.flush()
        return parse_report(_call(target, ["-f", file.name, *defined, *_load(clients, seconds)]))


def _load(clients: int, seconds: float) -> list[str]:
    return ["-n", "-c", str(clients), "-j", str(min(clients, 2)), "-T", str(whole(seconds))]


def whole(seconds: float) -> int:
    """How long pgbench runs when asked to run so long: whole seconds, at least one."""
    return max(1, round(seconds))


def parse_report(output: str, p99_ms: float | None = None) -> PgbenchReport:
    """Read pgbench's summary. Raises ValueError if it is not one, or if a transaction failed."""
    transactions, tps, latency = (p.search(output) for p in (_TRANSACTIONS, _TPS, _LATENCY))
    if transactions is None or tps is None or latency is None:
        raise ValueError(f"not a pgbench report:\n{output}")
    failed = _FAILED.search(output)
    if failed and int(failed[1]):
        raise ValueError(f"{failed[1]} transactions failed:\n{output}")
    return PgbenchReport(int(transactions[1]), float(tps[1]), float(latency[1]), p99_ms)


def parse_log(lines: Iterable[str]) -> list[int]:
    """Latencies in microseconds from a transaction log: client, number, latency, script, time, time_us."""
    return [int(line.split(" ", 3)[2]) for line in lines]


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least `percent` of all are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _call(target: Target, arguments: Sequence[str]) -> str:
    command = [str(target.bin_dir / "pgbench"), *arguments]
    command += ["-h", target.host, "-p", str(target.port), "-U", target.user, target.database]
    environment = clean_environment() | {
        "PGPASSWORD": target.password,
        "PGSSLMODE": "require" if target.tls else "disable",
        "PGGSSENCMODE": "disable",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
