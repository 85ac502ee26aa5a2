"""What sessions may keep and prepare, and how servers are opened for them, as the settings say."""

import threading
import time
from contextlib import ExitStack

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import bind, execute, kinds, parse, query, sync


def test_session_state_may_differ_by_database_and_by_user(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(
        postgres.url(),
        userlist={"alice": ""},
        session_state_database='{"other": "listen=reject"}',
        session_state_user='{"alice": "listen=ignore"}',
    )
    with pooler.login() as wire:
        assert kinds(wire.query("LISTEN jobs")) == "CZ"
        eventually(lambda: pooler.metric("pgfunnel_pinned_clients") == 1)
    with pooler.login(dbname="other") as wire:
        assert kinds(wire.query("LISTEN jobs")) == "EZ"
    with pooler.login("alice", "other") as wire:
        assert kinds(wire.query("LISTEN jobs")) == "CZ"
        assert pooler.metric("pgfunnel_pinned_clients", user="alice") == 0


def test_no_more_than_max_pinned_servers_are_pinned(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=4, max_pinned=1)  # half of the pool's size would be 2
    with pooler.login() as wire, pooler.login() as other:
        assert kinds(wire.query("LISTEN jobs")) == "CZ"
        eventually(lambda: pooler.metric("pgfunnel_pinned_clients", user="postgres") == 1)
        assert kinds(other.query("LISTEN jobs")) == "EZ"
        assert kinds(wire.query("UNLISTEN jobs")) == "CZ"
        eventually(lambda: kinds(other.query("LISTEN jobs")) == "CZ")


def test_a_pinned_client_is_idle_no_longer_than_pinned_idle_timeout(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), pinned_idle_timeout=0.5)
    with pooler.login() as wire, pooler.login() as other:
        wire.query("LISTEN jobs")
        since = time.monotonic()
        assert wire.error().sqlstate == "57P05"
        assert time.monotonic() - since > 0.45
        assert other.value("SELECT 1") == "1"  # not pinned
    assert pooler.metric("pgfunnel_clients_ended_total", reason="pinned_idle_timeout") == 1


@pytest.mark.parametrize("pin_audit", [0, 1])
def test_pin_audit_finds_what_a_function_hides(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, pin_audit: int
) -> None:
    postgres.psql("CREATE FUNCTION lock_it() RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_lock(1)'")
    pooler = pgfunnel(postgres.url(), pin_audit=pin_audit)
    with pooler.login() as wire:
        wire.query("SELECT lock_it()")
        wire.query("SELECT 1")
        assert pooler.metric("pgfunnel_pinned_clients") == pin_audit
    assert any("event=hidden_state" in line for line in pooler.log) is bool(pin_audit)
    postgres.psql("DROP FUNCTION lock_it")


def test_a_server_keeps_no_more_than_max_prepared_statements(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1, max_prepared_statements=2)
    with pooler.login() as wire:
        for number in range(4):
            wire.send(parse(f"SELECT {number}", f"statement{number}"), sync())
            assert kinds(wire.read_until()) == "1Z"
        kept = wire.rows("SELECT statement FROM pg_prepared_statements ORDER BY statement")
    assert kept == [["SELECT 2"], ["SELECT 3"]]


@pytest.mark.parametrize("before", [True, False], ids=["turned_off", "turned_on"])
def test_clients_go_on_when_max_prepared_statements_is_turned_off_or_on(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, before: bool
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1, max_prepared_statements=200 * before, admin_users="postgres")
    with pooler.login() as wire, pooler.login(dbname="pgbouncer") as console:
        wire.query("BEGIN")
        if before:
            wire.send(parse("SELECT 'a'", "a"), parse("SELECT 'b'", "b"), sync())
            wire.read_until()
        console.query(f"SET max_prepared_statements = {200 * (not before)}")
        if not before:
            wire.send(parse("SELECT 'a'", "a"), parse("SELECT 'b'", "b"), sync())
            wire.read_until()
        for end in ("COMMIT", "BEGIN", "COMMIT"):
            for name in "abab":
                wire.send(bind(statement=name), execute(), sync())
                assert wire.read_until()[1].columns == [name]
            wire.query(end)


def test_texts_of_statements_take_no_more_than_max_statement_memory(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), max_statement_memory=65536)
    with pooler.login() as wire:
        for number, answer in enumerate(("1Z", "EZ")):
            wire.send(parse(f"SELECT {number} -- {'x' * 40_000}", f"statement{number}"), sync())
            assert kinds(wire.read_until()) == answer


def test_no_more_servers_are_opened_at_once_than_server_connect_concurrency(pgfunnel: StartPgfunnel) -> None:
    let_in = threading.Event()

    def script(peer: Conversation) -> None:
        peer.read_startup()
        if peer.number > 1:
            let_in.wait(20)
        peer.log_in()
        let_in.wait(20)
        peer.serve()

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), server_connect_concurrency=2)
        with ExitStack() as open_:
            clients = [open_.enter_context(pooler.login()) for _ in range(5)]
            for client in clients:
                client.send(query("SELECT 1"))
            eventually(lambda: server.connections == 1 + 2)
            time.sleep(0.3)  # nothing tells that nothing happens
            assert server.connections == 1 + 2
            let_in.set()
            for client in clients:
                assert client.read_until()[-1].kind == "Z"
