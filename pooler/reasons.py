"""Why connections end: one name for each reason, the same word in the log, the console and the metrics."""

from enum import StrEnum
from typing import Final, NamedTuple


class Reason(StrEnum):
    """What ended a connection, of a client (c) or of a server (s)."""

    __hash__ = str.__hash__  # each ending is counted, and Enum's own is a Python function

    CLIENT_QUIT = "client_quit"  # c: it sent a Terminate
    CLIENT_GONE = "client_gone"  # c: its connection broke or was closed without a Terminate
    CLIENT_VIOLATION = "client_protocol_violation"  # c
    LOGIN_FAILED = "login_failed"  # c: wrong password, unknown user, or a mechanism that was not offered
    AUTH_QUERY_FAILED = "auth_query_failed"  # c
    TLS_REQUIRED = "tls_required"  # c: it came without TLS, and that is not allowed
    TLS_FAILED = "tls_handshake_failed"  # c
    LOGIN_TIMEOUT = "client_login_timeout"  # c
    LOGIN_REFUSED = "login_refused"  # c: not what this pooler serves, e.g. a replication connection
    LOGIN_FLOOD = "login_flood"  # c: too many connections at once that have not said who they are
    TOO_MANY_CLIENTS = "max_client_conn"  # c
    NO_SUCH_DATABASE = "no_such_database"  # c
    DATABASE_DISABLED = "database_disabled"  # c: by DISABLE on the console
    DATABASE_REMOVED = "database_removed"  # c: by a reload
    KILLED = "killed"  # c and s: by KILL or KILL_CLIENT on the console
    SERVER_REFUSED = "server_login_failed"  # c and s: Postgres refused the login for good
    CANCELLED = "cancelled_while_waiting"  # c: in the middle of a request
    QUERY_WAIT_TIMEOUT = "query_wait_timeout"  # c
    CLIENT_IDLE_TIMEOUT = "client_idle_timeout"  # c
    IDLE_TRANSACTION_TIMEOUT = "idle_transaction_timeout"  # c
    TRANSACTION_TIMEOUT = "transaction_timeout"  # c
    QUERY_TIMEOUT = "query_timeout"  # c
    STATEMENT_MODE = "transaction_in_statement_mode"  # c
    MAX_PINNED = "max_pinned"  # c: it had to be pinned, and too many others are
    PINNED_IDLE_TIMEOUT = "pinned_idle_timeout"  # c
    SETTINGS_LOST = "settings_lost"  # c: Postgres did not take its settings on another server connection
    SERVER_LOST = "server_lost"  # c and s: the server closed the connection, or it broke
    SERVER_VIOLATION = "server_protocol_violation"  # c and s
    SHUTDOWN = "shutdown"  # c and s
    INTERNAL_ERROR = "internal_error"  # c: at the console, by a fault of pgfunnel's
    SERVER_CONNECT_FAILED = "server_connect_failed"  # s: refused, unreachable, or not now
    SERVER_CONNECT_TIMEOUT = "server_connect_timeout"  # s
    SERVER_TLS_FAILED = "server_tls_failed"  # s: there is no TLS, or not as it has to be
    SERVER_PASSWORD_FAILED = "server_password_failed"  # noqa: S105 - s: server_password_source has not given any
    SERVER_LIFETIME = "server_lifetime"  # s
    SERVER_IDLE_TIMEOUT = "server_idle_timeout"  # s
    POOL_IDLE_TIMEOUT = "pool_idle_timeout"  # s: no client has been in its pool for that long
    RECONNECT = "reconnect"  # c and s: by RECONNECT on the console, or a reload has changed where it leads
    PAUSED = "paused"  # s: by PAUSE or KILL on the console
    REPLICATION_OVER = "replication_over"  # s: it was for one client alone, which has gone
    ADDRESS_GONE = "address_gone"  # s: its host's name stands for other addresses now
    MISFIT = "target_session_attrs"  # s: its host is not, or not any more, what they want
    SERVER_CHECK_FAILED = "server_check_failed"  # s
    SERVER_RESET_FAILED = "server_reset_failed"  # s
    SERVER_UNCLEAN = "server_unclean"  # s: its client left it in a state that could not be undone
    LIBRARY_LOADED = "library_loaded"  # s: its client ran LOAD, which nothing undoes
    CANCEL_UNCONFIRMED = "cancel_unconfirmed"  # s: a cancel was sent to it, and Postgres did not say when it was done
    MADE_ROOM = "made_room"  # s: idle, and another pool needed the place under a shared limit


class Ending(NamedTuple):
    """How a connection is ended: the reason, and what its peer is told as an ErrorResponse, if anything."""

    reason: Reason
    sqlstate: str = ""
    message: str = ""
    detail: str = ""
    hint: str = ""
    why: str = ""
    """The reason for the log, where the peer is not told it."""


REPLACED: Final = Ending(
    Reason.RECONNECT,
    "57P01",
    "terminating connection: the connection to Postgres is to be replaced, as what it leads to has changed",
    hint="Connect again.",
)
CLIENT_QUIT: Final = Ending(Reason.CLIENT_QUIT)
CLIENT_GONE: Final = Ending(Reason.CLIENT_GONE)
