"""Every timeout ends what it is for, no sooner, and the driver shows the SQLSTATE, what happened and which setting."""

import itertools
import socket
import statistics
import time
from contextlib import ExitStack

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, CountBackends, StartPgfunnel
from tests.support.pgfunnel import Setting, eventually
from tests.support.proxy import FaultProxy
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import ServerError, Wire, extended, flush, query, startup

LATE = 1.5  # a timeout is up to one round of the janitor late, and this machine may be busy


def ended(wire: Wire, after: float, since: float) -> ServerError:
    """Return the error that ends the connection, which must come about `after` seconds from `since`."""
    error = wire.error()
    took = time.monotonic() - since
    assert error.severity == "FATAL"
    assert wire.read_to_end() == []
    assert after - 0.01 <= took < after + LATE, took
    return error


# --- clients


@pytest.mark.parametrize(
    ("settings", "first", "sqlstate", "reason"),
    [
        ({"query_timeout": 1}, "SELECT pg_sleep(600)", "57014", "query_timeout"),
        ({"idle_transaction_timeout": 1}, "BEGIN", "25P03", "idle_transaction_timeout"),
        ({"transaction_timeout": 1}, "BEGIN", "25P04", "transaction_timeout"),
        ({"transaction_timeout": 1}, "SELECT pg_sleep(600)", "25P04", "transaction_timeout"),
        ({"client_idle_timeout": 1}, "SELECT 1", "57P05", "client_idle_timeout"),
        ({"client_idle_timeout": 1}, "", "57P05", "client_idle_timeout"),
    ],
)
@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_client_that_takes_too_long_is_told_and_leaves_nothing_behind(
    postgres: EmbeddedPostgres,
    pgfunnel: StartPgfunnel,
    backends: CountBackends,
    settings: dict[str, Setting],
    first: str,
    sqlstate: str,
    reason: str,
    pool_mode: str,
) -> None:
    if pool_mode == "session" and reason == "client_idle_timeout":
        settings = {**settings, "default_pool_size": 2}  # linked clients are not idle ones: this one never was
        first = ""
    pooler = pgfunnel(postgres.url(), **{"default_pool_size": 1, "pool_mode": pool_mode, **settings})
    with pooler.login() as wire:
        started = time.monotonic()
        if first:
            wire.send(query(first))
        error = ended(wire, 1.0, started)
    assert error.sqlstate == sqlstate
    assert f"({reason})" in error.message
    pooler.wait_for_log(f"event=client_closed.*reason={reason}")
    with pooler.login() as next_:
        assert next_.query("SELECT 1")[-1].payload == b"I"
    eventually(lambda: backends() <= 1)


@pytest.mark.parametrize(
    ("settings", "sql", "reason"),
    [
        ({"query_timeout": 1}, "SELECT pg_sleep(600)", "query_timeout"),
        ({"idle_transaction_timeout": 1}, "BEGIN", "idle_transaction_timeout"),
        ({"transaction_timeout": 1}, "BEGIN", "transaction_timeout"),
        ({"client_idle_timeout": 1}, "SELECT 1", "client_idle_timeout"),
    ],
)
def test_psycopg_shows_why(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, settings: dict[str, Setting], sql: str, reason: str
) -> None:
    pooler = pgfunnel(postgres.url(), **settings)

    def use() -> None:
        with psycopg.connect(pooler.url(), autocommit=True) as connection:
            connection.execute(sql)
            pooler.wait_for_log(f"event=client_closed.*reason={reason}")
            connection.execute("SELECT 1")

    with pytest.raises(psycopg.Error, match=rf"\({reason}\)"):
        use()


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_timeouts_count_anew_with_each_query_and_transaction(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, pool_mode: str
) -> None:
    pooler = pgfunnel(
        postgres.url(),
        default_pool_size=1,
        pool_mode=pool_mode,
        query_timeout=1.2,
        idle_transaction_timeout=1.2,
        transaction_timeout=1.5,
        client_idle_timeout=1.2,
    )
    with pooler.login() as wire:
        for _ in range(4):
            time.sleep(0.5)
            wire.rows("BEGIN; SELECT pg_sleep(0.3)")
            time.sleep(0.3)
            wire.rows("SELECT pg_sleep(0.3); COMMIT")


