"""What every integration test stands on: real Postgres servers, and pgfunnel processes in front of them."""

import fcntl
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.certificates import Certificates
from tests.support.pgfunnel import Pgfunnel

NODE: Final = Path(__file__).parent / "integration" / "node"
VERSIONS: Final = EmbeddedPostgres.available_versions()
PASSWORD: Final = 'it\'s a "secret" % ünïcode'
# Roles are named after the way that Postgres makes them log in.
HBA: Final = (
    "host all scram all scram-sha-256",
    "host all md5 all md5",
    "host all plain all password",
    "host all rejected all reject",
    "host all all all trust",
)
ROLES: Final = f"""
SET password_encryption = 'md5';
CREATE ROLE md5 LOGIN PASSWORD $${PASSWORD}$$;
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram LOGIN PASSWORD $${PASSWORD}$$;
CREATE ROLE plain LOGIN PASSWORD $${PASSWORD}$$;
CREATE ROLE rejected LOGIN;
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE DATABASE other;
"""

StartPgfunnel = Callable[..., Pgfunnel]
StartPostgres = Callable[[int], EmbeddedPostgres]
CountBackends = Callable[[], int]


def pytest_configure() -> None:
    """Undo what a shell does to jobs in the background: the programs under test would ignore SIGINT, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Give the certificates that all tests share."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


def start_postgres(version: int, **settings: str) -> EmbeddedPostgres:
    server = EmbeddedPostgres(version, settings={"max_connections": "100", **settings}, hba=HBA)
    server.start()
    server.psql(ROLES)
    return server


@pytest.fixture(scope="session")
def postgres_of() -> Iterator[StartPostgres]:
    """Start the one Postgres of a version that all tests share: they leave it as it was."""
    with ExitStack() as running:
        yield cache(lambda version: running.enter_context(start_postgres(version)))


@pytest.fixture(scope="session")
def postgres(postgres_of: StartPostgres) -> EmbeddedPostgres:
    """Start the newest Postgres."""
    return postgres_of(VERSIONS[-1])


@pytest.fixture(scope="session", params=VERSIONS)
def any_postgres(request: pytest.FixtureRequest, postgres_of: StartPostgres) -> EmbeddedPostgres:
    """Run the test with each Postgres version in turn."""
    return postgres_of(request.param)


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """Start a Postgres that the test may restart, kill and reconfigure."""
    with start_postgres(VERSIONS[-1], max_connections="20") as server:
        yield server


@pytest.fixture(scope="session")
def node_modules() -> None:
    """Install node-postgres, as package.json pins it, unless it is there."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    with (NODE / "package.json").open() as only_one:  # of the test processes at a time
        fcntl.flock(only_one, fcntl.LOCK_EX)
        if not (NODE / "node_modules" / "pg").exists():
            install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(install, cwd=NODE, check=True, timeout=100)


@pytest.fixture
def pgfunnel() -> Iterator[StartPgfunnel]:
    """Let the test start pgfunnels, such as `pgfunnel(url, default_pool_size=3)`; stop and check them."""
    with ExitStack() as running:
        yield lambda upstream="", **settings: running.enter_context(Pgfunnel(upstream, **settings))


@pytest.fixture
def admin(postgres: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    """Open a superuser's session straight at Postgres, to look at what pgfunnel does there."""
    with psycopg.connect(postgres.url(), autocommit=True, application_name="admin") as connection:
        yield connection


@pytest.fixture
def backends(admin: psycopg.Connection) -> CountBackends:
    """Let the test count the connections at the shared Postgres, the test's own session aside."""

    def count() -> int:
        row = admin.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND application_name NOT IN ('admin', 'psql')"
        ).fetchone()
        assert row is not None
        return int(row[0])

    return count


@pytest.fixture
def table(postgres: EmbeddedPostgres) -> Iterator[str]:
    postgres.psql("CREATE TABLE kept (value text)")
    yield "kept"
    postgres.psql("DROP TABLE kept")
