"""Cancels hit what they were sent for; and what vanished clients leave behind is cleaned up, never lent on."""

import struct
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import (
    PROTOCOL_3_2,
    Wire,
    bind,
    cancel_request,
    copy_data,
    execute,
    extended,
    flush,
    kinds,
    message,
    parse,
    query,
    startup,
    sync,
)

LONG = "SELECT pg_sleep(600)"


@pytest.fixture
def pooler(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    return pgfunnel(postgres.url(), default_pool_size=1)


def cancel(pooler: Pgfunnel, wire: Wire) -> None:
    """Send a CancelRequest for `wire`, and return once it has been dealt with."""
    with pooler.connect() as courier:
        courier.send(cancel_request(wire.backend_pid, wire.cancel_key))
        assert courier.read_to_end() == []


def running(admin: psycopg.Connection, sql: str = LONG) -> bool:
    found = admin.execute("SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = %s", [sql]).fetchone()
    return found is not None


# --- cancel requests


@pytest.mark.parametrize("protocol", [3 << 16, PROTOCOL_3_2])
def test_cancel_ends_the_query_and_the_client_goes_on(
    pooler: Pgfunnel, admin: psycopg.Connection, protocol: int
) -> None:
    with pooler.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "postgres"}, protocol))
        wire.authenticate("postgres", "")
        for request in (query(LONG), extended(LONG) + sync()):
            wire.send(request)
            eventually(lambda: running(admin))
            cancel(pooler, wire)
            assert wire.error().sqlstate == "57014"
            assert wire.read_until()[-1].payload == b"I"
            assert wire.value("SELECT 'next'") == "next"


def test_drivers_cancel(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with psycopg.connect(pooler.url(), autocommit=True) as connection:

        def give_up() -> None:
            eventually(lambda: running(admin))
            connection.cancel_safe()

        canceller = threading.Thread(target=give_up)
        canceller.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(LONG)
        canceller.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_cancel_in_a_transaction_leaves_the_transaction_to_the_client(
    pooler: Pgfunnel, admin: psycopg.Connection
) -> None:
    with pooler.login() as wire:
        wire.query("BEGIN")
        wire.send(query(LONG))
        eventually(lambda: running(admin))
        cancel(pooler, wire)
        answer = wire.read_until()
        assert kinds(answer)[-2:] == "EZ"
        assert answer[-1].payload == b"E"
        assert wire.query("ROLLBACK")[-1].payload == b"I"


def test_cancel_hits_only_the_one_it_was_sent_for(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=2)
    with pooler.login() as wire, pooler.login() as other:
        other.send(query("SELECT pg_sleep(0.5), 'whole'"))
        for _ in range(20):
            cancel(pooler, wire)  # which does nothing
        assert other.read_until()[1].columns[1] == "whole"
        wire.query("BEGIN")
        cancel(pooler, wire)  # idle in its transaction
        assert wire.value("SELECT 'open'") == "open"


def test_cancel_with_a_wrong_key_does_nothing(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with pooler.login() as wire:
        wire.send(query("SELECT pg_sleep(0.5), 'whole'"))
        for pid, key in (
            (wire.backend_pid, bytes(4)),
            (wire.backend_pid, wire.cancel_key + b"x"),
            (wire.backend_pid ^ 1, wire.cancel_key),
            (0, bytes(32)),
        ):
            with pooler.connect() as courier:
                courier.send(cancel_request(pid, key))
                assert courier.read_to_end() == []
        assert wire.read_until()[1].columns[1] == "whole"


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(query("SELECT 'never'"), id="simple"),
        pytest.param(extended("SELECT 'never'") + sync(), id="extended"),
    ],
)
def test_waiting_client_leaves_the_queue_when_cancelled(pooler: Pgfunnel, requests: bytes) -> None:
    with pooler.login() as holder, pooler.login() as wire, pooler.login() as behind:
        holder.query("BEGIN")
        wire.send(requests)
        eventually(lambda: pooler.waiting() == 1)
        behind.send(query("SELECT 'behind'"))
        eventually(lambda: pooler.waiting() == 2)
        cancel(pooler, wire)
        answer = wire.read_until()
        assert kinds(answer) == "EZ"
        assert answer[0].fields["C"] == "57014"
        assert pooler.waiting() == 1
        holder.query("COMMIT")
        assert behind.read_until()[1].columns == ["behind"]
        assert wire.value("SELECT 'next'") == "next"


