"""Says on which machine and with which versions a run was made."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from benchmarks.servers import PgBouncer, PgFunnel
from pooler.demo.postgres import EmbeddedPostgres


def machine() -> dict[str, str]:
    """Describe the hardware and the kernel, and how busy the machine was already."""
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


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
