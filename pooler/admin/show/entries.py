"""SHOW DATABASES, USERS, PEERS and CONFIG: what the configuration says, and how much of it is used. No secrets."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from config.percent import Percent
from config.shown import shown
from config.terms import most_clients_of_user, terms_for
from pooler.admin.office import Office
from pooler.admin.results import Row, columns
from pooler.admin.show.pools import CONSOLE
from pooler.admin.show.table import Table
from protocol.console import Kind

_TEXT, _INT4 = Kind.TEXT, Kind.INT4

_DATABASES: Final = columns(
    name=_TEXT,
    host=_TEXT,
    port=_INT4,
    database=_TEXT,
    force_user=_TEXT,
    pool_size=_INT4,
    min_pool_size=_INT4,
    reserve_pool_size=_INT4,
    server_lifetime=_INT4,
    pool_mode=_TEXT,
    load_balance_hosts=_TEXT,
    max_connections=_INT4,
    current_connections=_INT4,
    max_client_connections=_INT4,
    current_client_connections=_INT4,
    paused=_INT4,
    disabled=_INT4,
)
_USERS: Final = columns(
    name=_TEXT,
    pool_size=_TEXT,
    reserve_pool_size=_TEXT,
    pool_mode=_TEXT,
    max_user_connections=_INT4,
    current_connections=_INT4,
    max_user_client_connections=_INT4,
    current_client_connections=_INT4,
)
_PEERS: Final = columns(peer_id=_INT4, host=_TEXT, port=_INT4, pool_size=_INT4)
_CONFIG: Final = columns(key=_TEXT, value=_TEXT, default=_TEXT, changeable=_TEXT)

_ANYBODY: Final = ""
"""Stands for a client's user where only the database counts."""


def _databases(office: Office) -> Iterator[Row]:
    settings, directory = office.current.settings, office.current.directory
    for database in sorted(office.databases, key=lambda database: database.name):
        terms = terms_for(settings, directory, database.name, _ANYBODY)
        if terms is None:
            continue
        endpoint = terms.endpoint
        entry = directory.database(database.name)
        several = len(endpoint.hosts) > 1
        pools = office.pools.of_database(database.name)
        yield (
            database.name,
            ",".join(endpoint.hosts),
            endpoint.port,
            endpoint.dbname,
            endpoint.user if terms.forced_user else None,
            _size(terms.pool_size, [pool.size for pool in pools]),
            terms.min_pool_size,
            terms.reserve_pool_size,
            round(terms.server_lifetime),
            entry.pool_mode if entry is not None else None,
            endpoint.load_balance_hosts if several else None,
            _size(terms.max_db_connections, [database.cap.limit]),
            sum(len(pool.servers) + pool.opening + pool.aside for pool in pools),
            office.databases.most_clients(database.name),
            office.lobby.of_database[database.name],
            int(database.paused),
            int(database.disabled),
        )
    port, own = settings.listen_port, (CONSOLE, CONSOLE)
    yield (CONSOLE, None, port, *own, 2, 0, 0, 0, "statement", None, 0, 0, 0, len(office.consoles), 0, 0)


def _size(size: int | Percent, known: list[int]) -> int:
    """Return a number of connections; of a share, what it comes to at the moment."""
    return max(known, default=0) if isinstance(size, Percent) else size


def _users(office: Office) -> Iterator[Row]:
    settings, directory = office.current.settings, office.current.directory
    servers: Counter[str] = Counter()
    for pool in office.pools:
        servers[pool.user] += len(pool.servers) + pool.opening + pool.aside
    clients = Counter(client.login.user for client in (*office.clients.values(), *office.passages))
    clients.update(session.login.user for session in office.consoles)
    for name in sorted({*office.current.access.users, *directory.users, *servers, *clients}):
        own = directory.users.get(name)
        limit = own.max_user_connections if own is not None else None
        yield (
            name,
            _override(own.pool_size if own is not None else None),
            _override(own.reserve_pool_size if own is not None else None),
            own.pool_mode if own is not None else None,
            settings.max_user_connections if limit is None else limit,
            servers[name],
            most_clients_of_user(settings, directory, name),
            clients[name],
        )


def _override(size: int | Percent | None) -> str | None:
    return None if size is None else str(size)


def _peers(office: Office) -> Iterator[Row]:
    usual = office.current.settings.default_pool_size
    for peer_id, peer in office.current.directory.peers.items():
        size = usual if peer.pool_size is None else peer.pool_size
        yield (peer_id, peer.host, peer.port, size if isinstance(size, int) else 0)


def _config(office: Office) -> Iterator[Row]:
    for key, value, default, changeable in shown(office.current.loaded):
        yield (key, value, default, "yes" if changeable else "no")


TABLES: Final = {
    "databases": Table("Databases: where they are, their limits, and how much of them is used", _DATABASES, _databases),
    "users": Table("Users, their limits, and how much of them is used", _USERS, _users),
    "peers": Table("Other processes, to which cancel requests are passed on", _PEERS, _peers),
    "config": Table("All settings; changeable tells whether SET and RELOAD can", _CONFIG, _config),
}
