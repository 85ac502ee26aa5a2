"""Following a stream: where its messages begin, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.boundaries import Boundaries
from protocol.errors import ProtocolViolation
from protocol.messages import message

MESSAGES = st.lists(st.tuples(st.sampled_from([b"d", b"W", b"Z"]), st.binary(max_size=20)), min_size=1, max_size=8)


@given(MESSAGES, st.lists(st.integers(1, 9), min_size=1))
def test_any_cut_of_the_same_messages_shows_the_same(messages: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    stream = b"".join(message(*each) for each in messages)
    ends = {0}
    for kind, payload in messages:
        ends.add(max(ends) + len(message(kind, payload)))
    boundaries = Boundaries(b"WZ")
    at = step = 0
    while at < len(stream):
        chunk = stream[at : at + sizes[step % len(sizes)]]
        boundaries.follow(chunk)
        at += len(chunk)
        step += 1
        assert boundaries.between == (at in ends)
    noted = [kind[0] for kind, _ in messages if kind in (b"W", b"Z")]
    assert boundaries.last == (noted[-1] if noted else 0)
    assert boundaries.seen == {kind: noted.count(kind) for kind in b"WZ"}


def test_it_tells_where_the_first_noted_message_begins() -> None:
    boundaries = Boundaries(b"Q")
    assert boundaries.follow(message(b"P", b"one") + message(b"Q", b"two") + message(b"Q", b"three")) == 8
    assert boundaries.follow(message(b"S", b"")) == -1


def test_a_kind_is_known_before_its_length() -> None:
    boundaries = Boundaries(b"Q")
    assert boundaries.follow(message(b"S", b"") + b"Q") == 5


def test_an_impossible_length_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        Boundaries(b"").follow(b"d\0\0\0\3")
