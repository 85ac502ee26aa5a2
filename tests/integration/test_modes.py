"""Session mode keeps a server with its client and cleans it for the next; statement mode refuses transactions."""

from collections.abc import Callable

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import CountBackends, StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import Wire, extended, kinds, query, sync

STATE = "SELECT current_setting('work_mem'), to_regclass('mine') IS NOT NULL, count(*) FROM pg_prepared_statements"
LEFT_BEHIND = "SET work_mem = '7MB'; CREATE TEMP TABLE mine (); PREPARE mine AS SELECT 1; SELECT pg_advisory_lock(4711)"


# --- session mode


def test_session_keeps_its_server_and_its_state(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), pool_mode="session", default_pool_size=2)
    with pooler.login() as wire, pooler.login() as other:
        wire.rows(LEFT_BEHIND)
        assert other.rows(STATE) == [["4MB", "f", "0"]]
        assert wire.rows(STATE) == [["7MB", "t", "1"]]
        assert wire.value("EXECUTE mine") == "1"


def test_session_ends_when_its_client_leaves_and_the_next_finds_no_trace(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), pool_mode="session", default_pool_size=1)
    with pooler.login() as wire, pooler.login() as next_:
        pid = wire.value("SELECT pg_backend_pid()")
        wire.rows(LEFT_BEHIND)
        next_.send(query("SELECT pg_backend_pid()"))
        eventually(lambda: pooler.waiting() == 1)
        wire.terminate()
        assert next_.read_until()[1].columns == [pid]
        assert next_.rows(STATE) == [["4MB", "f", "0"]]
        assert next_.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"


@pytest.mark.parametrize("leave", [Wire.reset, Wire.close, Wire.terminate], ids=["reset", "closed", "goodbye"])
@pytest.mark.parametrize("sql", ["BEGIN; SET work_mem = '7MB'", "BEGIN; SELECT 1/0", "SET work_mem = '7MB'"])
def test_session_left_in_a_transaction_is_rolled_back_and_reset(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, sql: str, leave: Callable[[Wire], None]
) -> None:
    pooler = pgfunnel(postgres.url(), pool_mode="session", default_pool_size=1)
    wire = pooler.login()
    pid = wire.value("SELECT pg_backend_pid()")
    wire.query(sql)
    leave(wire)
    with pooler.login() as next_:
        assert next_.query("SELECT 1")[-1].payload == b"I"
        assert next_.rows(STATE) == [["4MB", "f", "0"]]
        assert next_.value("SELECT pg_backend_pid()") == pid


def test_reset_query_is_the_users_own(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), pool_mode="session", default_pool_size=1, server_reset_query="RESET work_mem")
    with pooler.login() as wire:
        wire.rows(LEFT_BEHIND)
    with pooler.login() as next_:
        assert next_.rows(STATE) == [["4MB", "t", "1"]]


def test_nothing_is_reset_where_the_reset_query_is_empty(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), pool_mode="session", default_pool_size=1, server_reset_query="")
    with pooler.login() as wire:
        wire.rows(LEFT_BEHIND)
    with pooler.login() as next_:
        assert next_.rows(STATE) == [["7MB", "t", "1"]]


@pytest.mark.parametrize("reset_query", ["SELECT 1/0", "SELECT 1; SELECT 1/0", "BEGIN", "no SQL at all"])
def test_connection_that_cannot_be_reset_is_not_lent_again(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, backends: CountBackends, reset_query: str
) -> None:
    pooler = pgfunnel(postgres.url(), pool_mode="session", default_pool_size=1, server_reset_query=reset_query)
    with pooler.login() as wire:
        wire.rows(LEFT_BEHIND)
    pooler.wait_for_log("event=server_closed.*reason=server_reset_failed")
    with pooler.login() as next_:
        assert next_.rows(STATE) == [["4MB", "f", "0"]]
        assert backends() == 1


