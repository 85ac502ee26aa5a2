"""Pools that may have a share of their server's connections."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel, start_postgres
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import Wire, query

USERS = {"alice": "", "bob": ""}
RESERVED = {"superuser_reserved_connections": "3", "reserved_connections": "2"}


@pytest.fixture(scope="module")
def small_postgres() -> Iterator[EmbeddedPostgres]:
    """Start a Postgres with 20 connections, of which 15 are for everybody."""
    with start_postgres(18, max_connections="20", **RESERVED) as server:
        yield server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def servers(pooler: Pgfunnel, **labels: str) -> int:
    return int(pooler.metric("pgfunnel_pool_servers", **labels))


def size(pooler: Pgfunnel, user: str) -> int:
    return int(pooler.metric("pgfunnel_pool_size", user=user))


def crowd(
    pooler: Pgfunnel, stack: ExitStack, count: int, user: str = "alice", database: str = "postgres"
) -> list[Wire]:
    """Have clients begin transactions, whether they are served or wait."""
    clients = [stack.enter_context(pooler.login(user, database)) for _ in range(count)]
    for client in clients:
        client.send(query("BEGIN"))
    return clients


def test_a_share_is_of_what_the_server_does_not_reserve(
    small_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, stack: ExitStack
) -> None:
    pooler = pgfunnel(small_postgres.url(), userlist=USERS, default_pool_size="80%")
    crowd(pooler, stack, 14)
    eventually(lambda: (servers(pooler, state="active"), pooler.waiting()) == (12, 2))
    assert size(pooler, "alice") == 12
    pooler.wait_for_log("event=server_capacity .*max_connections=20 reserved=5")


def test_the_pools_of_a_server_stay_within_their_share_together(
    small_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, stack: ExitStack
) -> None:
    pooler = pgfunnel(small_postgres.url(), userlist=USERS, default_pool_size="80%")
    clients = crowd(pooler, stack, 12)
    eventually(lambda: servers(pooler, state="active") == 12)
    for client in clients[:7]:
        client.read_until()
        client.query("COMMIT")
    crowd(pooler, stack, 5, "bob")
    crowd(pooler, stack, 4, "bob", "other")
    eventually(lambda: servers(pooler, user="bob", state="active") == 7)
    assert servers(pooler) == 12
    assert pooler.waiting() == 2


def test_pools_with_a_size_of_their_own_count_too(
    small_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, stack: ExitStack
) -> None:
    pooler = pgfunnel(
        small_postgres.url(), userlist=USERS, default_pool_size="40%", toml="[users]\nbob = {pool_size = 10}\n"
    )
    crowd(pooler, stack, 4)
    eventually(lambda: servers(pooler, state="active") == 4)
    crowd(pooler, stack, 4, "bob")
    eventually(lambda: (servers(pooler), pooler.waiting()) == (6, 2))


def test_a_database_may_have_a_share(
    small_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, stack: ExitStack
) -> None:
    pooler = pgfunnel(small_postgres.url(), userlist=USERS, max_db_connections="20%")
    crowd(pooler, stack, 2)
    crowd(pooler, stack, 2, "bob")
    eventually(lambda: (servers(pooler, state="active"), pooler.waiting()) == (3, 1))


def test_a_server_that_comes_back_larger_is_used_as_far(
    own_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, stack: ExitStack
) -> None:
    own_postgres.settings["max_connections"] = "13"
    own_postgres.restart()
    pooler = pgfunnel(own_postgres.url(), userlist=USERS, default_pool_size="50%", server_login_retry=0.1)
    with pooler.login("alice") as client:
        client.query("SELECT 1")
        assert size(pooler, "alice") == 5
        own_postgres.settings["max_connections"] = "23"
        own_postgres.restart()
        crowd(pooler, stack, 12)
        eventually(lambda: servers(pooler, state="active") == 10)
