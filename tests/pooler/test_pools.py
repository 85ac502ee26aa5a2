"""Opening connections for pools: what a failed attempt means for those who wait."""

import asyncio
import io
from itertools import count
from math import inf

import pytest
from pydantic import SecretStr

from config.password_source import FromEnvironment
from config.settings import Settings
from pooler.credentials.sourced import SourcedPasswords
from pooler.credentials.vault import Vault
from pooler.databases import Databases
from pooler.figures.tally import Tally
from pooler.log import make_log
from pooler.pool import Cap
from pooler.pools import Pools
from pooler.server import ServerSession
from pooler.session_state.ledger import Ledger
from pooler.upstream.connect import Login, LoginRefusedError
from pooler.upstream.hosts import Hosts
from pooler.upstream.opening import ServerPool
from pooler.upstream.resolver import Resolver
from pooler.upstream.shares import READ_AGAIN_S
from protocol.messages import AUTHENTICATION_CLEARTEXT, READY_IDLE, TERMINATE, ErrorFields, fatal, message
from tests.pooler.house import House, query, wire
from tests.support.configuration import current
from tests.support.scripted_upstream import GREETING, Peer, Script, scripted_upstream
from tests.support.transport import MockTransport


def pools_with(vault: Vault, port: int = 5432, limit: int = 0, house: House | None = None, size: str = "64") -> Pools:
    settings = Settings.model_validate(
        {
            "upstream": f"postgresql://alice@127.0.0.1:{port}/shop",
            "max_db_connections": limit,
            "max_user_connections": limit,
            "default_pool_size": size,
        }
    )
    log = make_log("text", "info", io.StringIO())
    house = house or House()
    in_force = current(settings)
    return Pools(
        in_force,
        Databases(in_force, house.now),
        vault,
        None,
        Hosts(in_force, Resolver(in_force, house.now, log), house.now, log),
        lambda _: house.server_duties,
        count(1).__next__,
        Tally(),
        log,
        house.library,
        Ledger(house.now, log),
        house.now,
    )


def pool_of(pools: Pools) -> ServerPool:
    pool = pools.get("alice", "shop")
    assert pool is not None
    return pool


async def log_in(pools: Pools) -> Login:
    return await pools.logins.log_in(pools.place_of(pool_of(pools)))


@pytest.fixture
async def pools() -> Pools:
    return pools_with(Vault({}))


async def test_a_connection_that_breaks_right_after_its_login_is_not_lent(pools: Pools) -> None:
    pool = pool_of(pools)
    house = House()
    house.pool = pool
    client = house.client()
    pool.waiters[client] = None
    client.pending, client.waiting = query(), True
    pool.opening = 1
    broken = MockTransport()
    broken.close()
    pools.openings.opened(pool, Login(broken, b"key 1234", {}))
    assert not pool.servers
    assert pool.opening == 0
    assert list(pool.waiters) == [client], "it goes on waiting"
    assert pool.retry_at, "for the next attempt"
    assert not wire(client).closing
    assert pools.openings.upstream.failing_since


async def test_the_connection_that_has_proven_a_password_serves_who_waits(pools: Pools) -> None:
    transport = MockTransport()
    pools.adopt("alice", "shop", Login(transport, b"key 1234", {"TimeZone": "UTC"}))
    pool = pool_of(pools)
    assert len(pool.servers) == len(pool.idle) == 1
    assert pool.opening == 0
    assert b"TimeZone" in pool.welcome
    assert not transport.closing


@pytest.mark.parametrize("why", ["the pool is full", "the database's limit is reached", "pgfunnel is shutting down"])
async def test_it_is_closed_where_there_is_no_room(pools: Pools, why: str) -> None:
    pool = pool_of(pools)
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
    pools.openings.hopeful = lambda user, database: somebody_tries and (user, database) == ("alice", "shop")
    pool = pool_of(pools)
    house = House()
    house.pool = pool
    client = house.client()
    pool.waiters[client] = None
    client.pending, client.waiting = query(), True
    pool.opening = 1
    pools.openings._refused(pool, ErrorFields("FATAL", "28P01", "password authentication failed"))
    assert (client in pool.waiters) is somebody_tries
    pools.adopt("alice", "shop", Login(MockTransport(), b"key 1234", {}))
    assert (client.server is not None) is somebody_tries


