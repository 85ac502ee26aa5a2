"""The raw clients, against a server that is a few lines long."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from benchmarks.clients import READY, connected, drain, query_message, startup_message

WELCOME = b"R\x00\x00\x00\x08\x00\x00\x00\x00" + READY


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with closing(here), closing(there):
        yield here, there


def test_messages_are_what_postgres_expects() -> None:
    assert startup_message("u", "d") == b"\0\0\0\x1b\0\x03\0\0user\0u\0database\0d\0\0"
    assert query_message("SELECT 1") == b"Q\0\0\0\x0dSELECT 1\0"


@pytest.mark.parametrize("cut", range(1, len(WELCOME)))
def test_ready_is_seen_wherever_the_bytes_are_cut(cut: int) -> None:
    with pair() as (here, there):
        there.sendall(WELCOME[:cut])
        sender = threading.Timer(0.001, there.sendall, [WELCOME[cut:]])
        sender.start()
        assert drain(here) == len(WELCOME)
        sender.join()


def test_ready_is_seen_through_a_buffer_smaller_than_the_message() -> None:
    with pair() as (here, there):
        there.sendall(WELCOME)
        assert drain(here, size=2) == len(WELCOME)


def test_an_error_is_raised_with_the_servers_words() -> None:
    with pair() as (here, there):
        there.sendall(b"E\0\0\0\x10too many clients\0")
        with pytest.raises(ConnectionError, match="too many clients"):
            drain(here)


def test_a_server_that_leaves_is_noticed() -> None:
    with pair() as (here, there):
        there.close()
        with pytest.raises(ConnectionError, match="closed before ReadyForQuery"):
            drain(here)


def test_all_clients_are_logged_in_inside_the_block_and_gone_after_it() -> None:
    accepted: list[socket.socket] = []
    count = 250

    def serve() -> None:
        for _ in range(count):
            client, _ = listener.accept()
            client.recv(100)
            client.sendall(WELCOME)
            accepted.append(client)

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        server = threading.Thread(target=serve)
        server.start()
        with connected(listener.getsockname(), "u", "d", count) as clients:
            assert len(clients) == len(accepted) == count
        server.join()
        for client in accepted:
            assert client.recv(1) == b""
            client.close()