def test_query_before_its_sync_times_out_too(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), query_timeout=1)
    with pooler.login() as wire:
        started = time.monotonic()
        wire.send(extended("SELECT pg_sleep(600)"), flush())
        assert ended(wire, 1.0, started).sqlstate == "57014"


def test_query_wait_timeout_says_how_long_behind_how_many_and_where(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1, query_wait_timeout=1)
    with pooler.login() as holder, pooler.login() as first, pooler.login() as second:
        holder.query("BEGIN")
        started = time.monotonic()
        first.send(query("SELECT 1"))
        eventually(lambda: pooler.waiting() == 1)
        second.send(query("SELECT 2"))
        error = ended(first, 1.0, started)
        assert error.sqlstate == "57014"
        assert "(query_wait_timeout)" in error.message
        assert 'user "postgres" at database "postgres"' in error.message
        assert "1 of 1 connections" in error.message
        ended(second, 1.0, started)
        holder.query("COMMIT")
        assert holder.value("SELECT 1") == "1"
    assert pooler.metric("pgfunnel_clients_ended_total", reason="query_wait_timeout") == 2


def test_query_wait_timeout_holds_for_the_first_client_of_a_pool(pgfunnel: StartPgfunnel) -> None:
    with ScriptedServer(lambda peer: peer.wait_until_closed()) as server:
        pooler = pgfunnel(server.url(), query_wait_timeout=1)
        with pooler.connect() as wire:
            started = time.monotonic()
            wire.send(startup({"user": "postgres", "database": "postgres"}))
            error = ended(wire, 1.0, started)
            assert error.sqlstate == "57014"
            assert "(query_wait_timeout)" in error.message


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(startup({"user": "scram", "database": "postgres"})[:-5], id="half a StartupMessage"),
        pytest.param(startup({"user": "scram", "database": "postgres"}), id="no password"),
    ],
)
def test_login_that_takes_too_long_is_ended(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, said: bytes) -> None:
    pooler = pgfunnel(postgres.url(user="scram", password=PASSWORD), client_login_timeout=1, auth_type="scram-sha-256")
    with pooler.connect() as wire:
        started = time.monotonic()
        wire.send(said)
        error = ended(wire, 1.0, started)
        assert "(client_login_timeout)" in error.message
        assert error.sqlstate == "57014"


# --- servers


def test_idle_servers_are_closed(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, backends: CountBackends) -> None:
    pooler = pgfunnel(postgres.url(), server_idle_timeout=1, min_pool_size=0)
    with ExitStack() as open_:
        clients = [open_.enter_context(pooler.login()) for _ in range(3)]
        for client in clients:
            client.query("BEGIN")
        for client in clients[1:]:
            client.query("COMMIT")
        assert backends() == 3
        eventually(lambda: backends() == 1, timeout=1 + LATE)
        assert clients[0].query("COMMIT")[-1].payload == b"I"
        assert clients[1].value("SELECT 1") == "1"
    assert pooler.metric("pgfunnel_servers_ended_total", reason="server_idle_timeout") >= 2


def test_servers_are_replaced_when_they_are_old(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), server_lifetime=1, default_pool_size=1)
    with pooler.login() as wire:
        wire.query("BEGIN")
        pid = wire.value("SELECT pg_backend_pid()")
        time.sleep(1.5)
        assert wire.value("SELECT pg_backend_pid()") == pid  # not in a transaction
        wire.query("COMMIT")
        pooler.wait_for_log("event=server_closed.*reason=server_lifetime")
        assert wire.value("SELECT pg_backend_pid()") != pid


def test_lifetime_of_zero_uses_each_connection_once(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), server_lifetime=0, default_pool_size=2)
    with pooler.login() as wire, pooler.login() as other:
        seen = [each.value("SELECT pg_backend_pid()") for each in (wire, other) * 5]
    assert len(set(seen)) == len(seen)


