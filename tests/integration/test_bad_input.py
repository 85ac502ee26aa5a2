"""Whatever a peer sends, it is answered or closed; memory, the pool and all other clients are unharmed."""

import contextlib
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import CountBackends, StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import (
    SSL_REQUEST,
    Message,
    Wire,
    bind,
    cancel_request,
    close_statement,
    copy_data,
    copy_done,
    describe_portal,
    execute,
    extended,
    flush,
    function_call,
    message,
    parse,
    query,
    startup,
    sync,
    terminate,
)

MIB = 1 << 20
LOGIN = startup({"user": "postgres", "database": "postgres"})
HUGE = 0x7FFFFFFF
Leave = Callable[[Wire], None]


@pytest.fixture(scope="module")
def running(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(postgres.url(), default_pool_size=2, max_client_conn=50) as pooler:
        pooler.login().terminate()
        yield pooler


@pytest.fixture
def pooler(running: Pgfunnel, backends: CountBackends) -> Iterator[Pgfunnel]:
    """Share a pgfunnel that has two clients, one of them in a transaction, who must notice nothing at all."""
    running.forget_peak_rss()
    before = running.rss()
    with running.login() as bystander, running.login() as idle:
        bystander.query("BEGIN")
        pid = bystander.value("SELECT pg_backend_pid()")
        yield running
        assert bystander.value("SELECT pg_backend_pid()") == pid
        assert bystander.query("COMMIT")[-1].payload == b"I"
        assert idle.value("SELECT 'unharmed'") == "unharmed"
        eventually(lambda: running.metric("pgfunnel_clients") == 2)
        assert backends() <= 2
    assert running.peak_rss() - before < 8 * MIB


def rejected(wire: Wire) -> Message | None:
    """Return the error that ends the connection, or None if it was just closed; it must not stay open."""
    told = wire.read_to_end()
    assert all(each.kind == "E" for each in told[-1:])
    return told[-1] if told else None


def header(kind: bytes, length: int) -> bytes:
    return kind + struct.pack("!I", length)


def packet(code: int, body: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("!II", 8 + len(body) if size is None else size, code) + body


# --- before the login


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="TLS"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
        pytest.param(bytes(100), id="zeros"),
        pytest.param(b"\xff" * 100, id="ones"),
        pytest.param(packet(3 << 16, size=HUGE), id="huge length"),
        pytest.param(packet(3 << 16, size=10_001), id="length just over the limit"),
        pytest.param(packet(3 << 16, size=0), id="no length"),
        pytest.param(packet(3 << 16, size=4), id="length without a protocol"),
        pytest.param(packet(3 << 16), id="nothing after the protocol"),
        pytest.param(packet(3 << 16, b"\0"), id="no parameters"),
        pytest.param(packet(3 << 16, b"user\0postgres\0"), id="no terminator"),
        pytest.param(packet(3 << 16, b"user\0postgres"), id="no end of the value"),
        pytest.param(packet(3 << 16, b"user\0\0"), id="empty user"),
        pytest.param(packet(3 << 16, b"database\0postgres\0\0"), id="no user"),
        pytest.param(packet(3 << 16, b"user\0postgres\0\0more"), id="more after the terminator"),
        pytest.param(packet(3 << 16, b"user\0postgres\0odd\0\0"), id="an odd number of strings"),
        pytest.param(packet(3 << 16, b"\0" * 5000), id="nothing but terminators"),
        pytest.param(packet(80877103, b"more"), id="SSLRequest with a body"),
        pytest.param(packet(80877102), id="CancelRequest without a key"),
        pytest.param(packet(80877102, bytes(4)), id="CancelRequest with half a key"),
        pytest.param(packet(80877102, bytes(5000)), id="CancelRequest with a long key"),
        pytest.param(packet(1), id="unknown protocol"),
        pytest.param(query("SELECT 1"), id="a query"),
    ],
)
def test_nonsense_instead_of_a_login(pooler: Pgfunnel, first: bytes) -> None:
    with pooler.connect() as wire:
        wire.send(first)
        error = rejected(wire)
        assert error is None or error.fields["S"] == "FATAL"
    with pooler.connect() as wire, contextlib.suppress(ConnectionError):
        for at in range(len(first)):
            wire.send(first[at : at + 1])
        rejected(wire)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"\xed\xa0\x80", b"x" * 9000, b"a\n\tb\x7f"])
def test_names_that_are_no_text_are_refused(pooler: Pgfunnel, name: bytes) -> None:
    with pooler.connect() as wire:
        wire.send(packet(3 << 16, b"user\0" + name + b"\0database\0postgres\0\0"))
        error = rejected(wire)
        assert error is not None
        assert error.fields["C"] in ("28P01", "08P01", "28000")


