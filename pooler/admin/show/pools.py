"""SHOW POOLS, PEER_POOLS and QUEUE: who has a server connection, and who waits for one."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from pooler.admin.office import Office
from pooler.admin.results import Row, columns
from pooler.admin.show.sockets import server_state
from pooler.admin.show.table import Table, microseconds
from pooler.client import ClientSession
from pooler.entrance.login import ClientLogin
from pooler.pool import Queued
from pooler.upstream.opening import ServerPool
from protocol.console import Kind

_TEXT, _INT4 = Kind.TEXT, Kind.INT4

CONSOLE: Final = "pgbouncer"
"""The database of the console, and the user whose its pool is, as PgBouncer shows them."""

_POOLS: Final = columns(
    database=_TEXT,
    user=_TEXT,
    cl_active=_INT4,
    cl_waiting=_INT4,
    cl_active_cancel_req=_INT4,
    cl_waiting_cancel_req=_INT4,
    sv_active=_INT4,
    sv_active_cancel=_INT4,
    sv_being_canceled=_INT4,
    sv_idle=_INT4,
    sv_used=_INT4,
    sv_tested=_INT4,
    sv_login=_INT4,
    maxwait=_INT4,
    maxwait_us=_INT4,
    pool_mode=_TEXT,
    load_balance_hosts=_TEXT,
)
_PEER_POOLS: Final = columns(
    peer_id=_INT4, cl_active_cancel_req=_INT4, cl_waiting_cancel_req=_INT4, sv_active_cancel=_INT4, sv_login=_INT4
)
_QUEUE: Final = columns(
    database=_TEXT,
    user=_TEXT,
    waits_for=_TEXT,
    ahead=_INT4,
    wait=_INT4,
    wait_us=_INT4,
    client=_INT4,
    addr=_TEXT,
    application_name=_TEXT,
    servers=_INT4,
    pool_size=_INT4,
)


def _pools(office: Office) -> Iterator[Row]:
    clients = Counter(client.pool for client in (*office.clients.values(), *office.passages))
    newcomers = Counter(login.pool for login in office.lobby.proving if login.proven)
    cancels = office.canceller.under_way
    for pool in sorted(office.pools, key=lambda pool: (pool.database, pool.user)):
        waiting = sum(isinstance(client, ClientSession) for client in pool.waiters)
        sent = Counter(sent for server, sent in cancels.items() if server.pool is pool)
        stale = frozenset(pool.stale)
        states = Counter(server_state(server, stale) for server in pool.servers)
        terms = office.pools.terms_of(pool)
        yield (
            pool.database,
            pool.user,
            clients[pool] - waiting,
            waiting + newcomers[pool],
            sent[True],
            sent[False],
            states["active"] + pool.aside,
            sent[True],
            states["being_canceled"],
            states["idle"],
            states["used"],
            states["tested"],
            pool.opening,
            *microseconds(max(0.0, office.now() - pool.waiting_since)),
            pool.mode,
            terms.endpoint.load_balance_hosts if len(terms.endpoint.hosts) > 1 else None,
        )
    yield (CONSOLE, CONSOLE, len(office.consoles), *(0,) * 12, "statement", None)


def _peer_pools(office: Office) -> Iterator[Row]:
    for peer_id, pool in office.peers.pools.items():
        yield (peer_id, pool.sent, pool.waiting + pool.connecting, pool.sent, pool.connecting)


def _queue(office: Office) -> Iterator[Row]:
    now = office.now()
    for ahead, login in enumerate(list(office.lobby.queue)):
        obstacle = office.lobby.obstacle(login.startup)
        yield (
            login.startup.database,
            login.startup.user,
            obstacle.setting if obstacle is not None else "place",
            ahead,
            *microseconds(now - login.since),
            *_who(login),
            None,
            None,
        )
    for pool in office.pools:
        queue = sorted((*pool.newcomers, *pool.waiters), key=lambda queued: queued.waiting_since)
        for ahead, queued in enumerate(queue):
            yield (
                pool.database,
                pool.user,
                _what(pool, queued),
                ahead,
                *microseconds(now - queued.waiting_since),
                *_who(queued),
                len(pool.servers),
                pool.size,
            )


def _what(pool: ServerPool, queued: Queued) -> str:
    if pool.paused:
        return "RESUME"
    return "server" if isinstance(queued, ClientSession) else "login"


def _who(queued: Queued) -> Row:
    if isinstance(queued, (ClientSession, ClientLogin)):
        startup = queued.login if isinstance(queued, ClientSession) else queued.startup
        peer = queued.transport.get_extra_info("peername")
        addr = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"
        return (queued.id, addr, startup.parameters.get("application_name", ""))
    return (None, None, None)  # startup parameters that are tried on for several clients


TABLES: Final = {
    "pools": Table(
        "Pools, with what their clients and servers do, and how long the first client has waited",
        _POOLS,
        lambda office: list(_pools(office)),  # at once: of a pool that is forgotten meanwhile nothing is known
    ),
    "peer_pools": Table("Cancel requests on their way to other processes", _PEER_POOLS, _peer_pools),
    "queue": Table("Who waits: for which pool, for how long, behind how many", _QUEUE, _queue),
}
