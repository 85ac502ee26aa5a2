"""Unix sockets: pgfunnel listens on one as Postgres does, and reaches a Postgres that has nothing else."""

import os
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import Wire, cancel_request, query


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory with a short name: those of Unix sockets are limited to some 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="pgf-") as directory:
        yield Path(directory)


def socket_of(pooler: Pgfunnel) -> Path:
    """Return where its socket is, or would be."""
    return Path(str(pooler.settings["unix_socket_dir"]), f".s.PGSQL.{pooler.port}")


@pytest.fixture
def pooler(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, directory: Path) -> Pgfunnel:
    """Start a pgfunnel that listens on TCP and on a Unix socket."""
    pooler = pgfunnel(postgres.url(), unix_socket_dir=str(directory), default_pool_size=1)
    pooler.wait_for_log(f"event=listening.*on={socket_of(pooler)}")
    return pooler


def login(pooler: Pgfunnel) -> Wire:
    return Wire(str(pooler.settings["unix_socket_dir"]), pooler.port).login("postgres", "postgres")


def test_both_ways_lead_in(pooler: Pgfunnel) -> None:
    with login(pooler) as near, pooler.login() as far:
        assert near.value("SELECT pg_backend_pid()") == far.value("SELECT pg_backend_pid()")
    pooler.wait_for_log("event=client_login.*addr=unix")


def test_drivers_connect_by_the_directory(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, directory: Path) -> None:
    pooler = pgfunnel(postgres.url(), unix_socket_dir=str(directory), listen_addr="")
    with psycopg.connect(host=str(directory), port=pooler.port, user="postgres", dbname="postgres") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(ConnectionRefusedError):
        pooler.connect()


def test_cancel_arrives(pooler: Pgfunnel, directory: Path, admin: psycopg.Connection) -> None:
    running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'"
    with login(pooler) as wire:
        wire.send(query("SELECT pg_sleep(600)"))
        eventually(lambda: admin.execute(running).fetchone() == (1,))
        with Wire(str(directory), pooler.port) as courier:
            courier.send(cancel_request(wire.backend_pid, wire.cancel_key))
            assert courier.read_to_end() == []
        assert wire.error().sqlstate == "57014"


def test_upstream_may_be_a_unix_socket(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, admin: psycopg.Connection
) -> None:
    upstream = f"postgresql://postgres@/postgres?host={postgres.socket_dir}&port={postgres.port}"
    pooler = pgfunnel(upstream, default_pool_size=1)
    running = "SELECT client_addr FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'"
    with pooler.login() as wire:
        assert wire.value("SELECT 1") == "1"
        wire.send(query("SELECT pg_sleep(600)"))
        eventually(lambda: admin.execute(running).fetchone() == (None,))
        with pooler.connect() as courier:
            courier.send(cancel_request(wire.backend_pid, wire.cancel_key))
            assert courier.read_to_end() == []
        assert wire.error().sqlstate == "57014"
    status, text = pooler.http("/readyz")
    assert (status, "the upstream answered" in text) == (200, True)


@pytest.mark.parametrize(("settings", "expected"), [({}, 0o777), ({"unix_socket_mode": "0700"}, 0o700)])
def test_file_mode(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, directory: Path, settings: dict[str, str], expected: int
) -> None:
    pooler = pgfunnel(postgres.url(), unix_socket_dir=str(directory), listen_addr="", **settings)
    assert stat.S_IMODE(socket_of(pooler).stat().st_mode) == expected


def test_socket_is_gone_when_it_ends(pooler: Pgfunnel, directory: Path) -> None:
    assert socket_of(pooler).is_socket()
    assert pooler.stop() == 0
    assert list(directory.iterdir()) == []


def test_socket_that_a_killed_one_has_left_is_replaced(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, directory: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(directory / ".s.PGSQL.6543"))
    pooler = pgfunnel(postgres.url(), unix_socket_dir=str(directory), listen_addr="", listen_port=6543)
    with Wire(str(directory), 6543).login("postgres", "postgres") as wire:
        assert wire.value("SELECT 1") == "1"
    pooler.signal(signal.SIGTERM)
    assert pooler.wait() == 0


def test_socket_that_another_listens_on_is_left_alone(
    postgres: EmbeddedPostgres, pooler: Pgfunnel, directory: Path
) -> None:
    second = Pgfunnel(postgres.url(), unix_socket_dir=str(directory), listen_addr="", listen_port=pooler.port)
    assert second.refuses_to_start() == 1
    assert f"can't listen on {socket_of(pooler)}: another process listens there" in second.log[-1]
    with login(pooler) as wire:
        assert wire.value("SELECT 1") == "1"


def test_file_in_the_sockets_place_is_left_alone(postgres: EmbeddedPostgres, directory: Path) -> None:
    pooler = Pgfunnel(postgres.url(), unix_socket_dir=str(directory))
    socket_of(pooler).write_text("precious")
    assert pooler.refuses_to_start() == 1
    assert f"can't listen on {socket_of(pooler)}: something that is no socket is in its place" in pooler.log[-1]
    assert socket_of(pooler).read_text() == "precious"


def test_nobody_is_accepted_anywhere_if_one_address_cannot_be_listened_on(
    postgres: EmbeddedPostgres, directory: Path
) -> None:
    pooler = Pgfunnel(postgres.url(), unix_socket_dir=str(directory))
    socket_of(pooler).write_text("in the way")
    assert pooler.refuses_to_start() == 1
    assert not any("event=listening" in line for line in pooler.log)


def test_name_that_is_too_long_is_refused(postgres: EmbeddedPostgres, directory: Path) -> None:
    long = directory / ("x" * 100)
    long.mkdir()
    pooler = Pgfunnel(postgres.url(), unix_socket_dir=str(long))
    assert pooler.refuses_to_start() == 1
    assert f"can't listen on {socket_of(pooler)}: AF_UNIX path too long" in pooler.log[-1]
    assert "Traceback" not in "\n".join(pooler.log)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_that_may_not_be_written_to_is_told(postgres: EmbeddedPostgres, directory: Path) -> None:
    directory.chmod(0o500)
    pooler = Pgfunnel(postgres.url(), unix_socket_dir=str(directory))
    assert pooler.refuses_to_start() == 1
    assert "Permission denied" in pooler.log[-1]
