"""Builders and readers of whole messages, for the cold paths: login, errors, and the pooler's own queries.

Source: PostgreSQL documentation, "Message Formats" and "Error and Notice Message Fields".
"""

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Final, NamedTuple

from protocol.errors import ProtocolViolation
from protocol.kinds import (
    AUTH_CLEARTEXT,
    AUTH_MD5,
    AUTH_OK,
    AUTH_SASL,
    AUTH_SASL_CONTINUE,
    AUTH_SASL_FINAL,
    CANCEL_REQUEST_CODE,
    SSL_REQUEST_CODE,
)

_int32 = Struct("!I")
_header = Struct("!BI")

TERMINATE: Final = b"X\x00\x00\x00\x04"
SYNC: Final = b"S\x00\x00\x00\x04"
SSL_REQUEST: Final = _int32.pack(8) + _int32.pack(SSL_REQUEST_CODE)
READY_IDLE: Final = b"Z\x00\x00\x00\x05I"


def message(kind: bytes, payload: bytes) -> bytes:
    """Return one message of `kind` (one byte) with its length."""
    return kind + _int32.pack(len(payload) + 4) + payload


def cstring(text: str) -> bytes:
    """Return `text` in UTF-8 (surrogate escapes give the bytes they stand for), NUL-terminated."""
    return text.encode("utf-8", "surrogateescape") + b"\0"


def text_of(raw: bytes) -> str:
    """Return the text of `raw`, whatever its encoding is, such that cstring() gives the bytes back."""
    return raw.decode("utf-8", "surrogateescape")


class ErrorFields(NamedTuple):
    """An ErrorResponse or NoticeResponse in the fields that matter to a pooler."""

    severity: str
    sqlstate: str
    message: str
    detail: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} ({self.sqlstate})"


def error_response(fields: ErrorFields) -> bytes:
    """Return an ErrorResponse."""
    return message(b"E", _fields(fields))


def notice(text: str, detail: str = "") -> bytes:
    """Return a NoticeResponse."""
    return message(b"N", _fields(ErrorFields("NOTICE", "00000", text, detail)))


def _fields(fields: ErrorFields) -> bytes:
    parts = [
        b"S" + cstring(fields.severity),
        b"V" + cstring(fields.severity),
        b"C" + cstring(fields.sqlstate),
        b"M" + cstring(fields.message),
    ]
    if fields.detail:
        parts.append(b"D" + cstring(fields.detail))
    if fields.hint:
        parts.append(b"H" + cstring(fields.hint))
    return b"".join(parts) + b"\0"


def fatal(sqlstate: str, text: str, detail: str = "", hint: str = "") -> bytes:
    """Return the ErrorResponse that ends a connection."""
    return error_response(ErrorFields("FATAL", sqlstate, text, detail, hint))


def read_error(payload: bytes) -> ErrorFields:
    """Read the payload of an ErrorResponse or NoticeResponse; fields that are missing come out empty.

    But for the SQLSTATE, by which errors are told apart from other endings: what is none becomes internal_error.
    """
    found = {field[:1]: text_of(field[1:]) for field in payload.split(b"\0") if field}
    sqlstate = found.get(b"C", "")
    return ErrorFields(
        severity=found.get(b"V") or found.get(b"S", ""),
        sqlstate=sqlstate if len(sqlstate) == 5 and sqlstate.isascii() else "XX000",
        message=found.get(b"M", ""),
        detail=found.get(b"D", ""),
        hint=found.get(b"H", ""),
    )


def query(sql: str) -> bytes:
    """Return a simple Query."""
    return message(b"Q", cstring(sql))


def startup(parameters: Mapping[str, str], minor: int = 0) -> bytes:
    """Return a StartupMessage of protocol 3.`minor`."""
    body = b"".join(cstring(name) + cstring(value) for name, value in parameters.items())
    payload = _int32.pack((3 << 16) | minor) + body + b"\0"
    return _int32.pack(len(payload) + 4) + payload


def cancel_request(key: bytes) -> bytes:
    """Return a CancelRequest for `key`, the payload of a BackendKeyData (process id and secret)."""
    payload = _int32.pack(CANCEL_REQUEST_CODE) + key
    return _int32.pack(len(payload) + 4) + payload


def parameter_status(name: str, value: str) -> bytes:
    """Return a ParameterStatus."""
    return message(b"S", cstring(name) + cstring(value))


def backend_key_data(key: bytes) -> bytes:
    """Return a BackendKeyData for `key`: four bytes of process id, then the secret."""
    return message(b"K", key)


def negotiate_protocol_version(newest_minor: int, unknown_options: list[str]) -> bytes:
    """Return a NegotiateProtocolVersion: the newest minor version served, and the options that are not known."""
    names = b"".join(cstring(name) for name in unknown_options)
    return message(b"v", _int32.pack((3 << 16) | newest_minor) + _int32.pack(len(unknown_options)) + names)


def _authentication(code: int, rest: bytes = b"") -> bytes:
    return message(b"R", _int32.pack(code) + rest)


AUTHENTICATION_OK: Final = _authentication(AUTH_OK)
AUTHENTICATION_CLEARTEXT: Final = _authentication(AUTH_CLEARTEXT)


def authentication_md5(salt: bytes) -> bytes:
    """Return an AuthenticationMD5Password with its 4-byte salt."""
    return _authentication(AUTH_MD5, salt)


def authentication_sasl(mechanisms: list[str]) -> bytes:
    """Return an AuthenticationSASL that offers `mechanisms`."""
    return _authentication(AUTH_SASL, b"".join(cstring(name) for name in mechanisms) + b"\0")


def authentication_sasl_continue(data: bytes) -> bytes:
    """Return an AuthenticationSASLContinue."""
    return _authentication(AUTH_SASL_CONTINUE, data)


def authentication_sasl_final(data: bytes) -> bytes:
    """Return an AuthenticationSASLFinal."""
    return _authentication(AUTH_SASL_FINAL, data)


def password(secret: bytes) -> bytes:
    """Return a PasswordMessage."""
    return message(b"p", secret + b"\0")


def sasl_initial_response(mechanism: str, data: bytes) -> bytes:
    """Return a SASLInitialResponse."""
    return message(b"p", cstring(mechanism) + _int32.pack(len(data)) + data)


def sasl_response(data: bytes) -> bytes:
    """Return a SASLResponse."""
    return message(b"p", data)


def first_message(data: bytes, limit: int) -> tuple[int, bytes, int] | None:
    """Return kind, payload and size of the message at the beginning of `data`, or None if it is not whole yet.

    For the phases in which every message is looked at. Raises ProtocolViolation for a length that is impossible or
    over `limit` bytes.
    """
    if len(data) < _header.size:
        return None
    kind, length = _header.unpack_from(data)
    if not 4 <= length <= limit:
        raise ProtocolViolation(f"invalid length {length} of a message of type {chr(kind)!r}")
    if len(data) <= length:
        return None
    return kind, data[5 : length + 1], length + 1


def all_of_kind(data: bytes, kind: int) -> bytes:
    """Return those messages in `data`, which are whole, that are of one kind. Raises ProtocolViolation."""
    return b"".join(message(bytes((each,)), payload) for each, payload in messages_in(data) if each == kind)


def messages_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and payload of each message in `data` that is whole. Raises ProtocolViolation."""
    at = 0
    while at + _header.size <= len(data):
        kind, length = _header.unpack_from(data, at)
        if length < 4:
            raise ProtocolViolation(f"invalid length {length} of a message of type {chr(kind)!r}")
        after = at + length + 1
        if after > len(data):
            return
        yield kind, data[at + 5 : after]
        at = after
