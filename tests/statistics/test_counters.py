"""Counters tell exactly what clients did, and nothing of what pgfunnel asks for itself."""

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import (
    Message,
    bind,
    cancel_request,
    close_statement,
    copy_data,
    copy_done,
    copy_fail,
    describe_statement,
    execute,
    extended,
    flush,
    function_call,
    parse,
    query,
    sync,
    terminate,
)

NAMES: Final = {
    "pgfunnel_server_assignments_total": "assignments",
    "pgfunnel_transactions_total": "xacts",
    "pgfunnel_queries_total": "queries",
    "pgfunnel_received_bytes_total": "received",
    "pgfunnel_sent_bytes_total": "sent",
    "pgfunnel_prepared_statement_client_parses_total": "client_parses",
    "pgfunnel_prepared_statement_parses_total": "server_parses",
    "pgfunnel_prepared_statement_binds_total": "binds",
    "pgfunnel_client_logins_total": "logins",
}
INT4PL: Final = 177
"""The OID of the function int4pl."""


class Counts(NamedTuple):
    """What a script did."""

    assignments: int = 0
    xacts: int = 0
    queries: int = 0
    client_parses: int = 0
    server_parses: int = 0
    binds: int = 0
    logins: int = 1


class Client:
    """A wire that counts its bytes, other than those of logging in and of saying good-bye."""

    def __init__(self, pooler: Pgfunnel, **parameters: str) -> None:
        self.pooler = pooler
        self.wire = pooler.connect().login("postgres", "postgres", **parameters)
        self.said = self.heard = 0

    def send(self, *messages: bytes) -> None:
        self.wire.send(*messages)
        self.said += len(b"".join(messages))

    def read(self, kinds: str = "Z") -> list[Message]:
        answer = self.wire.read_until(kinds)
        self.heard += sum(len(each.raw) for each in answer)
        return answer

    def query(self, sql: str) -> list[Message]:
        self.send(query(sql))
        return self.read()

    def ask(self, *messages: bytes) -> list[Message]:
        self.send(*messages, sync())
        return self.read()

    def leave(self) -> None:
        self.wire.send(terminate())
        self.read_to_end()

    def read_to_end(self) -> None:
        self.heard += sum(len(each.raw) for each in self.wire.read_to_end())

    def vanish(self) -> None:
        self.wire.reset()


Script = Callable[[Client], None]


def figures(pooler: Pgfunnel) -> dict[str, int]:
    _, page = pooler.http("/metrics")
    found = dict.fromkeys(NAMES.values(), 0)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in NAMES and sample.labels["user"] == "postgres":
                found[NAMES[sample.name]] += int(sample.value)
    return found


def check(pooler: Pgfunnel, script: Script, expected: Counts, **parameters: str) -> None:
    """Run a script, and compare what has been counted with what it did; once all is over, if not at once."""
    before = figures(pooler)
    client = Client(pooler, **parameters)
    with client.wire:
        script(client)

    def counted() -> dict[str, int]:
        return {name: value - before[name] for name, value in figures(pooler).items()}

    told = {**expected._asdict(), "received": client.said, "sent": client.heard}
    eventually(lambda: pooler.metric("pgfunnel_pool_servers", state="idle") == pooler.metric("pgfunnel_pool_servers"))
    assert counted() == told


def simple(client: Client) -> None:
    for _ in range(3):
        client.query("SELECT 1")
    client.leave()


def nothing(client: Client) -> None:
    client.send(flush())
    client.leave()


def block(client: Client) -> None:
    for sql in ("BEGIN", "SELECT 1", "SELECT 2", "COMMIT"):
        client.query(sql)
    client.leave()


def pipeline(client: Client) -> None:
    client.send(query("SELECT 1"), query("SELECT 2"), query("SELECT 3"))
    for _ in range(3):
        client.read()
    client.leave()


def block_in_a_pipeline(client: Client) -> None:
    client.send(query("BEGIN"), query("SELECT 2"), query("COMMIT"), query("SELECT 3"))
    for _ in range(4):
        client.read()
    client.leave()


