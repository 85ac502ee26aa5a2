"""Logging in as one's system user, over a Unix socket."""

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, StartPgfunnel
from tests.support.pgfunnel import Pgfunnel
from tests.support.system_postgres import bin_dir

ME: Final = pwd.getpwuid(os.geteuid()).pw_name
MINE: Final = "scram"


@pytest.fixture
def sockets() -> Iterator[str]:
    """Make a directory that others get into: those of pytest are the user's own."""
    with TemporaryDirectory(prefix="pgfunnel-test-") as directory:
        Path(directory).chmod(0o755)
        yield directory


@pytest.fixture
def pooler(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path, sockets: str) -> Pgfunnel:
    rules = tmp_path / "pg_hba.conf"
    rules.write_text("local all all peer map=people\nhost all all all reject\n")
    people = tmp_path / "pg_ident.conf"
    people.write_text(f"people {ME} {MINE}\n")
    pooler = pgfunnel(
        postgres.url(user=MINE, password=PASSWORD),
        auth_type="hba",
        auth_hba_file=str(rules),
        auth_ident_file=str(people),
        unix_socket_dir=sockets,
        login_failure_delay=0,
    )
    pooler.wait_for_log("event=listening on=/")
    return pooler


def test_a_system_user_is_let_in_as_who_the_map_says(pooler: Pgfunnel, sockets: str) -> None:
    with psycopg.connect(host=sockets, port=pooler.port, user=MINE, dbname="postgres") as connection:
        assert connection.execute("SELECT current_user").fetchone() == (MINE,)


def test_nobody_is_let_in_as_anybody_else(pooler: Pgfunnel, sockets: str) -> None:
    with pytest.raises(psycopg.OperationalError, match='Peer authentication failed for user "alice"'):
        psycopg.connect(host=sockets, port=pooler.port, user="alice", password=PASSWORD, dbname="postgres")
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects"):
        psycopg.connect(pooler.url(user=MINE, password=PASSWORD))


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be somebody else")
def test_another_system_user_is_not_let_in(pooler: Pgfunnel, sockets: str) -> None:
    nobody = pwd.getpwnam("nobody")
    psql = subprocess.run(
        [
            bin_dir() / "psql",
            "-X",
            "-w",
            "-h",
            sockets,
            "-p",
            str(pooler.port),
            "-U",
            MINE,
            "-c",
            "SELECT 1",
            "postgres",
        ],
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        cwd="/",
        env={"LC_ALL": "C", "PATH": os.environ["PATH"], "HOME": "/nonexistent", "PGPASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Peer authentication failed" in psql.stderr
