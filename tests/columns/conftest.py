"""A Postgres and a pooler whose console shows what a test has brought about, column by column."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.console import Shown
from tests.support.pgfunnel import Pgfunnel

EVERYBODY = {"postgres": "", "alice": "", "bob": ""}

StartShop = Callable[..., Pgfunnel]


@pytest.fixture
def shop(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> StartShop:
    """Let the test start a pgfunnel whose database shop has these keys, maybe at another `host` and `port`."""

    def start(
        keys: str = "", tables: str = "", *, host: str = "127.0.0.1", port: int = 0, **settings: object
    ) -> Pgfunnel:
        place = f'host = "{host}"\nport = {port or postgres.port}\ndbname = "postgres"'
        entry = f"[databases.shop]\n{place}\n{keys}\n"
        return pgfunnel(toml=f"{entry}{tables}", userlist=EVERYBODY, **{"admin_users": "postgres", **settings})

    return start


def taken(row: Shown, column: str) -> float:
    """Take a column of a time out of a row; return how many seconds ago it was."""
    text, zone = str(row.pop(column)).rsplit(" ", 1)
    moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    offset = time.localtime().tm_gmtoff
    assert zone == time.localtime().tm_zone
    return time.time() + offset - moment.timestamp()
