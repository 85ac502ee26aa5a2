"""Opening connections for pools: what a failed attempt means for those who wait."""

import io
from itertools import count

import pytest

from config.settings import Settings
from pooler.connect import Login
from pooler.credentials.vault import Vault
from pooler.ledger import Ledger
from pooler.log import make_log
from pooler.pools import Pools
from pooler.tally import Tally
from tests.pooler.house import House, query, wire
from tests.support.transport import MockTransport


@pytest.fixture
async def pools() -> Pools:
    settings = Settings(upstream="postgresql://alice@localhost/shop")
    log = make_log("text", "info", io.StringIO())
    house = House()
    return Pools(
        settings,
        Vault({}),
        None,
        house.server_duties,
        count(1).__next__,
        Tally(),
        log,
        house.library,
        Ledger(house.now, log),
    )


async def test_a_connection_that_breaks_right_after_its_login_is_not_lent(pools: Pools) -> None:
    pool = pools.get("alice", "shop")
    house = House()
    house.pool = pool
    client = house.client()
    pool.waiters[client] = None
    client.pending, client.waiting = query(), True
    pool.opening = 1
    broken = MockTransport()
    broken.close()
    pools._opened(pool, Login(broken, b"key 1234", {}))
    assert not pool.servers
    assert pool.opening == 0
    assert list(pool.waiters) == [client], "it goes on waiting"
    assert pool.retry_at, "for the next attempt"
    assert not wire(client).closing
    assert pools.upstream.failing_since
