"""Where clients are taken, as the settings say."""

import socket
import struct

import psutil
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.wire import Wire


def test_clients_are_taken_at_listen_addr_and_listen_port_only(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), listen_addr="127.0.0.2")
    with Wire("127.0.0.2", int(pooler.settings["listen_port"])).login("postgres", "postgres") as wire:
        assert wire.value("SELECT 1") == "1"
    with pytest.raises(ConnectionRefusedError):
        Wire("127.0.0.1", pooler.port)


def test_the_system_holds_as_many_connections_as_listen_backlog_says(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), listen_backlog=17, metrics_addr="")
    (listening,) = (
        each for each in psutil.Process(pooler.process.pid).net_connections("tcp") if each.status == psutil.CONN_LISTEN
    )
    with pooler.duplicate(listening.fd) as sock:
        # For a listening socket, Linux has the backlog in tcpi_sacked: the eighth number after eight bytes.
        information = struct.unpack("8B8I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 40))
    assert information[8 + 5] == 17
