"""Drivers come in with all that they say on connecting, ask in their own ways, and read what they are told."""

import asyncio
import json
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import asyncpg
import pg8000.dbapi
import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from tests.conftest import NODE
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import (
    Wire,
    bind,
    describe_portal,
    describe_statement,
    execute,
    kinds,
    parse,
    query,
    sync,
    terminate,
)

HERE: Final = Path(__file__).parent
JDBC: Final = Path("/usr/share/java/postgresql.jar")
JAVA: Final = JDBC.exists() and shutil.which("javac") is not None

Rows = list[tuple[Any, ...]]


def by_psycopg(pooler: Pgfunnel) -> Rows:
    """In a transaction, as it begins one by itself."""
    with psycopg.connect(pooler.url("pgbouncer")) as connection:
        return connection.execute("SHOW LISTS").fetchall()


def by_psycopg_in_binary(pooler: Pgfunnel) -> Rows:
    with psycopg.connect(pooler.url("pgbouncer")) as connection, connection.cursor(binary=True) as cursor:
        return cursor.execute("SHOW LISTS", prepare=True).fetchall()


def by_psycopg_on_the_client(pooler: Pgfunnel) -> Rows:
    with psycopg.connect(pooler.url("pgbouncer"), cursor_factory=psycopg.ClientCursor) as connection:
        return connection.execute("SHOW LISTS").fetchall()


def by_psycopg2(pooler: Pgfunnel) -> Rows:
    connection = psycopg2.connect(pooler.url("pgbouncer"))
    try:
        connection.set_session(isolation_level="READ COMMITTED")
        with connection, connection.cursor() as cursor:
            cursor.execute("SHOW LISTS")
            return list(cursor.fetchall())
    finally:
        connection.close()


def by_asyncpg(pooler: Pgfunnel) -> Rows:
    async def ask() -> Rows:
        async with asyncpg.create_pool(pooler.url("pgbouncer"), min_size=1, max_size=1) as pool:
            async with pool.acquire() as connection, connection.transaction():
                await connection.fetch("SHOW LISTS")
            async with pool.acquire() as connection:  # after what it resets a connection with
                return [tuple(row) for row in await connection.fetch("SHOW LISTS")]

    return asyncio.run(ask())


def by_pg8000(pooler: Pgfunnel) -> Rows:
    connection = pg8000.dbapi.connect("postgres", host=pooler.host, port=pooler.port, database="pgbouncer")
    try:
        cursor = connection.cursor()
        cursor.execute("SHOW LISTS")
        return [tuple(row) for row in cursor.fetchall()]
    finally:
        connection.close()


def by_sqlalchemy(pooler: Pgfunnel) -> Rows:
    engine = sqlalchemy.create_engine(pooler.url("pgbouncer").replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.exec_driver_sql("SHOW LISTS")]
    engine.dispose()
    return rows


def by_sqlalchemy_over_asyncpg(pooler: Pgfunnel) -> Rows:
    async def ask() -> Rows:
        engine = create_async_engine(
            pooler.url("pgbouncer").replace("postgresql:", "postgresql+asyncpg:"), pool_pre_ping=True
        )
        try:
            async with engine.connect() as connection:
                return [tuple(row) for row in await connection.exec_driver_sql("SHOW LISTS")]
        finally:
            await engine.dispose()

    return asyncio.run(ask())


