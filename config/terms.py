"""What holds for one pool: the settings, with what the entries of its database and its user say instead.

A user's entry goes before a database's, and that before the settings for all, as in PgBouncer. Two equal Terms mean
that a reload has changed nothing for the pool; two equal Endpoints, that its server connections may stay.
"""

from dataclasses import dataclass, field
from typing import Final, TypeVar

from pydantic import SecretStr

from config.databases import FALLBACK, Database, Directory, User
from config.percent import Percent
from config.pools import PoolMode
from config.settings import Settings

_T = TypeVar("_T")

_NOBODY: Final = User()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server connections of a pool lead, and how they are opened."""

    hosts: tuple[str, ...]
    """Names, addresses or directories of Unix sockets, in the order in which they were given; never empty."""
    port: int
    dbname: str
    """The database's name at Postgres."""
    user: str
    """Who logs in there."""
    password: SecretStr | None = field(default=None, repr=False)
    """The one of the database's entry; None: the user's own."""
    load_balance_hosts: str = "round-robin"
    target_session_attrs: str = "any"
    channel_binding: str = "prefer"
    connect_query: str = ""
    parameters: tuple[tuple[str, str], ...] = ()
    """Startup parameters."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for the pool of a user at a database. Sizes and limits are in connections, times in seconds."""

    database: str
    """As clients name it."""
    endpoint: Endpoint
    forced_user: bool
    pool_mode: PoolMode
    pool_size: int | Percent
    min_pool_size: int
    reserve_pool_size: int
    max_db_connections: int | Percent
    max_user_connections: int
    server_lifetime: float
    query_timeout: float
    query_wait_timeout: float
    idle_transaction_timeout: float
    transaction_timeout: float
    client_idle_timeout: float

    @property
    def user(self) -> str:
        """Who logs in at Postgres."""
        return self.endpoint.user


def entry_of(settings: Settings, directory: Directory, database: str) -> Database | None:
    """Return what is known of the database that a client asks for; None: it can't have it.

    The upstream is the entry for all that have none.
    """
    entry = directory.database(database)
    if entry is None and settings.upstream is not None:
        upstream = settings.upstream
        return Database.model_construct(
            host=upstream.hosts,
            port=upstream.port,
            load_balance_hosts=upstream.load_balance_hosts,
            target_session_attrs=upstream.target_session_attrs,
        )
    return entry


def is_automatic(directory: Directory, database: str) -> bool:
    """Tell whether a database has no entry of its own."""
    return database == FALLBACK or database not in directory.databases


def terms_for(settings: Settings, directory: Directory, database: str, user: str) -> Terms | None:
    """Return what holds for the pool that a client's `user` gets at `database`; None: there is no such database."""
    entry = entry_of(settings, directory, database)
    if entry is None:
        return None
    user = entry.user or user
    own = directory.users.get(user, _NOBODY)
    return Terms(
        database=database,
        endpoint=_endpoint(settings, entry, database, user),
        forced_user=entry.user is not None,
        pool_mode=_first(settings.pool_mode, own.pool_mode, entry.pool_mode),
        pool_size=_first(settings.default_pool_size, own.pool_size, entry.pool_size),
        min_pool_size=_first(settings.min_pool_size, entry.min_pool_size),
        reserve_pool_size=_first(settings.reserve_pool_size, own.reserve_pool_size, entry.reserve_pool_size),
        max_db_connections=_first(settings.max_db_connections, entry.max_db_connections),
        max_user_connections=_first(settings.max_user_connections, own.max_user_connections),
        server_lifetime=_first(settings.server_lifetime, entry.server_lifetime),
        query_timeout=_first(settings.query_timeout, own.query_timeout),
        query_wait_timeout=_first(settings.query_wait_timeout, own.query_wait_timeout, entry.query_wait_timeout),
        idle_transaction_timeout=_first(settings.idle_transaction_timeout, own.idle_transaction_timeout),
        transaction_timeout=_first(settings.transaction_timeout, own.transaction_timeout),
        client_idle_timeout=_first(settings.client_idle_timeout, own.client_idle_timeout),
    )


def limits_clients(settings: Settings, directory: Directory) -> bool:
    """Tell whether any database or user has a limit on its clients."""
    return bool(
        settings.max_db_client_connections
        or settings.max_user_client_connections
        or any(entry.max_db_client_connections for entry in directory.databases.values())
        or any(entry.max_user_client_connections for entry in directory.users.values())
    )


def most_clients_of_database(settings: Settings, directory: Directory, database: str) -> int:
    """Return how many clients a database may have; 0 = no limit."""
    entry = directory.database(database)
    return _first(settings.max_db_client_connections, entry.max_db_client_connections if entry else None)


def most_clients_of_user(settings: Settings, directory: Directory, user: str) -> int:
    """Return how many clients may be logged in as a user; 0 = no limit."""
    return _first(settings.max_user_client_connections, directory.users.get(user, _NOBODY).max_user_client_connections)


def _first(usual: _T, *special: _T | None) -> _T:
    """Return the first of what is special that is set, else what is usual."""
    return next((value for value in special if value is not None), usual)


def _endpoint(settings: Settings, entry: Database, database: str, user: str) -> Endpoint:
    hosts = entry.host or ((str(settings.unix_socket_dir),) if settings.unix_socket_dir is not None else ("localhost",))
    parameters = {
        "client_encoding": entry.client_encoding,
        "datestyle": entry.datestyle,
        "timezone": entry.timezone,
        "application_name": entry.application_name,
    }
    return Endpoint(
        hosts=hosts,
        port=entry.port,
        dbname=entry.dbname or database,
        user=user,
        password=entry.password if entry.user is not None else None,
        load_balance_hosts=entry.load_balance_hosts,
        target_session_attrs=entry.target_session_attrs,
        channel_binding=settings.upstream.channel_binding if settings.upstream is not None else "prefer",
        connect_query=entry.connect_query or "",
        parameters=tuple((name, value) for name, value in parameters.items() if value is not None),
    )