def test_idle_session_keeps_the_others_waiting(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), pool_mode="session", default_pool_size=1, query_wait_timeout=1)
    with pooler.login() as wire, pooler.login() as other:
        wire.query("SELECT 1")
        other.send(query("SELECT 1"))
        assert "(query_wait_timeout)" in other.error().message
        assert wire.value("SELECT 1") == "1"


# --- transaction mode


@pytest.fixture
def always(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    return pgfunnel(postgres.url(), default_pool_size=1, server_reset_query_always="true")


def test_transaction_mode_resets_nothing_unless_told_to(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1, session_state="setting=ignore")
    with pooler.login() as wire, pooler.login() as other:
        wire.query("SET work_mem = '7MB'")
        assert other.value("SHOW work_mem") == "7MB"


def test_always_reset_comes_between_any_two_transactions(always: Pgfunnel) -> None:
    with always.login() as wire, always.login() as other:
        pid = wire.value("SELECT pg_backend_pid()")
        wire.query("BEGIN")
        wire.rows(LEFT_BEHIND)
        assert wire.rows(STATE) == [["7MB", "t", "1"]]
        other.send(query(STATE))
        eventually(lambda: always.waiting() == 1)
        wire.query("COMMIT")
        assert other.read_until()[1].columns == ["4MB", "f", "0"]
        assert wire.rows(STATE) == [["4MB", "f", "0"]]
        assert wire.value("SELECT pg_backend_pid()") == pid


def test_always_reset_comes_after_a_client_that_vanished(always: Pgfunnel) -> None:
    wire = always.login()
    wire.query("BEGIN")
    wire.rows(LEFT_BEHIND)
    wire.reset()
    with always.login() as next_:
        assert next_.rows(STATE) == [["4MB", "f", "0"]]


# --- statement mode


@pytest.fixture
def statements(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    return pgfunnel(postgres.url(), default_pool_size=1, pool_mode="statement")


def test_statement_mode_serves_statements(statements: Pgfunnel) -> None:
    with statements.login() as wire, statements.login() as other:
        for number in range(10):
            assert wire.value(f"SELECT {number}") == str(number)
            assert other.value(f"SELECT {number} * 2") == str(number * 2)
        wire.send(extended("SELECT 'extended'"), sync())
        assert kinds(wire.read_until()) == "12TDCZ"
        assert kinds(wire.query("SELECT 1/0")) == "EZ"
        assert wire.value("BEGIN; SELECT 'a transaction of its own'; COMMIT") == "a transaction of its own"


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(query("BEGIN"), id="simple"),
        pytest.param(query("SELECT 1; BEGIN; INSERT INTO refused VALUES (1)"), id="in several statements"),
        pytest.param(query("BEGIN; SELECT 1/0"), id="failed"),
        pytest.param(extended("BEGIN") + sync(), id="extended"),
        pytest.param(query("BEGIN") + query("INSERT INTO refused VALUES (1)"), id="pipelined"),
    ],
)
def test_statement_mode_refuses_a_transaction_and_rolls_it_back(
    postgres: EmbeddedPostgres, statements: Pgfunnel, begin: bytes
) -> None:
    postgres.psql("CREATE TABLE refused (value int)")
    try:
        with statements.login() as wire:
            pid = wire.value("SELECT pg_backend_pid()")
            wire.send(begin)
            errors = [told for told in wire.read_to_end() if told.kind == "E"]
            assert errors[-1].fields["C"] == "0A000"
            assert errors[-1].fields["S"] == "FATAL"
            assert "statement pooling mode" in errors[-1].fields["M"]
        statements.wait_for_log("event=client_closed.*reason=transaction_in_statement_mode")
        with statements.login() as next_:
            assert next_.query("SELECT 1")[-1].payload == b"I"
            assert next_.value("SELECT pg_backend_pid()") == pid
            assert next_.value("SELECT count(*) FROM refused") == "0"
    finally:
        postgres.psql("DROP TABLE refused")
