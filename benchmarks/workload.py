"""The Postgres that every measure runs on, and who asks it what.

The same server, role, database and tables for both poolers and for all measures of a run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks import pgbench, servers
from pooler.demo.postgres import EmbeddedPostgres
from tests.support import system_postgres

DATABASE = "bench"
USER = "bench"
PASSWORD = "bench"
_PGBENCH_SCALE = 10
ACCOUNTS = 100_000 * _PGBENCH_SCALE


@dataclass(frozen=True, slots=True)
class Workload:
    """What every measure runs with. `scale` shrinks the loads that have a size instead of a duration."""

    postgres: EmbeddedPostgres
    seconds: float
    scale: float = 1.0

    def through(self, port: int, *, tls: bool = False) -> pgbench.Target:
        """Point pgbench at a port. Raises RuntimeError if there is no pgbench that speaks TLS."""
        bin_dir = system_postgres.found() if tls else self.postgres.bin_dir
        if bin_dir is None:
            raise RuntimeError("no pgbench with TLS is installed (Debian: apt install postgresql)")
        return pgbench.Target(bin_dir, servers.HOST, port, DATABASE, USER, PASSWORD, tls)


@contextmanager
def prepared_postgres() -> Iterator[EmbeddedPostgres]:
    """Hold a Postgres with pgbench's tables, large enough to read them from memory."""
    settings = {
        "max_connections": "100",
        "shared_buffers": "512MB",
        "work_mem": "512MB",
        "jit": "off",
        "autovacuum": "off",
    }
    with EmbeddedPostgres(settings=settings) as postgres:
        postgres.psql(f"CREATE ROLE {USER} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        postgres.psql(f"CREATE DATABASE {DATABASE} OWNER {USER}")
        target = Workload(postgres, 0).through(postgres.port)
        pgbench.initialise(target, _PGBENCH_SCALE)
        yield postgres


def users_of(postgres: EmbeddedPostgres) -> dict[str, str]:
    """Look up the SCRAM secret of the benchmark's role: both poolers check passwords against it."""
    return {USER: postgres.psql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{USER}'")}
