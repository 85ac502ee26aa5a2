"""Where clients come in: sockets of all kinds, and doors that close on nobody who has knocked."""

import asyncio
import grp
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from config.settings import Settings
from pooler.demo.postgres import EmbeddedPostgres
from pooler.listening import Doors
from pooler.sockets import ListenError
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, two_free_ports
from tests.support.wire import Wire, startup

STARTUP = startup({"user": "postgres", "database": "postgres"})


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory with a short name: those of Unix sockets are limited to some 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="pgf-") as directory:
        yield Path(directory)


def abstract(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(f"\0{name}")
    return sock


def test_a_unix_socket_may_be_in_no_directory(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), listen_addr="", unix_socket_dir="@pgfunnel-test")
    place = f"pgfunnel-test/.s.PGSQL.{pooler.port}"
    pooler.wait_for_log(f"event=listening on=@{place}")
    with abstract(place) as client:
        client.sendall(STARTUP)
        assert client.recv(1) == b"R"
    with pytest.raises(ConnectionRefusedError):
        pooler.connect()


def test_the_unix_socket_belongs_to_a_group(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, directory: Path
) -> None:
    group = grp.getgrgid(os.getgroups()[-1] if os.getuid() else 1)
    pooler = pgfunnel(
        postgres.url(), unix_socket_dir=str(directory), unix_socket_group=group.gr_name, unix_socket_mode="0770"
    )
    stat = (directory / f".s.PGSQL.{pooler.port}").stat()
    assert (stat.st_gid, stat.st_mode & 0o777) == (group.gr_gid, 0o770)


def test_a_group_that_does_not_exist_is_told(postgres: EmbeddedPostgres, directory: Path) -> None:
    pooler = Pgfunnel(postgres.url(), unix_socket_dir=str(directory), unix_socket_group="nobody-has-it")
    assert pooler.refuses_to_start() == 1
    pooler.wait_for_log("unix_socket_group: there is no system group 'nobody-has-it'")


def test_processes_share_a_port(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    port, metrics_port = two_free_ports()
    ports = {"listen_port": port, "metrics_port": metrics_port}
    both = [pgfunnel(postgres.url(), so_reuseport=1, **ports) for _ in range(2)]
    with ExitStack() as open_:
        for _ in range(40):
            open_.enter_context(Wire("127.0.0.1", port).login("postgres", "postgres"))
        for pooler in both:
            pooler.wait_for_log("event=client_login")


def test_without_so_reuseport_a_port_is_of_one(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    port = pgfunnel(postgres.url()).port
    other = Pgfunnel(postgres.url(), listen_port=port, so_reuseport=1)
    assert other.refuses_to_start() == 1
    other.wait_for_log(f"can't listen on 127.0.0.1 port {port}: Address already in use")


def test_the_second_process_takes_a_unix_socket_dir_of_its_own(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, directory: Path
) -> None:
    port = pgfunnel(postgres.url(), so_reuseport=1, unix_socket_dir=str(directory)).port
    other = Pgfunnel(postgres.url(), so_reuseport=1, unix_socket_dir=str(directory), listen_port=port)
    assert other.refuses_to_start() == 1
    other.wait_for_log(f"can't listen on {directory}/.s.PGSQL.{port}: another process listens there")


@pytest.mark.parametrize("so_reuseport", [0, 1])
def test_who_has_connected_is_served_although_it_shuts_down(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, directory: Path, so_reuseport: int
) -> None:
    pooler = pgfunnel(postgres.url(), so_reuseport=so_reuseport, unix_socket_dir=str(directory))
    with pooler.login() as idle, ExitStack() as open_:
        pooler.signal(signal.SIGSTOP)  # nothing is accepted any more
        places = ["127.0.0.1", str(directory)] * 10
        knocking = [open_.enter_context(Wire(place, pooler.port)) for place in places]
        pooler.signal(signal.SIGTERM)
        pooler.signal(signal.SIGCONT)
        for client in (*(client.login("postgres", "postgres") for client in knocking), idle):
            assert client.value("SELECT 'served'") == "served"
            assert client.error().sqlstate == "57P01"
            client.close()
        assert pooler.wait() == 0


def test_who_has_come_for_nothing_is_sent_away_soon(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url())
    with pooler.login() as idle, pooler.connect() as silent:
        pooler.signal(signal.SIGTERM)
        for client in (idle, silent):
            assert client.error().sqlstate == "57P01"
            client.close()
        assert pooler.wait() == 0


async def test_who_connects_while_the_doors_close_comes_to_the_other_process() -> None:
    doors = Doors()
    settings = Settings(listen_port=two_free_ports()[0], so_reuseport=True)
    await doors.open(settings, asyncio.Protocol, asyncio.Protocol)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"the other")
        writer.close()

    async def who_answers() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.listen_port)
        heard = await reader.read()
        writer.close()
        return heard

    other = await asyncio.start_server(answer, "127.0.0.1", settings.listen_port, reuse_port=True)
    closing = asyncio.create_task(doors.close())
    await asyncio.sleep(0)
    assert await asyncio.gather(*(who_answers() for _ in range(20))) == [b"the other"] * 20
    await closing
    other.close()


async def test_the_unix_socket_of_a_successor_stays(directory: Path) -> None:
    settings = Settings(listen_addr=(), listen_port=1, unix_socket_dir=directory)
    first, second = Doors(), Doors()
    await first.open(settings, asyncio.Protocol, asyncio.Protocol)
    with pytest.raises(ListenError, match="another process listens there"):
        await second.open(settings, asyncio.Protocol, asyncio.Protocol)
    await first.close()
    await second.open(settings, asyncio.Protocol, asyncio.Protocol)
    assert (directory / ".s.PGSQL.1").is_socket()
    await second.close()
    assert not (directory / ".s.PGSQL.1").exists()
