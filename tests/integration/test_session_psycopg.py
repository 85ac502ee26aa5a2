"""psycopg as it comes: eight clients on one pool in transaction mode, each with its settings and its statements.

It prepares what it is asked to do for the sixth time, or at once with a threshold of 0.
"""

from typing import Final

import psycopg
import pytest

from tests.integration.conftest import Door
from tests.integration.people import DATABASE, SESSION, AsyncProgram, Person, Play, PlayAsync, Program

ROUNDS: Final = 7


def psycopg_connection(door: Door, person: Person, threshold: int) -> psycopg.Connection:
    return psycopg.connect(
        door.url(DATABASE),
        autocommit=True,
        prepare_threshold=threshold,
        options=person.options,
        application_name=person.application,
    )


def set_and_fail(connection: psycopg.Connection) -> None:
    connection.execute("SET timezone = 'Asia/Pyongyang'")
    connection.execute("SET app.tenant = 'rolled back'")
    connection.execute("SELECT 1/%s", [0])


@pytest.mark.parametrize("threshold", [0, 5])
def test_psycopg_prepares(door: Door, everybody: Play, threshold: int) -> None:
    def program(person: Person) -> Program:
        with psycopg_connection(door, person, threshold) as connection:
            yield
            connection.execute("SELECT set_config('app.tenant', %s, false)", [person.tenant])
            yield
            for turn in range(ROUNDS):
                cursor = connection.execute(person.own_text("%s"), [turn], binary=turn % 2 == 0)
                assert cursor.fetchone() == (person.own_answer(turn),)
                yield
                assert connection.execute(SESSION).fetchone() == tuple(person.session)
                yield
                assert connection.execute("SELECT value FROM mine").fetchone() in {
                    (person.number,),
                    (str(person.number),),
                }
                yield

    everybody(program)


@pytest.mark.parametrize("threshold", [0, 5])
def test_psycopg_prepares_in_transactions(door: Door, everybody: Play, threshold: int) -> None:
    """A rollback makes psycopg forget what it has prepared, and say DEALLOCATE ALL."""

    def program(person: Person) -> Program:
        with psycopg_connection(door, person, threshold) as connection:
            connection.autocommit = False
            yield
            connection.execute("SELECT set_config('app.tenant', %s, false)", [person.tenant])
            connection.commit()
            for turn in range(ROUNDS):
                yield
                connection.execute("SET LOCAL timezone = 'Asia/Pyongyang'")
                with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
                    set_and_fail(connection)
                assert connection.execute(person.own_text("%s"), [turn]).fetchone() == (person.own_answer(turn),)
                connection.commit()
                yield
                assert connection.execute(SESSION).fetchone() == tuple(person.session)
                connection.commit()
                if turn % 3 == 2:
                    connection.execute("SET timezone = 'Asia/Pyongyang'")
                    connection.rollback()

    everybody(program)


def test_psycopg_closes_what_it_prepared_longest_ago(door: Door, everybody: Play) -> None:
    def program(person: Person) -> Program:
        with psycopg_connection(door, person, threshold=0) as connection:
            connection.prepared_max = 2
            for turn in range(3 * ROUNDS):
                yield
                text = person.own_text("%s", turn % 3)
                assert connection.execute(text, [1]).fetchone() == (person.own_answer(1, turn % 3),)

    everybody(program)


@pytest.mark.parametrize("threshold", [0, 5])
def test_psycopg_prepares_in_pipelines(door: Door, everybody: Play, threshold: int) -> None:
    def program(person: Person) -> Program:
        with psycopg_connection(door, person, threshold) as connection:
            yield
            with connection.pipeline():
                connection.execute("SELECT set_config('app.tenant', %s, false)", [person.tenant])
            for turn in range(ROUNDS):
                yield
                with connection.pipeline() as pipeline:
                    own = [connection.execute(person.own_text("%s", i), [turn]) for i in range(5)]
                    pipeline.sync()
                    session = connection.execute(SESSION)
                assert [cursor.fetchone() for cursor in own] == [(person.own_answer(turn, i),) for i in range(5)]
                assert session.fetchone() == tuple(person.session)
                yield
                with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
                    set_and_fail(connection)

    everybody(program)


@pytest.mark.parametrize("threshold", [0, 5])
async def test_psycopg_async_prepares(door: Door, everybody_async: PlayAsync, threshold: int) -> None:
    async def program(person: Person) -> AsyncProgram:
        connection = await psycopg.AsyncConnection.connect(
            door.url(DATABASE), options=person.options, application_name=person.application, prepare_threshold=threshold
        )
        async with connection:
            await connection.execute("SELECT set_config('app.tenant', %s, false)", [person.tenant])
            await connection.commit()
            for turn in range(ROUNDS):
                yield
                cursor = await connection.execute(person.own_text("%s"), [turn])
                assert await cursor.fetchone() == (person.own_answer(turn),)
                await connection.commit()
                yield
                async with connection.pipeline():
                    session = await connection.execute(SESSION)
                    own = await connection.execute(person.own_text("%s", 1), [turn])
                    assert await session.fetchone() == tuple(person.session)
                    assert await own.fetchone() == (person.own_answer(turn, 1),)
                    await connection.commit()

    await everybody_async(program)