class Tokens:
    """A source that has another answer each time."""

    keeps_s = inf

    def __init__(self) -> None:
        self.given = 0

    async def ask(self, user: str) -> str:
        self.given += 1
        return f"token {self.given}"


def asking(heard: list[bytes], right: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(AUTHENTICATION_CLEARTEXT)
        heard.append(await peer.message())
        peer.say(GREETING if heard[-1] == right else fatal("28P01", "password authentication failed"))
        await peer.until_gone()

    return script


@pytest.mark.parametrize("right", [b"token 2\0", b"none of them"])
async def test_a_source_is_asked_once_more_before_anybody_is_failed(right: bytes) -> None:
    heard: list[bytes] = []
    vault = Vault({}, SourcedPasswords(FromEnvironment("DB_PASSWORD"), Tokens(), "alice", lambda: 0.0))
    async with scripted_upstream(asking(heard, right)) as upstream:
        pools = pools_with(vault, upstream.port)
        if right == b"token 2\0":
            (await log_in(pools)).transport.close()
        else:
            with pytest.raises(LoginRefusedError, match="password authentication failed"):
                await log_in(pools)
    assert heard == [b"token 1\0", b"token 2\0"]


async def test_what_is_refused_before_a_password_is_asked_for_is_not_tried_with_another() -> None:
    tokens = Tokens()
    vault = Vault({}, SourcedPasswords(FromEnvironment("DB_PASSWORD"), tokens, "alice", lambda: 0.0))

    async def script(peer: Peer) -> None:
        await peer.turn_away("28000", "no pg_hba.conf entry")

    async with scripted_upstream(script) as upstream:
        with pytest.raises(LoginRefusedError, match=r"no pg_hba\.conf entry"):
            await log_in(pools_with(vault, upstream.port))
    assert tokens.given == 1


async def test_names_of_databases_that_there_are_not_leave_nothing_behind() -> None:
    pools = pools_with(Vault({}), limit=1)
    for number in range(3):
        pool = pools.get("alice", f"made up {number}")
        assert pool is not None
        assert pool.take_place()
        pools.openings._refused(pool, ErrorFields("FATAL", "3D000", "it does not exist"))
    assert not list(pools)
    assert not list(pools.caps)
    await pools.close()


async def test_a_database_is_not_forgotten_while_a_connection_is_being_opened() -> None:
    house = House()
    pools = pools_with(Vault({}), house=house)
    pool = pools.get("alice", "made up")
    assert pool is not None
    assert pool.take_place()
    for _ in range(2):
        pools.sweep(lambda _: False, house.time)
        house.time += 3600.0
    pools.openings.opened(pool, Login(MockTransport(), b"key 1234", {}))
    assert len(pool.servers) == 1
    await pools.close()


async def test_a_server_that_is_used_is_asked_again_what_it_has() -> None:
    figures = iter((b"20", b"40"))
    asked = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(GREETING)
        assert b"max_connections" in await peer.message()
        peer.say(message(b"D", b"\0\1\0\0\0\2" + next(figures)), READY_IDLE)
        await peer.until_gone()
        asked.release()

    house = House()
    async with scripted_upstream(script) as upstream:
        pools = pools_with(Vault({}), upstream.port, house=house, size="50%")
        pool = pool_of(pools)
        (await log_in(pools)).transport.close()
        await asked.acquire()
        assert pool.size == 10
        pool.stats.done = pool.stats.done._replace(transactions=1)
        pools.sweep(lambda _: True, house.time)
        house.time += READ_AGAIN_S
        pools.sweep(lambda _: True, house.time)
        await asked.acquire()
        assert pool.size == 20


async def test_a_knock_says_whether_postgres_answers_and_leaves() -> None:
    async with scripted_upstream(asking([], b"hush\0")) as upstream:
        for secret in ("hush", "wrong"):
            pools = pools_with(Vault({"alice": SecretStr(secret)}), upstream.port)
            await pools.knock()
            assert pools.openings.upstream.answered_at is not None
            assert not list(pools)
    await pools.knock()
    assert pools.openings.upstream.failing_since is not None
