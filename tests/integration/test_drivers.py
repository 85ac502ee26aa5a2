"""Real drivers and Postgres's own programs do their work through pgfunnel as they do straight at Postgres."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pg8000.dbapi
import pg8000.native
import psycopg
import psycopg2
import psycopg2.extras
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import NODE
from tests.support.pgfunnel import Pgfunnel


@pytest.fixture(scope="module")
def pooler(any_postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(any_postgres.url(), default_pool_size=3) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def session_pooler(any_postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(any_postgres.url(), default_pool_size=10, pool_mode="session") as pooler:
        yield pooler


def test_psycopg_queries_and_transactions(pooler: Pgfunnel) -> None:
    with psycopg.connect(pooler.url(), prepare_threshold=None) as connection:
        connection.execute("CREATE TEMP TABLE t (i int, s text) ON COMMIT DROP")
        connection.cursor().executemany("INSERT INTO t VALUES (%s, %s)", [(i, str(i)) for i in range(100)])
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("SELECT 1/0")
        assert connection.execute("SELECT sum(i), max(length(s)) FROM t").fetchone() == (4950, 2)
    with psycopg.connect(pooler.url(), autocommit=True, prepare_threshold=None) as connection:
        assert connection.execute("SELECT %s::jsonb", ['{"a": 1}'], binary=True).fetchone() == ({"a": 1},)


def test_psycopg_fetches_by_cursor_and_streams(pooler: Pgfunnel) -> None:
    with psycopg.connect(pooler.url(), prepare_threshold=None) as connection:
        with connection.cursor("named") as cursor:
            cursor.execute("SELECT generate_series(1, 1000)")
            assert len(cursor.fetchmany(10)) == 10
            assert cursor.fetchall()[-1] == (1000,)
        rows = connection.cursor().stream("SELECT generate_series(1, 1000)")
        assert [row[0] for row in rows] == list(range(1, 1001))


def test_psycopg_copies(pooler: Pgfunnel) -> None:
    with psycopg.connect(pooler.url(), prepare_threshold=None) as connection:
        connection.execute("CREATE TEMP TABLE t (i int, s text) ON COMMIT DROP")
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            for i in range(10_000):
                copy.write_row((i, f"row {i}"))
        with connection.cursor().copy("COPY t TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows())[9_999] == (9_999, "row 9999")
        with pytest.raises(KeyError):
            fail_amid_copy(connection)
        connection.rollback()
        assert connection.execute("SELECT 'next'").fetchone() == ("next",)


def fail_amid_copy(connection: psycopg.Connection) -> None:
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        copy.write_row((1, "one"))
        raise KeyError("the program's own mistake")


def test_psycopg_pipeline_mode(pooler: Pgfunnel) -> None:
    with psycopg.connect(pooler.url(), autocommit=True, prepare_threshold=None) as connection:
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("SELECT %s::int", [i]) for i in range(200)]
            pipeline.sync()
            with pytest.raises(psycopg.errors.DivisionByZero):
                fail_amid_pipeline(connection)
            after = connection.execute("SELECT 'after'")
        assert [cursor.fetchone() for cursor in cursors] == [(i,) for i in range(200)]
        assert after.fetchone() == ("after",)


def fail_amid_pipeline(connection: psycopg.Connection) -> None:
    with connection.pipeline():  # which ends with a Sync
        connection.execute("SELECT 1/%s::int", [0])
        connection.execute("SELECT 1")  # says so if the error has arrived already


async def test_psycopg_async_many_at_once(pooler: Pgfunnel) -> None:
    async def one(number: int) -> int:
        connection = await psycopg.AsyncConnection.connect(pooler.url(), prepare_threshold=None)
        async with connection, connection.transaction():
            cursor = await connection.execute("SELECT %s::int, pg_sleep(0.01)", [number])
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0])

    assert await asyncio.gather(*map(one, range(50))) == list(range(50))


def test_psycopg2(pooler: Pgfunnel) -> None:
    connection = psycopg2.connect(pooler.url())
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE t (i int, s text) ON COMMIT DROP")
        psycopg2.extras.execute_values(cursor, "INSERT INTO t VALUES %s", [(i, str(i)) for i in range(500)])
        cursor.execute("SELECT count(*), sum(i) FROM t WHERE s <> %s", ["0"])
        assert cursor.fetchone() == (499, 124_750)
    with pytest.raises(psycopg2.errors.UniqueViolation), connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE never (i int PRIMARY KEY); INSERT INTO never VALUES (1), (1)")
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('never')")
        assert cursor.fetchone() == (None,)
    connection.close()


async def test_asyncpg(pooler: Pgfunnel) -> None:
    connection = await asyncpg.connect(pooler.url(), statement_cache_size=0)
    async with connection.transaction():
        await connection.execute("CREATE TEMP TABLE t (i int, s text) ON COMMIT DROP")
        await connection.executemany("INSERT INTO t VALUES ($1, $2)", [(i, str(i)) for i in range(100)])
        await connection.copy_records_to_table("t", records=[(i, "copied") for i in range(1000)])
        assert await connection.fetchval("SELECT count(*) FROM t") == 1100
        cursor = await connection.cursor("SELECT i FROM t WHERE s = 'copied' ORDER BY i")
        assert [row["i"] for row in await cursor.fetch(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await connection.fetchval("SELECT 1/$1::int", 0)
        assert await connection.fetchval("SELECT 'after'") == "after"
    await connection.close()


async def test_asyncpg_pool_larger_than_ours(pooler: Pgfunnel) -> None:
    async with asyncpg.create_pool(pooler.url(), min_size=10, max_size=10, statement_cache_size=0) as pool:
        queries = (pool.fetchval("SELECT $1::int FROM pg_sleep(0.005)", number) for number in range(100))
        assert await asyncio.gather(*queries) == list(range(100))


async def test_asyncpg_prepares_in_session_mode(session_pooler: Pgfunnel) -> None:
    connection = await asyncpg.connect(session_pooler.url())
    statement = await connection.prepare("SELECT $1::int * 2")
    assert [await statement.fetchval(i) for i in range(20)] == [i * 2 for i in range(20)]
    heard: asyncio.Queue[object] = asyncio.Queue()
    await connection.add_listener("news", lambda *arguments: heard.put_nowait(arguments[-1]))
    await connection.execute("SELECT pg_notify('news', 'hello')")
    assert await asyncio.wait_for(heard.get(), 10) == "hello"
    await connection.close()


def test_pg8000(pooler: Pgfunnel) -> None:
    connection = pg8000.dbapi.connect("postgres", host=pooler.host, port=pooler.port, database="postgres")
    cursor = connection.cursor()
    cursor.execute("CREATE TEMP TABLE t (i int) ON COMMIT DROP")
    cursor.executemany("INSERT INTO t VALUES (%s)", [(i,) for i in range(20)])
    cursor.execute("SELECT sum(i) FROM t WHERE i > %s", (10,))
    assert list(cursor.fetchone()) == [135]
    connection.rollback()
    with pytest.raises(pg8000.dbapi.DatabaseError, match="22012"):
        cursor.execute("SELECT 1/%s", (0,))
    connection.rollback()
    connection.close()


def test_pg8000_native(pooler: Pgfunnel) -> None:
    connection = pg8000.native.Connection("postgres", host=pooler.host, port=pooler.port, database="postgres")
    assert connection.run("SELECT :i::int + 1", i=41) == [[42]]
    connection.close()


@pytest.mark.usefixtures("node_modules")
def test_node_postgres(pooler: Pgfunnel) -> None:
    node = run("node", NODE / "exercise.js", pooler.url())
    assert json.loads(node) == {
        "simple": [{"one": 1, "x": "x"}],
        "parameters": [{"sum": 42, "json": {"a": [1, 2]}}],
        "multiple": [{"a": 1}, {"b": 2}],
        "error": "22012",
        "parameterError": "22012",
        "transaction": [{"sum": 500_500}],
        "queued": list(range(50)),
        "connections": list(range(40)),
        "pooled": [f"value {i}" for i in range(20)],
    }


PSQL_SCRIPT = r"""
\set ON_ERROR_STOP 1
\set AUTOCOMMIT off
CREATE TEMP TABLE t (i int, s text) ON COMMIT DROP;
\copy t from stdin with (format csv)
1,one
2,"two, and more"
\.
SELECT * FROM t;
\copy (SELECT i * 10 FROM t) to stdout
COMMIT;
\set AUTOCOMMIT on
SELECT 'a' AS x \gset
\echo :x
SELECT 1 \; SELECT 2;
SELECT $1::int + $2::int \bind 1 2 \g
\set FETCH_COUNT 100
SELECT count(*) FROM generate_series(1, 1000) i;
"""


def test_psql_script(pooler: Pgfunnel, any_postgres: EmbeddedPostgres) -> None:
    def psql(peer: EmbeddedPostgres | Pgfunnel) -> str:
        return run(any_postgres.bin_dir / "psql", "-XAt", peer.url(), "-f", "-", stdin=PSQL_SCRIPT)

    assert psql(pooler) == psql(any_postgres)
    assert "two, and more" in psql(pooler)


def test_psql_asks_with_as_many_connections_as_it_likes(pooler: Pgfunnel, any_postgres: EmbeddedPostgres) -> None:
    def psql(number: int) -> str:
        return run(any_postgres.bin_dir / "psql", "-XAt", pooler.url(), "-c", f"SELECT {number}")

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(psql, range(32))) == [f"{number}\n" for number in range(32)]


@pytest.fixture
def bench_database(any_postgres: EmbeddedPostgres, pooler: Pgfunnel) -> Iterator[str]:
    any_postgres.psql("CREATE DATABASE pgbench")
    run(any_postgres.bin_dir / "pgbench", "-iq", pooler.url("pgbench"))
    yield "pgbench"
    any_postgres.psql("DROP DATABASE pgbench WITH (FORCE)")


@pytest.mark.parametrize("protocol", ["simple", "extended"])
@pytest.mark.parametrize("script", ["select-only", "tpcb-like"])
def test_pgbench(
    pooler: Pgfunnel, any_postgres: EmbeddedPostgres, bench_database: str, protocol: str, script: str
) -> None:
    flags = ["-n", "-c", "10", "-t", "50", "-M", protocol, "-b", script]
    report = run(any_postgres.bin_dir / "pgbench", *flags, pooler.url(bench_database))
    assert "number of transactions actually processed: 500/500" in report
    assert "number of failed transactions: 0" in report


def test_pgbench_with_a_connection_for_each_transaction(
    pooler: Pgfunnel, any_postgres: EmbeddedPostgres, bench_database: str
) -> None:
    flags = ["-nS", "-C", "-c", "10", "-t", "20"]
    report = run(any_postgres.bin_dir / "pgbench", *flags, pooler.url(bench_database))
    assert "number of transactions actually processed: 200/200" in report


def test_pgbench_prepared_in_session_mode(
    session_pooler: Pgfunnel, any_postgres: EmbeddedPostgres, bench_database: str
) -> None:
    flags = ["-n", "-c", "10", "-t", "50", "-M", "prepared"]
    report = run(any_postgres.bin_dir / "pgbench", *flags, session_pooler.url(bench_database))
    assert "number of transactions actually processed: 500/500" in report


def test_pg_dump_and_pg_restore_in_session_mode(
    session_pooler: Pgfunnel, any_postgres: EmbeddedPostgres, bench_database: str, tmp_path: Path
) -> None:
    any_postgres.psql("CREATE DATABASE restored")
    archive = str(tmp_path / "archive")
    source, target = session_pooler.url(bench_database), session_pooler.url("restored")
    run(any_postgres.bin_dir / "pg_dump", "-Fd", "-j", "3", "-f", archive, "-d", source)
    run(any_postgres.bin_dir / "pg_restore", "-j", "3", "-d", target, archive)
    count = "SELECT count(*), sum(aid) FROM pgbench_accounts"
    assert any_postgres.psql(count, "restored") == any_postgres.psql(count, bench_database)
    any_postgres.psql("DROP DATABASE restored WITH (FORCE)")


def run(*command: str | Path, stdin: str = "") -> str:
    """Run one of Postgres's programs without our environment's PG variables, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    done = subprocess.run(
        command, input=stdin, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
