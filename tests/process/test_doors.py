"""Where clients come in: sockets of all kinds, and doors that close on nobody who has knocked."""

import asyncio
import grp
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from config.settings import Settings
from pooler.demo.postgres import EmbeddedPostgres
from pooler.listening import Doors, Make
from pooler.sockets import ListenError
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import two_free_ports
from tests.support.wire import Wire


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory with a short name: those of Unix sockets are limited to some 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="pgf-") as directory:
        yield Path(directory)


@asynccontextmanager
async def listening(over_tcp: Make = asyncio.Protocol, **settings: object) -> AsyncIterator[list[str]]:
    """Open the doors; `over_tcp` makes who answers there."""
    doors = Doors()
    yield await doors.open(Settings.model_validate(settings), over_tcp, Greeter)
    await doors.close()


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b"hello")
        transport.close()


async def test_a_unix_socket_may_be_in_no_directory() -> None:
    async with listening(listen_addr="", listen_port=1, unix_socket_dir="@pgfunnel-test") as places:
        assert places == ["@pgfunnel-test/.s.PGSQL.1"]
        reader, writer = await asyncio.open_unix_connection("\0pgfunnel-test/.s.PGSQL.1")
        assert await reader.read() == b"hello"
        writer.close()
        with pytest.raises(ListenError, match="can't listen on @pgfunnel-test"):
            async with listening(listen_addr="", listen_port=1, unix_socket_dir="@pgfunnel-test"):
                pass


async def test_the_unix_socket_belongs_to_a_group(directory: Path) -> None:
    group = grp.getgrgid(os.getgroups()[-1] if os.getuid() else 1)
    given = {"unix_socket_group": group.gr_name, "unix_socket_mode": "0770"}
    settings = Settings.model_validate({"listen_addr": "", "unix_socket_dir": directory, **given})
    doors = Doors()
    await doors.open(settings, asyncio.Protocol, asyncio.Protocol)
    place = directory / ".s.PGSQL.6432"
    assert place.group() == group.gr_name
    assert place.stat().st_mode & 0o777 == 0o770
    await doors.close()


async def test_a_group_that_does_not_exist_is_told(directory: Path) -> None:
    with pytest.raises(ListenError, match="unix_socket_group: there is no system group 'nobody-has-it'"):
        async with listening(listen_addr="", unix_socket_dir=directory, unix_socket_group="nobody-has-it"):
            pass


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False), (True, True)])
async def test_a_port_is_shared_if_both_agree(first: bool, second: bool) -> None:
    port = two_free_ports()[0]
    async with listening(listen_port=port, so_reuseport=first):
        if first and second:
            async with listening(listen_port=port, so_reuseport=second) as places:
                assert places == [f"127.0.0.1:{port}"]
            return
        with pytest.raises(ListenError, match=f"can't listen on 127.0.0.1 port {port}: Address already in use"):
            async with listening(listen_port=port, so_reuseport=second):
                pass


@pytest.mark.parametrize("so_reuseport", [0, 1])
def test_who_has_connected_is_served_although_it_shuts_down(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, directory: Path, so_reuseport: int
) -> None:
    pooler = pgfunnel(postgres.url(), so_reuseport=so_reuseport, unix_socket_dir=str(directory))
    with pooler.login() as idle, pooler.connect() as silent, ExitStack() as open_:
        pooler.signal(signal.SIGSTOP)  # nothing is accepted any more
        places = ["127.0.0.1", str(directory)] * 10
        knocking = [open_.enter_context(Wire(place, pooler.port)) for place in places]
        pooler.signal(signal.SIGTERM)
        pooler.signal(signal.SIGCONT)
        for client in (*(client.login("postgres", "postgres") for client in knocking), idle):
            assert client.value("SELECT 'served'") == "served"
            assert client.error().sqlstate == "57P01"
            client.close()
        assert silent.error().sqlstate == "57P01", "it has come for nothing"
        silent.close()
        assert pooler.wait() == 0


async def test_who_connects_while_the_doors_close_comes_to_the_other_process() -> None:
    port = two_free_ports()[0]

    async def who_answers() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        heard = await reader.read()
        writer.close()
        return heard

    async with listening(Greeter, listen_port=port, so_reuseport=True):
        doors = Doors()
        await doors.open(Settings(listen_port=port, so_reuseport=True), asyncio.Protocol, asyncio.Protocol)
        closing = asyncio.create_task(doors.close())
        await asyncio.sleep(0)
        assert await asyncio.gather(*(who_answers() for _ in range(20))) == [b"hello"] * 20
        await closing


async def test_the_unix_socket_of_a_successor_stays(directory: Path) -> None:
    settings = Settings(listen_addr=(), listen_port=1, unix_socket_dir=directory, so_reuseport=True)
    first, second = Doors(), Doors()
    await first.open(settings, asyncio.Protocol, asyncio.Protocol)
    with pytest.raises(ListenError, match="another process listens there"):
        await second.open(settings, asyncio.Protocol, asyncio.Protocol)
    closing = asyncio.create_task(first.close())
    await asyncio.sleep(0)
    await second.open(settings, asyncio.Protocol, asyncio.Protocol)
    await closing
    assert (directory / ".s.PGSQL.1").is_socket()
    await second.close(at_once=True)
    assert not (directory / ".s.PGSQL.1").exists()
