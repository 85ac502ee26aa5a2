"""The kinds of value a setting may have: seconds, ports, booleans, addresses and so on.

Each kind carries the words that say what it takes, so that error messages, --help and docs/settings.md agree.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError

from config import session_state
from config.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Takes:
    """What a setting takes: `metavar` for --help, `words` to complete "... is not", `write` to show a default."""

    metavar: str
    words: str
    write: Callable[[Any], str] = str


def takes(field: FieldInfo) -> Takes:
    """Return what a field of Settings takes."""
    for marker in field.metadata:
        if isinstance(marker, Takes):
            return marker
    if get_origin(field.annotation) is Literal:
        choices = [str(choice) for choice in get_args(field.annotation)]
        return Takes("|".join(choices), f"one of {', '.join(choices)}")
    raise TypeError(f"{field.annotation} does not say what it takes")


def text(field: FieldInfo, value: object) -> str:
    """Return a value as one would write it, without secrets; nothing is the empty text."""
    return takes(field).write(value) if value or value == 0 else ""


def default_text(field: FieldInfo) -> str:
    """Return the default of a field as one would write it, "empty" for nothing."""
    return text(field, field.get_default(call_default_factory=True, validated_data={})) or "empty"


def _not_a_boolean(value: object) -> object:
    # pydantic would read `listen_port = true` in a TOML file as port 1.
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _without_zero_byte(value: str) -> str:
    # It would end the string early on its way to Postgres.
    if "\0" in value:
        raise ValueError("has a zero byte in it")
    return value


def _addresses(value: object) -> object:
    if isinstance(value, str):
        value = [address.strip() for address in value.split(",")] if value.strip() else []
    if isinstance(value, (list, tuple)) and not all(isinstance(each, str) and _is_address(each) for each in value):
        raise PydanticKnownError("list_type")
    return value


def _is_address(text: str) -> bool:
    return re.fullmatch(r"[^\s,/]+", text) is not None


def _address_or_none(value: object) -> object:
    if isinstance(value, str) and value and (value == "*" or not _is_address(value)):
        raise PydanticKnownError("string_type")
    return _empty_as_none(value)


def _names(value: object) -> object:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, (list, tuple)) and not all(isinstance(each, str) and _is_name(each) for each in value):
        raise PydanticKnownError("list_type")
    return value


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[^,\0]+", text) is not None


def _empty_as_none(value: object) -> object:
    # As in PgBouncer. What a file or an image sets can't be unset by a variable in any other way.
    return None if value == "" else value


def _socket_directory(path: Path | None) -> Path | None:
    try:
        possible = path is None or str(path).startswith("@") or path.is_dir()
    except ValueError:  # no path can have such a name
        possible = False
    if not possible:
        raise PydanticKnownError("string_type")
    return path


def _socket_mode(value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"(0o?)?[0-7]{3}", value):
        raise PydanticKnownError("int_parsing")
    return int(value.removeprefix("0o"), 8)


def _upstream(value: object) -> object:
    return Upstream.parse(value) if isinstance(value, str) and value else _empty_as_none(value)


def _table(value: object) -> object:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except json.JSONDecodeError as error:
            # error.msg and the position only: str(error.doc) is full of passwords.
            message = f"is not JSON: {error.msg} at character {error.pos + 1}"
            raise ValueError(message) from None
    if isinstance(value, Mapping) and "" in value:
        raise ValueError("has an empty name")
    return value


def _session_state(value: object) -> session_state.StatePolicies:
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return {**session_state.DEFAULTS, **session_state.parse(value)}


def _session_state_by_name(value: object) -> Mapping[str, session_state.StatePolicies]:
    table = _table(value)
    if not isinstance(table, Mapping):
        raise PydanticKnownError("dict_type")
    policies: dict[str, session_state.StatePolicies] = {}
    for name, text in table.items():
        if not isinstance(text, str):
            raise PydanticKnownError("string_type")
        try:
            policies[name] = session_state.parse(text)
        except ValueError as error:
            raise ValueError(f"for {name!r} {error}") from None
    return policies


def _write_users(users: Mapping[str, SecretStr]) -> str:
    return json.dumps(dict.fromkeys(users, "***"))


def _write_by_name(policies: Mapping[str, session_state.StatePolicies]) -> str:
    return json.dumps({name: session_state.write(each) for name, each in policies.items()})


_Number = BeforeValidator(_not_a_boolean)
_Times = Annotated[float, Field(ge=0, allow_inf_nan=False), _Number]

Seconds = Annotated[_Times, Takes("SECONDS", "a number of seconds, 0 or more", "{:g}".format)]
Period = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False),
    _Number,
    Takes("SECONDS", "a number of seconds, more than 0", "{:g}".format),
]
Milliseconds = Annotated[
    int,
    Field(ge=0, le=2**31 - 1),
    _Number,
    Takes("MILLISECONDS", "a whole number of milliseconds, 0 or more"),
]
Port = Annotated[int, Field(ge=0, le=65535), _Number, Takes("PORT", "a port number from 0 to 65535")]
ServerPort = Annotated[int, Field(ge=1, le=65535), _Number, Takes("PORT", "a port number from 1 to 65535")]
Count = Annotated[int, Field(ge=0, le=2**31 - 1), _Number, Takes("COUNT", "a whole number, 0 or more")]
PositiveCount = Annotated[int, Field(ge=1, le=2**31 - 1), _Number, Takes("COUNT", "a whole number, 1 or more")]
Iterations = Annotated[int, Field(ge=1, le=1_000_000), _Number, Takes("COUNT", "a whole number from 1 to 1000000")]
PeerId = Annotated[int, Field(ge=0, le=16383), _Number, Takes("ID", "a whole number from 0 to 16383")]
# Linux refuses more than these in setsockopt (MAX_TCP_KEEPCNT, MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL).
KeepaliveCount = Annotated[int, Field(ge=0, le=127), _Number, Takes("COUNT", "a whole number from 0 to 127")]
KeepaliveSeconds = Annotated[
    int, Field(ge=0, le=32767), _Number, Takes("SECONDS", "a whole number of seconds from 0 to 32767")
]
PacketSize = Annotated[
    int,
    Field(ge=1024, le=2**31 - 1),
    _Number,
    Takes("BYTES", "a whole number of bytes from 1024 to 2147483647"),
]
MemorySize = Annotated[
    int,
    Field(ge=65536, le=2**63 - 1),
    _Number,
    Takes("BYTES", "a whole number of bytes, 65536 or more"),
]
Share = Annotated[_Times, Field(le=1), Takes("SHARE", "a share from 0 to 1", "{:g}".format)]
Boolean = Annotated[bool, Takes("0|1", "0 or 1 (or false/true, no/yes, off/on)", "{:d}".format)]
Text = Annotated[str, AfterValidator(_without_zero_byte), Takes("TEXT", "text")]
Names = Annotated[
    tuple[str, ...], BeforeValidator(_names), Takes("NAME,...", "a comma-separated list of names", ",".join)
]
Address = Annotated[str | None, BeforeValidator(_address_or_none), Takes("ADDRESS", "an address or a host name")]
Addresses = Annotated[
    tuple[str, ...],
    BeforeValidator(_addresses),
    Takes("ADDRESS,...", "a comma-separated list of addresses, host names or *", ",".join),
]
File = Annotated[Path | None, BeforeValidator(_empty_as_none), Takes("FILE", "the path of a file")]
SocketDirectory = Annotated[
    Path | None,
    BeforeValidator(_empty_as_none),
    AfterValidator(_socket_directory),
    Takes("DIRECTORY", "the path of a directory that exists, or @ and a name"),
]
SocketMode = Annotated[
    int,
    BeforeValidator(_socket_mode),
    Takes("MODE", "a file mode in octal digits, as text, such as 0777", "{:04o}".format),
]
UpstreamUrl = Annotated[
    InstanceOf[Upstream] | None,
    BeforeValidator(_upstream),
    Takes("URL", "a URL of the form postgresql://user:password@host:port/dbname"),
]
Users = Annotated[
    Mapping[str, SecretStr],
    BeforeValidator(_table),
    Takes("JSON", "a TOML table, or a JSON object, of user names and passwords", _write_users),
]
SessionState = Annotated[
    session_state.StatePolicies,
    BeforeValidator(_session_state),
    Takes("CLASS=POLICY,...", "a comma-separated list of class=policy", session_state.write),
]
SessionStateByName = Annotated[
    Mapping[str, session_state.StatePolicies],
    BeforeValidator(_session_state_by_name),
    Takes("JSON", "a TOML table, or a JSON object, of names and their session_state", _write_by_name),
]
