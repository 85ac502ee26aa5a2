"""The backend scanner: however the server's bytes are cut, the same is struck off, and nothing makes it stumble."""

import random
from struct import pack, unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.backend import scan_replies
from protocol.errors import ServerViolation
from protocol.exchange import OWED_QUERY, Exchange
from protocol.kinds import PARAMETER_STATUS
from tests.protocol.model import message

READY = message("Z", b"I")
PASSING = "RKWcHVvNAtS" + "123nTCIs"

rows = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"", b"\0\0", message("D", b"\0\0"), message("Z", b"I"), message("D", b"\0\0") * 40]),
)
runs = st.tuples(st.sampled_from("Dd"), rows, st.integers(1, 200)).map(lambda run: message(run[0], run[1]) * run[2])
others = st.tuples(st.sampled_from(PASSING), rows).map(lambda each: message(*each))
answers = st.lists(st.one_of(runs, others, st.just(message("E", b"\0"))), max_size=8).map(b"".join)


def state(exchange: Exchange) -> tuple[object, ...]:
    # How an incomplete header is kept is the scanner's affair; all else is not.
    return (
        tuple(exchange.owed),
        exchange.run,
        exchange.answered,
        exchange.mode,
        exchange.status,
        exchange.replies_rest,
        exchange.replies_head,
        exchange.errors,
        exchange.queries,
    )


def asked(queries: int) -> Exchange:
    exchange = Exchange()
    exchange.owed.extend([OWED_QUERY] * queries)
    return exchange


def pieces(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    found = []
    while data:
        size = rng.choice((1, 2, 4, 5, 6, 7, 50, 1000))
        found.append(data[:size])
        data = data[size:]
    return found


@given(st.lists(answers, min_size=1, max_size=4), st.integers(0, 2**32), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_any_cut_of_the_same_replies_gives_the_same_state(parts: list[bytes], seed: int, missing: int) -> None:
    data = b"".join(part + READY for part in parts)
    data = data[: len(data) - missing]
    whole, cut = asked(len(parts)), asked(len(parts))
    free_whole = scan_replies(whole, data)
    free_cut = [scan_replies(cut, piece) for piece in pieces(data, seed)]
    assert state(cut) == state(whole)
    assert free_cut[-1] == free_whole == (not missing)
    assert not any(free_cut[:-1])


def naive_ready_count(data: bytes) -> int:
    at = ready = 0
    while at + 5 <= len(data):
        kind, length = unpack_from("!BI", data, at)
        at += length + 1
        ready += kind == ord("Z") and at <= len(data)
    return ready


@given(
    st.lists(
        st.tuples(st.sampled_from("DDDdC"), st.sampled_from([0, 1, 2, 2, 2, 7, 300]), st.integers(1, 400)), max_size=6
    ),
    st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_a_run_of_rows_is_hopped_over_to_exactly_its_end(shape: list[tuple[str, int, int]], seed: int) -> None:
    rng = random.Random(seed)
    data = READY
    for kind, size, count in shape:
        for _ in range(count):
            # Payloads that read like the header of the next row, or of a ReadyForQuery.
            lookalike = rng.choice([b"D" + pack("!I", size + 4), READY, b"\0" * 8]) * (size // 5 + 1)
            data += message(kind, lookalike[:size])
        data += READY
    exchange = asked(naive_ready_count(data))
    assert scan_replies(exchange, data)
    assert exchange.queries == len(shape) + 1


@given(st.integers(1, 40), st.integers(0, 60), st.integers(-2, 2), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_one_row_among_equals_that_is_a_little_longer_is_seen(size: int, before: int, by: int, after: int) -> None:
    row = message("D", b"x" * size)
    odd = message("D", b"x" * max(0, size + by))
    exchange = asked(1)
    assert scan_replies(exchange, row * before + odd + row * after + READY)


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_ready_for_query_counts_only_when_it_is_whole(cut: int) -> None:
    exchange = asked(1)
    assert not scan_replies(exchange, READY[:cut])
    assert exchange.owed
    assert scan_replies(exchange, READY[cut:])


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(0, 5))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_a_violation_or_pass(chunks: list[bytes], owed: int) -> None:
    exchange = asked(owed)
    try:
        for chunk in chunks:
            scan_replies(exchange, chunk)
            assert len(exchange.replies_head) < 6 or exchange.replies_head[0] == PARAMETER_STATUS
    except ServerViolation:
        pass


@pytest.mark.parametrize("length", [0, 3, 4, 6, 1000])
def test_a_ready_for_query_of_another_length_is_a_violation(length: int) -> None:
    with pytest.raises(ServerViolation):
        scan_replies(asked(3), b"Z" + pack("!I", length) + b"I" * 20)


def test_a_ready_for_query_that_nobody_asked_for_is_a_violation() -> None:
    with pytest.raises(ServerViolation):
        scan_replies(Exchange(), READY)


def test_an_unknown_kind_is_a_violation_that_says_where() -> None:
    with pytest.raises(ServerViolation) as caught:
        scan_replies(asked(1), message("N", b"\0") + b"\xff\0\0\0\4")
    assert caught.value.offset == 6


def test_the_error_that_ends_a_connection_leaves_an_error_unanswered() -> None:
    exchange = asked(1)
    scan_replies(exchange, message("E", b"\0"))
    assert exchange.error_unanswered
    scan_replies(exchange, READY)
    assert not exchange.error_unanswered
