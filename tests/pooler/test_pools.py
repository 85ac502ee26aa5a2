"""Opening connections for pools: what a failed attempt means for those who wait."""

import io
from itertools import count

import pytest

from config.settings import Settings
from pooler.connect import Login
from pooler.credentials.vault import Vault
from pooler.ledger import Ledger
from pooler.log import make_log
from pooler.pool import Cap
from pooler.pools import Pools
from pooler.server import ServerSession
from pooler.tally import Tally
from protocol.messages import TERMINATE, ErrorFields
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


async def test_the_connection_that_has_proven_a_password_serves_who_waits(pools: Pools) -> None:
    transport = MockTransport()
    pools.adopt("alice", "shop", Login(transport, b"key 1234", {"TimeZone": "UTC"}))
    pool = pools.get("alice", "shop")
    assert len(pool.servers) == len(pool.idle) == 1
    assert pool.opening == 0
    assert b"TimeZone" in pool.welcome
    assert not transport.closing


@pytest.mark.parametrize("why", ["the pool is full", "the database's limit is reached", "pgfunnel is shutting down"])
async def test_it_is_closed_where_there_is_no_room(pools: Pools, why: str) -> None:
    pool = pools.get("alice", "shop")
    transport = MockTransport()
    if why == "the pool is full":
        pool.opening = pool.size
    elif why == "pgfunnel is shutting down":
        await pools.close()
    else:
        cap: Cap[ServerSession] = Cap(1)
        cap.count = 1
        pool.caps = (cap,)
    opening = pool.opening
    pools.adopt("alice", "shop", Login(transport, b"key 1234", {}))
    assert transport.closing
    assert transport.sent == TERMINATE
    assert (pool.servers, pool.opening) == (set(), opening)


@pytest.mark.parametrize("somebody_tries", [True, False])
async def test_who_waits_goes_on_while_another_password_is_being_tried(pools: Pools, somebody_tries: bool) -> None:
    pools.hopeful = lambda user, database: somebody_tries and (user, database) == ("alice", "shop")
    pool = pools.get("alice", "shop")
    house = House()
    house.pool = pool
    client = house.client()
    pool.waiters[client] = None
    client.pending, client.waiting = query(), True
    pool.opening = 1
    pools._refused(pool, ErrorFields("FATAL", "28P01", "password authentication failed"))
    assert (client in pool.waiters) is somebody_tries
    pools.adopt("alice", "shop", Login(MockTransport(), b"key 1234", {}))
    assert (client.server is not None) is somebody_tries