def several_in_one(client: Client) -> None:
    client.query("SELECT 1; SELECT 2")
    client.query("BEGIN; SELECT 1; COMMIT")
    client.query("")
    client.leave()


def unnamed(client: Client) -> None:
    client.ask(extended("SELECT $1::int", "1"))
    client.send(extended("SELECT 1"), sync(), extended("SELECT 2"), sync())
    client.read()
    client.read()
    client.leave()


def named(client: Client) -> None:
    client.ask(parse("SELECT $1::int + 1", "plus"), describe_statement("plus"))
    client.ask(bind("1", statement="plus"), execute())
    client.ask(bind("2", statement="plus"), execute(), bind("3", statement="plus"), execute())
    client.ask(close_statement("plus"))
    client.leave()


def errors(client: Client) -> None:
    client.query("SELECT 1/0")
    client.query("not SQL")
    client.ask(extended("SELECT 1/$1::int", "0"), extended("SELECT 1"))
    for sql in ("BEGIN", "SELECT 1/0", "SELECT 1", "ROLLBACK"):
        client.query(sql)
    client.leave()


def copies(client: Client) -> None:
    client.query("COPY (SELECT generate_series(1, 1000)) TO STDOUT")
    client.send(query("BEGIN"))
    client.read()
    client.query("CREATE TABLE copied (line text)")
    client.send(query("COPY copied FROM STDIN"))
    client.read("G")
    client.send(copy_data(b"one\n" * 1000))
    client.send(copy_data(b"two\n"), copy_done())
    client.read()
    client.send(query("COPY copied FROM STDIN"))
    client.read("G")
    client.send(copy_data(b"one\n"), copy_fail("no"))
    client.read()
    client.query("ROLLBACK")
    client.leave()


def function(client: Client) -> None:
    client.send(function_call(INT4PL, b"\0\0\0\1", b"\0\0\0\2"))
    client.read()
    client.leave()


def cancelled(client: Client) -> None:
    client.send(query("SELECT pg_sleep(100)"))
    eventually(lambda: client.pooler.metric("pgfunnel_pool_servers", state="active") == 1)
    with client.pooler.connect() as courier:
        courier.send(cancel_request(client.wire.backend_pid, client.wire.cancel_key))
        courier.read_to_end()
    client.read()
    client.leave()


def pinned(client: Client) -> None:
    client.query("LISTEN news")
    client.query("SELECT 1")
    client.query("NOTIFY news")
    client.query("UNLISTEN *")
    client.leave()


def settings_that_follow(client: Client) -> None:
    """Two clients in turns, each with settings of its own, which are put on ahead of their queries."""
    client.query("SET work_mem = '1MB'")
    with client.pooler.login() as other:
        for _ in range(3):
            sql = "SELECT current_setting('work_mem')"
            client.query(sql)
            client.said += len(query(sql))
            client.heard += sum(len(each.raw) for each in other.query(sql))
        other.send(terminate())
        other.read_to_end()
    client.leave()


def settings_that_are_refused(client: Client) -> None:
    client.query("CREATE TEMP TABLE refused ()")
    client.leave()


def vanished_in_a_block(client: Client) -> None:
    client.query("BEGIN")
    client.query("SELECT 1")
    client.vanish()


def vanished_in_a_run(client: Client) -> None:
    client.query("SELECT 1")
    client.send(extended("SELECT 1"), flush())
    client.read("C")
    client.vanish()


def vanished_in_a_query(client: Client) -> None:
    client.send(query("SELECT pg_sleep(100)"))
    eventually(lambda: client.pooler.metric("pgfunnel_pool_servers", state="active") == 1)
    client.vanish()


def lost_in_a_query(client: Client) -> None:
    client.query("SELECT 1")
    client.send(query("SELECT pg_terminate_backend(pg_backend_pid())"))
    client.read_to_end()


def lost_in_a_block(client: Client) -> None:
    client.query("BEGIN")
    client.send(query("SELECT pg_terminate_backend(pg_backend_pid())"))
    client.read_to_end()


