"""At its limits pgfunnel lets clients wait, or tells them why not; it never runs out of descriptors, nor resets."""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import Wire, cancel_request, query, startup

LOGIN = startup({"user": "postgres", "database": "postgres"})


def wait_for_place(pooler: Pgfunnel, queued: int) -> Wire:
    """Open a connection that becomes number `queued` of those who wait for a place."""
    wire = pooler.connect()
    wire.send(LOGIN)
    eventually(lambda: pooler.metric("pgfunnel_logins", state="place") == queued)
    return wire


# --- max_client_conn


def test_clients_wait_for_a_place_and_get_it_in_order_of_arrival(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), max_client_conn=2)
    with ExitStack() as open_:
        inside = [pooler.login() for _ in range(2)]
        queued = [open_.enter_context(wait_for_place(pooler, number)) for number in (1, 2, 3)]
        queued.pop(1).reset()
        eventually(lambda: pooler.metric("pgfunnel_logins", state="place") == 2)
        leave: tuple[Callable[[Wire], None], ...] = (Wire.terminate, Wire.reset)
        for wire, next_, go in zip(inside, queued, leave, strict=True):
            assert pooler.metric("pgfunnel_clients") == 2
            go(wire)
            next_.authenticate("postgres", "")
            assert next_.value("SELECT 'in'") == "in"


def test_nobody_is_refused_while_places_come_free(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), max_client_conn=3)
    with ExitStack() as open_:
        clients = [open_.enter_context(pooler.connect()) for _ in range(50)]
        for client in clients:
            client.send(LOGIN, query("SELECT 'served'"))
        for client in clients:
            client.authenticate("postgres", "")
            assert client.read_until()[1].columns == ["served"]
            client.terminate()


def test_client_for_whom_there_is_no_place_is_told_after_client_login_timeout(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), max_client_conn=1, client_login_timeout=1)
    with pooler.login() as inside, pooler.connect() as wire:
        started = time.monotonic()
        wire.send(LOGIN)
        error = wire.error()
        assert (error.sqlstate, error.severity) == ("53300", "FATAL")
        assert 0.99 <= time.monotonic() - started < 2.5
        assert "all 1 places (max_client_conn) are taken" in error.message
        assert "(client_login_timeout)" in error.message
        assert wire.read_to_end() == []
        pooler.wait_for_log("event=login_failed.*reason=max_client_conn")
        with pytest.raises(psycopg.OperationalError, match="sorry, too many clients already"):
            psycopg.connect(pooler.url())
        assert inside.value("SELECT 'unharmed'") == "unharmed"


def test_client_that_fails_to_log_in_gives_its_place_back(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(password="secret"), max_client_conn=1, auth_type="plain", login_failure_delay=0)
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(pooler.url(password="wrong"))
        with psycopg.connect(pooler.url(password="secret")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_cancel_gets_through_while_all_places_are_taken(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, admin: psycopg.Connection
) -> None:
    pooler = pgfunnel(postgres.url(), max_client_conn=1)
    running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'"
    with pooler.login() as inside, wait_for_place(pooler, 1):
        inside.send(query("SELECT pg_sleep(600)"))
        eventually(lambda: admin.execute(running).fetchone() == (1,))
        with pooler.connect() as courier:
            courier.send(cancel_request(inside.backend_pid, inside.cancel_key))
            assert courier.read_to_end() == []
        assert inside.error().sqlstate == "57014"
        inside.read_until()
        assert inside.value("SELECT 'next'") == "next"


def test_metrics_are_served_while_all_places_are_taken(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), max_client_conn=1)
    with pooler.login(), wait_for_place(pooler, 1):
        assert pooler.metric("pgfunnel_clients") == pooler.metric("pgfunnel_max_client_connections") == 1
        assert pooler.http("/healthz")[0] == pooler.http("/readyz")[0] == 200


# --- open files


def test_limit_on_open_files_that_is_too_low_is_told_at_start(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), open_files="1000", max_client_conn=5000, default_pool_size=20)
    warning = pooler.wait_for_log("event=file_descriptor_limit")
    assert "level=warning" in warning
    assert "limit=1000 " in warning
    assert "max_client_conn=5000 " in warning
    (places,) = re.findall(r" places=(\d+) ", warning)
    assert 500 < int(places) < 1000 - 20
    assert pooler.metric("pgfunnel_max_client_connections") == int(places)
    (enough,) = re.findall(r"ulimit -Hn, LimitNOFILE\) to (\d+)", warning)
    assert 5000 < int(enough) < 6000
    generous = pgfunnel(postgres.url(), open_files=enough, max_client_conn=5000, default_pool_size=20)
    assert not any("file_descriptor_limit" in line for line in generous.log)
    assert generous.metric("pgfunnel_max_client_connections") == 5000


def test_limit_on_open_files_is_raised_as_far_as_allowed(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), open_files="100:1000", max_client_conn=300)
    assert not any("file_descriptor_limit" in line for line in pooler.log)
    with ExitStack() as open_:
        for _ in range(300):
            open_.enter_context(pooler.login())


def test_limit_on_open_files_that_leaves_no_room_is_refused(postgres: EmbeddedPostgres) -> None:
    pooler = Pgfunnel(postgres.url(), open_files="100")
    assert pooler.refuses_to_start() == 1
    assert "limit of 100 open files (ulimit -Hn) leaves no room for clients" in pooler.log[-1]
    assert "Traceback" not in "".join(pooler.log)


def test_more_clients_than_descriptors_wait_and_are_served_and_nobody_is_reset(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), open_files="400", max_client_conn=5000, default_pool_size=5)
    places = int(pooler.metric("pgfunnel_max_client_connections"))
    assert places < 200
    with ExitStack() as inside, ExitStack() as outside:
        clients = [inside.enter_context(pooler.login()) for _ in range(places)]
        queued = [outside.enter_context(wait_for_place(pooler, number)) for number in range(1, 51)]
        for client in clients[::10]:
            assert client.value("SELECT 1") == "1"
        inside.close()
        for client in queued:
            client.authenticate("postgres", "")
            assert client.value("SELECT 1") == "1"


def test_more_connections_than_descriptors_are_told_and_nobody_is_reset(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), open_files="400", max_client_conn=50, default_pool_size=5, client_login_timeout=2)
    with ExitStack() as open_:
        inside = [open_.enter_context(pooler.login()) for _ in range(50)]
        silent = [open_.enter_context(pooler.connect()) for _ in range(200)]
        late = [open_.enter_context(pooler.connect()) for _ in range(200)]
        for wire in late:
            wire.send(LOGIN)
        assert inside[0].value("SELECT 'unharmed'") == "unharmed"
        assert {wire.error().sqlstate for wire in late} == {"53300"}
        assert {wire.error().sqlstate for wire in silent} == {"53300", "57014"}  # too many, and too late
        assert inside[-1].value("SELECT 'unharmed'") == "unharmed"
    with pooler.login() as wire:
        assert wire.value("SELECT 'next'") == "next"