def by_psql(pooler: Pgfunnel) -> Rows:
    command = ["psql", "-X", "--csv", "-t", "-v", "ON_ERROR_STOP=1", pooler.url("pgbouncer"), "-c", "SHOW LISTS;"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [(name, int(items)) for name, items in (line.split(",") for line in done.stdout.splitlines())]


def by_node(pooler: Pgfunnel) -> Rows:
    script = """
        const { Client } = require('pg');
        const client = new Client({ connectionString: process.argv[1] });
        client.connect()
          .then(() => client.query({ text: 'SHOW LISTS', rowMode: 'array' }))
          .then(() => client.query({ name: 'lists', text: 'SHOW LISTS', rowMode: 'array' }))
          .then(result => console.log(JSON.stringify(result.rows)))
          .then(() => client.end());
    """
    done = subprocess.run(
        ["node", "-e", script, pooler.url("pgbouncer")], cwd=NODE, capture_output=True, text=True, check=True
    )
    return [tuple(row) for row in json.loads(done.stdout)]


def by_jdbc(pooler: Pgfunnel) -> Rows:
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    url = f"jdbc:postgresql://{pooler.host}:{pooler.port}/pgbouncer?user=postgres"
    done = subprocess.run(
        ["java", *quick, "-cp", str(JDBC), str(HERE / "Lists.java"), url], capture_output=True, text=True, check=True
    )
    return [(name, int(items)) for name, items in (line.split("\t") for line in done.stdout.splitlines())]


@pytest.mark.parametrize(
    "ask",
    [
        by_psycopg,
        by_psycopg_in_binary,
        by_psycopg_on_the_client,
        by_psycopg2,
        by_asyncpg,
        by_pg8000,
        by_sqlalchemy,
        by_sqlalchemy_over_asyncpg,
        by_psql,
        by_node,
        *([by_jdbc] if JAVA else []),
    ],
)
@pytest.mark.usefixtures("node_modules")
def test_drivers_read_what_the_console_shows(pooler: Pgfunnel, ask: Callable[[Pgfunnel], Rows]) -> None:
    lists: dict[str, int] = dict(ask(pooler))
    assert lists["databases"] >= 1
    assert lists["used_clients"] >= 1
    assert len(lists) == 14


def test_asyncpg_reads_numbers_of_every_size_in_binary(pooler: Pgfunnel) -> None:
    async def ask() -> tuple[asyncpg.Record, asyncpg.Record]:
        connection = await asyncpg.connect(pooler.url("pgbouncer"))
        try:
            (stats,) = [row for row in await connection.fetch("SHOW STATS") if row["database"] == "pgbouncer"]
            (pool,) = [row for row in await connection.fetch("SHOW POOLS") if row["database"] == "pgbouncer"]
            return stats, pool
        finally:
            await connection.close()

    stats, pool = asyncio.run(ask())
    assert isinstance(stats["total_query_count"], Decimal)
    assert stats["total_query_count"] > 0
    assert pool["cl_active"] >= 1


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", [(1,)]),
        ("SELECT 'a, b' AS x, NULL, 2 AS y", [("a, b", None, 2)]),
        ("SELECT current_database(), current_user", [("pgbouncer", "postgres")]),
        ("select pg_catalog.current_schema()", [("public",)]),
        ("SHOW transaction_isolation", [("read committed",)]),
        ("SHOW TRANSACTION ISOLATION LEVEL", [("read committed",)]),
        ("show standard_conforming_strings;", [("on",)]),
        ("SHOW DateStyle", [("ISO",)]),
        ("SHOW search_path", [("public",)]),
    ],
)
def test_what_drivers_ask_in_passing_is_answered(pooler: Pgfunnel, sql: str, expected: Rows) -> None:
    with psycopg.connect(pooler.url("pgbouncer"), autocommit=True) as connection:
        assert connection.execute(sql.encode()).fetchall() == expected


