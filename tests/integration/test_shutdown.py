"""Signals end pgfunnel as PgBouncer's users expect: politely, sooner, or at once; Postgres is left in order."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import CountBackends, StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import Wire, kinds, query, startup

POLITE = [signal.SIGTERM, signal.SIGINT]
ALL = [*POLITE, signal.SIGQUIT]


@pytest.fixture
def pooler(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    return pgfunnel(postgres.url(), default_pool_size=1)


def sent_away(wire: Wire) -> bool:
    """Tell whether the next that comes is the farewell, and the end of the stream after it."""
    (farewell,) = wire.read_to_end()
    assert farewell.fields["S"] == "FATAL"
    assert "shutting down" in farewell.fields["M"]
    return farewell.fields["C"] == "57P01"


def refuses(pooler: Pgfunnel) -> bool:
    try:
        pooler.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def begin_shutdown(pooler: Pgfunnel, number: signal.Signals) -> None:
    pooler.signal(number)
    pooler.wait_for_log("event=shutting_down")


@pytest.mark.parametrize("number", ALL)
def test_idle_clients_are_told_and_it_ends(pooler: Pgfunnel, backends: CountBackends, number: signal.Signals) -> None:
    with ExitStack() as open_:
        clients = [open_.enter_context(pooler.login()) for _ in range(20)]
        for client in clients:
            client.query("SELECT 1")
        pooler.signal(number)
        assert all(map(sent_away, clients))
        assert pooler.wait() == 0
    eventually(lambda: backends() == 0)
    assert "event=stopped" in pooler.log[-1]


@pytest.mark.parametrize("number", ALL)
def test_it_ends_quickly_where_nobody_is_connected(pooler: Pgfunnel, number: signal.Signals) -> None:
    started = time.monotonic()
    pooler.signal(number)
    assert pooler.wait() == 0
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("number", POLITE)
def test_query_under_way_is_answered(pooler: Pgfunnel, admin: psycopg.Connection, number: signal.Signals) -> None:
    with pooler.login() as busy:
        busy.send(query("SELECT pg_sleep(0.5), 'whole'"))
        eventually(lambda: pooler.metric("pgfunnel_pool_servers", state="active") == 1)
        begin_shutdown(pooler, number)
        assert busy.read_until()[1].columns[1] == "whole"
        assert sent_away(busy)
    assert pooler.wait() == 0


@pytest.mark.parametrize("number", POLITE)
def test_transaction_goes_on_to_its_end(pooler: Pgfunnel, table: str, number: signal.Signals) -> None:
    with pooler.login() as busy, pooler.login() as idle:
        busy.query("BEGIN")
        begin_shutdown(pooler, number)
        assert sent_away(idle)
        for number_ in range(5):
            busy.rows(f"INSERT INTO kept VALUES ('{number_}')")
        assert busy.query("COMMIT")[-1].payload == b"I"
        assert sent_away(busy)
    assert pooler.wait() == 0


def test_committed_is_what_was_committed_while_shutting_down(
    postgres: EmbeddedPostgres, pooler: Pgfunnel, table: str
) -> None:
    with pooler.login() as busy:
        busy.query("BEGIN")
        begin_shutdown(pooler, signal.SIGTERM)
        busy.query("INSERT INTO kept VALUES ('kept')")
        busy.query("COMMIT")
        busy.read_to_end()
    assert pooler.wait() == 0
    assert postgres.psql("SELECT value FROM kept").strip() == "kept"


def test_sigterm_serves_those_who_wait(pooler: Pgfunnel) -> None:
    with pooler.login() as holder, pooler.login() as first, pooler.login() as second:
        holder.query("BEGIN")
        for waiting, client in enumerate((first, second), 1):
            client.send(query("SELECT 'served'"))
            eventually(lambda waiting=waiting: pooler.waiting() == waiting)  # type: ignore[misc]
        begin_shutdown(pooler, signal.SIGTERM)
        holder.query("COMMIT")
        for client in (first, second):
            assert client.read_until()[1].columns == ["served"]
            assert sent_away(client)
    assert pooler.wait() == 0


def test_sigint_sends_those_away_who_wait(pooler: Pgfunnel) -> None:
    with pooler.login() as holder, pooler.login() as waiting:
        holder.query("BEGIN")
        waiting.send(query("SELECT 1"))
        eventually(lambda: pooler.waiting() == 1)
        begin_shutdown(pooler, signal.SIGINT)
        assert sent_away(waiting)
        assert holder.value("SELECT 'still'") == "still"
        holder.query("COMMIT")
        assert sent_away(holder)
    assert pooler.wait() == 0


def at_once(pooler: Pgfunnel) -> None:
    begin_shutdown(pooler, signal.SIGQUIT)


def again(pooler: Pgfunnel) -> None:
    begin_shutdown(pooler, signal.SIGTERM)
    pooler.signal(signal.SIGTERM)


def sigint_again(pooler: Pgfunnel) -> None:
    begin_shutdown(pooler, signal.SIGTERM)
    pooler.signal(signal.SIGINT)


@pytest.mark.parametrize("shut_down", [at_once, again, sigint_again])
def test_sigquit_or_a_second_signal_waits_for_nobody(
    postgres: EmbeddedPostgres,
    pooler: Pgfunnel,
    backends: CountBackends,
    table: str,
    shut_down: Callable[[Pgfunnel], None],
) -> None:
    with pooler.login() as busy, pooler.login() as waiting:
        busy.query("BEGIN; INSERT INTO kept VALUES ('lost')")
        waiting.send(query("SELECT 1"))
        eventually(lambda: pooler.waiting() == 1)
        started = time.monotonic()
        shut_down(pooler)
        assert sent_away(waiting)
        assert sent_away(busy)
        assert pooler.wait() == 0
        assert time.monotonic() - started < 5
    eventually(lambda: backends() == 0)
    assert postgres.psql("SELECT count(*) FROM kept").strip() == "0"


@pytest.mark.parametrize("shut_down", [at_once, again, sigint_again])
def test_query_that_nobody_waits_for_does_not_run_on(
    pooler: Pgfunnel, admin: psycopg.Connection, shut_down: Callable[[Pgfunnel], None]
) -> None:
    running = "FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'"
    with pooler.login() as busy:
        busy.send(query("SELECT pg_sleep(600)"))
        eventually(lambda: admin.execute(f"SELECT 1 {running}").fetchone() == (1,))
        shut_down(pooler)
        assert sent_away(busy)
        assert pooler.wait() == 0
    try:
        eventually(lambda: admin.execute(f"SELECT 1 {running}").fetchone() is None, timeout=1)
    finally:
        admin.execute(f"SELECT pg_terminate_backend(pid) {running}")


@pytest.mark.parametrize("number", POLITE)
def test_shutdown_timeout_bounds_the_wait(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, number: signal.Signals
) -> None:
    pooler = pgfunnel(postgres.url(), shutdown_timeout=1)
    with pooler.login() as busy:
        busy.query("BEGIN")
        started = time.monotonic()
        pooler.signal(number)
        assert sent_away(busy)
        assert pooler.wait() == 0
        assert 1 <= time.monotonic() - started < 4
    pooler.wait_for_log("event=shutdown_timeout")


def test_nobody_is_let_in_any_more(pooler: Pgfunnel) -> None:
    with pooler.login() as busy, pooler.connect() as late:
        busy.query("BEGIN")
        late.send(startup({"user": "postgres", "database": "postgres"})[:-1])
        eventually(lambda: pooler.metric("pgfunnel_logins", state="first_packet") == 1)
        begin_shutdown(pooler, signal.SIGTERM)
        assert sent_away(late)
        with pytest.raises(ConnectionRefusedError):
            pooler.connect()
        assert busy.query("COMMIT")[-1].payload == b"I"
    assert pooler.wait() == 0


def test_a_reload_meanwhile_does_no_harm(pooler: Pgfunnel) -> None:
    with pooler.login() as busy:
        busy.query("BEGIN")
        begin_shutdown(pooler, signal.SIGTERM)
        eventually(lambda: refuses(pooler))
        pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=reloaded")
        assert kinds(busy.query("COMMIT")) == "CZ"
    assert pooler.wait() == 0


def test_large_answer_arrives_whole_at_a_client_that_reads_slowly(pooler: Pgfunnel) -> None:
    with pooler.login() as slow:
        slow.send(query("SELECT repeat('x', 1000) FROM generate_series(1, 30000)"))
        rows = 0
        slow.read_until("T")
        while pooler.metric("pgfunnel_pool_servers", state="active") == 1:
            rows += kinds([slow.read() for _ in range(100)]).count("D")
        # The server has been released; some megabytes of the answer are still with pgfunnel and the system.
        begin_shutdown(pooler, signal.SIGTERM)
        while rows < 30_000:
            time.sleep(0.1)
            rows += kinds([slow.read() for _ in range(100)]).count("D")
        assert kinds(slow.read_until()) == "CZ"
        assert sent_away(slow)
    assert pooler.wait() == 0


@pytest.mark.parametrize("number", POLITE)
def test_sessions_in_session_mode_end_when_they_are_idle(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, number: signal.Signals
) -> None:
    pooler = pgfunnel(postgres.url(), pool_mode="session")
    with pooler.login() as idle, pooler.login() as busy:
        idle.query("SELECT 1")
        busy.query("BEGIN")
        begin_shutdown(pooler, number)
        assert sent_away(idle)
        assert busy.query("COMMIT")[-1].payload == b"I"
        assert sent_away(busy)
    assert pooler.wait() == 0


def test_what_a_vanished_client_left_is_rolled_back_before_it_ends(pgfunnel: StartPgfunnel) -> None:
    said: list[bytes] = []

    def script(peer: Conversation) -> None:
        peer.accept_login()
        while True:
            request = peer.read()
            said.append(request.kind.encode() + request.payload)
            if request.kind == "X":
                return
            status = "T" if request.payload == b"BEGIN\0" else "I"
            peer.send(peer.ready(status))

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), default_pool_size=1)
        wire = pooler.login()
        wire.query("BEGIN")
        wire.reset()
        pooler.signal(signal.SIGTERM)
        assert pooler.wait() == 0
        eventually(lambda: said == [b"QBEGIN\0", b"QROLLBACK\0", b"X"])


def test_postgres_sees_polite_goodbyes(pgfunnel: StartPgfunnel) -> None:
    said: list[str] = []

    def script(peer: Conversation) -> None:
        peer.accept_login()
        while (request := peer.read()).kind == "Q":
            peer.answer("1")
        said.append(request.kind)

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), default_pool_size=3)
        with ExitStack() as open_:
            clients = [open_.enter_context(pooler.login()) for _ in range(3)]
            for client in clients:
                client.query("SELECT 1")
            pooler.signal(signal.SIGTERM)
            assert pooler.wait() == 0
        eventually(lambda: said == ["X"] * server.connections)


def test_shutdown_does_not_wait_for_a_postgres_that_is_not_there(pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel("postgresql://postgres@127.0.0.1:1/postgres")
    with pooler.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "postgres"}))
        pooler.wait_for_log("event=server_connect_failed")
        pooler.signal(signal.SIGTERM)
        assert sent_away(wire)
        assert pooler.wait() == 0


def test_psycopg_shows_that_it_shuts_down(pooler: Pgfunnel) -> None:
    with psycopg.connect(pooler.url(), autocommit=True) as connection:
        begin_shutdown(pooler, signal.SIGTERM)
        assert pooler.wait() == 0
        with pytest.raises(psycopg.errors.AdminShutdown, match="shutting down"):
            connection.execute("SELECT 1")
