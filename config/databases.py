"""What is set for single databases, users and peers: the sections of pgbouncer.ini, and the same tables in TOML.

Both come to the same models. What is not set there is None, and goes by the setting for all of them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

from config.fields import Count, Seconds, ServerPort, Takes, Text, takes
from config.ini import Ini, Item, pairs
from config.nearest import did_you_mean
from config.percent import Connections

FALLBACK: Final = "*"
"""The database whose entry is for all that have none."""
_CONSOLE: Final = ("pgbouncer", "pgfunnel")
_ALIASES: Final = {"reserve_pool": "reserve_pool_size"}
_LAST_PEER: Final = 16383


def _minus_one_as_none(value: object) -> object:
    # PgBouncer's way to write that something is not set.
    return None if value == "-1" or (value == -1 and not isinstance(value, bool)) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _is_host(value: object) -> bool:
    # A name, an address, the directory of a Unix socket, or @ and the name of a socket that is in none.
    return isinstance(value, str) and re.fullmatch(r"/[^,\0]*|@?[^\s,/@=\0]+", value) is not None


def _host(value: object) -> object:
    if not _is_host(value):
        raise PydanticKnownError("string_type")
    return value


def _hosts(value: object) -> object:
    if isinstance(value, str):
        value = [host.strip() for host in value.split(",")]
    if isinstance(value, (list, tuple)) and not all(map(_is_host, value)):
        raise PydanticKnownError("list_type")
    return value


def _filled(value: object) -> object:
    if value == "":
        raise ValueError("is empty")
    return value


_MinusOne = BeforeValidator(_minus_one_as_none)
_Word = BeforeValidator(_lower)
_Name = Annotated[Text | None, BeforeValidator(_filled), Takes("TEXT", "text")]
_Count = Annotated[Count | None, _MinusOne, Takes("COUNT", "a whole number, 0 or more")]
_Seconds = Annotated[Seconds | None, _MinusOne, Takes("SECONDS", "a number of seconds, 0 or more")]
_Connections = Annotated[
    Connections | None, _MinusOne, Takes("COUNT|SHARE", "a whole number, 0 or more, or a share such as 90%")
]
_PoolMode = Annotated[
    Literal["session", "transaction", "statement"] | None,
    _Word,
    Takes("MODE", "one of session, transaction, statement"),
]
_Secret = Annotated[SecretStr | None, BeforeValidator(_filled), Takes("TEXT", "text")]


class _Entry(BaseModel):
    """What all entries have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Database(_Entry):
    """Where a database is, and what is different about its pools."""

    dbname: _Name = None
    """Its name at Postgres; None for the one that clients ask for."""
    host: Annotated[
        tuple[str, ...], BeforeValidator(_hosts), Takes("HOST,...", "a comma-separated list of hosts or directories")
    ] = ()
    """Names, addresses or directories of Unix sockets; empty for the socket in unix_socket_dir."""
    port: ServerPort = 5432
    user: _Name = None
    """Who logs in at Postgres, whoever the client is; None for the client's user."""
    password: _Secret = None
    auth_user: _Name = None
    auth_query: _Name = None
    auth_dbname: _Name = None
    pool_size: _Connections = None
    min_pool_size: _Count = None
    reserve_pool_size: _Count = None
    pool_mode: _PoolMode = None
    max_db_connections: _Connections = None
    max_db_client_connections: _Count = None
    query_wait_timeout: _Seconds = None
    server_lifetime: _Seconds = None
    load_balance_hosts: Annotated[
        Literal["round-robin", "disable"], _Word, Takes("WORD", "one of round-robin, disable")
    ] = "round-robin"
    target_session_attrs: Annotated[
        Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"],
        _Word,
        Takes("WORD", "one of any, read-write, read-only, primary, standby, prefer-standby"),
    ] = "any"
    connect_query: _Name = None
    client_encoding: _Name = None
    datestyle: _Name = None
    timezone: _Name = None
    application_name: _Name = None


class User(_Entry):
    """What is different for a user."""

    password: _Secret = None
    """In TOML only: PgBouncer has its passwords in auth_file."""
    pool_size: _Connections = None
    reserve_pool_size: _Count = None
    pool_mode: _PoolMode = None
    max_user_connections: _Count = None
    max_user_client_connections: _Count = None
    query_timeout: _Seconds = None
    query_wait_timeout: _Seconds = None
    idle_transaction_timeout: _Seconds = None
    transaction_timeout: _Seconds = None
    client_idle_timeout: _Seconds = None


class Peer(_Entry):
    """Another process, to which cancel requests for its clients go."""

    host: Annotated[
        str, BeforeValidator(_host), Takes("HOST", "a host name, an address or the directory of a Unix socket")
    ]
    port: ServerPort = 6432
    pool_size: _Count = None
    """How many cancel requests may be on their way to it; None for default_pool_size."""


@dataclass(frozen=True, slots=True)
class Directory:
    """All of them, by name. It is replaced as a whole."""

    databases: Mapping[str, Database] = field(default_factory=dict)
    users: Mapping[str, User] = field(default_factory=dict)
    peers: Mapping[int, Peer] = field(default_factory=dict)

    def database(self, name: str) -> Database | None:
        """Return the entry for the database that a client asks for, if it may have it at all."""
        return self.databases.get(name) or self.databases.get(FALLBACK)


