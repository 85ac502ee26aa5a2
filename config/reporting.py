"""The settings of what the operator sees: the console, the metrics port and the log."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from config.fields import Address, Boolean, Count, File, Names, Period, Port, Seconds, Takes, Text

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
SyslogFacility = Annotated[
    Literal[
        "auth",
        "authpriv",
        "daemon",
        "user",
        "local0",
        "local1",
        "local2",
        "local3",
        "local4",
        "local5",
        "local6",
        "local7",
    ],
    Takes("FACILITY", "one of auth, authpriv, daemon, user, local0 to local7"),
]


class Console(BaseModel):
    """The console: the databases pgbouncer and pgfunnel, which are ours."""

    admin_users: Names = Field(default=(), description="Users who may do everything on the console.")
    stats_users: Names = Field(
        default=(), description="Users who may look at everything on the console (SHOW), with auth_type any everybody."
    )


class Metrics(BaseModel):
    """The HTTP port for /metrics, /healthz and /readyz."""

    metrics_addr: Address = Field(
        default="127.0.0.1", description="Address of the metrics port, 0.0.0.0 for all; empty for no such port."
    )
    metrics_port: Port = Field(default=9127, description="The metrics port. 0 takes any free one.")


class Logging(BaseModel):
    """What is logged, one line per event, and where: standard error, a file or syslog."""

    log_connections: Boolean = Field(default=True, description="Log logins.")
    log_disconnections: Boolean = Field(default=True, description="Log disconnections, with the reason.")
    log_pooler_errors: Boolean = Field(
        default=True, description="Log the errors that the pooler itself sends to clients."
    )
    log_format: LogFormat = Field(
        default="text", description="Lines of key=value pairs (text), or of one JSON object each."
    )
    log_level: LogLevel = Field(default="info", description="The least severe events to log.")
    verbose: Count = Field(default=0, description="How much more to log: with 1 and more, log_level is debug.")
    log_stats: Boolean = Field(default=True, description="Log a line of statistics every stats_period.")
    stats_period: Period = Field(
        default=60.0, description="Time over which the averages of the console and of log_stats are taken."
    )
    log_slow_wait: Seconds = Field(
        default=0.0,
        description="Log who waited longer than this for a server connection; 0 for nobody. PgBouncer has no such "
        "setting, nor the next two.",
    )
    log_slow_transaction: Seconds = Field(
        default=0.0,
        description="Log transactions that take longer than this, with the last query's text without constants; "
        "0 for none.",
    )
    log_slow_query: Seconds = Field(
        default=0.0,
        description="Log queries that take longer than this, their texts without constants; 0 for none.",
    )
    logfile: File = Field(
        default=None, description="File to log to, as well as to standard error. SIGHUP has it opened again."
    )
    syslog: Boolean = Field(default=False, description="Log to syslog, as well as to standard error.")
    syslog_ident: Text = Field(
        default="pgfunnel", description="Name of the program in syslog. PgBouncer's default is pgbouncer."
    )
    syslog_facility: SyslogFacility = Field(default="daemon", description="Facility of the lines in syslog.")
