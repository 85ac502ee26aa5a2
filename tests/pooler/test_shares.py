"""Shares: what they come to, as servers grow and shrink and pools come and go."""

import io
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.databases import Database, Directory
from config.percent import Percent
from config.settings import Settings
from config.terms import Terms, terms_for
from pooler.log import make_log
from pooler.pool import Pool
from pooler.server import ServerSession
from pooler.upstream.connect import Login, Target, log_in
from pooler.upstream.dial import ConnectFailedError
from pooler.upstream.shares import READ_AGAIN_S, Capacity, ServerPool, Shares
from protocol.messages import READY_IDLE, message
from tests.pooler.test_pool import Client, Server
from tests.support.scripted_upstream import GREETING, Peer, ScriptedUpstream, scripted_upstream


class Town:
    """Pools of databases on the servers of their entries, whose max_connections tests set, and a clock."""

    def __init__(self, **entries: Database) -> None:
        self.settings = Settings(upstream="postgresql://alice@localhost", default_pool_size=50)
        self.time = 1000.0
        self.terms: dict[ServerPool, Terms] = {}
        log = make_log("text", "info", io.StringIO())
        self.shares = Shares(self.terms.__getitem__, lambda: self.time, log)
        self.change(**entries)

    def change(self, **entries: Database) -> None:
        self.directory = Directory(databases=entries)
        self.shares.apply(self.settings, self.directory)
        for pool in self.terms:
            self.measure(pool)

    def pool(self, database: str) -> ServerPool:
        pool: Pool[Server] = Pool("alice", database, lambda _: None, size=0, concurrency=1000)
        self.terms[cast("ServerPool", pool)] = self._terms(database)
        self.measure(cast("ServerPool", pool))
        return cast("ServerPool", pool)

    def _terms(self, database: str) -> Terms:
        terms = terms_for(self.settings, self.directory, database, "alice")
        assert terms is not None
        return terms

    def measure(self, pool: ServerPool) -> None:
        terms = self.terms[pool] = self._terms(pool.database)
        pool.size = self.shares.count(terms.pool_size, terms)
        self.shares.join(pool, terms)

    def learn(self, max_connections: int, reserved: int = 0, host: str = "db") -> None:
        """As if a login had told."""
        server = self.shares._server(host, 5432)
        server.capacity = Capacity(host, 5432, max_connections, reserved)
        server.read_at = self.time
        for pool in server.cap.pools:
            self.measure(pool)
        self.shares.enforce()


def entry(size: int | Percent | None = None, host: str = "db") -> Database:
    return Database(host=(host,), pool_size=size)


def open_servers(pool: ServerPool, count: int, *, idle: bool = False) -> int:
    """Let clients want as many; return how many servers were opened for them."""
    before = len(pool.servers)
    for _ in range(count):
        pool.wait(cast("ServerSession", Client(gives_back_to=pool if idle else None)), 0.0)  # type: ignore[arg-type]
    while pool.opening:
        pool.opened(cast("ServerSession", Server(pool)), b"", 0.0)  # type: ignore[arg-type]
    return len(pool.servers) - before


def staying(*pools: ServerPool) -> int:
    return sum(not server.retired for pool in pools for server in pool.servers)


def test_one_connection_is_opened_until_it_is_known_what_there_is() -> None:
    town = Town(shop=entry(Percent(90)))
    pool = town.pool("shop")
    assert open_servers(pool, 30) == 1
    town.learn(100, 3)
    assert pool.size == 87
    assert open_servers(pool, 0) == 29


def test_without_shares_nothing_is_bounded_and_nothing_asked() -> None:
    town = Town(shop=entry(70))
    assert not town.shares.used
    assert open_servers(town.pool("shop"), 90) == 70


def test_a_share_is_rounded_down_and_never_less_than_one() -> None:
    town = Town(shop=entry(Percent(50)), tiny=entry(Percent(1)))
    shop, tiny = town.pool("shop"), town.pool("tiny")
    town.learn(20, 3)
    assert (shop.size, tiny.size) == (8, 1)


def test_pools_that_were_made_before_there_were_shares_count_from_the_reload_on() -> None:
    town = Town(shop=entry(40), other=entry(40))
    shop, other = town.pool("shop"), town.pool("other")
    assert open_servers(shop, 40) == 40
    town.change(shop=entry(40), other=entry(Percent(50)))
    town.learn(100)
    assert open_servers(other, 40) == 10
    town.change(shop=entry(40), other=entry(40))
    assert open_servers(other, 0) == 0
    other.grow(0.0)
    assert open_servers(other, 0) == 30, "the bound has gone with the share"


