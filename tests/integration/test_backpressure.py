"""Who reads slowly is written to slowly: that stops its peer, and neither costs memory nor holds up anybody else."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import Wire, copy_data, kinds, message, query, startup

MIB = 1 << 20
FLAT = 8 * MIB
ENDLESS = "SELECT repeat('x', 1000), generate_series(1, 1000000000)"
LARGE = "SELECT repeat('x', 1000) FROM generate_series(1, 50000)"


@pytest.fixture
def pooler(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    pooler = pgfunnel(postgres.url(), default_pool_size=2)
    with pooler.login() as wire:
        wire.query(LARGE)
    pooler.forget_peak_rss()
    return pooler


def stopped(admin: psycopg.Connection, sql: str) -> bool:
    """Tell whether Postgres is waiting for the client of this query to read."""
    row = admin.execute("SELECT wait_event FROM pg_stat_activity WHERE query = %s", [sql]).fetchone()
    return row == ("ClientWrite",)


def send_until_stopped(wire: Wire, data: bytes, limit: int) -> int:
    """Send `data` over and over until it is not taken for a second, or there have been `limit` bytes."""
    wire.socket.settimeout(1)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < limit:
            sent += wire.socket.send(data[sent % len(data) :])
    wire.socket.settimeout(20)
    return sent


def test_client_that_does_not_read_stops_its_server_and_nothing_else(
    pooler: Pgfunnel, admin: psycopg.Connection
) -> None:
    before = pooler.rss()
    with pooler.login() as lazy, pooler.login() as wire, pooler.login() as other:
        lazy.send(query(ENDLESS))
        eventually(functools.partial(stopped, admin, ENDLESS))
        for number in range(100):
            assert wire.value(f"SELECT {number}") == str(number)
            assert other.value(f"SELECT -{number}") == str(-number)
        assert stopped(admin, ENDLESS)
        assert pooler.peak_rss() - before < FLAT
        for _ in range(20_000):
            kind = lazy.read().kind  # it goes on where it was stopped
        assert kind == "D"
        lazy.reset()
        eventually(lambda: not stopped(admin, ENDLESS))
        assert wire.value("SELECT 1") == "1"
    assert pooler.peak_rss() - before < FLAT


def test_client_that_reads_late_gets_all_of_its_answer(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with pooler.login() as lazy, pooler.login() as wire:
        for _ in range(3):
            lazy.send(query(LARGE))
            eventually(functools.partial(stopped, admin, LARGE))
            wire.query("SELECT 1")
            answer = lazy.read_until()
            assert kinds(answer) == "T" + "D" * 50_000 + "CZ"


def test_many_clients_that_do_not_read_cost_little_memory_each(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, admin: psycopg.Connection
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=41)
    with ExitStack() as open_:
        wire = open_.enter_context(pooler.login())
        wire.query("SELECT 1")
        before = pooler.rss()
        for _ in range(40):
            open_.enter_context(pooler.login()).send(query(ENDLESS))
        count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'"
        eventually(lambda: admin.execute(count).fetchone() == (40,))
        assert wire.value("SELECT 1") == "1"
        assert pooler.peak_rss() - before < 40 * MIB


def test_client_that_never_reads_cannot_send_for_ever(pooler: Pgfunnel) -> None:
    before = pooler.rss()
    with pooler.login() as lazy, pooler.login() as wire:
        sent = send_until_stopped(lazy, query("SELECT repeat('x', 1000)") * 1000, 64 * MIB)
        assert sent < 64 * MIB
        assert pooler.peak_rss() - before < FLAT
        assert wire.value("SELECT 1") == "1"


def test_server_that_does_not_read_stops_its_client_and_nothing_else(pgfunnel: StartPgfunnel) -> None:
    read = threading.Event()
    received = bytearray()

    def script(peer: Conversation) -> None:
        peer.accept_login()
        if peer.number > 1:
            peer.serve()
        peer.read()
        peer.send(message("G", b"\0" + bytes(2)))
        read.wait(60)
        while (told := peer.read()).kind == "d":
            received.extend(told.payload)
        peer.send(message("C", b"COPY 1\0"), peer.ready())
        peer.serve()

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), default_pool_size=2)
        with pooler.login() as busy, pooler.login() as wire:
            busy.send(query("COPY t FROM STDIN"))
            busy.read_until("G")
            wire.query("SELECT 1")
            pooler.forget_peak_rss()
            before = pooler.rss()
            chunk = copy_data(bytes(range(256)) * 40)
            sent = send_until_stopped(busy, chunk, 64 * MIB)
            assert sent < 64 * MIB
            assert wire.value("SELECT 1") == "2"
            assert pooler.peak_rss() - before < FLAT
            read.set()
            busy.send(chunk[sent % len(chunk) :], message("c"))
            assert kinds(busy.read_until()) == "CZ"
    payload = bytes(range(256)) * 40
    assert received == payload * (sent // len(chunk) + 1)


def test_client_that_waits_cannot_send_for_ever(pooler: Pgfunnel) -> None:
    before = pooler.rss()
    with pooler.login() as wire, pooler.login() as holder, pooler.login() as second:
        holder.query("BEGIN")
        second.query("BEGIN")
        request = query("SELECT 1 --" + "x" * 1000)
        sent = send_until_stopped(wire, request, 64 * MIB)
        assert sent < 64 * MIB
        assert pooler.peak_rss() - before < FLAT
        holder.query("COMMIT")
        wire.send(request[sent % len(request) :])
        for _ in range(sent // len(request) + 1):
            assert kinds(wire.read_until()) == "TDCZ"


@pytest.fixture
def full(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Iterator[Pgfunnel]:
    """Start a pgfunnel whose only place is taken."""
    pooler = pgfunnel(postgres.url(), max_client_conn=1)
    with pooler.login():
        yield pooler


def test_client_without_a_place_cannot_send_for_ever(full: Pgfunnel) -> None:
    full.forget_peak_rss()
    before = full.rss()
    with full.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "postgres"}))
        assert send_until_stopped(wire, query("SELECT 1") * 1000, 64 * MIB) < 64 * MIB
        assert full.peak_rss() - before < FLAT


def test_waiting_client_that_vanishes_with_much_unread_gives_up_its_place(pooler: Pgfunnel) -> None:
    with pooler.login() as holder, pooler.login() as second:
        holder.query("BEGIN")
        second.query("BEGIN")
        wire = pooler.login()
        send_until_stopped(wire, query("SELECT 1 --" + "x" * 1000), 64 * MIB)
        assert pooler.waiting() == 1
        wire.reset()
        eventually(lambda: pooler.waiting() == 0, timeout=2)
