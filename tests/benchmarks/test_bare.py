"""The bare loop, without sockets: transports that note what is written."""

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.bare import Client, Pool, Server

QUERY = b"Q\0\0\0\x0dSELECT 1\0"
ANSWER = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I"
GREETING = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I"
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def pool() -> Pool:
    return Pool(greeting=GREETING)


@pytest.fixture
def server(pool: Pool, loop: asyncio.AbstractEventLoop) -> tuple[Server, Wire]:
    async def made() -> Server:
        return Server(pool)

    server, wire = loop.run_until_complete(made()), Wire()
    server.connection_made(wire)
    pool.release(server)
    return server, wire


def logged_in(pool: Pool) -> tuple[Client, Wire]:
    client, wire = Client(pool), Wire()
    client.connection_made(wire)
    client.data_received(b"startup")
    assert wire.written == GREETING
    wire.written = b""
    return client, wire


def test_a_client_that_asks_for_tls_hears_no_and_then_the_greeting(pool: Pool) -> None:
    client, wire = Client(pool), Wire()
    client.connection_made(wire)
    client.data_received(SSL_REQUEST)
    client.data_received(b"startup")
    assert wire.written == b"N" + GREETING


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
def test_an_answer_reaches_its_client_and_frees_the_server_wherever_it_is_cut(
    pool: Pool, server: tuple[Server, Wire], cut: int
) -> None:
    session, upstream = server
    client, wire = logged_in(pool)
    client.data_received(QUERY)
    assert upstream.written == QUERY
    session.data_received(ANSWER[:cut])
    assert pool.idle == []
    session.data_received(ANSWER[cut:])
    assert wire.written == ANSWER
    assert pool.idle == [session]


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_server_in_a_transaction_stays_linked(pool: Pool, server: tuple[Server, Wire], cut: int) -> None:
    session, _ = server
    client, wire = logged_in(pool)
    client.data_received(QUERY)
    open_transaction = ANSWER[:-1] + b"T"
    session.data_received(open_transaction)
    session.data_received(ANSWER[:cut])
    assert client.server is session
    session.data_received(ANSWER[cut:])
    assert wire.written == open_transaction + ANSWER
    assert client.server is None


def test_clients_that_wait_are_served_in_order(pool: Pool, server: tuple[Server, Wire]) -> None:
    session, upstream = server
    wires = []
    for number in b"123":
        client, wire = logged_in(pool)
        client.data_received(b"Q\0\0\0\x06%c\0" % number)
        wires.append(wire)
    for wire in wires:
        session.data_received(ANSWER)
        assert wire.written == ANSWER
    assert upstream.written == b"".join(b"Q\0\0\0\x06%c\0" % number for number in b"123")


def test_a_goodbye_closes_the_client_and_not_the_server(pool: Pool, server: tuple[Server, Wire]) -> None:
    client, wire = logged_in(pool)
    client.data_received(b"X\0\0\0\x04")
    assert wire.closed
    assert server[1].written == b""


def test_a_client_that_reads_slowly_stops_its_server_until_it_has_caught_up(
    pool: Pool, server: tuple[Server, Wire]
) -> None:
    session, upstream = server
    client, _ = logged_in(pool)
    client.data_received(QUERY)
    client.pause_writing()
    assert not upstream.reading
    session.data_received(ANSWER)
    client.resume_writing()
    assert upstream.reading


def test_what_postgres_says_at_login_is_kept_as_the_greeting(pool: Pool, server: tuple[Server, Wire]) -> None:
    pool.greeting = b""
    session, _ = server
    session.data_received(GREETING[:7])
    assert not session.greeted.done()
    session.data_received(GREETING[7:])
    assert session.greeted.done()
    assert pool.greeting == GREETING
