"""Every setting of pgfunnel: its name, default, meaning and unit, PgBouncer's wherever it has one.

What the settings do is the pooler's affair; where their values come from is config.load's.
"""

from typing import Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.authentication import Authentication
from config.fields import (
    Address,
    Addresses,
    Boolean,
    Count,
    Directory,
    KeepaliveCount,
    KeepaliveSeconds,
    MemorySize,
    Milliseconds,
    PacketSize,
    Port,
    PositiveCount,
    Seconds,
    SessionState,
    SessionStateByName,
    Share,
    SocketMode,
    Text,
    UpstreamUrl,
)
from config.password_source import FromRdsIam, PasswordSource, ServerPasswordSource
from config.session_state import DEFAULTS
from config.tls import ClientTls, ServerTls

PoolMode = Literal["session", "transaction", "statement"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class Process(BaseModel):
    """Where pgfunnel listens, and which Postgres it stands in front of."""

    upstream: UpstreamUrl = Field(
        description="The Postgres behind the pooler, and the user who logs in there: the only setting that must be "
        "given. A Unix socket is postgresql:///dbname?host=/directory. Clients may ask for other databases "
        "than the URL's. PGPASSWORD and the like are not read. Of libpq's options it takes host, port, sslmode, "
        "sslrootcert, sslcert, sslkey and sslnegotiation, which stand for the settings server_tls_*, and "
        "channel_binding.",
    )
    server_password_source: ServerPasswordSource = Field(
        default=None,
        description="Where the password for Postgres comes from, instead of the upstream URL: env:NAME; file:/path, "
        "its first line, read at each login; command:PROGRAM ARGUMENT..., the first line of what it writes, run "
        "without a shell, for 10 seconds at most; aws-secretsmanager:NAME or ARN, and #KEY for an entry of a JSON "
        "object other than password; aws-rds-iam or aws-rds-iam:REGION, tokens that are signed here, renewed before "
        "they expire, and sent over TLS only. It is the password of the URL's user; if the URL names none, of every "
        "user who has no secret in users or auth_file. It is asked again when Postgres has refused its answer. The "
        "last two take the extra pgfunnel[aws]. Clients do not log in with it: give them secrets of their own, or an "
        "auth_type that needs none.",
    )
    listen_addr: Addresses = Field(
        default=("127.0.0.1",),
        description="Addresses on which to listen for clients, * for all; empty for none.",
    )
    listen_port: Port = Field(
        default=6432,
        description="Port on which to listen for clients, and part of the Unix socket's name. 0 takes any free one.",
    )
    unix_socket_dir: Directory = Field(
        default=None,
        validate_default=True,  # together with listen_addr
        description="Directory in which to listen on a Unix socket; empty for no socket. PgBouncer's default is /tmp.",
    )
    unix_socket_mode: SocketMode = Field(default=0o777, description="File mode of the Unix socket.")
    shutdown_timeout: Seconds = Field(
        default=0.0,
        description="How long SIGTERM lets clients finish their transactions before it closes them; 0 for as long "
        "as they take. PgBouncer has no such limit.",
    )

    @field_validator("server_password_source")
    @classmethod
    def _no_other_password(cls, source: PasswordSource | None, info: ValidationInfo) -> PasswordSource | None:
        upstream, mode = info.data.get("upstream"), info.data.get("server_tls_sslmode")
        if source is not None and upstream is not None and upstream.password is not None:
            raise ValueError("is given, and the upstream URL has a password: leave out one of them")
        if isinstance(source, FromRdsIam) and mode in ("disable", "allow", "prefer"):
            raise ValueError(f"is aws-rds-iam, and server_tls_sslmode is {mode}: RDS takes TLS (best verify-full)")
        return source

    @field_validator("unix_socket_dir")
    @classmethod
    def _listen_somewhere(cls, directory: Directory, info: ValidationInfo) -> Directory:
        if directory is None and not info.data.get("listen_addr", True):
            raise ValueError("is empty, and so is listen_addr: there would be nothing to listen on")
        return directory


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
    default_pool_size: Count = Field(
        default=64, description="Server connections of a pool; 0 for no limit. PgBouncer's default is 20."
    )
    min_pool_size: Count = Field(
        default=0, description="Server connections that a pool in use keeps open while they are idle."
    )
    reserve_pool_size: Count = Field(
        default=0,
        description="Server connections that a pool may have on top once a client has waited reserve_pool_timeout.",
    )
    reserve_pool_timeout: Seconds = Field(
        default=5.0, description="How long a client waits before the reserve is used; 0 never uses it."
    )
    max_db_connections: Count = Field(
        default=0, description="Server connections of a database, over all its pools; 0 for no limit."
    )
    max_user_connections: Count = Field(
        default=0, description="Server connections of a user, over all their pools; 0 for no limit."
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

    @field_validator("min_pool_size")
    @classmethod
    def _no_more_than_a_pool_holds(cls, minimum: int, info: ValidationInfo) -> int:
        size = info.data.get("default_pool_size", 0)
        if size and minimum > size:
            raise ValueError(f"is more than default_pool_size {size}")
        return minimum

    @field_validator("max_db_connections", "max_user_connections")
    @classmethod
    def _room_for_the_minimum(cls, limit: int, info: ValidationInfo) -> int:
        minimum = info.data.get("min_pool_size", 0)
        if limit and minimum > limit:
            raise ValueError(f"leaves no room for min_pool_size {minimum}")
        return limit


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


class Timeouts(BaseModel):
    """How long things may take, and how server connections are kept healthy."""

    server_reset_query: Text = Field(
        default="DISCARD ALL",
        description="What a server connection runs in session mode before another client gets it; empty for nothing.",
    )
    server_reset_query_always: Boolean = Field(
        default=False, description="Run server_reset_query in the other pool modes too."
    )
    server_check_delay: Seconds = Field(
        default=30.0,
        description="How long an idle server connection is trusted to work. After that it runs server_check_query "
        "before it is lent; 0 checks it every time.",
    )
    server_check_query: Text = Field(
        default="", description="Query that proves a server connection to work; empty for an empty query."
    )
    server_lifetime: Seconds = Field(
        default=3600.0,
        description="Age at which a server connection is closed as soon as it is idle; 0 uses each only once.",
    )
    server_idle_timeout: Seconds = Field(
        default=600.0, description="How long a server connection may be idle before it is closed; 0 for ever."
    )
    server_connect_timeout: Seconds = Field(
        default=15.0, description="How long connecting and logging in to Postgres may take; 0 for ever."
    )
    server_login_retry: Seconds = Field(
        default=15.0, description="Longest pause between two attempts at a Postgres that does not let us in."
    )
    client_login_timeout: Seconds = Field(default=60.0, description="How long a client may take to log in; 0 for ever.")
    query_timeout: Seconds = Field(
        default=0.0,
        description="How long a query may run before its client is disconnected; 0 for ever. Best a little more "
        "than Postgres's statement_timeout, which only ends the query.",
    )
    query_wait_timeout: Seconds = Field(
        default=120.0,
        description="How long a client may wait for a server connection before it is disconnected; 0 for ever.",
    )
    cancel_wait_timeout: Seconds = Field(
        default=10.0, description="How long a cancel request may wait to be sent to Postgres; 0 for ever."
    )
    client_idle_timeout: Seconds = Field(
        default=0.0,
        description="How long a client may be idle outside a transaction before it is disconnected; 0 for ever.",
    )
    idle_transaction_timeout: Seconds = Field(
        default=0.0,
        description="How long a client may be idle inside a transaction before it is disconnected; 0 for ever.",
    )
    transaction_timeout: Seconds = Field(
        default=0.0,
        description="How long a transaction may last before its client is disconnected; 0 for ever.",
    )


class Network(BaseModel):
    """Sockets and messages."""

    max_packet_size: PacketSize = Field(
        default=2147483647, description="Longest message taken from a client or from Postgres."
    )
    listen_backlog: PositiveCount = Field(
        default=4096,
        description="How many connections the system holds until they are accepted. PgBouncer's default of 128 "
        "overflows when a thousand functions start at once; more than 4096 takes a higher net.core.somaxconn.",
    )
    tcp_keepalive: Boolean = Field(default=True, description="Probe silent TCP connections for dead peers.")
    tcp_keepcnt: KeepaliveCount = Field(
        default=0, description="Unanswered probes after which a peer is dead; 0 for the system's number."
    )
    tcp_keepidle: KeepaliveSeconds = Field(
        default=0, description="Silence after which probes begin; 0 for the system's time."
    )
    tcp_keepintvl: KeepaliveSeconds = Field(default=0, description="Time between two probes; 0 for the system's time.")
    tcp_user_timeout: Milliseconds = Field(
        default=0,
        description="How long sent data may go unacknowledged before the connection is given up; 0 for the "
        "system's time.",
    )


class Metrics(BaseModel):
    """The HTTP port for /metrics, /healthz and /readyz."""

    metrics_addr: Address = Field(
        default="127.0.0.1", description="Address of the metrics port, 0.0.0.0 for all; empty for no such port."
    )
    metrics_port: Port = Field(default=9127, description="The metrics port. 0 takes any free one.")


class Logging(BaseModel):
    """What goes to standard error, one line per event."""

    log_connections: Boolean = Field(default=True, description="Log logins.")
    log_disconnections: Boolean = Field(default=True, description="Log disconnections, with the reason.")
    log_pooler_errors: Boolean = Field(
        default=True, description="Log the errors that the pooler itself sends to clients."
    )
    log_format: LogFormat = Field(
        default="text", description="Lines of key=value pairs (text), or of one JSON object each."
    )
    log_level: LogLevel = Field(default="info", description="The least severe events to log.")


GROUPS: tuple[type[BaseModel], ...] = (
    Process,
    Pools,
    Sessions,
    Authentication,
    ClientTls,
    ServerTls,
    Timeouts,
    Network,
    Metrics,
    Logging,
)


class Settings(
    Process, Pools, Sessions, Authentication, ClientTls, ServerTls, Timeouts, Network, Metrics, Logging, BaseSettings
):
    """All settings, validated and frozen. One made by hand has its arguments and the defaults, nothing else."""

    model_config = SettingsConfigDict(
        env_prefix="PGFUNNEL_", frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the sources to config.load.

        pydantic-settings' own stop at the first value they can't decode, pass over unknown variables, and forget
        which source a value came from; our messages need all three.
        """
        return (init_settings,)
