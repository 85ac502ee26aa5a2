"""The first packet of a connection: what a client asks for before anything else.

Source: PostgreSQL documentation, "Message Flow: Start-up", "Cancelling Requests in Progress", "SSL Session Encryption".
"""

from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from struct import Struct
from typing import Final, NamedTuple

from protocol.errors import ClientViolation
from protocol.kinds import (
    CANCEL_REQUEST_CODE,
    GSSENC_REQUEST_CODE,
    NEWEST_MINOR,
    PROTOCOL_MAJOR,
    SSL_REQUEST_CODE,
)
from protocol.messages import text_of
from protocol.parameters import session_parameters

MAX_STARTUP_SIZE: Final = 10_000
"""Bytes. MAX_STARTUP_PACKET_LENGTH in PostgreSQL."""
MAX_CANCEL_SECRET: Final = 256
"""Bytes. The longest secret of a cancel key in protocol 3.2."""

_int32 = Struct("!I").unpack_from


class Encryption(Enum):
    """A request to encrypt the connection, to be answered with one byte."""

    SSL = auto()
    GSSAPI = auto()


class Replication(StrEnum):
    """What a client wants the connection for: to replicate, or not."""

    NONE = "none"
    LOGICAL = "logical"
    """Of a database, where SQL can be run, too."""
    PHYSICAL = "physical"
    """Of the whole cluster."""


class Cancel(NamedTuple):
    """A CancelRequest for the session that was given `key` (process id and secret) in its BackendKeyData."""

    key: bytes


class Startup(NamedTuple):
    """A StartupMessage."""

    user: str
    database: str
    minor: int
    """The minor protocol version that both sides speak, at most NEWEST_MINOR."""
    negotiate: bool
    """Asked for more than that: a NegotiateProtocolVersion is owed."""
    unknown_options: list[str]
    """Protocol options (_pq_.x) asked for; none is known."""
    parameters: Mapping[str, str]
    """All other parameters, in the client's order."""
    settings: tuple[tuple[str, str], ...] = ()
    """The settings of the session among them, with what `options` says."""
    replication: Replication = Replication.NONE


FirstPacket = Encryption | Cancel | Startup


class StartupMemory:
    """Remembers the StartupMessages read last: functions connect all the time, and all say the same."""

    MOST: Final = 512
    LONGEST: Final = 1024
    """Bytes; with MOST, what those who have not logged in yet can make it keep is about 1 MB."""

    def __init__(self) -> None:
        self._known: dict[bytes, Startup] = {}

    def read(self, data: bytes) -> tuple[FirstPacket, int] | None:
        """As read_first_packet()."""
        startup = self._known.get(data)
        if startup is not None:
            return startup, len(data)
        found = read_first_packet(data)
        if found is not None and isinstance(found[0], Startup) and found[1] == len(data) <= self.LONGEST:
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[data] = found[0]
        return found


def read_first_packet(data: bytes) -> tuple[FirstPacket, int] | None:
    """Read the packet at the beginning of `data`; return it and its size, or None if it is not whole yet.

    Raises ClientViolation for what is no first packet, as soon as that can be told.
    """
    if len(data) < 4:
        return None
    (size,) = _int32(data)
    if not 8 <= size <= MAX_STARTUP_SIZE:
        raise ClientViolation(f"invalid length of startup packet: {size}")
    if len(data) < size:
        return None
    (code,) = _int32(data, 4)
    body = data[8:size]
    if code in (SSL_REQUEST_CODE, GSSENC_REQUEST_CODE):
        if body:
            raise ClientViolation(f"invalid length of an encryption request: {size}")
        return (Encryption.SSL if code == SSL_REQUEST_CODE else Encryption.GSSAPI), size
    if code == CANCEL_REQUEST_CODE:
        if not 8 <= len(body) <= 4 + MAX_CANCEL_SECRET:
            raise ClientViolation(f"invalid length of a cancel request: {size}")
        return Cancel(body), size
    return _read_startup(code, body), size


def _read_startup(code: int, body: bytes) -> Startup:
    major, minor = code >> 16, code & 0xFFFF
    if major != PROTOCOL_MAJOR:
        raise ClientViolation(f"unsupported frontend protocol {major}.{minor}: only 3.0 to 3.{NEWEST_MINOR} are served")
    fields = body.split(b"\0")
    # name, value, name, value, ..., then an empty name, whose NUL is the last byte.
    if len(fields) < 2 or fields[-1] or fields[-2] or len(fields) % 2:
        raise ClientViolation("invalid startup packet layout: expected terminator as last byte")
    names, values = fields[0:-2:2], fields[1:-2:2]
    if not all(names):
        raise ClientViolation("invalid startup packet layout: a parameter without a name")
    parameters = {text_of(name): text_of(value) for name, value in zip(names, values, strict=True)}
    user = parameters.pop("user", "")
    if not user:
        raise NoUserError
    database = parameters.pop("database", "") or user
    unknown = [name for name in parameters if name.startswith("_pq_.")]
    for name in unknown:
        del parameters[name]
    replication = _replication(parameters.get("replication", "off"))
    # What replicates has a server connection of its own, which is opened with all that the client says.
    settings = session_parameters(parameters) if replication is Replication.NONE else {}
    return Startup(
        user=user,
        database=database,
        minor=min(minor, NEWEST_MINOR),
        negotiate=minor > NEWEST_MINOR or bool(unknown),
        unknown_options=unknown,
        parameters=parameters,
        settings=tuple(settings.items()),
        replication=replication,
    )


_NO: Final = frozenset(("0", "f", "fa", "fal", "fals", "false", "n", "no", "of", "off"))
_YES: Final = frozenset(("1", "t", "tr", "tru", "true", "y", "ye", "yes", "on"))


def _replication(value: str) -> Replication:
    """Read the parameter as Postgres does: a boolean, which may be cut short where it stays clear, or a word."""
    if value == "database":
        return Replication.LOGICAL
    word = value.lower()
    if word in _YES:
        return Replication.PHYSICAL
    if word in _NO:
        return Replication.NONE
    raise InvalidReplicationError(value)


class NoUserError(ClientViolation):
    """A StartupMessage without a user: PostgreSQL has an SQLSTATE of its own for that."""

    sqlstate = "28000"

    def __init__(self) -> None:
        super().__init__("no PostgreSQL user name specified in startup packet")


class InvalidReplicationError(ClientViolation):
    """`replication` in a StartupMessage is neither a boolean nor "database"."""

    sqlstate = "22023"

    def __init__(self, value: str) -> None:
        super().__init__(f'invalid value for parameter "replication": "{value}"; it takes true, false or database')
