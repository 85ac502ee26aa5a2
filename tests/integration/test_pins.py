"""Pins as the clients of a small pool meet them."""

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import eventually
from tests.support.wire import query

UNDONE_AT_ONCE = {
    "a cursor WITH HOLD": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "FETCH 1 FROM c", "CLOSE c"),
    "LISTEN": ("LISTEN jobs", "UNLISTEN jobs"),
}


@pytest.mark.parametrize("texts", UNDONE_AT_ONCE.values(), ids=UNDONE_AT_ONCE)
def test_clients_that_undo_what_pins_them_are_not_in_each_others_way(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, texts: tuple[str, ...]
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=3)  # so that one at a time may be pinned
    clients = [pooler.login() for _ in range(4)]
    for turn in range(60):
        for text in texts:
            answer = clients[turn % 4].query(text)
            assert answer[-2].kind == "C", answer
    for client in clients:
        client.terminate()


def test_nothing_runs_without_the_role_of_its_client(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    postgres.psql("CREATE ROLE short_lived")
    pooler = pgfunnel(postgres.url(), default_pool_size=1)
    with pooler.login() as wire, pooler.login() as other:
        wire.query("SET ROLE short_lived")
        for _ in range(2):
            assert other.value("SELECT current_user") == "postgres"
            assert wire.value("ROLLBACK; SELECT current_user") == "short_lived"
        postgres.psql("DROP ROLE short_lived")
        assert other.value("SELECT current_user") == "postgres"
        wire.send(query("ROLLBACK; CREATE TABLE made_by_nobody ()"))
        with pytest.raises(EOFError):
            wire.read_until()
        assert other.value("SELECT to_regclass('made_by_nobody') IS NULL") == "t"


def test_what_is_rejected_and_has_come_about_all_the_same_is_nobody_elses(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=2, session_state="advisory_lock=reject")
    with pooler.login() as wire, pooler.login() as other:
        assert wire.query("SELECT pg_advisory_lock(1)")[0].kind == "E"
        wire.query("DO $$ BEGIN PERFORM pg_advisory_lock(4712); END $$")
        assert other.value("DO $$ BEGIN END $$; SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "1"
        wire.terminate()
        eventually(lambda: other.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0")
