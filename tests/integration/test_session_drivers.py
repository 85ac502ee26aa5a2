"""Drivers as they come: eight clients on one pool in transaction mode, each with its settings and its statements.

Nothing is set for the pooler's sake. Each program is played straight at Postgres, too, and by turns, so that with one
server connection every transaction changes the client on it. psycopg has a file of its own.
"""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Final

import asyncpg
import pg8000.dbapi
import pg8000.native
import psycopg2
import psycopg2.extensions
import pytest

from tests.conftest import NODE
from tests.integration.conftest import Door
from tests.integration.people import (
    DATABASE,
    PEOPLE,
    SESSION,
    AsyncProgram,
    Order,
    Person,
    Play,
    PlayAsync,
    Program,
)

ROUNDS: Final = 5


@asynccontextmanager
async def asyncpg_connection(door: Door, **settings: object) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(door.url(DATABASE), **settings)
    try:
        yield connection
    finally:
        await connection.close()


def asyncpg_settings(person: Person) -> dict[str, str]:
    return {"application_name": person.application, "timezone": person.timezone, "search_path": person.schema}


async def set_and_fail_async(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("SET timezone = 'Asia/Pyongyang'")
        await connection.fetchval("SELECT 1/$1::int", 0)


async def test_asyncpg_caches_statements(door: Door, everybody_async: PlayAsync) -> None:
    async def program(person: Person) -> AsyncProgram:
        async with asyncpg_connection(door, server_settings=asyncpg_settings(person)) as connection:
            yield
            await connection.execute("SELECT set_config('app.tenant', $1, false)", person.tenant)
            yield
            mine = await connection.prepare(person.own_text("$1"), name="mine")
            assert await mine.fetchval(-1) == person.own_answer(
                -1
            )  # which is when asyncpg ends what it began, with a Sync
            for turn in range(ROUNDS):
                yield
                assert await mine.fetchval(turn) == person.own_answer(turn)
                yield
                assert [*await connection.fetchrow(SESSION)] == person.session
                yield
                assert await connection.fetchval("SELECT value FROM mine") in {person.number, str(person.number)}
                yield
                # A type that asyncpg has to ask for, which it does with settings changed and changed back.
                assert await connection.fetch("SELECT $1::public.mood AS mood", "keen") == [("keen",)]
                yield
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await set_and_fail_async(connection)
                yield
                async with connection.transaction():
                    cursor = await connection.cursor(f"SELECT {person.number} + generate_series(1, $1::int)", 10)
                    assert [row[0] - person.number for row in await cursor.fetch(5)] == [1, 2, 3, 4, 5]

    await everybody_async(program)


async def test_asyncpg_pool_resets_on_release(door: Door, everybody_async: PlayAsync) -> None:
    """Its reset says RESET ALL, UNLISTEN *, CLOSE ALL, and gives back advisory locks."""

    async def program(person: Person) -> AsyncProgram:
        async with asyncpg.create_pool(
            door.url(DATABASE), min_size=1, max_size=2, server_settings=asyncpg_settings(person)
        ) as pool:
            for turn in range(ROUNDS):
                yield
                async with pool.acquire() as connection:
                    assert await connection.fetchval("SELECT current_setting('app.tenant', true)") in {None, ""}
                    await connection.execute("SELECT set_config('app.tenant', $1, false)", person.tenant)
                    yield
                    assert [*await connection.fetchrow(SESSION)] == person.session
                    await connection.execute("SET timezone = 'Asia/Pyongyang'")
                    yield
                    assert await connection.fetchval(person.own_text("$1"), turn) == person.own_answer(turn)
                    assert await connection.fetchval("SHOW timezone") == "Asia/Pyongyang"
                yield
                assert await pool.fetchval("SHOW timezone") == person.timezone

    await everybody_async(program)


async def test_asyncpg_listens_for_a_while(door: Door, everybody_async: PlayAsync) -> None:
    """Whoever listens keeps the server connection, and gives it back once he does not."""

    async def program(person: Person) -> AsyncProgram:
        heard: asyncio.Queue[object] = asyncio.Queue()
        channel = f"news for {person.number}"

        def hear(*arguments: object) -> None:
            heard.put_nowait(arguments[-1])

        async with asyncpg_connection(door) as connection:
            for turn in range(2):
                yield
                await connection.add_listener(channel, hear)
                await connection.execute("SELECT pg_notify($1, $2)", channel, person.tenant)
                assert await asyncio.wait_for(heard.get(), 10) == person.tenant
                await connection.remove_listener(channel, hear)
                yield
                assert await connection.fetchval(person.own_text("$1"), turn) == person.own_answer(turn)
                assert heard.empty()

    await everybody_async(program)


def test_psycopg2_sets_its_session(door: Door, everybody: Play) -> None:
    def program(person: Person) -> Program:
        settings = {"options": person.options, "application_name": person.application, "client_encoding": "LATIN1"}
        with closing(psycopg2.connect(door.url(DATABASE), **settings)) as connection:
            # With autocommit these are SETs; without, each BEGIN says them.
            connection.set_session("REPEATABLE READ", readonly=True, autocommit=person.number % 2 == 0)
            yield
            with connection, connection.cursor() as cursor:
                cursor.execute("SELECT set_config('app.tenant', %s, false)", [person.tenant])
            for turn in range(ROUNDS):
                yield
                with connection, connection.cursor() as cursor:
                    cursor.execute(SESSION)
                    assert cursor.fetchone() == tuple(person.session)
                yield
                with connection, connection.cursor() as cursor:
                    cursor.execute("SELECT current_setting('transaction_isolation'), chr(233), %s", [turn])
                    assert cursor.fetchone() == ("repeatable read", "é", turn)
                yield
                with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), connection, connection.cursor() as cursor:
                    cursor.execute("CREATE TABLE never (i int)")
            yield
            connection.rollback()
            connection.reset()
            yield
            with connection, connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('app.tenant'), current_setting('timezone')")
                assert cursor.fetchone() == ("", person.timezone)

    everybody(program)


