"""Eight people and the doors that they come in by: straight at Postgres, or through pgfunnel in transaction mode."""

from collections.abc import Iterator
from functools import partial

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.integration.people import DATABASE, ENTRANCE, Order, Play, PlayAsync, play, play_async
from tests.support.pgfunnel import Pgfunnel

Door = EmbeddedPostgres | Pgfunnel


@pytest.fixture(scope="module")
def people_postgres(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    postgres.psql(f"CREATE DATABASE {DATABASE}")
    for statements in ENTRANCE:
        postgres.psql(statements, DATABASE)
    yield postgres
    postgres.psql(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture(scope="module", params=[0, 1, 3], ids=["direct", "pool of 1", "pool of 3"])
def door(people_postgres: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[Door]:
    """Straight at Postgres first: what is expected is no more than what Postgres does.

    Whoever has to keep a server connection for a while may: the others wait.
    """
    size = request.param
    if size == 0:
        yield people_postgres
        return
    with Pgfunnel(people_postgres.url(), default_pool_size=size, max_pinned=size, query_wait_timeout=20) as pgfunnel:
        yield pgfunnel


@pytest.fixture
def stranger(door: Door, people_postgres: EmbeddedPostgres) -> Iterator[None]:
    """After the test, a client that has set nothing finds nothing of what others have set."""

    def session(url: str) -> dict[str, str]:
        with psycopg.connect(url, autocommit=True) as connection:
            settings = (
                "SELECT name, setting FROM pg_settings UNION ALL SELECT 'tenant', current_setting('app.tenant', true)"
            )
            role = "SELECT 'role and user', current_setting('role') || ' ' || current_user"
            return {name: value or "" for name, value in connection.execute(f"{settings} UNION ALL {role}")}

    yield
    assert session(door.url(DATABASE)) == session(people_postgres.url(DATABASE))


@pytest.fixture(params=["in turns", "at once"])
def order(request: pytest.FixtureRequest) -> Order:
    given: Order = request.param
    return given


@pytest.fixture
def everybody(order: Order, stranger: None) -> Play:
    return partial(play, order)


@pytest.fixture
def everybody_async(order: Order, stranger: None) -> PlayAsync:
    return partial(play_async, order)
