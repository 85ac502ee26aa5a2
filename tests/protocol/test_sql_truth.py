"""The verdicts of the table against what Postgres says is there afterwards: too much may be said, nothing missed."""

from collections.abc import Iterator
from typing import Final

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.pq import ExecStatus

from pooler.demo.postgres import EmbeddedPostgres
from protocol.sql import State, classify
from tests.protocol.test_sql_texts import HARMLESS_TEXTS, TEXTS

pytestmark = pytest.mark.skipif(not EmbeddedPostgres.available_versions(), reason="no Postgres")

TABLES: Final = "CREATE TABLE t (a int, b int); CREATE TABLE u (a int, b int); CREATE ROLE bob; CREATE SEQUENCE s"

# A transaction's own settings keep the source "session" when they have their defaults again.
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

AROUND: Final = (
    "{}",
    "BEGIN; {}; COMMIT",
    "BEGIN; {}",
    "({})",
    "/* ' */ {} -- ;",
    "SELECT $q$ ' $q$; {}",
    r"SELECT E'\''; {}",
    r"SELECT '\'; {}",
    "EXPLAIN ANALYZE {}",
    "EXPLAIN (ANALYZE, VERBOSE) {}",
    "PREPARE p AS {}; EXECUTE p",
    "WITH x AS (SELECT 1) {}",
    "CREATE TEMP TABLE v AS {}",
    "DECLARE c CURSOR WITH HOLD FOR {}",
    "SELECT * FROM ({}) AS v",
    "VALUES (({}))",
    "INSERT INTO t (a) SELECT 1 FROM ({}) AS v",
    "DO $do$ BEGIN {}; END $do$",
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(EmbeddedPostgres.available_versions()[-1]) as running:
        running.psql(TABLES)
        yield running


def assert_nothing_is_missed(postgres: EmbeddedPostgres, text: str) -> None:
    verdict = classify(text.encode())
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        result = session.pgconn.exec_(text.encode())
        accepted = result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY)
        session.pgconn.exec_(b"COMMIT" if accepted else b"ROLLBACK")

        found = State(sum(state for state, question in QUESTIONS.items() if session.execute(question).fetchall()))
        assert found in verdict.leaves or verdict.asks

        query = "SELECT 1 WHERE current_setting(%s, true) > ''"
        names = {name for name in CUSTOM if session.execute(query, (name,)).fetchall()}
        assert names <= {name.lower() for name in verdict.custom} or verdict.dynamic


@pytest.mark.parametrize("text", RUN.values(), ids=RUN)
def test_what_is_left_was_foreseen(text: str, postgres: EmbeddedPostgres) -> None:
    assert_nothing_is_missed(postgres, text)


@given(st.sampled_from([*RUN.values()]), st.sampled_from(AROUND), st.sampled_from(AROUND))
@settings(max_examples=200, deadline=None)
def test_what_is_left_by_a_text_inside_of_another_was_foreseen(
    postgres: EmbeddedPostgres, text: str, inner: str, outer: str
) -> None:
    assert_nothing_is_missed(postgres, outer.replace("{}", inner.replace("{}", text)))