SCRIPTS: Final[list[tuple[Script, Counts]]] = [
    (simple, Counts(assignments=3, xacts=3, queries=3)),
    (nothing, Counts(assignments=1)),
    (block, Counts(assignments=1, xacts=1, queries=4)),
    (pipeline, Counts(assignments=1, xacts=3, queries=3)),
    (block_in_a_pipeline, Counts(assignments=1, xacts=2, queries=4)),
    (several_in_one, Counts(assignments=3, xacts=3, queries=3)),
    (unnamed, Counts(assignments=2, xacts=3, queries=3)),
    (named, Counts(assignments=4, xacts=4, queries=4, client_parses=1, server_parses=1, binds=3)),
    (errors, Counts(assignments=4, xacts=4, queries=7)),
    (copies, Counts(assignments=2, xacts=2, queries=6)),
    (function, Counts(assignments=1, xacts=1, queries=1)),
    (cancelled, Counts(assignments=1, xacts=1, queries=1)),
    (vanished_in_a_block, Counts(assignments=1, xacts=1, queries=2)),
    (vanished_in_a_run, Counts(assignments=2, xacts=2, queries=2)),
    (vanished_in_a_query, Counts(assignments=1, xacts=1, queries=1)),
    (lost_in_a_query, Counts(assignments=2, xacts=2, queries=2)),
    (lost_in_a_block, Counts(assignments=1, xacts=1, queries=2)),
    (pinned, Counts(assignments=1, xacts=4, queries=4)),
    (settings_that_follow, Counts(assignments=7, xacts=7, queries=7, logins=2)),
    (settings_that_are_refused, Counts(assignments=1, xacts=1, queries=1)),
]
"""In transaction mode."""


@pytest.fixture(scope="module")
def sharing(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(postgres.url(), default_pool_size=3, session_state="temporary=reject", max_pinned=3) as pgfunnel:
        yield pgfunnel


@pytest.mark.parametrize(("script", "expected"), SCRIPTS, ids=[script.__name__ for script, _ in SCRIPTS])
def test_what_a_client_did_is_counted(sharing: Pgfunnel, script: Script, expected: Counts) -> None:
    check(sharing, script, expected)


@pytest.fixture(scope="module")
def suspicious(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    """Start one that asks Postgres something of its own whenever it can."""
    settings: dict[str, Any] = {"server_check_delay": 0, "server_check_query": "SELECT 1", "pin_audit": 1}
    with Pgfunnel(postgres.url(), default_pool_size=3, max_pinned=3, **settings) as pgfunnel:
        yield pgfunnel


@pytest.mark.parametrize(
    "script", [simple, block, pipeline, unnamed, errors, copies, function, pinned, lost_in_a_block]
)
def test_what_pgfunnel_asks_for_itself_is_not_counted(suspicious: Pgfunnel, script: Script) -> None:
    check(suspicious, script, dict(SCRIPTS)[script])


@pytest.fixture(scope="module")
def resetting(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    always: dict[str, Any] = {"server_reset_query": "SELECT 1; DISCARD ALL", "server_reset_query_always": 1}
    with Pgfunnel(postgres.url(), default_pool_size=1, **always) as pgfunnel:
        yield pgfunnel


@pytest.mark.parametrize("script", [simple, block, unnamed, errors, vanished_in_a_block, vanished_in_a_run])
def test_resets_are_not_counted(resetting: Pgfunnel, script: Script) -> None:
    check(resetting, script, dict(SCRIPTS)[script])


def test_settings_tried_on_at_login_are_not_counted(sharing: Pgfunnel) -> None:
    check(sharing, simple, Counts(assignments=3, xacts=3, queries=3), options="-c statement_timeout=12345")


@pytest.fixture(scope="module")
def keeping(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(postgres.url(), default_pool_size=3, pool_mode="session") as pgfunnel:
        yield pgfunnel


@pytest.mark.parametrize(("script", "expected"), SCRIPTS[:-2], ids=[script.__name__ for script, _ in SCRIPTS[:-2]])
def test_in_session_mode_a_client_is_given_one_server(keeping: Pgfunnel, script: Script, expected: Counts) -> None:
    """And its named statements are its own affair."""
    check(keeping, script, Counts(1, expected.xacts, expected.queries))
