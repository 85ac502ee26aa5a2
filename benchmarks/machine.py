"""Says on which machine and with which versions a run was made."""

import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from benchmarks.servers import PgBouncer, PgFunnel
from pooler.demo.postgres import EmbeddedPostgres


def machine() -> dict[str, str]:
    """Describe the hardware and the kernel."""
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
    }


class OthersMeter:
    """CPU that processes other than ours and our children's used: what spoils a benchmark."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._foreign = _busy_seconds() - _own_seconds()

    def share(self) -> float:
        """Give it as a part of all cores, since the meter was made. Children count once they have been waited for."""
        foreign = _busy_seconds() - _own_seconds() - self._foreign
        return max(0.0, foreign) / ((time.monotonic() - self._began) * (os.cpu_count() or 1))


def _busy_seconds() -> float:
    user, nice, system, _idle, _iowait, *rest = (
        int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def versions(postgres: EmbeddedPostgres) -> dict[str, str]:
    """Versions of all that took part. PgBouncer's says so where it is missing."""
    return {
        "pgfunnel": f"{PgFunnel.version()} ({_commit()})",
        "PgBouncer": PgBouncer.version() or "not installed",
        "Postgres": postgres.psql("SHOW server_version"),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": metadata.version("uvloop"),
    }


def cpu_model(cpuinfo: str) -> str:
    """Find the processor's name in /proc/cpuinfo, or fall back on the architecture (ARM has none there)."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else platform.machine()


def label(machine: Mapping[str, str]) -> str:
    """Shorten a machine to what suits a file's name: `intel-xeon-2-cores`."""
    model = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@.*", " ", machine["cpu"], flags=re.IGNORECASE)
    return "-".join(re.findall(r"[a-z0-9.]+", f"{model} {machine['cores']} cores".lower()))


def _commit() -> str:
    """Name the commit, with a plus if the tree has changes; an installed copy has none."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return done.stdout.strip()
