"""The question that tells what a session has that is not the server's default, and the reading of its answer.

One query over the catalogs, prepared once per connection, for it is asked outside of transactions and often. Names are
qualified and operators, too: the session's search_path is its client's to choose.
Source: PostgreSQL documentation, "System Catalogs" and "System Views".
"""

import binascii
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from protocol.errors import ServerViolation
from protocol.kinds import DATA_ROW
from protocol.messages import SYNC, message, messages_in, query, text_of
from protocol.parameters import ROLE, SESSION_USER
from protocol.sql import State

TIMEOUT: Final = "statement_timeout"
NAME: Final = b"pgfunnel_question"
"""What the question is prepared under."""

_int16 = struct.Struct("!H")
_int32 = struct.Struct("!i")

_THREE_COLUMNS: Final = _int16.pack(3)
_STATES: Final = {
    "listen": State.LISTEN,
    "prepared": State.PREPARED,
    "cursor": State.CURSOR,
    "advisory_lock": State.ADVISORY_LOCK,
    "temporary": State.TEMPORARY,
}

# Names and values come in hexadecimal digits, which read the same in each client_encoding.
_HEX: Final = (
    "SELECT s.k, pg_catalog.encode(pg_catalog.convert_to(s.n, pg_catalog.getdatabaseencoding()), 'hex'),"
    " pg_catalog.encode(pg_catalog.convert_to(s.v, pg_catalog.getdatabaseencoding()), 'hex') FROM ({rows}) AS s"
)
_SELECT: Final = r"""
SELECT 'setting' AS k, name AS n, setting AS v FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'
 AND name OPERATOR(pg_catalog.<>) ALL ('{transaction_isolation,transaction_read_only,transaction_deferrable}')
UNION ALL SELECT 'setting', n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest($1::pg_catalog.text[]) AS n
 WHERE pg_catalog.current_setting(n, true) IS NOT NULL
UNION ALL SELECT 'setting', 'role', pg_catalog.current_setting('role')
 WHERE pg_catalog.current_setting('role') OPERATOR(pg_catalog.<>) 'none'
UNION ALL SELECT 'user', 'session_authorization', session_user::pg_catalog.text
UNION ALL SELECT 'listen', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_listening_channels())
UNION ALL SELECT 'prepared', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)
UNION ALL SELECT 'cursor', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)
UNION ALL SELECT 'advisory_lock', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_locks
 WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())
UNION ALL SELECT 'temporary', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_depend
 WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
 AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())
"""
_SQL: Final = _HEX.format(rows=" ".join(_SELECT.split()))
_ASIDE: Final = (
    "SELECT 'setting' AS k, 'role' AS n, pg_catalog.current_setting('role') AS v"
    " UNION ALL SELECT 'user', 'session_authorization', session_user::pg_catalog.text"
    " UNION ALL SELECT 'timeout', 'statement_timeout', (pg_catalog.date_part('epoch',"
    " pg_catalog.current_setting('statement_timeout')::pg_catalog.interval) OPERATOR(pg_catalog.*) 1000)"
    "::pg_catalog.int4::pg_catalog.text"
)
_RESET_TIMEOUT: Final = (
    "SELECT 'default timeout' AS k, name AS n, reset_val AS v FROM pg_catalog.pg_settings"
    " WHERE name OPERATOR(pg_catalog.=) 'statement_timeout'"
)


class Findings(NamedTuple):
    """What a session has that the server's defaults do not."""

    settings: dict[str, bytes]
    """As in parameters.Profile; role and session_authorization among them, where they are not the login's."""
    states: State
    """What else: LISTEN, PREPARED, CURSOR, ADVISORY_LOCK, TEMPORARY."""


def question(custom: Iterable[str], *, prepare: bool) -> bytes:
    """Return the messages that ask; `custom` are names of settings that pg_settings does not show.

    With `prepare` the question is parsed first, under NAME.
    """
    names = _array(custom).encode()
    parameters = _int16.pack(1) + _int32.pack(len(names)) + names
    # Closed first, for it may be there still: then it is no error, while to parse it again would be.
    out = (
        message(b"C", b"S" + NAME + b"\0") + message(b"P", NAME + b"\0" + _SQL.encode() + b"\0" + _int16.pack(0))
        if prepare
        else b""
    )
    out += message(b"B", b"\0" + NAME + b"\0" + _int16.pack(0) + parameters + _int16.pack(0))
    return out + message(b"E", b"\0" + _int32.pack(0)) + SYNC


def full_question(custom: Iterable[str]) -> bytes:
    """Return a Query that asks the same where the session's time limit or its role hides part of the answer.

    Both are put aside for as long as it takes, and told first.
    """
    names = "'" + _array(custom).replace("'", "''") + "'"
    return query(
        f"BEGIN;{_HEX.format(rows=_ASIDE)};SET LOCAL statement_timeout TO 0;"
        "SET LOCAL SESSION AUTHORIZATION DEFAULT;SET LOCAL ROLE NONE;"
        f"{_SQL.replace('$1', names)};{_HEX.format(rows=_RESET_TIMEOUT)};COMMIT"
    )


def _array(names: Iterable[str]) -> str:
    """Return an array literal of those names that can be asked for."""
    return "{" + ",".join(f'"{name}"' for name in sorted(names) if can_be_asked_for(name)) + "}"


def can_be_asked_for(name: str) -> bool:
    """Tell whether the name of a custom setting reads the same in each client_encoding."""
    return name.isascii() and name.replace(".", "").replace("_", "").replace("$", "").isalnum()


def read_answer(replies: bytes, login_user: str) -> Findings:
    """Read the rows of the answer from all that the server has said. Raises ProtocolViolation."""
    settings: dict[str, bytes] = {}
    states = State(0)
    timeouts: list[bytes] = []
    for kind, payload in messages_in(replies):
        if kind != DATA_ROW or payload[:2] != _THREE_COLUMNS:
            continue  # a set_config() that went ahead of the question has one column
        what, name, value = _columns(payload)
        if what == "setting":
            settings[name] = value
        elif what in ("timeout", "default timeout"):
            timeouts.append(value)
        elif what == "user":
            if value != login_user.encode("utf-8", "surrogateescape"):
                settings[SESSION_USER] = value
        elif what in _STATES:
            states |= _STATES[what]
    if settings.get(ROLE) == b"none":
        del settings[ROLE]
    if timeouts:
        settings.pop(TIMEOUT, None)  # the one it was put aside with
        if timeouts[0] != timeouts[-1]:
            settings[TIMEOUT] = timeouts[0]
    return Findings(settings, states)


def _columns(row: bytes) -> tuple[str, str, bytes]:
    columns = []
    at = 2
    try:
        for _ in range(3):
            (length,) = _int32.unpack_from(row, at)
            at += 4
            columns.append(row[at : at + length])
            at += length
        what, name, value = columns
        return what.decode(), text_of(binascii.unhexlify(name)), binascii.unhexlify(value)
    except (ValueError, struct.error) as error:
        raise ServerViolation(f"unreadable answer about the session: {error}") from None
