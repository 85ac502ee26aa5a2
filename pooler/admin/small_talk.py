"""What drivers and psql say on connecting and in passing, as if a Postgres were here: answered, and of no effect.

The console has no tables, so that whatever reads the catalog finds nothing, and no transactions: BEGIN and COMMIT only
change what is reported.
"""

import re
from typing import Final

from pooler import __version__
from pooler.admin.commands import SetCommand, items
from pooler.admin.results import CommandError, Outcome, Plan, columns, finished
from protocol.console import Column, Kind, Value

MOST_COLUMNS: Final = 1664
"""Of a result, as in Postgres."""

INTERFACE: Final = "1.26.0"
"""The version of PgBouncer whose console this is: monitoring looks there for what it may ask."""
VERSION: Final = f"PgBouncer {INTERFACE} (pgfunnel {__version__})"

REPORTED: Final = {
    "server_version": f"{INTERFACE}/bouncer",
    "client_encoding": "UTF8",
    "server_encoding": "UTF8",
    "DateStyle": "ISO",
    "TimeZone": "GMT",
    "standard_conforming_strings": "on",
    "integer_datetimes": "on",
    "is_superuser": "on",
}
"""The ParameterStatus messages of a login."""
_SETTINGS: Final = {
    **{name.lower(): value for name, value in REPORTED.items()},
    "application_name": "",
    "bytea_output": "hex",
    "client_min_messages": "notice",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "extra_float_digits": "2",
    "idle_in_transaction_session_timeout": "0",
    "in_hot_standby": "off",
    "intervalstyle": "postgres",
    "jit": "off",
    "lc_monetary": "C",
    "lock_timeout": "0",
    "max_identifier_length": "63",
    "search_path": "public",
    "server_version_num": "0",
    "session_authorization": "pgbouncer",
    "statement_timeout": "0",
    "synchronous_commit": "on",
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
}
"""Settings of Postgres that drivers read, and set without looking at the answer."""

_TRANSACTION: Final = re.compile(
    r"(?:(?P<begin>begin|start\s+transaction)\b.*|(?P<commit>commit|end)(?:\s+\w+)?|(?P<rollback>rollback|abort)(?:\s+\w+)?"
    r"|(?P<savepoint>savepoint|release|rollback\s+to)\b.*)",
    re.IGNORECASE | re.DOTALL,
)
_NO_ROWS: Final = re.compile(
    r"(?P<tag>discard\s+(?:all|plans|temp|temporary|sequences)|reset|deallocate|close|unlisten)\b.*", re.IGNORECASE
)
_SET_OTHER: Final = re.compile(r"set\s+(?:names|session\s+characteristics|transaction|time\s+zone)\b.*", re.IGNORECASE)
_SHOW: Final = re.compile(
    r"(?:show|select\s+current_setting\s*\(\s*')\s*(?P<name>\w+(?:\s+\w+)*)\s*(?:'.*)?", re.IGNORECASE
)
_SELECT: Final = re.compile(r"select\s+(?P<items>[^;]*)", re.IGNORECASE | re.DOTALL)
_ITEM: Final = re.compile(
    r"(?:pg_catalog\.)?(?:(?P<function>\w+)\s*\(\s*\)|(?P<number>-?\d{1,9})|'(?P<text>[^']*)'|(?P<word>\w+))"
    r"(?:\s+as\s+\"?(?P<name>\w+)\"?)?",
    re.IGNORECASE,
)
_CATALOG: Final = re.compile(r"\bfrom\b.*\b(?:pg_\w+|information_schema)\b", re.IGNORECASE | re.DOTALL)
_LONG_NAMES: Final = {
    "transaction isolation level": "transaction_isolation",
    "session authorization": "session_authorization",
    "time zone": "timezone",
}


def answer(text: str, user: str, database: str) -> Plan | None:
    """Return what is to be said to `text` if it is nothing of ours."""
    if transaction := _TRANSACTION.fullmatch(text):
        return _silent(
            {"begin": "BEGIN", "commit": "COMMIT", "rollback": "ROLLBACK"}.get(transaction.lastgroup or "", "SAVEPOINT")
        )
    if silent := _NO_ROWS.fullmatch(text):
        return _silent(" ".join(silent["tag"].upper().split()))
    if _SET_OTHER.fullmatch(text):
        return _silent("SET")
    if (shown := _SHOW.fullmatch(text)) and (plan := _setting(" ".join(shown["name"].lower().split()))):
        return plan
    if selected := _SELECT.fullmatch(text):
        return _constants(selected["items"], user, database) or _from_catalog(text)
    return _from_catalog(text) if text[:4].lower() == "with" else None


def ignored_set(command: SetCommand) -> Plan | None:
    """Return what is to be said to a SET of something that is Postgres's."""
    if command.key not in _SETTINGS:
        return None
    return Plan(finished(Outcome("SET", notice="SET ignored")))


def _silent(tag: str) -> Plan:
    return Plan(finished(Outcome(tag)))


def _setting(name: str) -> Plan | None:
    name = _LONG_NAMES.get(name, name)
    value = _SETTINGS.get(name)
    if value is None:
        return None
    return Plan(finished(Outcome("SHOW", [(value,)])), columns(**{name: Kind.TEXT}))


def _constants(listed: str, user: str, database: str) -> Plan | None:
    """Answer a SELECT of nothing but literals and functions that say where one is."""
    known = {
        "version": f"PostgreSQL {REPORTED['server_version']}: {VERSION}",
        "current_database": database,
        "current_catalog": database,
        "current_schema": "public",
        "current_user": user,
        "session_user": user,
        "user": user,
        "pg_backend_pid": "0",
        "pg_is_in_recovery": "f",
        "pg_advisory_unlock_all": "",
        "null": None,
        "true": "t",
        "false": "f",
    }
    found: list[Column] = []
    row: list[Value] = []
    for item in items(listed):
        if len(found) == MOST_COLUMNS:
            raise CommandError(f"target lists can have at most {MOST_COLUMNS} entries", sqlstate="54011")
        parts = _ITEM.fullmatch(item)
        if parts is None:
            return None
        called = (parts["function"] or parts["word"] or "").lower()
        name = parts["name"] or (called if parts["function"] else "?column?")
        if parts["number"]:
            found.append(Column(name, Kind.INT4))
            row.append(int(parts["number"]))
        elif parts["text"] is not None:
            found.append(Column(name, Kind.TEXT))
            row.append(parts["text"])
        elif called in known:
            found.append(Column(name, Kind.TEXT))
            row.append(known[called])
        else:
            return None
    return Plan(finished(Outcome("SELECT", [tuple(row)])), tuple(found))


def _from_catalog(text: str) -> Plan | None:
    return Plan(finished(Outcome("SELECT")), ()) if _CATALOG.search(text) else None