def test_names_cannot_write_escape_sequences_or_lines_into_the_log(pooler: Pgfunnel) -> None:
    with pooler.connect() as wire:
        wire.send(startup({"user": "a\x1b[31m\n\rlevel=info event=forged", "database": "x"}))
        assert rejected(wire) is not None
    pooler.wait_for_log("event=login_failed.*31m")
    assert not any("\x1b" in line or line.startswith("level=info event=forged") for line in pooler.log)


def test_encryption_asked_for_again_and_again(pooler: Pgfunnel) -> None:
    with pooler.connect() as wire:
        wire.send(SSL_REQUEST)
        assert wire.read_bytes(1) == b"N"
        wire.send(SSL_REQUEST)
        assert rejected(wire) is not None


def test_flood_of_connections_that_say_nothing(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), open_files="500", max_client_conn=100, default_pool_size=5)
    with pooler.login() as inside, ExitStack() as flood:
        for number in range(1000):
            wire = flood.enter_context(pooler.connect())
            wire.send(LOGIN[: number % len(LOGIN)])
            if number % 100 == 0:
                assert inside.value("SELECT 'unharmed'") == "unharmed"
                with pooler.login() as newcomer:
                    assert newcomer.value("SELECT 'let in'") == "let in"
        assert pooler.metric("pgfunnel_clients_ended_total", reason="login_flood") > 500


def test_flood_of_logins_and_resets(pooler: Pgfunnel) -> None:
    for _ in range(500):
        wire = pooler.connect()
        wire.send(LOGIN, query("SELECT 1"))
        wire.reset()


@pytest.mark.parametrize("said", [LOGIN, SSL_REQUEST + LOGIN], ids=["StartupMessage", "SSLRequest first"])
def test_slowloris_is_ended_by_client_login_timeout_however_busy_it_looks(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, said: bytes
) -> None:
    pooler = pgfunnel(postgres.url(), client_login_timeout=1)
    with pooler.connect() as wire, pooler.login() as inside:
        started = time.monotonic()
        wire.socket.settimeout(0.1)
        answer = b""
        for at in range(len(said) - 1):
            with contextlib.suppress(ConnectionError):
                wire.send(said[at : at + 1])
            with contextlib.suppress(TimeoutError, ConnectionError):
                answer += wire.receive()
            if b"client_login_timeout" in answer:
                break
        assert 0.99 <= time.monotonic() - started < 3
        assert b"client_login_timeout" in answer
        assert inside.value("SELECT 1") == "1"


# --- after the login


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(LOGIN, id="a second StartupMessage"),
        pytest.param(SSL_REQUEST, id="an SSLRequest"),
        pytest.param(cancel_request(1, b"\0\0\0\1"), id="a CancelRequest"),
        pytest.param(message("p", b"secret\0"), id="a password"),
        pytest.param(message("Z", b"I"), id="a ReadyForQuery"),
        pytest.param(message("z"), id="an unknown type"),
        pytest.param(message("\0"), id="type zero"),
        pytest.param(b"\xff" * 100, id="ones"),
        pytest.param(header(b"Q", 0), id="no length"),
        pytest.param(header(b"Q", 3), id="too little length"),
        pytest.param(header(b"Q", 0x80000000), id="negative length"),
        pytest.param(header(b"Q", 0xFFFFFFFF) + b"x" * 10_000, id="length of minus one"),
        pytest.param(header(b"S", HUGE), id="huge Sync"),
        pytest.param(header(b"X", HUGE), id="huge Terminate"),
        pytest.param(header(b"H", 10_001) + bytes(9997), id="long Flush"),
        pytest.param(header(b"E", HUGE) + bytes(9997), id="huge Execute"),
    ],
)
@pytest.mark.parametrize(
    "before", ["", "SELECT 1", "BEGIN"], ids=["at first", "between two queries", "in a transaction"]
)
def test_nonsense_instead_of_a_query(pooler: Pgfunnel, said: bytes, before: str) -> None:
    with pooler.login() as wire:
        if before:
            wire.query(before)
        wire.send(said)
        error = rejected(wire)
        assert error is not None
        assert (error.fields["S"], error.fields["C"]) == ("FATAL", "08P01")


@pytest.mark.parametrize("kind", [b"Q", b"P", b"B", b"d"], ids=["Query", "Parse", "Bind", "CopyData"])
def test_promise_of_a_huge_message_costs_nothing_and_holds_only_its_own_server(pooler: Pgfunnel, kind: bytes) -> None:
    with pooler.login() as wire:
        wire.send(header(kind, 500 * MIB), b"\0", b"x" * MIB)
        eventually(lambda: pooler.metric("pgfunnel_pool_servers", state="active") == 2)


