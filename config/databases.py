"""What is set for single databases, users and peers: the sections of pgbouncer.ini, and the same tables in TOML.

Both come to the same models. What is not set there is None, and goes by the setting for all of them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

from config.fields import Count, Seconds, ServerPort, Takes, Text, takes
from config.hosts import LoadBalanceHosts, TargetSessionAttrs, host_and_port
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
    if isinstance(value, (list, tuple)) and not all(_is_host(host) and _has_good_port(host) for host in value):
        raise PydanticKnownError("list_type")
    return value


def _has_good_port(host: str) -> bool:
    try:
        host_and_port(host, 0)
    except ValueError:
        return False
    return True


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
    """Where a database is, and what is different about its pools. The entry `*` is for all that have none."""

    dbname: _Name = Field(default=None, description="Its name at Postgres; that which clients ask for if not set.")
    host: Annotated[
        tuple[str, ...], BeforeValidator(_hosts), Takes("HOST,...", "a comma-separated list of hosts or directories")
    ] = Field(
        default=(),
        description="Names or addresses of Postgres, directories of Unix sockets (/run/postgresql), or @ and the name "
        "of an abstract socket; if not set, the socket in unix_socket_dir, and without that localhost.",
    )
    port: ServerPort = Field(default=5432, description="Its port there.")
    user: _Name = Field(
        default=None,
        description="Who logs in at Postgres, whoever the client is, so that all of them share one pool; the client's "
        "user if not set.",
    )
    password: _Secret = Field(
        default=None, description="The password of `user`; if not set, the one that is known of this user otherwise."
    )
    auth_user: _Name = Field(default=None, description="The setting auth_user, for this database.")
    auth_query: _Name = Field(default=None, description="The setting auth_query, for this database.")
    auth_dbname: _Name = Field(default=None, description="The setting auth_dbname, for this database.")
    pool_size: _Connections = Field(default=None, description="The setting default_pool_size, for each of its pools.")
    min_pool_size: _Count = Field(default=None, description="The setting of this name, for each of its pools.")
    reserve_pool_size: _Count = Field(
        default=None, description="The setting of this name, for each of its pools. reserve_pool means the same."
    )
    pool_mode: _PoolMode = Field(default=None, description="The setting of this name.")
    max_db_connections: _Connections = Field(default=None, description="The setting of this name.")
    max_db_client_connections: _Count = Field(default=None, description="The setting of this name.")
    query_wait_timeout: _Seconds = Field(default=None, description="The setting of this name.")
    server_lifetime: _Seconds = Field(default=None, description="The setting of this name.")
    load_balance_hosts: Annotated[LoadBalanceHosts, _Word, Takes("WORD", "one of round-robin, disable")] = Field(
        default="round-robin",
        description="Of several hosts, take the next one for each connection (round-robin), or stay with one until a "
        "connection to it fails (disable).",
    )
    target_session_attrs: Annotated[
        TargetSessionAttrs,
        _Word,
        Takes("WORD", "one of any, read-write, read-only, primary, standby, prefer-standby"),
    ] = Field(default="any", description="Which of the hosts to take, as in libpq.")
    connect_query: _Name = Field(
        default=None, description="Query that each server connection runs before clients get it."
    )
    client_encoding: _Name = Field(default=None, description="Parameter that server connections log in with.")
    datestyle: _Name = Field(default=None, description="The same.")
    timezone: _Name = Field(default=None, description="The same.")
    application_name: _Name = Field(default=None, description="The same.")


class User(_Entry):
    """What is different for a user; it goes before what the database says."""

    password: _Secret = Field(
        default=None,
        description="Password or secret, in TOML only, where NAME = 'secret' means the same. PgBouncer has them in "
        "auth_file.",
    )
    pool_size: _Connections = Field(default=None, description="The setting default_pool_size, for each of their pools.")
    reserve_pool_size: _Count = Field(default=None, description="The setting of this name, for each of their pools.")
    pool_mode: _PoolMode = Field(default=None, description="The setting of this name.")
    max_user_connections: _Count = Field(default=None, description="The setting of this name.")
    max_user_client_connections: _Count = Field(default=None, description="The setting of this name.")
    query_timeout: _Seconds = Field(default=None, description="The setting of this name.")
    query_wait_timeout: _Seconds = Field(default=None, description="The setting of this name.")
    idle_transaction_timeout: _Seconds = Field(default=None, description="The setting of this name.")
    transaction_timeout: _Seconds = Field(default=None, description="The setting of this name.")
    client_idle_timeout: _Seconds = Field(default=None, description="The setting of this name.")


class Peer(_Entry):
    """Another process, by its peer_id, to which cancel requests for its clients go."""

    host: Annotated[
        str, BeforeValidator(_host), Takes("HOST", "a host name, an address or the directory of a Unix socket")
    ] = Field(description="Where it listens.")
    port: ServerPort = Field(
        default=6432, description="Its port there, and part of its Unix socket's name; 6432 if not set."
    )
    pool_size: _Count = Field(
        default=None, description="How many cancel requests may be on their way to it; default_pool_size if not set."
    )


Lines = Mapping[tuple[str, ...], int]
"""The lines of a TOML file on which its keys stand, as far as they are known."""
_UNKNOWN: Final[Lines] = MappingProxyType({})


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


def from_toml(document: Mapping[str, object], path: str, lines: Lines = _UNKNOWN) -> tuple[Directory, list[str]]:
    """Read the tables databases, users and peers of a TOML document: [databases.NAME] and so on.

    A user may also be a password only: alice = "secret" in [users].
    """
    reading = _Reading()
    sections: dict[str, Entries] = {}
    for section in ("databases", "users", "peers"):
        table = document.get(section, {})
        if not isinstance(table, dict):
            reading.mistakes.append(f"{section}: it is not a table ({place_in_toml(path, lines, section)})")
            continue
        entries: Entries = {}
        for name, entry in table.items():
            place = place_in_toml(path, lines, section, name)
            if section == "users" and isinstance(entry, str):
                entries[name] = ({"password": entry}, place)
            elif isinstance(entry, dict):
                entries[name] = (entry, place)
            else:
                reading.mistakes.append(f"[{section}] {name}: it is not a table ({place})")
        sections[section] = entries
    return reading.read(sections), reading.mistakes


def place_in_toml(path: str, lines: Lines, *key: str) -> str:
    """Return where a key stands, or at least its table, for messages."""
    line = lines.get(key) or lines.get(key[:1])
    return f"{path} line {line}" if line else path


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