def test_a_connection_that_replicates_counts_where_its_pool_leads_to() -> None:
    town = Town(shop=entry(Percent(10)))
    pool = town.pool("shop")
    town.learn(20)
    assert pool.take_aside()
    (cap,) = pool.caps
    town.change(shop=entry(2))
    assert cap.count == 0
    town.change(shop=entry(Percent(10)))
    assert cap.count == 1
    pool.give_back_aside(0.0)
    assert cap.count == 0


def test_servers_do_not_share_with_each_other() -> None:
    town = Town(shop=entry(Percent(50)), other=entry(Percent(50), host="elsewhere"))
    shop, other = town.pool("shop"), town.pool("other")
    town.learn(20)
    town.learn(40, host="elsewhere")
    assert (open_servers(shop, 50), open_servers(other, 50)) == (10, 20)
    assert [capacity.available for capacity in town.shares.capacities()] == [20, 40]


def test_of_several_hosts_the_smallest_counts() -> None:
    town = Town(shop=entry(Percent(50)), all=Database(host=("db", "elsewhere"), pool_size=Percent(50)))
    pool = town.pool("all")
    town.learn(40)
    assert pool.size == 20
    town.learn(10, host="elsewhere")
    assert pool.size == 5


def test_when_a_server_shrinks_connections_are_given_back_idle_ones_first() -> None:
    town = Town(shop=entry(Percent(100)), other=entry(Percent(100)))
    shop, other = town.pool("shop"), town.pool("other")
    town.learn(20)
    open_servers(shop, 12)
    open_servers(other, 8, idle=True)
    town.learn(10)
    assert staying(shop, other) == 10
    town.learn(10)
    assert staying(shop, other) == 10, "what is on its way out is not counted twice"


def test_when_a_server_grows_who_waits_is_served() -> None:
    town = Town(shop=entry(Percent(100)))
    pool = town.pool("shop")
    town.learn(10)
    open_servers(pool, 25)
    assert len(pool.waiters) == 15
    town.learn(30)
    open_servers(pool, 0)
    assert not pool.waiters


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("open"), st.sampled_from("abc"), st.integers(1, 15)),
            st.tuples(st.just("idle"), st.sampled_from("abc"), st.integers(1, 15)),
            st.tuples(st.just("learn"), st.just("a"), st.integers(1, 40)),
        ),
        max_size=30,
    )
)
def test_all_pools_of_a_server_stay_within_it(events: list[tuple[str, str, int]]) -> None:
    town = Town(a=entry(Percent(100)), b=entry(Percent(40)), c=entry(7))
    pools = {name: town.pool(name) for name in "abc"}
    for what, name, number in events:
        if what == "learn":
            town.learn(number)
        else:
            open_servers(pools[name], number, idle=what == "idle")
            town.shares.enforce()  # as in each round of the janitor
        available = town.shares._server("db", 5432).capacity.available or 1
        assert staying(*pools.values()) <= available


def test_a_server_is_asked_again_while_it_is_used_and_not_while_it_sleeps() -> None:
    town = Town(shop=entry(Percent(90)))
    pool = town.pool("shop")
    town.learn(100)
    assert not list(town.shares.due())
    open_servers(pool, 1)
    for transactions, asked in ((0, []), (1, [pool]), (1, []), (2, [pool])):
        town.time += READ_AGAIN_S
        pool.stats.done = pool.stats.done._replace(transactions=transactions)
        assert list(town.shares.due()) == asked
        assert not list(town.shares.due()), "one at a time"


# --- the question


def row(*values: str) -> bytes:
    columns = b"".join(len(value).to_bytes(4, "big") + value.encode() for value in values)
    return message(b"D", len(values).to_bytes(2, "big") + columns)


async def read(shares: Shares, *answer: bytes) -> list[ServerPool]:
    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(GREETING)
        assert b"max_connections" in await peer.message()
        peer.say(*answer, READY_IDLE)
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        login = await _log_in(upstream)
        try:
            return await shares.read(login._replace(peer=login.peer._replace(host="db", port=5432)), 5)
        finally:
            login.transport.abort()


async def _log_in(upstream: ScriptedUpstream) -> Login:
    return await log_in(Target(upstream.host, upstream.port, "alice", "shop"), {}, 5)


async def test_a_new_connection_is_asked_what_its_server_has() -> None:
    town = Town(shop=entry(Percent(50)))
    pool = town.pool("shop")
    assert await read(town.shares, row("100", "3", "7")) == [pool]
    assert list(town.shares.capacities()) == [Capacity("db", 5432, 100, 10)]
    assert await read(town.shares, row("100", "3", "7")) == [], "nothing has changed"


@pytest.mark.parametrize("answer", [b"", row("many"), message(b"E", b"SERROR\0C42704\0Mno such setting\0\0")])
async def test_a_server_that_does_not_say_what_it_has_is_not_used(answer: bytes) -> None:
    with pytest.raises(ConnectFailedError):
        await read(Town(shop=entry(Percent(50))).shares, answer)
