"""The frontend scanner: however a client's bytes are cut, the same is booked, and half a request is held back."""

import random
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ClientViolation
from protocol.exchange import OWED_COPY_END, OWED_QUERY, UNCLOSED, Exchange
from protocol.frontend import HOLD_LIMIT, SHORT_LIMIT, first_unit, has_request, is_terminate, scan_requests
from tests.protocol.model import message

LIMIT = 1 << 30
SYNC = message("S")

requests = st.lists(st.tuples(st.sampled_from("QPBDECHSFdcf"), st.sampled_from([0, 1, 5, 40, 2000])), max_size=12).map(
    lambda kinds: b"".join(message(kind, b"Q" * size) for kind, size in kinds)
)
long_ones = st.tuples(st.sampled_from("QPBd"), st.sampled_from([HOLD_LIMIT - 5, HOLD_LIMIT - 4, 40_000])).map(
    lambda each: message(each[0], b"x" * each[1])
)


def booked(exchange: Exchange) -> tuple[object, ...]:
    return tuple(exchange.owed), exchange.run, exchange.mode, exchange.requests_rest


def feed(exchange: Exchange, chunks: list[bytes], limit: int = LIMIT) -> tuple[bytes, bytes]:
    """Hand in chunks as a session does; return what was forwarded and what is held back."""
    forwarded = held = b""
    for chunk in chunks:
        data = held + chunk
        end = scan_requests(exchange, data, limit)
        forwarded += data[:end]
        held = data[end:]
        assert len(held) <= HOLD_LIMIT + 5
    return forwarded, held


def pieces(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    found = []
    while data:
        size = rng.choice((1, 3, 5, 6, 100, 5000))
        found.append(data[:size])
        data = data[size:]
    return found


@given(st.lists(st.one_of(requests, long_ones), max_size=3).map(b"".join), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_any_cut_of_the_same_requests_books_the_same(data: bytes, seed: int) -> None:
    whole, cut = Exchange(), Exchange()
    assert feed(whole, [data]) == feed(cut, pieces(data, seed)) == (data, b"")
    assert booked(cut) == booked(whole)


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=20))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_a_violation_or_are_held_or_pass(chunks: list[bytes]) -> None:
    exchange = Exchange()
    held = b""
    try:
        for chunk in chunks:
            data = held + chunk
            end = scan_requests(exchange, data, LIMIT)
            assert 0 <= end <= len(data)
            held = data[end:]
            if is_terminate(held, 0):
                return
    except ClientViolation as violation:
        assert 0 <= violation.offset < len(data)  # noqa: PT017 - a violation need not come


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (message("Q", b"x" * 20_000), SHORT_LIMIT),
        (message("S", b"x" * (SHORT_LIMIT + 1)), LIMIT),
        (message("d", b"x" * 20_000), SHORT_LIMIT),
    ],
    ids=["a query over max_packet_size", "a sync of 10 kB", "copy data over max_packet_size"],
)
def test_what_is_too_long_is_refused_however_it_is_cut(data: bytes, limit: int) -> None:
    with pytest.raises(ClientViolation):
        feed(Exchange(), [data[:100], data[100:]], limit)
    with pytest.raises(ClientViolation):
        feed(Exchange(), [data], limit)


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("kind", "QSdX")
def test_an_impossible_length_is_refused(kind: str, length: int) -> None:
    with pytest.raises(ClientViolation):
        scan_requests(Exchange(), kind.encode() + pack("!I", length) + SYNC, LIMIT)
    assert has_request(kind.encode() + pack("!I", length)), "it queues, to be refused when it is looked at"


def test_half_a_request_is_none_unless_it_is_too_long_to_be_held() -> None:
    whole = message("Q", b"x" * 100)
    assert [has_request(whole[:size]) for size in (1, 4, 5, 104, 105)] == [False, False, False, False, True]
    assert has_request(message("Q", b"x" * HOLD_LIMIT)[:5])


def test_a_violation_says_how_much_before_it_was_booked() -> None:
    exchange = Exchange()
    good = message("Q", b"\0")
    with pytest.raises(ClientViolation) as caught:
        scan_requests(exchange, good + b"\xff\0\0\0\4", LIMIT)
    assert caught.value.offset == len(good)
    assert list(exchange.owed) == [OWED_QUERY]


@pytest.mark.parametrize(
    ("script", "owed", "run"),
    [
        ("Q", [OWED_QUERY], 0),
        ("PBES", [3], 0),
        ("PBE", [], 3),
        ("PBH", [], 2),
        ("PBQ", [UNCLOSED - 2, OWED_QUERY], 0),
        ("QcS", [OWED_QUERY, OWED_COPY_END, 0], 0),
        ("c", [], 0),
        ("ddd", [], 0),
        ("SS", [0, 0], 0),
        ("F", [OWED_QUERY], 0),
    ],
)
def test_what_is_owed_for(script: str, owed: list[int], run: int) -> None:
    exchange = Exchange()
    feed(exchange, [b"".join(message(kind, b"\0") for kind in script)])
    assert (list(exchange.owed), exchange.run) == (owed, run)


def test_nothing_goes_out_from_a_good_bye_on() -> None:
    data = message("Q", b"\0") + message("X") + message("Q", b"\0")
    end = scan_requests(Exchange(), data, LIMIT)
    assert end == 6
    assert is_terminate(data, end)


@pytest.mark.parametrize(
    ("script", "unit"), [("Q", 1), ("PBES", 4), ("PBESQ", 4), ("PBQ", 3), ("PBE", 0), ("", 0), ("FQ", 1), ("HHS", 3)]
)
def test_the_first_unit_ends_where_a_ready_for_query_would_answer(script: str, unit: int) -> None:
    made = [message(kind, b"\0") for kind in script]
    assert first_unit(b"".join(made)) == len(b"".join(made[:unit]))


def test_half_a_unit_is_none() -> None:
    assert first_unit(message("P", b"\0") + SYNC[:4]) == 0
    assert first_unit(message("Q", b"select")[:-1]) == 0
