"""Lines about what took long: on time, with the shape of the texts, and never with anything of what is in them."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest

from config.settings import Settings
from pooler.demo.postgres import EmbeddedPostgres
from pooler.figures.slow import LINES, Slow, shape_of
from pooler.log import make_log
from protocol.sql import classify
from protocol.statements import Statement
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import bind, describe_portal, execute, extended, function_call, parse, query, sync

SECRETS = ("hunter2", "987654321", "0xbeef")


@dataclass
class Client:
    id: int = 7
    unnamed: Statement | None = None
    statements: dict[bytes, Statement] | None = field(default_factory=dict)


@dataclass
class Place:
    user: str = "alice"
    database: str = "shop"


def known(sql: str) -> Statement:
    return Statement(sql.encode() + b"\0\0\0", classify(sql.encode()))


@pytest.mark.parametrize(
    ("request_", "shape"),
    [
        (
            query("SELECT * FROM t WHERE name = 'hunter2' AND id = 987654321"),
            "SELECT * FROM t WHERE name = ? AND id = ?",
        ),
        (extended("SELECT $1::text, 987654321", "hunter2"), "SELECT $1::text, ?"),
        (extended("BEGIN") + extended("SELECT 987654321"), "BEGIN; SELECT ?"),
        (extended("SELECT 1") + extended("SELECT 2"), "SELECT ?"),
        (bind("hunter2", statement="s") + execute(), "UPDATE t SET a = $1"),
        (bind("hunter2", statement="unknown") + execute(), ""),
        (bind("hunter2") + describe_portal() + execute(), "DELETE FROM t WHERE id = ?"),
        (function_call(987654321, b"hunter2"), "FunctionCall"),
        (query("SELECT 'hunter2 goes on" + "x" * 20_000)[:16_384], "SELECT ?"),
        (query("ALTER ROLE r PASSWORD 'hunter2'")[:-9], "ALTER ROLE r PASSWORD ?"),
        (b"Q\0\0", ""),
        (b"", ""),
    ],
)
def test_shapes_of_requests(request_: bytes, shape: str) -> None:
    client = Client(
        unnamed=known("DELETE FROM t WHERE id = 987654321"), statements={b"s": known("UPDATE t SET a = $1")}
    )
    assert shape_of(request_, client) == shape


def test_a_shape_is_no_longer_than_a_line_may_be() -> None:
    request = b"".join(parse(f"SELECT column_{number} FROM t") for number in range(16))
    assert len(shape_of(request, Client())) == 200


def test_thresholds_of_zero_are_none() -> None:
    slow = Slow()
    assert slow.least == slow.wait == inf
    slow.apply(Settings(upstream="postgresql://db/", log_slow_query=2, log_slow_transaction=0.5, log_slow_wait=3))
    assert (slow.wait, slow.query, slow.transaction, slow.least) == (3, 2, 0.5, 0.5)
    slow.apply(Settings(upstream="postgresql://db/"))
    assert slow.least == slow.wait == inf


def test_a_flood_of_lines_is_cut_off_and_counted() -> None:
    out = io.StringIO()
    slow = Slow(make_log("text", "info", out))
    for _ in range(LINES + 5):
        slow.queried(Place(), Client(), query("SELECT 1"), 1.0)
    slow.round()
    slow.round()
    slow.waited(Place(), Client(), 2.0, 3)
    lines = out.getvalue().splitlines()
    assert [line.split("event=")[1].split()[0] for line in lines] == [
        *["slow_query"] * LINES,
        "slow_lines_left_out",
        "slow_wait",
    ]
    assert "lines=5" in lines[LINES]


@pytest.fixture(scope="module")
def watching(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    thresholds: dict[str, Any] = {"log_slow_query": 0.2, "log_slow_transaction": 0.3, "log_slow_wait": 0.1}
    with Pgfunnel(postgres.url(), default_pool_size=1, **thresholds) as pgfunnel:
        yield pgfunnel


def test_what_took_long_is_in_the_log_without_literals_and_parameters(watching: Pgfunnel) -> None:
    with watching.login() as client, watching.login() as other:
        client.query("SELECT 1, 'hunter2'")
        client.query("SELECT pg_sleep(0.25), 'hunter2', 987654321 -- 0xbeef")
        assert 'query="SELECT pg_sleep(?), ?, ?"' in watching.wait_for_log("event=slow_query .*pg_sleep")
        client.send(parse("SELECT pg_sleep($1), $2::text, '0xbeef'", "s"), sync())
        client.read_until()
        client.send(bind("0.31", "hunter2", statement="s"), execute(), sync())
        client.read_until()
        line = watching.wait_for_log(r"event=slow_transaction .*\$1")
        assert 'last_query="SELECT pg_sleep($1), $2::text, ?"' in line
        assert "user=postgres database=postgres seconds=0.3" in line

        client.query("BEGIN")
        other.send(query("SELECT 'hunter2'"))
        eventually(lambda: watching.waiting() == 1)
        client.query("SELECT pg_sleep(0.15), 'hunter2'")
        client.query("COMMIT")
        other.read_until()
        assert "still_waiting=0" in watching.wait_for_log("event=slow_wait")
    log = "\n".join(watching.log)
    assert [line for line in watching.log if any(secret in line for secret in SECRETS)] == []
    assert 'query="SELECT ?, ?"' not in log
    assert log.count("event=slow_wait") == 1


def test_nothing_is_slow_unless_it_is_said_what_is(postgres: EmbeddedPostgres) -> None:
    with Pgfunnel(postgres.url(), stats_period=1) as pgfunnel, pgfunnel.login() as client:
        client.query("SELECT pg_sleep(0.4)")
        line = pgfunnel.wait_for_log("event=stats .*xact_us=[1-9]")
        assert "event=slow" not in "\n".join(pgfunnel.log)
    assert " queries_per_s=" in line
    assert 400_000 < int(line.split("query_us=")[1].split()[0]) < 4_000_000
