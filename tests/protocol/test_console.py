"""Results in both formats, and requests that are not what they should be."""

import struct

import pytest

from protocol.console import (
    Column,
    Kind,
    data_row,
    read_bind,
    read_execute,
    read_named,
    read_parse,
    read_query,
    row_description,
)
from protocol.errors import ClientViolation
from tests.support import wire

NUMBERS = tuple(Column(kind.name.lower(), kind) for kind in (Kind.INT4, Kind.INT8, Kind.NUMERIC))


def values(row: bytes) -> list[bytes]:
    found, at = [], 7
    while at < len(row):
        (size,) = struct.unpack_from("!i", row, at)
        found.append(row[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def test_rows_are_text_unless_the_client_asks_for_binary() -> None:
    assert values(data_row(NUMBERS, (1, 2, 3))) == [b"1", b"2", b"3"]
    assert values(data_row(NUMBERS, (1, 2, 3), (1,)))[:2] == [b"\0\0\0\1", b"\0\0\0\0\0\0\0\2"]
    assert values(data_row(NUMBERS, (1, 2, 3), (0, 1, 0))) == [b"1", b"\0\0\0\0\0\0\0\2", b"3"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [  # what numeric_send() returns, in hex
        (0, "0000000000000000"),
        (7, "00010000000000000007"),
        (10_000, "000200010000000000010000"),
        (123_456_789, "0003000200000000" + "00010929" + "1a85"),
        (-42, "0001000040000000002a"),
    ],
)
def test_numerics_in_binary_are_what_postgres_sends(value: int, expected: str) -> None:
    assert values(data_row((Column("n", Kind.NUMERIC),), (value,), (1,)))[0].hex() == expected


def test_what_does_not_fit_into_an_int4_is_the_largest_that_does() -> None:
    assert values(data_row((Column("n", Kind.INT4),), (1 << 40,), (1,))) == [b"\x7f\xff\xff\xff"]


def test_text_that_is_no_utf_8_is_still_shown() -> None:
    assert values(data_row((Column("name", Kind.TEXT),), ("caf\udce9",))) == [b"caf?"]


def test_columns_tell_the_format_that_their_rows_will_have() -> None:
    formats = [struct.unpack("!H", part[-2:])[0] for part in (row_description(NUMBERS), row_description(NUMBERS, (1,)))]
    assert formats == [0, 1]


@pytest.mark.parametrize("cut", range(1, 12))
def test_half_a_request_is_a_violation(cut: int) -> None:
    whole = {
        read_parse: wire.parse("SHOW POOLS", "a"),
        read_bind: wire.bind("x", "y"),
        read_execute: wire.execute("portal", 3),
        read_query: wire.query("SHOW POOLS"),
    }
    for read, message in whole.items():
        payload = message[5:]
        read(payload)
        if cut < len(payload) and not (read is read_parse and cut <= 6):
            with pytest.raises(ClientViolation):
                read(payload[:-cut])


def test_only_statements_and_portals_can_be_described() -> None:
    with pytest.raises(ClientViolation):
        read_named(b"X\0")
