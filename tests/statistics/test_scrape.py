"""What it costs to be watched: /metrics once a second, with as many clients as a pooler is there for."""

import resource
import time
from contextlib import ExitStack
from typing import Any, Final

import psutil
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.pgfunnel import Pgfunnel

CLIENTS: Final = 5000
POOLS: Final = 20
SECONDS: Final = 10
BOUND: Final = 0.02
"""Of one core."""


def cpu_seconds(pooler: Pgfunnel) -> float:
    times = psutil.Process(pooler.process.pid).cpu_times()
    return float(times.user + times.system)


def cpu_of(pooler: Pgfunnel, *, scraped: bool) -> float:
    """CPU that it takes in ten seconds, scraped in each of them or left alone."""
    before = cpu_seconds(pooler)
    begun = time.monotonic()
    for second in range(SECONDS):
        if scraped:
            assert pooler.http("/metrics")[0] == 200
        time.sleep(max(0.0, begun + second + 1 - time.monotonic()))
    return cpu_seconds(pooler) - before


@pytest.mark.slow
def test_scraping_each_second_takes_little_of_a_core(own_postgres: EmbeddedPostgres) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    users = {f"user{number}": "" for number in range(POOLS)}
    own_postgres.psql(";".join(f"CREATE ROLE {user} LOGIN" for user in users))
    quiet: dict[str, Any] = {"log_connections": 0, "log_disconnections": 0, "server_idle_timeout": 1}
    try:
        with (
            Pgfunnel(own_postgres.url(), userlist=users, max_client_conn=CLIENTS, **quiet) as pooler,
            ExitStack() as open_,
        ):
            for number in range(CLIENTS):
                client = open_.enter_context(pooler.login(f"user{number % POOLS}"))
                if number < POOLS * 2:
                    client.query("SELECT 1")
            alone = cpu_of(pooler, scraped=False)
            scraped = cpu_of(pooler, scraped=True)
            print(
                f"{alone / SECONDS:.2%} alone, {scraped / SECONDS:.2%} scraped, {len(pooler.http('/metrics')[1])} bytes"
            )
            assert pooler.metric("pgfunnel_clients") == CLIENTS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (scraped - alone) / SECONDS < BOUND