def from_ini(ini: Ini) -> tuple[Directory, list[str]]:
    """Read the sections databases, users and peers of a pgbouncer.ini; and say what is wrong with them."""
    reading = _Reading()
    sections = {
        name: {
            item.name: (_pairs(name, item, reading.mistakes), str(item.place)) for item in ini.sections[name].values()
        }
        for name in ("databases", "users", "peers")
    }
    return reading.read(sections, but=frozenset(("password",))), reading.mistakes


def from_toml(document: Mapping[str, object], path: str) -> tuple[Directory, list[str]]:
    """Read the tables databases, users and peers of a TOML document: [databases.NAME] and so on.

    A user may also be a password only: alice = "secret" in [users].
    """
    reading = _Reading()
    sections: dict[str, Entries] = {}
    for section in ("databases", "users", "peers"):
        table = document.get(section, {})
        if not isinstance(table, dict):
            reading.mistakes.append(f"{section}: it is not a table ({path})")
            continue
        entries: Entries = {}
        for name, entry in table.items():
            if section == "users" and isinstance(entry, str):
                entries[name] = ({"password": entry}, path)
            elif isinstance(entry, dict):
                entries[name] = (entry, path)
            else:
                reading.mistakes.append(f"[{section}] {name}: it is not a table ({path})")
        sections[section] = entries
    return reading.read(sections), reading.mistakes


Entries = dict[str, tuple[Mapping[str, object] | None, str]]
"""Entries as they were given, with their places, by name; None for one that could not be read."""
_Model = TypeVar("_Model", bound=_Entry)


def _pairs(section: str, item: Item, mistakes: list[str]) -> Mapping[str, object] | None:
    try:
        return pairs(item.value)
    except ValueError as error:
        mistakes.append(f"[{section}] {item.name}: it {error} ({item.place})")
        return None


class _Reading:
    """Makes models of what was given, and notes each mistake with section, name, key and place."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    def read(self, sections: Mapping[str, Entries], *, but: frozenset[str] = frozenset()) -> Directory:
        """Read the entries of all sections; `but` are keys that users don't have here."""
        return Directory(
            dict(self._entries("databases", sections, Database)),
            dict(self._entries("users", sections, User, but)),
            {int(name): peer for name, peer in self._entries("peers", sections, Peer)},
        )

    def _entries(
        self, section: str, sections: Mapping[str, Entries], model: type[_Model], but: frozenset[str] = frozenset()
    ) -> Iterator[tuple[str, _Model]]:
        for name, (given, place) in sections.get(section, {}).items():
            what = f"[{section}] {name}"
            if wrong := _wrong_name(section, name):
                self.mistakes.append(f"{what}: {wrong} ({place})")
            elif given is not None and (entry := self._entry(what, place, given, model, but)) is not None:
                yield name, entry

    def _entry(
        self, what: str, place: str, given: Mapping[str, object], model: type[_Model], but: frozenset[str]
    ) -> _Model | None:
        keys = [key for key in model.model_fields if key not in but]
        given = {_ALIASES.get(key, key) if _ALIASES.get(key) in keys else key: value for key, value in given.items()}
        unknown = [key for key in given if key not in keys]
        self.mistakes.extend(
            f"{what}: there is no key {_shown(key)}{did_you_mean(key, keys)} ({place})" for key in unknown
        )
        try:
            entry = model.model_validate({key: value for key, value in given.items() if key in keys})
        except ValidationError as error:
            # One line for each key: a value that may be of two kinds has two errors.
            wrong = {str(details["loc"][0]): details for details in reversed(error.errors())}
            self.mistakes.extend(
                f"{what}: {key} {_explain(details, model, key, given)} ({place})" for key, details in wrong.items()
            )
            return None
        return None if unknown else entry


def _wrong_name(section: str, name: str) -> str:
    if section == "databases" and name in _CONSOLE:
        return "it is the console's name, which no database can have"
    if section == "peers" and not (re.fullmatch(r"[0-9]{1,5}", name) and 1 <= int(name) <= _LAST_PEER):
        return f"it is not a peer_id, a whole number from 1 to {_LAST_PEER}"
    return "" if name else "it has an empty name"


def _explain(details: ErrorDetails, model: type[_Entry], key: str, given: Mapping[str, object]) -> str:
    """Return what is wrong with a value that pydantic refused."""
    if details["type"] == "missing":
        return "is missing"
    kind, value = takes(model.model_fields[key]), given[key]
    reason = str(details["ctx"]["error"]) if details["type"] == "value_error" else f"is not {kind.words}"
    # Of what people write freely, nothing is shown: it could be a secret, or hold one.
    if kind.metavar == "TEXT" or not isinstance(value, (str, int, float)):
        return reason
    return f"{value!r} {reason}" if isinstance(value, str) else f"{str(value).lower()} {reason}"


def _shown(key: str) -> str:
    """Return an unknown key, unless it can be a piece of a password with a blank in it."""
    return key if re.fullmatch(r"[a-z_]{1,40}", key) else "of this name"
