"""The settings of the process: which Postgres stands behind it, as whom it runs, and where it listens."""

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from config.fields import (
    Addresses,
    Boolean,
    File,
    PeerId,
    Port,
    PositiveCount,
    Seconds,
    SocketDirectory,
    SocketMode,
    Text,
    UpstreamUrl,
)
from config.password_source import FromRdsIam, PasswordSource, ServerPasswordSource


class Process(BaseModel):
    """Which Postgres pgfunnel stands in front of, and how it runs on its machine."""

    upstream: UpstreamUrl = Field(
        default=None,
        description="The Postgres behind the pooler, and the user who logs in there. It takes this or [databases], "
        "whose entries go before it. A Unix socket is postgresql:///dbname?host=/directory; several hosts are "
        "postgresql://a:5432,b:5432/dbname. Clients may ask for other databases than the URL's. PGPASSWORD and the "
        "like are not read. Of libpq's options it takes host, port, load_balance_hosts, target_session_attrs, "
        "channel_binding, and sslmode, sslrootcert, sslcert, sslkey and sslnegotiation, which stand for the settings "
        "server_tls_*.",
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
    user: Text = Field(
        default="",
        description="System user to become after the start, when started as root; empty to stay who it is.",
    )
    pidfile: File = Field(
        default=None, description="File that has the process's number in it while it runs; -d takes one."
    )
    conffile: File = Field(
        default=None,
        description="File that the next RELOAD or SIGHUP reads instead of the one that was named at the start.",
    )
    peer_id: PeerId = Field(
        default=0,
        description="Number of this process among those in [peers], so that cancel requests find the process they are "
        "for; 0 for no peers.",
    )
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
        if isinstance(source, FromRdsIam) and upstream is None and "upstream" in info.data:
            raise ValueError("is aws-rds-iam, which signs its tokens for the host of the upstream URL: give one")
        if isinstance(source, FromRdsIam) and upstream is not None and upstream.others:
            raise ValueError(
                "is aws-rds-iam, which signs its tokens for one host, and the upstream URL has several: give it the "
                "endpoint of the cluster"
            )
        if isinstance(source, FromRdsIam) and mode in ("disable", "allow", "prefer"):
            raise ValueError(f"is aws-rds-iam, and server_tls_sslmode is {mode}: RDS takes TLS (best verify-full)")
        return source


class Listening(BaseModel):
    """Where clients connect to."""

    listen_addr: Addresses = Field(
        default=("127.0.0.1",),
        description="Addresses on which to listen for clients, * for all; empty for none.",
    )
    listen_port: Port = Field(
        default=6432,
        description="Port on which to listen for clients, and part of the Unix socket's name. 0 takes any free one.",
    )
    unix_socket_dir: SocketDirectory = Field(
        default=None,
        validate_default=True,  # together with listen_addr
        description="Directory in which to listen on a Unix socket, or @ and a name for one of the abstract namespace; "
        "empty for no socket. PgBouncer's default is /tmp.",
    )
    unix_socket_mode: SocketMode = Field(default=0o777, description="File mode of the Unix socket.")
    unix_socket_group: Text = Field(
        default="", description="System group that the Unix socket belongs to; empty for the process's own."
    )
    listen_backlog: PositiveCount = Field(
        default=4096,
        description="How many connections the system holds until they are accepted. PgBouncer's default of 128 "
        "overflows when a thousand functions start at once; more than 4096 takes a higher net.core.somaxconn.",
    )
    so_reuseport: Boolean = Field(
        default=False,
        description="Let several processes listen on the same port. The system shares new clients out among them, and "
        "a new process can take over from an old one. peer_id and [peers] keep cancel requests working.",
    )

    @field_validator("unix_socket_dir")
    @classmethod
    def _listen_somewhere(cls, directory: SocketDirectory, info: ValidationInfo) -> SocketDirectory:
        if directory is None and not info.data.get("listen_addr", True):
            raise ValueError("is empty, and so is listen_addr: there would be nothing to listen on")
        return directory
