"""Bulk data goes through in both directions at Postgres's pace, and pgfunnel's memory stays what it was."""

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel
from tests.support.wire import Wire, copy_data, copy_done, extended, kinds, query, sync

MIB = 1 << 20
FLAT = 8 * MIB  # what the memory may grow by: a few buffers, however much goes through
SIZES = [pytest.param(200 * MIB, id="200 MiB"), pytest.param(1024 * MIB, marks=pytest.mark.slow, id="1 GiB")]
LINE = b"x" * 1023 + b"\n"


@pytest.fixture
def pooler(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    pooler = pgfunnel(postgres.url(), default_pool_size=2)
    with pooler.login() as wire:
        copy_out(wire, MIB)
        copy_in(wire, MIB)
    pooler.forget_peak_rss()
    return pooler


def copy_out(wire: Wire, size: int) -> None:
    wire.send(query(f"COPY (SELECT repeat('x', 1023) FROM generate_series(1, {size // 1024})) TO STDOUT"))
    assert wire.read().kind == "H"
    expected = copy_data(LINE)
    lines = 256
    for _ in range(size // 1024 // lines):
        assert wire.read_bytes(len(expected) * lines) == expected * lines
    assert kinds(wire.read_until()) == "cCZ"


def copy_in(wire: Wire, size: int, *, keep: int = 0) -> None:
    """Send `size` bytes of lines, of which Postgres keeps the first `keep`."""
    wire.query("CREATE TEMP TABLE arrived (line text, number serial)")
    wire.send(query(f"COPY arrived (line) FROM STDIN WHERE number <= {keep}"))
    assert wire.read_until("GE")[-1].kind == "G"
    chunk = copy_data(LINE * 64) * 4
    for _ in range(size // 1024 // 256):
        wire.send(chunk)
    wire.send(copy_done())
    (done, ready) = wire.read_until()
    assert (done.payload, ready.payload) == (f"COPY {keep}\0".encode(), b"I")
    assert wire.value("SELECT last_value FROM arrived_number_seq") == str(size // 1024)
    wire.query("DROP TABLE arrived")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", SIZES)
def test_copy_out_does_not_grow_the_memory(pooler: Pgfunnel, size: int) -> None:
    before = pooler.rss()
    with pooler.login() as wire:
        copy_out(wire, size)
    assert pooler.peak_rss() - before < FLAT


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", SIZES)
def test_copy_in_does_not_grow_the_memory(pooler: Pgfunnel, size: int) -> None:
    before = pooler.rss()
    with pooler.login() as wire:
        copy_in(wire, size, keep=1000)
    assert pooler.peak_rss() - before < FLAT


def test_one_message_of_many_megabytes_goes_through_in_pieces(pooler: Pgfunnel) -> None:
    before = pooler.rss()
    value = "y" * 100 * MIB
    with pooler.login() as wire:
        wire.send(extended("SELECT $1::text", value), sync())
        row = next(message for message in wire.read_until() if message.kind == "D")
        assert row.columns == [value]
    assert pooler.peak_rss() - before < FLAT


def test_others_are_served_while_copies_run(pooler: Pgfunnel) -> None:
    with pooler.login() as copying, pooler.login() as wire:
        copying.send(query("COPY (SELECT repeat('x', 1023) FROM generate_series(1, 100000)) TO STDOUT"))
        copying.read_until("H")
        for number in range(100):
            assert wire.value(f"SELECT {number}") == str(number)
            assert copying.read_bytes(len(copy_data(LINE)) * 1000) == copy_data(LINE) * 1000
        assert kinds(copying.read_until()) == "cCZ"