def test_cancel_of_a_waiting_pipeline_takes_its_first_query_only(pooler: Pgfunnel) -> None:
    with pooler.login() as holder, pooler.login() as wire:
        holder.query("BEGIN")
        wire.send(query("SELECT 1"), query("SELECT 2"))
        eventually(lambda: pooler.waiting() == 1)
        cancel(pooler, wire)
        assert kinds(wire.read_until()) == "EZ"
        holder.query("COMMIT")
        assert wire.read_until()[1].columns == ["2"]


def test_late_cancel_never_hits_the_next_borrower(pooler: Pgfunnel) -> None:
    """Cancel queries that end at about that time, while others wait for their connection."""
    stop = threading.Event()
    failures: list[str] = []

    def borrow() -> None:
        with pooler.login() as wire:
            while not stop.is_set():
                answer = wire.query("SELECT pg_sleep(0.002)")
                failures.extend(error.fields["M"] for error in answer if error.kind == "E")

    borrowers = [threading.Thread(target=borrow) for _ in range(3)]
    for borrower in borrowers:
        borrower.start()
    cancelled = 0
    try:
        with pooler.login() as wire:
            for _ in range(150):
                wire.send(query("SELECT pg_sleep(0.003)"))
                cancel(pooler, wire)
                cancelled += "E" in kinds(wire.read_until())
    finally:
        stop.set()
        for borrower in borrowers:
            borrower.join()
    assert not failures
    assert cancelled > 10


def test_server_is_not_lent_on_until_its_cancel_is_settled(pgfunnel: StartPgfunnel) -> None:
    arrived, go = threading.Event(), threading.Event()

    def script(peer: Conversation) -> None:
        try:
            peer.accept_login()
        except EOFError:
            arrived.set()
            go.wait(20)
            return
        peer.read()
        arrived.wait(20)
        peer.answer("just in time")
        peer.serve()

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), default_pool_size=1)
        with pooler.login() as wire, pooler.login() as next_, pooler.connect() as courier:
            wire.send(query("SELECT 1"))
            eventually(lambda: pooler.metric("pgfunnel_pool_servers", state="active") == 1)
            courier.send(cancel_request(wire.backend_pid, wire.cancel_key))
            assert wire.read_until()[1].columns == ["just in time"]
            next_.send(query("SELECT 2"))
            eventually(lambda: pooler.waiting() == 1)
            wire.send(query("SELECT 3"))
            eventually(lambda: pooler.waiting() == 2)
            go.set()
            assert next_.read_until()[1].columns == ["1"]
            assert wire.read_until()[1].columns == ["1"]
            assert courier.read_to_end() == []
        assert server.connections == 2  # the one of the pool, and the cancel's


def test_cancel_that_postgres_never_confirms_costs_the_connection(pgfunnel: StartPgfunnel) -> None:
    def script(peer: Conversation) -> None:
        try:
            peer.accept_login()
        except EOFError:
            peer.wait_until_closed()
            return
        peer.serve() if peer.number > 1 else peer.wait_until_closed()

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), default_pool_size=1, cancel_wait_timeout=0.5)
        with pooler.login() as wire, pooler.login() as next_:
            wire.send(query("SELECT 1"))
            eventually(lambda: pooler.metric("pgfunnel_pool_servers", state="active") == 1)
            next_.send(query("SELECT 2"))
            eventually(lambda: pooler.waiting() == 1)
            since = time.monotonic()
            cancel(pooler, wire)
            pooler.wait_for_log("event=cancel_failed")
            assert time.monotonic() - since < 5
            wire.reset()
            assert next_.read_until("D")[-1].columns is not None


# --- clients that vanish


@pytest.mark.parametrize("leave", [Wire.reset, Wire.close], ids=["reset", "closed"])
@pytest.mark.parametrize(
    ("before", "requests"),
    [
        pytest.param((), query(LONG), id="query running"),
        pytest.param((), extended(LONG) + sync(), id="extended query running"),
        pytest.param((), extended(LONG) + flush(), id="query running before its Sync"),
        pytest.param(("BEGIN", "INSERT INTO kept VALUES ('x')"), query(LONG), id="query running in a transaction"),
    ],
)
def test_query_of_a_vanished_client_is_cancelled_and_its_connection_reused_clean(
    pooler: Pgfunnel,
    admin: psycopg.Connection,
    table: str,
    before: tuple[str, ...],
    requests: bytes,
    leave: Callable[[Wire], None],
) -> None:
    wire = pooler.login()
    pid = wire.value("SELECT pg_backend_pid()")
    for sql in before:
        assert wire.query(sql)[-1].payload == b"T"
    wire.send(requests)
    eventually(lambda: running(admin))
    leave(wire)
    eventually(lambda: not running(admin), timeout=2)
    with pooler.login() as next_:
        assert next_.value("SELECT pg_backend_pid()") == pid
        assert next_.value("SELECT count(*) FROM kept") == "0"
        assert next_.query("SELECT 1")[-1].payload == b"I"


