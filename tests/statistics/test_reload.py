"""A reload that gives a pool another mode makes another pool of it: what the old one has counted stays."""

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