def test_psycopg2_keeps_a_cursor_beyond_its_transaction(door: Door, everybody: Play) -> None:
    """Its server connection is its own until the cursor is closed."""

    def program(person: Person) -> Program:
        with closing(psycopg2.connect(door.url(DATABASE))) as connection:
            for _ in range(2):
                yield
                with connection.cursor("held", withhold=True) as cursor:
                    cursor.execute("SELECT %s + generate_series(1, 10)", [person.number])
                    connection.commit()
                    assert cursor.fetchmany(3) == [(person.number + i,) for i in (1, 2, 3)]
                    connection.commit()
                connection.commit()

    everybody(program)


def pg8000_settings(door: Door, person: Person) -> dict[str, object]:
    return {
        "user": "postgres",
        "host": door.host,
        "port": door.port,
        "database": DATABASE,
        "application_name": person.application,
        "startup_params": {"options": person.options},
    }


def test_pg8000_native_uses_its_unnamed_statement_after_a_sync(door: Door, everybody: Play) -> None:
    """It says Parse, Sync; Describe, Sync; Bind, Execute, Sync: three transactions for one statement."""

    def program(person: Person) -> Program:
        with closing(pg8000.native.Connection(**pg8000_settings(door, person))) as connection:
            mine = connection.prepare(person.own_text(":value"))
            yield
            connection.run("SELECT set_config('app.tenant', :tenant, false)", tenant=person.tenant)
            for turn in range(ROUNDS):
                yield
                assert connection.run(person.own_text(":value", 1), value=turn) == [[person.own_answer(turn, 1)]]
                yield
                assert mine.run(value=turn) == [[person.own_answer(turn)]]
                yield
                assert connection.run(SESSION) == [person.session]
                yield
                with pytest.raises(pg8000.native.DatabaseError, match="22012"):
                    connection.run("SELECT 1/:zero::int", zero=0)
            mine.close()

    everybody(program)


def test_pg8000_dbapi_transactions(door: Door, everybody: Play) -> None:
    def program(person: Person) -> Program:
        with closing(pg8000.dbapi.connect(**pg8000_settings(door, person))) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT set_config('app.tenant', %s, false)", (person.tenant,))
            connection.commit()
            for turn in range(ROUNDS):
                yield
                cursor.execute(person.own_text("%s"), (turn,))
                assert cursor.fetchall() == ([person.own_answer(turn)],)
                cursor.execute(SESSION)
                assert cursor.fetchall() == (person.session,)
                cursor.execute("SET timezone = 'Asia/Pyongyang'")
                connection.rollback()
            connection.autocommit = True
            for turn in range(ROUNDS):
                yield
                cursor.execute(person.own_text("%s"), (turn,))
                assert cursor.fetchall() == ([person.own_answer(turn)],)
                yield
                cursor.execute(SESSION)
                assert cursor.fetchall() == (person.session,)

    everybody(program)


@pytest.mark.usefixtures("node_modules", "stranger")
def test_node_postgres_names_statements(door: Door, order: Order) -> None:
    people = [
        {
            "application": person.application,
            "options": person.options,
            "tenant": person.tenant,
            "text": person.own_text("$1"),
        }
        for person in PEOPLE
    ]
    command = ["node", str(NODE / "sessions.js"), door.url(DATABASE), json.dumps(people), SESSION, order]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    rounds = range(5)
    assert json.loads(done.stdout) == [
        {
            "own": [person.own_answer(turn) for turn in rounds],
            "inside": [person.own_answer(turn) for turn in rounds],
            "session": [person.session for _ in rounds],
            "error": ["22012" for _ in rounds],
            "renamed": True,
        }
        for person in PEOPLE
    ]
