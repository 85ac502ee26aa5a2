"""Shares: pools that may have, say, 90% of the connections that their server has for us.

How many that are is read from the server at logins, and again while its pools are used. All pools on a server stay
within the largest share among them, by a Cap whose limit changes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from config.databases import Directory
from config.hosts import host_and_port
from config.percent import Percent
from config.settings import Settings
from config.terms import Terms
from pooler.log import Log
from pooler.pool import Cap, Pool
from pooler.reasons import Reason
from pooler.server import ServerSession
from pooler.upstream.ask import ask
from pooler.upstream.connect import Login
from pooler.upstream.dial import ConnectFailedError

READ_AGAIN_S: Final = 30.0
"""How often a server that is used is asked again: one that is serverless resizes."""

_QUESTION: Final = (
    "SELECT pg_catalog.current_setting('max_connections'),"
    " pg_catalog.current_setting('superuser_reserved_connections'),"
    " coalesce(pg_catalog.current_setting('reserved_connections', true), '0')"
)

ServerPool = Pool[ServerSession]


class Capacity(NamedTuple):
    """What a server has."""

    host: str
    port: int
    max_connections: int
    """0 = not read yet."""
    reserved: int
    """Those that only superusers, or members of pg_use_reserved_connections, get."""

    @property
    def available(self) -> int:
        """How many there are for us."""
        return max(0, self.max_connections - self.reserved)


class _Server:
    """One server, by the name that entries give it."""

    __slots__ = ("cap", "capacity", "looked_at", "read_at", "transactions")

    def __init__(self, host: str, port: int) -> None:
        self.capacity = Capacity(host, port, 0, 0)
        self.cap: Cap[ServerSession] = Cap(1)
        self.read_at = self.looked_at = float("-inf")
        """When it was asked last, and when it was last considered to ask it again."""
        self.transactions = 0
        """How many its pools had had then."""


class Shares:
    """What shares come to. One for all pools."""

    def __init__(self, terms_of: Callable[[ServerPool], Terms], now: Callable[[], float], log: Log) -> None:
        self._terms_of = terms_of
        self._now = now
        self._log = log
        self._servers: dict[tuple[str, int], _Server] = {}
        self.used = False
        """There are any."""

    def apply(self, settings: Settings, directory: Directory) -> None:
        """Find out whether there are shares. What a share has to do with is asked for as soon as there is one."""
        sizes = [settings.default_pool_size, settings.max_db_connections]
        for database in directory.databases.values():
            sizes += [size for size in (database.pool_size, database.max_db_connections) if size is not None]
        sizes += [user.pool_size for user in directory.users.values() if user.pool_size is not None]
        self.used = any(isinstance(size, Percent) for size in sizes)

    def join(self, pool: ServerPool, terms: Terms) -> None:
        """Have a pool stay within the caps of the servers that it leads to, and of no others."""
        shared = {server.cap for server in self._servers.values()}
        before = {cap for cap in pool.caps if cap in shared}
        after = {server.cap for server in self._servers_of(terms)} if self.used else set()
        count = len(pool.servers) + pool.opening + pool.aside
        for cap in before - after:
            cap.pools.remove(pool)
            cap.count -= count
        for cap in after - before:
            cap.pools.append(pool)
            cap.count += count
        pool.caps = (*(cap for cap in pool.caps if cap not in shared), *after)
        for server in self._servers.values():
            if server.cap in before | after:
                self._limit(server)

    def count(self, size: int | Percent, terms: Terms) -> int:
        """Return how many connections `size` comes to: 1 until it is known, and the least where there are several."""
        if not isinstance(size, Percent):
            return size
        known = [server.capacity for server in self._servers_of(terms) if server.capacity.max_connections]
        return max(1, min((int(each.available * size.value / 100) for each in known), default=1))

    async def read(self, login: Login, timeout_s: float) -> list[ServerPool]:
        """Ask the server of a new connection what it has; return the pools that may have changed for it.

        Raises ConnectFailedError.
        """
        server = self._server(login.peer.host, login.peer.port)
        rows = await ask(login, _QUESTION, timeout_s)
        server.read_at = self._now()
        figures = [int(value) for row in rows for value in row if value.isdecimal()]
        if not figures:
            raise ConnectFailedError(Reason.SERVER_VIOLATION, f"{login.peer} does not say what its max_connections is")
        most, *reserved = figures
        before = server.capacity
        server.capacity = before._replace(max_connections=most, reserved=sum(reserved))
        if server.capacity == before:
            return []
        self._log.info(
            "server_capacity",
            host=before.host,
            port=before.port,
            max_connections=most,
            reserved=server.capacity.reserved,
            before=before.max_connections or None,
        )
        return list(server.cap.pools)

    def enforce(self) -> None:
        """Let those that wait have what there is more, and take back what there is less."""
        now = self._now()
        for server in self._servers.values():
            cap = server.cap
            self._limit(server)
            excess = sum(_stay(pool) + pool.opening + pool.aside for pool in cap.pools) - cap.limit
            for _ in range(excess if cap.limit else 0):
                max(cap.pools, key=_stay).give_up_one()
            for pool in cap.starving():
                pool.grow(now)

    def due(self) -> Iterator[ServerPool]:
        """Yield a pool of each server that is to be asked again."""
        now = self._now()
        for server in self._servers.values():
            pools = server.cap.pools
            if not pools or now - max(server.read_at, server.looked_at) < READ_AGAIN_S:
                continue
            before, server.transactions = server.transactions, sum(pool.stats.totals.xact_count for pool in pools)
            server.looked_at = now
            if server.transactions != before:  # one that nobody uses is left to sleep
                yield max(pools, key=lambda pool: len(pool.servers))

    @property
    def caps(self) -> "list[Cap[ServerSession]]":
        """The limits of the servers."""
        return [server.cap for server in self._servers.values()]

    def capacities(self) -> Iterable[Capacity]:
        """Return what is known of servers that pools have shares of."""
        return [
            server.capacity for server in self._servers.values() if server.cap.limit and server.capacity.max_connections
        ]

    def _limit(self, server: _Server) -> None:
        limit = 0
        for pool in server.cap.pools:
            terms = self._terms_of(pool)
            for size in (terms.pool_size, terms.max_db_connections):
                if isinstance(size, Percent):
                    limit = max(limit, int(server.capacity.available * size.value / 100), 1)
        server.cap.limit = limit

    def _servers_of(self, terms: Terms) -> list[_Server]:
        endpoint = terms.endpoint
        return [self._server(*host_and_port(host, endpoint.port)) for host in endpoint.hosts]

    def _server(self, host: str, port: int) -> _Server:
        return self._servers.setdefault((host, port), _Server(host, port))


def _stay(pool: ServerPool) -> int:
    return sum(not server.retired for server in pool.servers)
