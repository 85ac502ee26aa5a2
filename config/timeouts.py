"""The settings of time: how long things may take, and how long what is known of names holds."""

from typing import Final

from pydantic import BaseModel, Field

from config.fields import Boolean, File, Seconds, Text

EMPTY_QUERY: Final = "<empty>"
"""How an empty query is written where nothing means no query."""


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
        default=EMPTY_QUERY,
        description=f"Query that proves a server connection to work; {EMPTY_QUERY} for an empty query, and empty for "
        "no such proof.",
    )
    server_fast_close: Boolean = Field(
        default=False,
        description="Close a server connection that is to be replaced (RECONNECT, changed parameters or addresses) "
        "after the transaction also in session mode, and its client with it.",
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
    query_wait_notify: Seconds = Field(
        default=5.0,
        description="How long a client waits for a server connection until a notice tells it so; 0 for no notice.",
    )
    cancel_wait_timeout: Seconds = Field(
        default=10.0, description="How long a cancel request may wait to be sent to Postgres; 0 for ever."
    )
    client_idle_timeout: Seconds = Field(
        default=0.0,
        description="How long a client may be idle outside a transaction before it is disconnected; 0 for ever. As in "
        "PgBouncer, who keeps a server connection is not idle, as in session mode after the first query.",
    )
    idle_transaction_timeout: Seconds = Field(
        default=0.0,
        description="How long a client may be idle inside a transaction before it is disconnected; 0 for ever.",
    )
    transaction_timeout: Seconds = Field(
        default=0.0,
        description="How long a transaction may last before its client is disconnected; 0 for ever.",
    )


class Names(BaseModel):
    """How the names of hosts become addresses."""

    dns_max_ttl: Seconds = Field(
        default=15.0, description="How long the addresses of a name are used before it is looked up again."
    )
    dns_nxdomain_ttl: Seconds = Field(
        default=15.0, description="How long a name that was not found, or a failed lookup, is not looked up again."
    )
    dns_zone_check_period: Seconds = Field(
        default=0.0,
        description="How often zones (what comes after the first dot of names) are asked for their serial number; when "
        "it changes, their names are looked up again. 0 asks never.",
    )
    resolv_conf: File = Field(
        default=None, description="File in the form of resolv.conf to look names up by; empty for the system's."
    )
