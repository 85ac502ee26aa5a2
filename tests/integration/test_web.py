"""The pages for machines: figures that match what clients did, and who is alive and ready."""

import signal
import socket
import struct
import time
from contextlib import ExitStack, suppress

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import cancel_request, message, query, startup


@pytest.fixture
def pooler(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    return pgfunnel(postgres.url(), default_pool_size=2, userlist={"alice": ""})


# --- /metrics


def test_metrics_are_what_prometheus_reads(pooler: Pgfunnel) -> None:
    with pooler.login() as wire:
        wire.query("SELECT 1")
        status, text = pooler.http("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ours = {name: family for name, family in families.items() if name.startswith("pgfunnel")}
    assert len(ours) > 15
    assert all(family.documentation for family in ours.values())
    assert all(family.type in ("counter", "gauge", "histogram") for family in ours.values())
    assert "process_resident_memory_bytes" in families
    (info,) = families["pgfunnel_info"].samples
    assert set(info.labels) == {"version"}


def test_figures_match_what_clients_did(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with ExitStack() as open_:
        first, second, third = (open_.enter_context(pooler.login()) for _ in range(3))
        alice = open_.enter_context(pooler.login("alice"))
        for _ in range(10):
            first.query("SELECT 1")
        alice.query("BEGIN")
        alice.query("SELECT 1")
        alice.query("COMMIT")
        assert pooler.metric("pgfunnel_clients") == pooler.metric("pgfunnel_client_logins_total") == 4
        assert pooler.metric("pgfunnel_transactions_total", user="postgres", database="postgres") == 10
        assert pooler.metric("pgfunnel_transactions_total", user="alice") == 1

        first.query("BEGIN")
        second.query("BEGIN")
        third.send(query("SELECT 1"))
        eventually(lambda: pooler.waiting() == 1)
        time.sleep(0.2)
        servers = {state: pooler.metric("pgfunnel_pool_servers", user="postgres", state=state) for state in STATES}
        assert servers == {**dict.fromkeys(STATES, 0), "active": 2}
        assert pooler.metric("pgfunnel_pool_servers", user="alice", state="idle") == 1
        assert pooler.metric("pgfunnel_pool_size", user="postgres") == 2
        assert 0.2 <= pooler.metric("pgfunnel_pool_maxwait_seconds", user="postgres") < 10
        assert pooler.metric("pgfunnel_pool_maxwait_seconds", user="alice") == 0
        waits = pooler.metric("pgfunnel_queue_wait_seconds_count", user="postgres")
        first.query("COMMIT")
        third.read_until()
        assert pooler.waiting() == 0
        assert pooler.metric("pgfunnel_queue_wait_seconds_count", user="postgres") == waits + 1
        assert pooler.metric("pgfunnel_queue_wait_seconds_sum", user="postgres") >= 0.2

        running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'"
        third.send(query("SELECT pg_sleep(600)"))
        eventually(lambda: admin.execute(running).fetchone() == (1,))
        with pooler.connect() as courier:
            courier.send(cancel_request(third.backend_pid, third.cancel_key))
            courier.read_to_end()
        third.read_until()
        assert pooler.metric("pgfunnel_cancels_total") == 1
        assert pooler.metric("pgfunnel_cancels_failed_total") == 0
        assert pooler.metric("pgfunnel_server_logins_total") == 3

        second.query("COMMIT")
        first.terminate()
        second.reset()
        third.send(b"nonsense")
        third.read_to_end()
        ended = ("client_quit", "client_gone", "client_protocol_violation")
        eventually(lambda: all(pooler.metric("pgfunnel_clients_ended_total", reason=reason) == 1 for reason in ended))
        assert pooler.metric("pgfunnel_clients") == 1
        assert pooler.metric("pgfunnel_errors_sent_total", sqlstate="08P01") == 1
        assert pooler.metric("pgfunnel_pool_servers", user="postgres", state="idle") == 2


STATES = ("active", "idle", "stale", "tested", "cleaning", "login")


def test_logins_under_way_are_counted_by_what_they_wait_for(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(password=PASSWORD), auth_type="plain", max_client_conn=1)
    with pooler.connect(), pooler.connect() as proving, pooler.connect() as queued:
        proving.send(startup({"user": "postgres", "database": "postgres"}))
        proving.read()
        queued.send(startup({"user": "postgres", "database": "postgres"}))
        for state in ("first_packet", "proof", "place"):
            eventually(lambda state=state: pooler.metric("pgfunnel_logins", state=state) == 1)  # type: ignore[misc]


def test_names_with_odd_characters_are_labels_all_the_same(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    name = 'o"d\\d näme\n'
    postgres.psql(f"CREATE ROLE {quoted(name)} LOGIN")
    try:
        pooler = pgfunnel(postgres.url(), toml=f"[users]\n{toml_string(name)} = 'unused'\n")
        with pooler.login(name) as wire:
            wire.query("SELECT 1")
        assert pooler.metric("pgfunnel_transactions_total", user=name) == 1
        pooler.stop()
    finally:
        postgres.psql(f"DROP ROLE {quoted(name)}")


def quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def toml_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


# --- /healthz and /readyz


def test_healthz_says_that_it_lives_whatever_postgres_does(pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel("postgresql://postgres@127.0.0.1:1/postgres")
    assert pooler.http("/healthz") == (200, "alive\n")


def test_readyz_says_that_the_upstream_answers(pooler: Pgfunnel) -> None:
    for _ in range(2):  # it asks, and it remembers
        status, text = pooler.http("/readyz")
        assert status == 200
        assert text.startswith("accepting; the upstream answered 0 s ago")


def test_readyz_counts_a_refusal_as_an_answer(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(user="scram", password="wrong"))
    status, text = pooler.http("/readyz")
    assert (status, "the upstream answered" in text) == (200, True)


def test_readyz_says_that_the_upstream_is_waited_for_and_what_is_wrong(
    own_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    own_postgres.stop()
    pooler = pgfunnel(own_postgres.url(), server_login_retry=0.3)
    status, text = pooler.http("/readyz")
    assert status == 200
    assert text.startswith("accepting; clients are queued, the upstream is waited for since 0 s: ")
    assert "refused" in text
    with pooler.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "postgres"}))
        pooler.wait_for_log("event=server_connect_failed")
        assert "is waited for" in pooler.http("/readyz")[1]
        own_postgres.start()
        wire.authenticate("postgres", "")
        assert "the upstream answered" in pooler.http("/readyz")[1]


def test_readyz_answers_soon_even_if_the_upstream_does_not(pgfunnel: StartPgfunnel) -> None:
    with ScriptedServer(lambda peer: peer.wait_until_closed()) as server:
        pooler = pgfunnel(server.url())
        started = time.monotonic()
        status, text = pooler.http("/readyz")
        assert time.monotonic() - started < 4
        assert (status, "is waited for" in text) == (200, True)


def test_names_and_errors_in_another_encoding_than_ours_are_shown_all_the_same(pgfunnel: StartPgfunnel) -> None:
    body = struct.pack("!I", 3 << 16) + b"user\0postgres\0database\0caf\xe9\0\0"

    def script(peer: Conversation) -> None:
        peer.socket.recv(10_000)
        peer.send(message("E", b"SFATAL\0C57P03\0Md\xe9marrage\0\0"))

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), server_login_retry=0.3, server_tls_sslmode="disable")
        with pooler.connect() as wire:
            wire.send(struct.pack("!I", len(body) + 4) + body)
            pooler.wait_for_log("event=server_connect_failed")
            status, text = pooler.http("/metrics")
            assert (status, r'database="caf\\udce9"' in text) == (200, True)
            status, text = pooler.http("/readyz")
            assert (status, r"d\udce9marrage" in text) == (200, True)


def test_readyz_says_that_it_shuts_down(pooler: Pgfunnel) -> None:
    with pooler.login() as busy:
        busy.query("BEGIN")
        pooler.signal(signal.SIGTERM)
        pooler.wait_for_log("event=shutting_down")
        status, text = pooler.http("/readyz")
        assert (status, text) == (503, "not accepting: shutting down\n")
        assert pooler.http("/healthz")[0] == 200
        assert pooler.metric("pgfunnel_clients") == 1
        busy.query("COMMIT")
    assert pooler.wait() == 0


# --- the port


def test_other_pages_and_other_methods_are_not_there(pooler: Pgfunnel) -> None:
    assert pooler.http("/")[0] == 404
    with socket.create_connection((pooler.host, pooler.metrics_port), timeout=10) as client:
        client.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 405")


def test_http_client_that_says_half_a_request_or_nonsense_harms_nobody(pooler: Pgfunnel) -> None:
    address = (pooler.host, pooler.metrics_port)
    with socket.create_connection(address, timeout=10) as half, socket.create_connection(address, timeout=10) as odd:
        half.sendall(b"GET /metrics HT")
        odd.sendall(b"\x16\x03\x01\x02\x00 not HTTP at all\r\n\r\n")
        assert b" 400 " in odd.recv(1000).split(b"\r\n")[0] + b" "
        assert pooler.http("/healthz") == (200, "alive\n")
        with pooler.login() as wire:
            assert wire.value("SELECT 1") == "1"
        started = time.monotonic()
        assert pooler.stop() == 0
        assert time.monotonic() - started < 4


def test_port_that_is_taken_is_told_at_start(postgres: EmbeddedPostgres, pooler: Pgfunnel) -> None:
    second = Pgfunnel(postgres.url(), metrics_port=pooler.metrics_port)
    assert second.refuses_to_start() == 1
    assert f"can't serve metrics on 127.0.0.1 port {pooler.metrics_port}: " in second.log[-1]
    assert "address already in use" in second.log[-1].lower()
    assert "Traceback" not in "\n".join(second.log)


def test_default_port_that_is_taken_keeps_nobody_from_starting(postgres: EmbeddedPostgres) -> None:
    second = Pgfunnel(postgres.url())
    del second.settings["metrics_port"]
    with ExitStack() as exporter:
        with suppress(OSError):  # somebody else has it, which does as well
            exporter.enter_context(socket.create_server(("127.0.0.1", 9127)))
        with second, second.login() as wire:
            assert wire.value("SELECT 1") == "1"
            line = second.wait_for_log("event=metrics_not_served")
    assert "can't serve metrics on 127.0.0.1 port 9127: " in line


def test_no_address_no_port(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), metrics_addr="")
    with pooler.login() as wire:
        assert wire.value("SELECT 1") == "1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((pooler.host, pooler.metrics_port))
