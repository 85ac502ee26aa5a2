"""A Postgres and a pooler whose console shows what a test has brought about, column by column."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.console import Console, Shown
from tests.support.pgfunnel import Pgfunnel, eventually

EVERYBODY = {"postgres": "", "alice": "", "bob": ""}

StartShop = Callable[..., Pgfunnel]


def entry(postgres: EmbeddedPostgres, keys: str, host: str = "127.0.0.1", port: int = 0) -> str:
    return f'[databases.shop]\nhost = "{host}"\nport = {port or postgres.port}\ndbname = "postgres"\n{keys}\n'


@pytest.fixture
def shop(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> StartShop:
    """Let the test start a pgfunnel whose database shop has these keys, maybe at another `host` and `port`."""

    def start(
        keys: str = "", tables: str = "", *, host: str = "127.0.0.1", port: int = 0, **settings: object
    ) -> Pgfunnel:
        text = entry(postgres, keys, host, port) + tables
        return pgfunnel(toml=text, userlist=EVERYBODY, **{"admin_users": "postgres", **settings})

    return start


@pytest.fixture(scope="session")
def one_for_all(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(toml=entry(postgres, "pool_size = 1"), userlist=EVERYBODY, admin_users="postgres") as pooler:
        yield pooler


@pytest.fixture
def small(one_for_all: Pgfunnel) -> Iterator[Pgfunnel]:
    """Share a pgfunnel whose database shop has one connection, and leave it to the next test without clients."""
    yield one_for_all
    with Console(one_for_all) as console:
        eventually(lambda: not console.show("CLIENTS", database="shop") and len(console.show("SERVERS")) <= 1)


def taken(row: Shown, column: str) -> float:
    """Take a column of a time out of a row; return how many seconds ago it was."""
    text, zone = str(row.pop(column)).rsplit(" ", 1)
    moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    offset = time.localtime().tm_gmtoff
    assert zone == time.localtime().tm_zone
    return time.time() + offset - moment.timestamp()
