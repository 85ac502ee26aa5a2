"""The verdicts of the table against what Postgres says is there afterwards: nothing may be missed."""

from collections.abc import Iterator
from typing import Final

import psycopg
import pytest
from psycopg.pq import ExecStatus

from pooler.demo.postgres import EmbeddedPostgres
from protocol.sql import State, classify
from tests.protocol.test_sql_texts import HARMLESS_TEXTS, TEXTS

pytestmark = pytest.mark.skipif(not EmbeddedPostgres.available_versions(), reason="no Postgres")

TABLES: Final = "CREATE TABLE t (a int, b int); CREATE TABLE u (a int, b int); CREATE ROLE bob; CREATE SEQUENCE s"

# The names of a transaction's own settings keep the word session, but they have their defaults again.
QUESTIONS: Final = {
    State.SETTING: "SELECT name FROM pg_settings WHERE source = 'session' AND name NOT LIKE 'transaction%'",
    State.IDENTITY: "SELECT 1 WHERE current_user <> 'postgres'",
    State.LISTEN: "SELECT pg_listening_channels()",
    State.PREPARED: "SELECT name FROM pg_prepared_statements",
    State.CURSOR: "SELECT name FROM pg_cursors WHERE is_holdable",
    State.TEMPORARY: "SELECT oid FROM pg_class WHERE relnamespace = pg_my_temp_schema() UNION ALL "
    "SELECT oid FROM pg_proc WHERE pronamespace = pg_my_temp_schema()",
    State.ADVISORY_LOCK: "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
}
CUSTOM: Final = {name.lower() for _, verdict in TEXTS.values() for name in verdict.custom}

RUN: Final = {
    name: text
    for name, text in {**HARMLESS_TEXTS, **{name: text for name, (text, _) in TEXTS.items()}}.items()
    if not text.startswith("COPY")
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(EmbeddedPostgres.available_versions()[-1]) as running:
        running.psql(TABLES)
        yield running


@pytest.fixture
def session(postgres: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    # DISCARD ALL would do but for custom settings, so that a new session is what is sure to have no state.
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("text", RUN.values(), ids=RUN)
def test_what_is_left_was_foreseen(text: str, session: psycopg.Connection) -> None:
    verdict = classify(text.encode())
    result = session.pgconn.exec_(text.encode())
    accepted = result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY)
    session.pgconn.exec_(b"COMMIT" if accepted else b"ROLLBACK")

    found = State(sum(state for state, question in QUESTIONS.items() if session.execute(question).fetchall()))
    assert found in verdict.leaves or verdict.asks

    names = {
        name for name in CUSTOM if session.execute("SELECT 1 WHERE current_setting(%s, true) > ''", (name,)).fetchall()
    }
    assert names <= {name.lower() for name in verdict.custom} or verdict.dynamic
