"""auth_query at a real Postgres: what it says of users, in which session, and what becomes of errors."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import pytest

from config.settings import Settings
from pooler.access.auth_query import CONNECTIONS, AuthQuery, Found, NoAnswerError, Server
from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD
from tests.support.proxy import FaultProxy

DEFAULT: Final[str] = Settings.model_fields["auth_query"].default
ROLES: Final = """
CREATE ROLE "expired" LOGIN PASSWORD 'x' VALID UNTIL '2001-01-01';
CREATE ROLE "expires" LOGIN PASSWORD 'x' VALID UNTIL '2999-01-01';
CREATE ROLE "everlasting" LOGIN PASSWORD 'x' VALID UNTIL 'infinity';
CREATE ROLE "distant" LOGIN PASSWORD 'x' VALID UNTIL '20000-01-01';
CREATE ROLE "never" LOGIN PASSWORD 'x' VALID UNTIL '-infinity';
CREATE ROLE "no login" PASSWORD 'x';
CREATE ROLE "O'Brien; --" LOGIN PASSWORD 'x';
"""
GONE: Final = 'DROP ROLE "expired", "expires", "everlasting", "distant", "never", "no login", "O\'Brien; --"'


@pytest.fixture(scope="module")
def roles(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    postgres.psql(ROLES)
    yield postgres
    postgres.psql(GONE)


@asynccontextmanager
async def asking(
    postgres: EmbeddedPostgres | FaultProxy,
    query: str = DEFAULT,
    user: str = "postgres",
    passwords: tuple[str, ...] = ("",),
    timeout_s: float = 10.0,
) -> AsyncIterator[AuthQuery]:
    async def password(refused: str | None) -> str:
        return passwords[0] if refused is None else passwords[-1]

    server = Server((postgres.host,), (postgres.port,), user, "postgres", password)
    auth_query = AuthQuery(query, server, timeout_s, 600.0)
    try:
        yield auth_query
    finally:
        await auth_query.close()


async def failure(auth_query: AuthQuery, user: str = "alice") -> NoAnswerError:
    with pytest.raises(NoAnswerError) as raised:
        await auth_query.ask(user)
    return raised.value


async def test_what_postgres_knows_of_users(roles: EmbeddedPostgres) -> None:
    async with asking(roles) as auth_query:

        async def found(user: str) -> Found:
            answer = await auth_query.ask(user)
            assert answer is not None
            return answer

        assert (await found("scram")).secret.startswith("SCRAM-SHA-256$")
        assert (await found("md5")).secret.startswith("md5")
        assert (await found("O'Brien; --")).secret
        assert await found("alice") == Found("")  # no password
        assert await found("expired") == Found("")
        assert await found("never") == Found("")
        for user in ("expires", "distant", "everlasting"):
            assert (await found(user)).lifetime > 1e9
        for nobody in ("nobody", "no login", "", "ALICE", "' OR true --", "x" * 64, "x" * 9999, "caf\udce9", "\udc80"):
            assert await auth_query.ask(nobody) is None, nobody


async def test_nothing_but_the_name_reaches_its_session(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGHOST": "192.0.2.1",
        "PGUSER": "alice",
        "PGPASSWORD": "x",
        "PGDATABASE": "other",
        "PGSSLMODE": "verify-full",
        "PGTARGETSESSIONATTRS": "standby",
        "PGAPPNAME": "other",
        "PGOPTIONS": "-c search_path=public",
    }.items():
        monkeypatch.setenv(name, value)
    session = "concat_ws(' ', current_setting('search_path'), current_user, current_database(), current_setting('%s'))"
    async with asking(postgres, f"SELECT $1::text, {session % 'application_name'}") as auth_query:
        assert await auth_query.ask("alice") == Found("pg_catalog postgres postgres pgfunnel")


@pytest.mark.parametrize("query", ["SELECT NULL::text WHERE $1 <> ''", "SELECT NULL::name, NULL::text WHERE $1 <> ''"])
async def test_a_function_that_finds_nobody_returns_a_row_of_nothing(postgres: EmbeddedPostgres, query: str) -> None:
    async with asking(postgres, query) as auth_query:
        assert await auth_query.ask("alice") is None


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT 'secret' FROM generate_series(1, 2) WHERE $1 <> ''", "auth_query returns 2 rows for one user"),
        ("SELECT $1, 'secret', now(), 1", "one to three columns"),
        ("SELECT FROM pg_class WHERE $1 <> ''", "one to three columns"),
        ("SELECT 'secret'", "one parameter"),
        ("SELECT 'secret' WHERE $1 = $2", "one parameter"),
        ("SELECT 'bob', 'secret' WHERE $1 <> ''", "another user"),
        ("SELECT 'secret'::bytea WHERE $1 <> ''", "not text"),
        ("SELECT $1, 'secret', now()::timestamp", "not a timestamptz"),
        ("SELECT ('secret' || $1)::int::text", "SQLSTATE 22P02"),
        ("SELEKT $1", "42601: syntax error"),
        ("SELECT secret FROM missing WHERE name = $1", '42P01: relation "missing" does not exist'),
    ],
)
async def test_a_query_that_is_no_good_is_told_apart_from_a_postgres_that_is_away(
    postgres: EmbeddedPostgres, query: str, told: str
) -> None:
    async with asking(postgres, query) as auth_query:
        error = await failure(auth_query)
    assert told in str(error)
    assert not error.for_now
    shown = "".join(traceback.format_exception(error))
    assert "secretalice" not in shown


async def test_without_the_right_to_read_secrets_it_says_so(postgres: EmbeddedPostgres) -> None:
    async with asking(postgres, user="alice") as auth_query:
        assert str(await failure(auth_query)) == "42501: permission denied for table pg_authid"


async def test_a_password_that_was_changed_is_asked_for_again(postgres: EmbeddedPostgres) -> None:
    query = "SELECT $1, 'secret'"
    async with asking(postgres, query, user="scram", passwords=("old", PASSWORD)) as auth_query:
        assert await auth_query.ask("alice") == Found("secret")
    async with asking(postgres, query, user="scram", passwords=("hunter2",)) as auth_query:
        error = await failure(auth_query)
        assert str(error).startswith("28P01: password authentication failed")
        assert "hunter2" not in "".join(traceback.format_exception(error))
        assert not error.for_now


async def test_it_keeps_two_connections_and_opens_others_when_they_break(
    postgres: EmbeddedPostgres, admin: psycopg.Connection
) -> None:
    processes = "SELECT $1, pg_backend_pid()::text FROM pg_sleep(0.01)"

    async def process(auth_query: AuthQuery) -> str:
        answer = await auth_query.ask("alice")
        assert answer is not None
        return answer.secret

    async with asking(postgres, processes) as auth_query:
        first = {await process(auth_query) for _ in range(3)}
        assert len(first) == 1
        several = await asyncio.gather(*(process(auth_query) for _ in range(10)))
        assert len(set(several)) == CONNECTIONS
        for pid in set(several):
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", (int(pid),))
        answers = await asyncio.gather(*(process(auth_query) for _ in range(CONNECTIONS)), return_exceptions=True)
        assert all(answer.for_now for answer in answers if isinstance(answer, NoAnswerError))
        assert await process(auth_query) not in several


async def test_a_postgres_that_is_away_may_come_back(own_postgres: EmbeddedPostgres) -> None:
    async with asking(own_postgres) as auth_query:
        assert await auth_query.ask("nobody") is None
        own_postgres.stop()
        assert (await failure(auth_query)).for_now
        assert (await failure(auth_query)).for_now
        own_postgres.start()
        assert (await auth_query.ask("alice")) == Found("")


async def test_a_query_that_takes_too_long_is_not_waited_for(postgres: EmbeddedPostgres) -> None:
    async with asking(postgres, "SELECT $1, 'x' FROM pg_sleep(60)", timeout_s=0.2) as auth_query:
        error = await failure(auth_query)
    assert (str(error), error.for_now) == ("no answer within 0.2 s", True)


async def test_a_network_that_swallows_everything_is_not_waited_for_either(postgres: EmbeddedPostgres) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        async with asking(proxy, timeout_s=1.0) as auth_query, asyncio.timeout(10):
            assert await auth_query.ask("nobody") is None
            proxy.stall()
            errors = await asyncio.gather(*(failure(auth_query) for _ in range(2 * CONNECTIONS)))
            assert all(error.for_now for error in errors)
            proxy.resume()
            assert await auth_query.ask("alice") == Found("")


async def test_what_was_never_asked_for_opens_and_closes_nothing(postgres: EmbeddedPostgres) -> None:
    async with asking(postgres):
        pass


async def test_the_first_to_come_may_be_several(postgres: EmbeddedPostgres) -> None:
    async with asking(postgres) as auth_query:
        assert await asyncio.gather(*(auth_query.ask("alice") for _ in range(10))) == [Found("")] * 10
