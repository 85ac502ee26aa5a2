"""The messages of a session that is answered here instead of by Postgres: its requests are read, its results built.

Source: PostgreSQL documentation, "Message Formats", "Extended Query" and "Formats and Format Codes"; for the binary
form of numeric, which is not documented, numeric_send() in PostgreSQL's source.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct, error
from typing import Final, NamedTuple

from protocol.errors import ClientViolation
from protocol.messages import cstring, message, text_of

_int16 = Struct("!H")
_int32 = Struct("!i")
_int64 = Struct("!q")
_field = Struct("!IHIhiH")

BINARY: Final = 1

PARSE_COMPLETE: Final = message(b"1", b"")
BIND_COMPLETE: Final = message(b"2", b"")
CLOSE_COMPLETE: Final = message(b"3", b"")
NO_DATA: Final = message(b"n", b"")
PORTAL_SUSPENDED: Final = message(b"s", b"")
EMPTY_QUERY: Final = message(b"I", b"")
READY_IN_TRANSACTION: Final = message(b"Z", b"T")


class Kind(IntEnum):
    """The type of a column: its OID in Postgres's catalog."""

    BYTES = 17
    INT8 = 20
    INT4 = 23
    TEXT = 25
    NUMERIC = 1700


_SIZES: Final = {Kind.INT4: 4, Kind.INT8: 8}
_MOST_INT4: Final = 2**31 - 1


class Column(NamedTuple):
    """A column of a result."""

    name: str
    kind: Kind


Value = str | int | None
"""A value in a row; ints are for the kinds INT4, INT8 and NUMERIC."""


# --- results


def row_description(columns: Sequence[Column], formats: Sequence[int] = ()) -> bytes:
    """Return a RowDescription. `formats` are as in a Bind: none for text, one for all columns, or one for each."""
    parts = [_int16.pack(len(columns))]
    for at, (name, kind) in enumerate(columns):
        parts.append(cstring(name) + _field.pack(0, 0, kind, _SIZES.get(kind, -1), -1, _format(formats, at)))
    return message(b"T", b"".join(parts))


def data_row(columns: Sequence[Column], values: Sequence[Value], formats: Sequence[int] = ()) -> bytes:
    """Return a DataRow with `values`, one for each of `columns`."""
    parts = [_int16.pack(len(columns))]
    for at, ((_, kind), value) in enumerate(zip(columns, values, strict=True)):
        if value is None:
            parts.append(_int32.pack(-1))
            continue
        if kind is Kind.INT4 and isinstance(value, int):
            value = min(value, _MOST_INT4)  # noqa: PLW2901
        raw = _binary(kind, value) if _format(formats, at) == BINARY else str(value).encode("utf-8", "replace")
        parts.append(_int32.pack(len(raw)) + raw)
    return message(b"D", b"".join(parts))


def _format(formats: Sequence[int], at: int) -> int:
    return formats[at] if len(formats) > 1 else formats[0] if formats else 0


def _binary(kind: Kind, value: str | int) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if kind is Kind.INT4:
        return _int32.pack(value)
    return _int64.pack(value) if kind is Kind.INT8 else _binary_numeric(value)


def _binary_numeric(value: int) -> bytes:
    """Return count, weight, sign and scale, then the digits to the base 10,000; an int has no fraction."""
    digits: list[int] = []
    rest = abs(value)
    while rest:
        rest, digit = divmod(rest, 10_000)
        digits.insert(0, digit)
    sign = 0x4000 if value < 0 else 0
    return Struct(f"!HhHH{len(digits)}H").pack(len(digits), max(0, len(digits) - 1), sign, 0, *digits)


def command_complete(tag: str) -> bytes:
    """Return a CommandComplete."""
    return message(b"C", cstring(tag))


def notice(text: str, detail: str = "") -> bytes:
    """Return a NoticeResponse."""
    fields = [b"SNOTICE\0VNOTICE\0C00000\0", b"M" + cstring(text)]
    if detail:
        fields.append(b"D" + cstring(detail))
    return message(b"N", b"".join(fields) + b"\0")


def parameter_description(count: int) -> bytes:
    """Return a ParameterDescription of so many texts."""
    return message(b"t", _int16.pack(count) + _int32.pack(Kind.TEXT) * count)


# --- requests


class Parse(NamedTuple):
    """A Parse, without the types of its parameters."""

    name: str
    text: str


class Bind(NamedTuple):
    """A Bind, without the values of its parameters: `formats` are those of the columns."""

    portal: str
    statement: str
    parameters: int
    formats: tuple[int, ...]


class Named(NamedTuple):
    """A Describe or a Close."""

    of_portal: bool
    name: str


class Execute(NamedTuple):
    """An Execute; 0 rows are all."""

    portal: str
    rows: int


def read_query(payload: bytes) -> str:
    """Read a Query. Raises ClientViolation, as do all of these."""
    reader = _Reader(payload)
    return reader.text()


def read_parse(payload: bytes) -> Parse:
    """Read a Parse."""
    reader = _Reader(payload)
    return Parse(reader.text(), reader.text())


def read_bind(payload: bytes) -> Bind:
    """Read a Bind."""
    reader = _Reader(payload)
    portal, statement = reader.text(), reader.text()
    reader.skip(2 * reader.int16())
    parameters = reader.int16()
    for _ in range(parameters):
        reader.skip(max(0, reader.int32()))
    return Bind(portal, statement, parameters, tuple(reader.int16s()))


def read_named(payload: bytes) -> Named:
    """Read a Describe or a Close."""
    if payload[:1] not in (b"P", b"S"):
        raise ClientViolation("invalid subtype of a Describe or Close message")
    return Named(payload[:1] == b"P", _Reader(payload[1:]).text())


def read_execute(payload: bytes) -> Execute:
    """Read an Execute."""
    reader = _Reader(payload)
    return Execute(reader.text(), reader.int32())


class _Reader:
    """Reads a payload from its beginning on."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def text(self) -> str:
        end = self._payload.find(b"\0", self._at)
        if end < 0:
            raise ClientViolation("invalid string in message")
        raw, self._at = self._payload[self._at : end], end + 1
        return text_of(raw)

    def int16(self) -> int:
        return self._int(_int16)

    def int32(self) -> int:
        return self._int(_int32)

    def _int(self, form: Struct) -> int:
        try:
            (value,) = form.unpack_from(self._payload, self._at)
        except error:
            raise ClientViolation("insufficient data left in message") from None
        self._at += form.size
        return int(value)

    def int16s(self) -> Iterator[int]:
        for _ in range(self.int16()):
            yield self.int16()

    def skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._payload):
            raise ClientViolation("insufficient data left in message")
