"""Every setting of pgfunnel: its name, default, meaning and unit, PgBouncer's wherever it has one.

What the settings do is the pooler's affair; where their values come from is config.load's.
"""

from typing import Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.fields import (
    Address,
    Addresses,
    Boolean,
    Count,
    Directory,
    File,
    KeepaliveCount,
    KeepaliveSeconds,
    Milliseconds,
    PacketSize,
    Port,
    PositiveCount,
    Seconds,
    SocketMode,
    Text,
    UpstreamUrl,
    Users,
)

PoolMode = Literal["session", "transaction", "statement"]
AuthType = Literal["trust", "plain", "md5", "scram-sha-256"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class Process(BaseModel):
    """Where pgfunnel listens, and which Postgres it stands in front of."""

    upstream: UpstreamUrl = Field(
        description="The Postgres behind the pooler, and the user who logs in there. The only setting that must be "
        "given. A Unix socket is postgresql:///dbname?host=/directory. Without a database in the URL, each client's "
        "own counts. PGPASSWORD and the like are not read."
    )
    listen_addr: Addresses = Field(
        ("127.0.0.1",), description="Addresses on which to listen for clients, * for all; empty for none."
    )
    listen_port: Port = Field(
        6432,
        description="Port on which to listen for clients; also part of the Unix socket's name. 0 takes any free one.",
    )
    unix_socket_dir: Directory = Field(
        None,
        validate_default=True,  # together with listen_addr
        description="Directory in which to listen on a Unix socket; empty for none. PgBouncer's default is /tmp.",
    )
    unix_socket_mode: SocketMode = Field(0o777, description="File mode of the Unix socket.")
    shutdown_timeout: Seconds = Field(
        0.0,
        description="How long SIGTERM waits for clients to finish their transactions before it closes them; 0 for as "
        "long as it takes.",
    )

    @field_validator("unix_socket_dir")
    @classmethod
    def _listen_somewhere(cls, directory: Directory, info: ValidationInfo) -> Directory:
        if directory is None and not info.data.get("listen_addr", True):
            raise ValueError("listen_addr is empty too, so nothing would be listened on")
        return directory


class Pools(BaseModel):
    """How many connections there may be, and how they are shared. A pool belongs to one user and one database."""

    pool_mode: PoolMode = Field(
        "transaction",
        description="When a server connection goes back to its pool: when the client disconnects (session), when its "
        "transaction ends (transaction), or after each statement, which refuses transactions (statement). "
        "PgBouncer's default is session.",
    )
    max_client_conn: PositiveCount = Field(
        10000,
        description="How many clients may be connected; further ones wait to be accepted. PgBouncer's default is 100.",
    )
    default_pool_size: Count = Field(
        64, description="Server connections per pool; 0 for no limit. PgBouncer's default is 20."
    )
    min_pool_size: Count = Field(
        0, description="Server connections that a pool in use keeps open even when idle."
    )
    reserve_pool_size: Count = Field(
        0,
        description="Server connections that a pool may have on top, once a client has waited reserve_pool_timeout.",
    )
    reserve_pool_timeout: Seconds = Field(
        5.0, description="How long a client waits before the reserve is used; 0 never uses it."
    )
    max_db_connections: Count = Field(
        0, description="Server connections per database, over all its pools; 0 for no limit."
    )
    max_user_connections: Count = Field(
        0, description="Server connections per user, over all their pools; 0 for no limit."
    )
    server_connect_concurrency: PositiveCount = Field(
        8,
        description="How many server connections a pool may be opening at the same time, so that a burst of clients "
        "is not a burst of logins at Postgres. Not a PgBouncer setting: it opens one at a time.",
    )
    server_round_robin: Boolean = Field(
        False,
        description="Use the server connection that has been idle longest instead of the one used last, which spreads "
        "the load evenly and keeps more of them busy.",
    )

    @field_validator("max_db_connections", "max_user_connections")
    @classmethod
    def _room_for_the_minimum(cls, limit: int, info: ValidationInfo) -> int:
        minimum = info.data.get("min_pool_size", 0)
        if limit and minimum > limit:
            raise ValueError(f"it leaves no room for min_pool_size {minimum}")
        return limit

    @field_validator("min_pool_size")
    @classmethod
    def _no_more_than_the_pool_holds(cls, minimum: int, info: ValidationInfo) -> int:
        size = info.data.get("default_pool_size", 0)
        if size and minimum > size:
            raise ValueError(f"it is more than default_pool_size {size}")
        return minimum


class Authentication(BaseModel):
    """Who may log in, and how they prove it."""

    auth_type: AuthType = Field(
        "scram-sha-256",
        description="How clients log in: trust asks for nothing, plain for the password itself, md5 and scram-sha-256 "
        "for a proof. PgBouncer's default is md5.",
    )
    auth_file: File = Field(
        None,
        description='File of users in the form of PgBouncer\'s userlist.txt: "user" "password" on each line, where '
        "the password may be an md5 or SCRAM-SHA-256 secret.",
    )
    users: Users = Field(
        default_factory=dict,
        description="Users and their passwords or secrets: the table [users] of the TOML file, elsewhere a JSON "
        "object. They come on top of those of auth_file; the upstream URL's own user and password come on top of both.",
    )
    scram_iterations: PositiveCount = Field(
        4096,
        description="Iterations of the SCRAM secrets made from plain passwords. Some drivers refuse less than 4096; "
        "more makes each login dearer.",
    )


class Health(BaseModel):
    """How long things may take, and how server connections are kept healthy."""

    server_reset_query: Text = Field(
        "DISCARD ALL",
        description="What a server connection runs before it goes to another client in session mode; empty for "
        "nothing.",
    )
    server_reset_query_always: Boolean = Field(
        False, description="Run server_reset_query in every pool mode."
    )
    server_check_delay: Seconds = Field(
        30.0,
        description="How long after its last use a server connection is lent without running server_check_query "
        "first; 0 always runs it.",
    )
    server_check_query: Text = Field(
        "", description="Query that proves a server connection alive; empty for an empty query."
    )
    server_lifetime: Seconds = Field(
        3600.0,
        description="Age at which a server connection is closed as soon as it is idle; 0 uses each only once.",
    )
    server_idle_timeout: Seconds = Field(
        600.0, description="How long a server connection may be idle before it is closed; 0 for ever."
    )
    server_connect_timeout: Seconds = Field(
        15.0, description="How long connecting and logging in to Postgres may take; 0 for ever."
    )
    server_login_retry: Seconds = Field(
        15.0, description="Longest pause between attempts to connect to a Postgres that fails."
    )
    client_login_timeout: Seconds = Field(
        60.0, description="How long a client may take to log in; 0 for ever."
    )
    query_timeout: Seconds = Field(
        0.0,
        description="How long a query may run before its client is disconnected; 0 for ever. Set it a little above "
        "Postgres's own statement_timeout, which can cancel just the query.",
    )
    query_wait_timeout: Seconds = Field(
        120.0, description="How long a client may wait for a server connection; 0 for ever."
    )
    cancel_wait_timeout: Seconds = Field(
        10.0, description="How long a cancel request may wait for a server connection; 0 for ever."
    )
    client_idle_timeout: Seconds = Field(
        0.0,
        description="How long a client may be idle outside a transaction before it is disconnected; 0 for ever.",
    )
    idle_transaction_timeout: Seconds = Field(
        0.0,
        description="How long a client may be idle inside a transaction before it is disconnected; 0 for ever.",
    )
    transaction_timeout: Seconds = Field(
        0.0, description="How long a transaction may last before its client is disconnected; 0 for ever."
    )


class Network(BaseModel):
    """Sockets and messages."""

    max_packet_size: PacketSize = Field(
        2147483647, description="Longest message taken from a client or from Postgres."
    )
    listen_backlog: PositiveCount = Field(
        4096,
        description="How many connections the system may hold until they are accepted. PgBouncer's default of 128 "
        "overflows when a thousand functions start at once; 4096 is what Linux allows at most unless "
        "net.core.somaxconn says otherwise.",
    )
    tcp_keepalive: Boolean = Field(True, description="Turn on TCP keepalive, so that dead peers are noticed.")
    tcp_keepcnt: KeepaliveCount = Field(
        0, description="Lost keepalive probes after which a peer is dead; 0 for the system's."
    )
    tcp_keepidle: KeepaliveSeconds = Field(
        0, description="Silence after which keepalive probes begin; 0 for the system's."
    )
    tcp_keepintvl: KeepaliveSeconds = Field(
        0, description="Time between keepalive probes; 0 for the system's."
    )
    tcp_user_timeout: Milliseconds = Field(
        0,
        description="How long sent data may stay unacknowledged before the connection is given up; 0 for the system's.",
    )


class Metrics(BaseModel):
    """The HTTP port with /metrics, /healthz and /readyz."""

    metrics_addr: Address = Field(
        "127.0.0.1", description="Address of the metrics port, * for all; empty turns the port off."
    )
    metrics_port: Port = Field(9127, description="The metrics port. 0 takes any free one.")


class Logging(BaseModel):
    """What is written to standard error, one line per event."""

    log_connections: Boolean = Field(True, description="Log each login.")
    log_disconnections: Boolean = Field(True, description="Log each disconnection, with its reason.")
    log_pooler_errors: Boolean = Field(
        True, description="Log each error that the pooler itself sends to a client."
    )
    log_format: LogFormat = Field("text", description="text writes key=value pairs, json an object per line.")
    log_level: LogLevel = Field("info", description="Least severe events to log.")


GROUPS: tuple[type[BaseModel], ...] = (Process, Pools, Authentication, Health, Network, Metrics, Logging)


class Settings(Process, Pools, Authentication, Health, Network, Metrics, Logging, BaseSettings):
    """All settings, validated and frozen."""

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
        """Take values as arguments only.

        config.load reads command line, environment and file itself: pydantic-settings' own sources stop at the first
        value they can't decode, pass over unknown variables, and forget which source a value came from.
        """
        return (init_settings,)
