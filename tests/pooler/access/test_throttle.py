"""When those who have failed to log in are told so, and what they cost until then."""

import asyncio

import pytest

from pooler.access.throttle import FORGET_S, MOST_ADDRESSES, Throttle
from tests.support.transport import MockTransport


class Doorstep:
    """Failures at a time of the test's choice."""

    def __init__(self, delay_s: float = 1.0, most: int = 100) -> None:
        self.time = 1000.0
        self.lingering: list[asyncio.Transport] = []
        self.throttle = Throttle(delay_s, most, self.lingering.append, lambda: self.time)

    def fail(self, address: str = "10.0.0.1") -> MockTransport:
        peer = (address, 50000) if address else ""
        transport = MockTransport(asyncio.Protocol(), extra={"peername": peer})
        self.throttle.turn_away(transport, b"no")
        return transport

    def delay(self, transport: MockTransport) -> float:
        """Return how long it takes until it is told."""
        begun = self.time
        while not transport.sent:
            self.time += 0.25
            self.throttle.sweep(self.time)
            assert self.time < begun + 60, "never told"
        assert transport in self.lingering
        return self.time - begun


def test_a_failure_is_told_after_a_while() -> None:
    doorstep = Doorstep()
    transport = doorstep.fail()
    assert not transport.sent
    assert doorstep.delay(transport) == 1.0


def test_each_further_failure_from_an_address_takes_longer_up_to_a_limit() -> None:
    doorstep = Doorstep()
    assert [doorstep.delay(doorstep.fail()) for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:3::7", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("", "", True),
        ("", "10.0.0.1", False),
    ],
)
def test_failures_count_for_the_address_they_came_from(one: str, other: str, same: bool) -> None:
    doorstep = Doorstep()
    doorstep.delay(doorstep.fail(one))
    assert doorstep.delay(doorstep.fail(other)) == (2.0 if same else 1.0)


def test_failures_are_forgotten_after_a_while_without_any() -> None:
    doorstep = Doorstep()
    doorstep.delay(doorstep.fail())
    doorstep.time += FORGET_S + 1
    assert doorstep.delay(doorstep.fail()) == 1.0


def test_no_delay() -> None:
    assert Doorstep(0.0).fail().sent == b"no"


def test_who_goes_costs_nothing_any_more() -> None:
    doorstep = Doorstep()
    transport = doorstep.fail()
    assert len(doorstep.throttle) == 1
    transport.lose()
    assert len(doorstep.throttle) == 0


def test_a_client_that_was_not_read_from_is_noticed_when_it_goes() -> None:
    doorstep = Doorstep()
    transport = MockTransport(asyncio.Protocol())
    transport.pause_reading()
    doorstep.throttle.turn_away(transport, b"no")
    assert transport.reading


def test_whatever_it_sends_meanwhile_is_not_kept() -> None:
    doorstep = Doorstep()
    transport = doorstep.fail()
    for _ in range(100):
        transport.receive(b"x" * 1000)
    assert transport.reading
    assert not transport.inbox


def test_when_too_many_wait_who_has_waited_longest_is_told_at_once() -> None:
    doorstep = Doorstep(most=3)
    waiting = [doorstep.fail(f"10.0.0.{number}") for number in range(4)]
    assert [bool(each.sent) for each in waiting] == [True, False, False, False]
    assert len(doorstep.throttle) == 3


def test_only_so_many_addresses_are_known() -> None:
    doorstep = Doorstep(most=1)
    for number in range(MOST_ADDRESSES + 100):
        doorstep.fail(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(doorstep.throttle._failures) == MOST_ADDRESSES


def test_everybody_is_told_when_the_pooler_ends() -> None:
    doorstep = Doorstep()
    waiting = [doorstep.fail(), doorstep.fail()]
    doorstep.throttle.close()
    assert all(each.sent == b"no" for each in waiting)