def test_message_longer_than_postgres_takes_ends_the_connection(pooler: Pgfunnel) -> None:
    with pooler.login() as wire:
        wire.send(header(b"Q", HUGE - 1))
        error = rejected(wire)
        assert error is not None
        assert error.fields["C"] == "08006"  # Postgres just hangs up


def test_message_longer_than_max_packet_size_is_refused(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), max_packet_size=100_000, default_pool_size=1)
    with pooler.login() as wire, pooler.login() as other:
        assert wire.value("SELECT length('" + "x" * 90_000 + "')") == "90000"
        wire.send(query("SELECT '" + "x" * 100_000 + "'"))
        error = rejected(wire)
        assert error is not None
        assert "max_packet_size (100000)" in error.fields["M"]
        assert other.value("SELECT 1") == "1"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(message("Q"), id="Query without text"),
        pytest.param(message("Q", b"SELECT 1"), id="Query without its end"),
        pytest.param(message("P", b"x"), id="Parse"),
        pytest.param(message("B", b"\0\0\xff\xff"), id="Bind"),
        pytest.param(message("D", b"?\0"), id="Describe"),
        pytest.param(message("C"), id="Close"),
        pytest.param(message("E"), id="Execute"),
        pytest.param(message("F", b"\0"), id="FunctionCall"),
        pytest.param(message("Q", b"SELECT '\xff\xfe\0"), id="bytes that are no text"),
    ],
)
def test_malformed_request_is_answered_by_postgres(pooler: Pgfunnel, said: bytes) -> None:
    with pooler.login() as wire:
        wire.send(said, sync())
        errors = [told for told in wire.read_until() if told.kind == "E"]
        assert errors


# --- cut off anywhere

CONVERSATION = (
    query("BEGIN")
    + parse("SELECT $1::text", "named")
    + bind("value", statement="named")
    + describe_portal()
    + execute()
    + close_statement("named")
    + flush()
    + sync()
    + query("COPY pg_temp.none FROM STDIN")
    + query("ROLLBACK; CREATE TEMP TABLE IF NOT EXISTS here (t text); COPY here FROM STDIN")
    + copy_data(b"a line\n")
    + copy_done()
    + function_call(1598)
    + terminate()
)


@pytest.mark.parametrize("leave", [Wire.reset, Wire.close], ids=["reset", "closed"])
def test_conversation_cut_off_at_any_byte(pooler: Pgfunnel, leave: Leave) -> None:
    for at in range(0, len(LOGIN), 3):
        wire = pooler.connect()
        wire.send(LOGIN[:at])
        leave(wire)
    for at in range(0, len(CONVERSATION), 3):
        wire = pooler.login()
        wire.send(CONVERSATION[:at])
        leave(wire)
        with pooler.login() as next_:
            assert next_.value(f"SELECT {at}") == str(at)


def test_random_bytes(pooler: Pgfunnel) -> None:
    chance = random.Random(2)
    for _ in range(300):
        with pooler.connect() as wire, contextlib.suppress(ConnectionError):
            if chance.random() < 0.7:
                wire.login("postgres", "postgres")
            wire.send(garbled(chance))
            if chance.random() < 0.5:
                wire.send(garbled(chance))


def garbled(chance: random.Random) -> bytes:
    """Return random bytes, or valid requests of which some bytes are wrong, missing or doubled."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.choice((1, 5, 100, 20_000)))
    data = bytearray(chance.choice((CONVERSATION, LOGIN, extended("SELECT 1") + sync())))
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(data)


# --- from the server


def test_reply_longer_than_max_packet_size_is_not_waited_for(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), max_packet_size=100_000, default_pool_size=1)
    with pooler.login() as wire:
        assert wire.value("SELECT length(repeat('x', 90000))") == "90000"
        wire.send(query("SELECT repeat('x', 100000)"))
        assert wire.read_until("ZE")[-1].kind == "E"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(message("?"), id="an unknown type"),
        pytest.param(header(b"Z", 0), id="no length"),
        pytest.param(header(b"Z", HUGE), id="a huge ReadyForQuery"),
        pytest.param(message("Z", b"I") + message("Z", b"I"), id="a ReadyForQuery too many"),
    ],
)
def test_server_that_answers_nonsense_costs_its_own_client_only(pgfunnel: StartPgfunnel, said: bytes) -> None:
    def script(peer: Conversation) -> None:
        peer.accept_login()
        while peer.read().kind == "Q":
            if peer.number == 1:
                peer.send(said)
                peer.wait_until_closed()
            peer.answer(str(peer.number))

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), default_pool_size=1)
        with pooler.login() as wire, pooler.login() as other:
            wire.send(query("SELECT 1"))
            wire.read_to_end()
            pooler.wait_for_log("event=server_closed.*reason=server_protocol_violation")
            assert other.value("SELECT 1") == "2"