def test_idle_server_is_checked_before_it_is_lent(pgfunnel: StartPgfunnel) -> None:
    said: list[bytes] = []

    def script(peer: Conversation) -> None:
        peer.accept_login()
        while (request := peer.read()).kind == "Q":
            said.append(request.payload)
            if request.payload == b"SELECT 'alive'\0" and peer.number == 1:
                peer.error("XX000", "not quite", severity="ERROR")
                peer.send(peer.ready())
            else:
                peer.answer(str(peer.number))

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), server_check_delay=0.5, server_check_query="SELECT 'alive'")
        with pooler.login() as wire:
            assert wire.value("SELECT 1") == "1"
            assert wire.value("SELECT 2") == "1"
            time.sleep(1.5)
            assert wire.value("SELECT 3") == "2"  # the first has failed its check
            time.sleep(1.5)
            assert wire.value("SELECT 4") == "2"
    checks = [b"SELECT 'alive'\0"]
    assert said == [b"SELECT 1\0", b"SELECT 2\0", *checks, b"SELECT 3\0", *checks, b"SELECT 4\0"]


def test_idle_server_that_is_silent_fails_its_check(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        pooler = pgfunnel(proxy.url(), server_check_delay=0.5, server_connect_timeout=2, default_pool_size=1)
        with pooler.login() as wire:
            wire.query("SELECT 1")
            eventually(lambda: pooler.metric("pgfunnel_pool_servers", state="stale") == 1)
            proxy.stall()
            wire.send(query("SELECT 'served'"))
            pooler.wait_for_log("event=server_closed.*reason=server_check_failed")
            proxy.resume()
            assert wire.read_until()[1].columns == ["served"]


def test_delay_of_zero_checks_each_time(pgfunnel: StartPgfunnel) -> None:
    said: list[bytes] = []

    def script(peer: Conversation) -> None:
        peer.accept_login()
        while (request := peer.read()).kind == "Q":
            said.append(request.payload)
            peer.answer(str(peer.number))

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), server_check_delay=0, server_check_query="SELECT 'alive'")
        with pooler.login() as wire:
            for _ in range(3):
                assert wire.value("SELECT 1") == "1"
    first = said.index(b"SELECT 1\0")
    rest = said[first:]
    lent = [at for at, each in enumerate(rest) if each == b"SELECT 1\0"]
    assert len(lent) == 3
    assert all(rest[at - 1] == b"SELECT 'alive'\0" for at in lent[1:])


def test_attempts_pause_no_longer_than_server_login_retry(pgfunnel: StartPgfunnel) -> None:
    times: list[float] = []

    def script(peer: Conversation) -> None:
        times.append(time.monotonic())
        peer.read_startup()
        if peer.number < 8:
            peer.error("57P03", "the database system is starting up")
        else:
            peer.log_in()
            peer.serve()

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), server_login_retry=0.3, server_connect_concurrency=1)
        with pooler.login() as wire:
            assert wire.value("SELECT 1") == "8"
    pauses = [after - before for before, after in itertools.pairwise(times)]
    # A machine that is busy may be late with one of them.
    assert statistics.median(pauses) < 0.3 * 1.25 + 0.3
    assert min(pauses) > 0.1 * 0.75 - 0.02


# --- sockets


def test_tcp_options_are_set_on_both_sides(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(
        postgres.url(), tcp_keepidle=71, tcp_keepintvl=13, tcp_keepcnt=4, tcp_user_timeout=31000, default_pool_size=1
    )
    with pooler.login() as wire:
        wire.query("SELECT 1")
        for port in (wire.socket.getsockname()[1], postgres.port):
            with pooler.socket_to(port) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 71
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 13
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 31000
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_tcp_options_change_for_those_who_come_after_a_set(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), admin_users="postgres", tcp_keepidle=71)
    with pooler.login() as before, pooler.login(dbname="pgfunnel") as console:
        console.query("SET tcp_keepidle = 72")
        with pooler.login() as after:
            for wire, seconds in ((before, 71), (after, 72)):
                with pooler.socket_to(wire.socket.getsockname()[1]) as sock:
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == seconds


def test_keepalive_can_be_turned_off(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), tcp_keepalive="false", default_pool_size=1)
    with pooler.login() as wire:
        for port in (wire.socket.getsockname()[1], postgres.port):
            with pooler.socket_to(port) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
