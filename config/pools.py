"""The settings of the pools, and of the sessions that share them."""

from typing import Literal

from pydantic import BaseModel, Field

from config.fields import (
    Boolean,
    Count,
    MemorySize,
    Names,
    PositiveCount,
    Seconds,
    SessionState,
    SessionStateByName,
    Share,
    Text,
)
from config.percent import Connections
from config.session_state import DEFAULTS

PoolMode = Literal["session", "transaction", "statement"]


class Pools(BaseModel):
    """How many connections there may be, and how they are shared. Each pool is for one user and one database."""

    pool_mode: PoolMode = Field(
        default="transaction",
        description="When a server connection returns to its pool: after the client has disconnected (session), "
        "after each transaction, or after each statement, where transactions are refused. PgBouncer's default is "
        "session.",
    )
    max_client_conn: PositiveCount = Field(
        default=10000,
        description="How many clients may be connected; more wait to be accepted. PgBouncer's default is 100.",
    )
    default_pool_size: Connections = Field(
        default=64,
        description="Server connections of a pool; 0 for no limit. A share such as 90% is one of the connections that "
        "Postgres has for us (max_connections less the reserved ones), which the pools at that Postgres divide. "
        "PgBouncer's default is 20, and it takes no share.",
    )
    min_pool_size: Count = Field(
        default=0,
        description="Server connections that a pool keeps open while they are idle: one that has clients, or whose "
        "database has a forced user. No more than the pool's size.",
    )
    reserve_pool_size: Count = Field(
        default=0,
        description="Server connections that a pool may have on top once a client has waited reserve_pool_timeout.",
    )
    reserve_pool_timeout: Seconds = Field(
        default=5.0, description="How long a client waits before the reserve is used; 0 never uses it."
    )
    max_db_connections: Connections = Field(
        default=0,
        description="Server connections of a database, over all its pools; 0 for no limit. It may be a share such as "
        "90%, as in default_pool_size.",
    )
    max_db_client_connections: Count = Field(
        default=0,
        description="Clients of a database; 0 for no limit. More wait to be let in; PgBouncer refuses them.",
    )
    max_user_connections: Count = Field(
        default=0, description="Server connections of a user, over all their pools; 0 for no limit."
    )
    max_user_client_connections: Count = Field(
        default=0,
        description="Clients logged in as a user; 0 for no limit. More wait to be let in; PgBouncer refuses them.",
    )
    server_connect_concurrency: PositiveCount = Field(
        default=8,
        description="How many server connections a pool may be opening at the same time, so that a burst of "
        "clients is no burst of logins at Postgres. PgBouncer opens one at a time.",
    )
    server_round_robin: Boolean = Field(
        default=False,
        description="Lend the server connection that has been idle longest, not the one used last. It spreads load "
        "over more of them, and fewer become idle enough to be closed.",
    )
    autodb_idle_timeout: Seconds = Field(
        default=3600.0,
        description="How long a database that has no entry of its own may be unused before it is forgotten, with its "
        "pools and their statistics; 0 for ever.",
    )
    pool_idle_timeout: Seconds = Field(
        default=0.0,
        description="How long a pool may be without clients and server connections before it is forgotten, with its "
        "statistics; 0 for ever.",
    )


class Sessions(BaseModel):
    """What happens to state that clients leave in a session, in transaction and statement mode."""

    session_state: SessionState = Field(
        default_factory=lambda: dict(DEFAULTS),
        description="What happens to each class of session state. track: it follows its client to other server "
        "connections (setting, identity). pin: the client keeps its server connection until Postgres says that "
        "nothing is left. reject: the statement is refused before it runs. ignore: it stays with the server "
        "connection, as in PgBouncer. Classes that are not named keep their default. prepared is SQL's PREPARE only; "
        "what drivers prepare by the protocol is shared (max_prepared_statements).",
    )
    session_state_database: SessionStateByName = Field(
        default_factory=dict,
        description="session_state for databases by name, where it differs: the table [session_state_database] of "
        "the TOML file, elsewhere a JSON object.",
    )
    session_state_user: SessionStateByName = Field(
        default_factory=dict,
        description="session_state for users by name, in the same form. A class named here goes before the database's.",
    )
    max_prepared_statements: Count = Field(
        default=200,
        description="Prepared statements of the protocol that a server connection keeps for its clients; the least "
        "recently used one gives way. 0 passes them through, unchanged and unshared.",
    )
    max_statement_memory: MemorySize = Field(
        default=64 * 1024 * 1024,
        description="Bytes for the texts of prepared statements, kept once for all clients.",
    )
    max_pinned: Count = Field(
        default=0,
        description="Server connections of a pool that may be pinned; 0 for half of the pool's size, at least 1. "
        "What would pin another one is refused.",
    )
    pinned_idle_timeout: Seconds = Field(
        default=0.0,
        description="How long a pinned client may be idle outside a transaction before it is disconnected; 0 for ever.",
    )
    pin_audit: Share = Field(
        default=0.0,
        description="Share of transactions after which Postgres is asked what is left in the session, although no "
        "statement's text gave a reason. It finds state hidden in functions and triggers; 1 asks every time.",
    )
    track_extra_parameters: Names = Field(
        default=("IntervalStyle",),
        description="Parameters, beside those that PgBouncer always tracks, that follow their client to other server "
        "connections. Here session_state does so for every parameter, so that this matters where setting=ignore.",
    )
    ignore_startup_parameters: Names = Field(
        default=(),
        description="Parameters that clients may send at login, and that nothing comes of, unless they are among those "
        "always tracked; options stands for all that are in it.",
    )
    application_name_add_host: Boolean = Field(
        default=False, description="Add the client's address and port to the application_name that it logs in with."
    )
    disable_pqexec: Boolean = Field(
        default=False,
        description="Refuse the simple query protocol, in which one message may have several statements: what SQL "
        "injection often takes.",
    )
    login_notify_message: Text = Field(
        default="", description="Notice that each client gets after its login; empty for none."
    )