@pytest.mark.parametrize("leave", [Wire.reset, Wire.close, Wire.terminate], ids=["reset", "closed", "goodbye"])
@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([query("BEGIN; INSERT INTO kept VALUES ('x')")], id="in a transaction"),
        pytest.param([query("BEGIN"), query("SELECT 1/0")], id="in a failed transaction"),
        pytest.param([query("COPY kept FROM STDIN"), copy_data(b"x\n")], id="in a COPY IN"),
        pytest.param([query("BEGIN; COPY kept FROM STDIN"), copy_data(b"x\n")], id="in a COPY IN in a transaction"),
        pytest.param([extended("COPY kept FROM STDIN") + flush(), copy_data(b"x\n")], id="in an extended COPY IN"),
        pytest.param([extended("COPY kept FROM STDIN") + sync(), copy_data(b"x\n")], id="in a COPY IN with a Sync"),
        pytest.param([extended("INSERT INTO kept VALUES ('x')") + flush()], id="before its Sync"),
        pytest.param([parse("SELECT 1/0") + bind() + execute() + flush()], id="after an error, before its Sync"),
        pytest.param([query("SELECT 1")[:7]], id="in a short message"),
    ],
)
def test_connection_of_a_vanished_client_is_reused_clean(
    pooler: Pgfunnel, table: str, requests: list[bytes], leave: Callable[[Wire], None]
) -> None:
    wire = pooler.login()
    pid = wire.value("SELECT pg_backend_pid()")
    for request in requests:
        wire.send(request)
    if len(requests[0]) > 7:
        wire.read_until("ZGCE")
    leave(wire)
    with pooler.login() as next_:
        assert next_.value("SELECT pg_backend_pid()") == pid
        assert next_.value("SELECT count(*) FROM kept") == "0"
        assert next_.query("SELECT 1")[-1].payload == b"I"


def test_client_that_vanishes_in_a_long_message_costs_its_connection(pooler: Pgfunnel, table: str) -> None:
    wire = pooler.login()
    pid = wire.value("SELECT pg_backend_pid()")
    wire.send(b"Q" + struct.pack("!I", 1_000_000) + b"INSERT INTO kept VALUES ('x') --" + bytes(100_000))
    eventually(lambda: pooler.metric("pgfunnel_pool_servers", state="active") == 1)
    wire.reset()
    with pooler.login() as next_:
        assert next_.value("SELECT pg_backend_pid()") != pid
        assert next_.value("SELECT count(*) FROM kept") == "0"


def test_last_words_of_a_client_that_leaves_politely_are_carried_out(pooler: Pgfunnel, table: str) -> None:
    with pooler.login() as wire:
        wire.send(query("INSERT INTO kept VALUES ('last words')"), message("X"))
        wire.read_to_end()
    with pooler.login() as next_:
        assert next_.value("SELECT value FROM kept") == "last words"


def test_query_of_a_client_that_leaves_politely_does_not_run_for_ever(
    pooler: Pgfunnel, admin: psycopg.Connection
) -> None:
    with pooler.login() as wire:
        wire.send(query(LONG))
        eventually(lambda: running(admin))
        wire.send(message("X"))
    eventually(lambda: not running(admin), timeout=6)


def test_answer_to_a_query_with_a_good_bye_behind_it_arrives(pooler: Pgfunnel) -> None:
    with pooler.login() as wire:
        wire.send(query("SELECT 'the answer', pg_sleep(0.2)") + message("X"))
        replies = wire.read_until("Z")
        assert any(b"the answer" in reply.payload for reply in replies)
        wire.read_to_end()


def test_server_that_ignores_the_cancel_is_closed(pgfunnel: StartPgfunnel) -> None:
    def script(peer: Conversation) -> None:
        peer.accept_login()
        if peer.number == 1:
            peer.wait_until_closed()
        peer.serve()

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), default_pool_size=1)
        wire = pooler.login()
        wire.send(query(LONG))
        eventually(lambda: pooler.metric("pgfunnel_pool_servers", state="active") == 1)
        wire.reset()
        with pooler.login() as next_:
            assert next_.value("SELECT 1") != "1"
        pooler.wait_for_log("event=server_closed.*reason=server_unclean")
