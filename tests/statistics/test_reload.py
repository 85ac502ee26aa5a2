"""What a reload changes: the thresholds of slow lines at once; and no counter, though a pool gives way to another."""

import signal
from pathlib import Path

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import eventually


def test_counters_outlive_the_pool(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), toml='pool_mode = "transaction"\n', default_pool_size=5)
    with pooler.login() as client:
        for _ in range(3):
            client.query("SELECT 1")
        Path(str(pooler.settings["config"])).write_text('pool_mode = "session"\n')
        pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=reloaded")
        client.query("SELECT 1")
        with pooler.login() as another:
            another.query("SELECT 1")
            assert pooler.metric("pgfunnel_pool_size") == 10
            client.terminate()
            eventually(lambda: pooler.metric("pgfunnel_pool_size") == 5)
            assert pooler.metric("pgfunnel_transactions_total") == 5
            assert pooler.metric("pgfunnel_transaction_seconds_count") == 5
            assert pooler.metric("pgfunnel_client_logins_total") == 2


def test_what_is_slow_may_change_while_clients_are_there(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), toml="log_slow_query = 0\n")
    with pooler.login() as client:
        client.query("SELECT pg_sleep(0.15)")
        Path(str(pooler.settings["config"])).write_text("log_slow_query = 0.1\n")
        pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=reloaded")
        client.query("SELECT pg_sleep(0.15), 1")
    pooler.wait_for_log("event=slow_query")
    assert [line.split("query=")[1] for line in pooler.log if "event=slow" in line] == ['"SELECT pg_sleep(?), ?"']