@pytest.mark.parametrize(
    ("sql", "tag"),
    [
        ("SET extra_float_digits = 3", "SET"),
        ("SET client_encoding TO 'UTF8'", "SET"),
        ("SET application_name = 'x y'", "SET"),
        ("SET NAMES 'utf8'", "SET"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET"),
        ("DISCARD ALL", "DISCARD ALL"),
        ("RESET ALL", "RESET"),
        ("UNLISTEN *", "UNLISTEN"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN"),
        ("START TRANSACTION", "BEGIN"),
        ("COMMIT", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("SAVEPOINT a", "SAVEPOINT"),
    ],
)
def test_what_drivers_set_in_passing_is_taken(pooler: Pgfunnel, sql: str, tag: str) -> None:
    with psycopg.connect(pooler.url("pgbouncer"), autocommit=True) as connection:
        assert connection.execute(sql.encode()).statusmessage == tag


def test_there_is_nothing_in_the_catalog(pooler: Pgfunnel) -> None:
    described = subprocess.run(
        ["psql", "-X", pooler.url("pgbouncer"), "-c", r"\d"], capture_output=True, text=True, check=False
    )
    assert "ERROR" not in described.stderr
    with psycopg.connect(pooler.url("pgbouncer")) as connection:
        assert psycopg.types.TypeInfo.fetch(connection, "hstore") is None


def test_what_only_postgres_can_do_is_refused(pooler: Pgfunnel) -> None:
    with psycopg.connect(pooler.url("pgbouncer"), autocommit=True) as connection:
        for sql in ("SELECT pg_sleep(1)", "SELECT pg_terminate_backend(1)", "SELECT 1 FROM sales", "DELETE FROM sales"):
            with pytest.raises(psycopg.errors.ProtocolViolation, match="invalid command"):
                connection.execute(sql.encode())


def test_psql_s_connection_string_may_name_pgfunnel_instead(pooler: Pgfunnel) -> None:
    with psycopg.connect(pooler.url("pgfunnel"), autocommit=True) as connection:
        assert connection.execute("SHOW VERSION").fetchall()[0][0].startswith("PgBouncer 1.")
        assert connection.info.parameter_status("server_version") == "1.26.0/bouncer"


# --- the protocol itself


@pytest.fixture
def wire(pooler: Pgfunnel) -> Wire:
    return pooler.login("postgres", "pgbouncer")


def test_several_commands_in_one_query_are_answered_in_turn(wire: Wire) -> None:
    with wire:
        assert kinds(wire.query("SHOW VERSION; SET extra_float_digits = 2; SHOW STATE")) == "TDCNCTDDDCZ"
        assert kinds(wire.query("SHOW VERSION; nonsense; SHOW STATE")) == "TDCEZ"
        assert kinds(wire.query(" ; ")) == "IZ"


def test_nothing_is_answered_after_an_error_up_to_the_sync(wire: Wire) -> None:
    with wire:
        wire.send(parse("nonsense") + bind() + describe_portal() + execute() + sync())
        assert kinds(wire.read_until()) == "EZ"
        wire.send(parse("SHOW VERSION") + describe_statement() + bind() + describe_portal() + execute() + sync())
        assert kinds(wire.read_until()) == "1tT2TDCZ"


def test_rows_come_in_portions_when_that_is_asked_for(wire: Wire) -> None:
    with wire:
        wire.send(parse("SHOW LISTS") + bind() + execute(max_rows=10) + execute(max_rows=10) + sync())
        assert kinds(wire.read_until()) == "12" + "D" * 10 + "s" + "D" * 4 + "CZ"


def test_what_returns_no_rows_says_so(wire: Wire) -> None:
    with wire:
        wire.send(parse("SET extra_float_digits = 3") + bind() + describe_portal() + execute() + sync())
        assert kinds(wire.read_until()) == "12nNCZ"
        wire.send(parse("") + bind() + describe_portal() + execute() + sync())
        assert kinds(wire.read_until()) == "12nIZ"


@pytest.mark.parametrize(
    ("messages", "sqlstate"),
    [
        (bind(statement="none"), "26000"),
        (execute("none"), "34000"),
        (parse("SHOW STATE; SHOW STATE"), "42601"),
    ],
)
def test_what_is_not_there_can_not_be_used(wire: Wire, messages: bytes, sqlstate: str) -> None:
    with wire:
        wire.send(messages + sync())
        assert wire.read_until()[0].fields["C"] == sqlstate


def test_a_client_that_says_what_it_may_not_is_sent_away(pooler: Pgfunnel) -> None:
    for wrong in (b"d\0\0\0\4", query("x" * 40_000), b"F\0\0\0\4"):
        with pooler.login("postgres", "pgbouncer") as wire:
            wire.send(wrong)
            *_, error = wire.read_to_end()
            assert (error.fields["S"], error.fields["C"]) == ("FATAL", "08P01")


def test_a_client_that_does_not_read_stops_its_own_answers_only(pooler: Pgfunnel) -> None:
    with pooler.login("postgres", "pgbouncer") as wire, pooler.login("postgres", "pgbouncer") as other:
        before = pooler.rss()
        wire.socket.settimeout(0.2)
        with suppress(TimeoutError):
            while True:
                wire.send(query("SHOW CONFIG;" * 2000))
        assert other.value("SHOW VERSION") is not None
        assert pooler.rss() - before < 16 * 1024 * 1024


def test_a_client_that_breaks_off_leaves_nothing_behind(pooler: Pgfunnel) -> None:
    with pooler.login("postgres", "pgbouncer") as wire:
        wire.send(query("SHOW CONFIG;" * 100))
        wire.reset()
    with pooler.login("postgres", "pgbouncer") as wire:
        eventually(lambda: len([row for row in wire.rows("SHOW CLIENTS") if row[2] == "pgbouncer"]) == 1)


def test_no_message_however_odd_makes_the_console_stumble(pooler: Pgfunnel) -> None:
    chance = random.Random(20)
    texts = ["SHOW POOLS", "SHOW", "", "BEGIN", "SET a", "select 1, ,", "SHOW LISTS;;x", "'", '"', "--", "\udcff", "$1"]
    for _ in range(60):
        with pooler.login("postgres", "pgbouncer") as wire:
            for _ in range(12):
                kind = chance.choice("QPBDECSHX")
                text = chance.choice(texts).encode("utf-8", "surrogateescape")
                payload = chance.choice([text + b"\0", b"\0" + text + b"\0\0\0", b"S" + text, b"P\0", b"", b"\0" * 9])
                with suppress(OSError):
                    wire.send(kind.encode() + struct.pack("!I", len(payload) + 4) + payload)
            with suppress(OSError):
                wire.send(sync() + terminate())
            wire.read_to_end()
    with pooler.login("postgres", "pgbouncer") as wire:
        assert wire.value("SHOW VERSION") is not None
    assert not any("internal_error" in line for line in pooler.log)
