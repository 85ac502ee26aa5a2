"""Handshakes by the crowd: so many at once, one step at a time, and nobody who dawdles keeps others waiting."""

import asyncio
import ssl
from functools import partial

import pytest

from pooler.tls.contexts import client_context
from pooler.tls.handshakes import PATIENCE_S, Handshakes, cause_of
from tests.pooler.tls.peer import Peer, client_settings, trusting
from tests.support.certificates import Certificates


class Client:
    def __init__(self, handshakes: Handshakes) -> None:
        self.handshakes = handshakes
        self.began = False
        self.slow = False

    def shake_hands(self) -> None:
        self.began = True

    def too_slow(self) -> None:
        self.slow = True
        self.handshakes.done(self, "tls_handshake_failed")


async def rounds(count: int = 1) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def crowd(handshakes: Handshakes, size: int) -> list[Client]:
    clients = [Client(handshakes) for _ in range(size)]
    for client in clients:
        handshakes.begin(client)
    return clients


async def test_further_clients_wait_in_order_of_arrival() -> None:
    handshakes = Handshakes(2)
    first, second, third, fourth = crowd(handshakes, 4)
    assert [each.began for each in (first, second, third, fourth)] == [True, True, False, False]
    handshakes.done(second)
    await rounds()
    assert (third.began, fourth.began) == (True, False)
    handshakes.done(first, "no_tls")
    await rounds()
    assert fourth.began
    assert handshakes.failed == {"no_tls": 1}


async def test_who_goes_gives_up_its_place_in_the_queue() -> None:
    handshakes = Handshakes(1)
    first, second, third = crowd(handshakes, 3)
    handshakes.done(second, "client_gone")
    handshakes.done(first)
    await rounds()
    assert (second.began, third.began) == (False, True)


async def test_who_goes_when_its_turn_has_come_does_not_begin() -> None:
    handshakes = Handshakes(1)
    first, second, third = crowd(handshakes, 3)
    handshakes.done(first)
    handshakes.done(second, "client_gone")
    await rounds()
    assert (second.began, third.began) == (False, True)
    handshakes.done(third)
    assert not handshakes.under_way
    assert not handshakes.queue


async def test_who_dawdles_goes_if_others_wait() -> None:
    handshakes = Handshakes(1)
    (slow,) = crowd(handshakes, 1)
    handshakes.sweep(100.0)
    handshakes.sweep(200.0)
    alone = slow.slow
    (other,) = crowd(handshakes, 1)
    handshakes.sweep(100.0 + PATIENCE_S)
    await rounds()
    assert (alone, slow.slow, other.began) == (False, True, True)


async def test_the_more_wait_the_sooner_who_dawdles_has_to_go() -> None:
    """Else so many that never finish would keep everybody out: each new one of them has its two seconds again."""
    handshakes = Handshakes(10)
    dawdlers = crowd(handshakes, 10)
    crowd(handshakes, 40)
    handshakes.sweep(100.0)
    handshakes.sweep(100.0 + PATIENCE_S / 5 - 0.1)
    assert not any(client.slow for client in dawdlers)
    handshakes.sweep(100.0 + PATIENCE_S / 5)
    assert all(client.slow for client in dawdlers)


async def test_one_step_is_taken_in_each_round() -> None:
    handshakes = Handshakes(100)
    taken: list[int] = []

    def step(number: int) -> bool:
        taken.append(number)
        return True

    assert handshakes.take(partial(step, 0))
    for number in (1, 2, 3):
        assert not handshakes.take(partial(step, number))
    seen = []
    for _ in range(4):
        await rounds()
        seen.append(len(taken))
    assert seen == [1, 2, 3, 3]
    assert taken == [1, 2, 3]
    assert handshakes.take(partial(step, 4))


async def test_who_has_gone_before_its_turn_costs_nobody_a_round() -> None:
    handshakes = Handshakes(100)
    taken: list[int] = []

    def step() -> bool:
        taken.append(len(taken))
        return True

    handshakes.take(step)
    for _ in range(50):
        handshakes.take(lambda: False)
    handshakes.take(step)
    handshakes.take(step)
    await rounds(1)
    assert taken == [0]
    await rounds(1)
    assert taken == [0, 1]


async def test_a_step_that_fails_keeps_nobody_from_theirs() -> None:
    handshakes = Handshakes(100)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    taken: list[int] = []

    def fail() -> bool:
        raise RuntimeError

    def step() -> bool:
        taken.append(1)
        return True

    handshakes.take(fail)
    handshakes.take(fail)
    handshakes.take(step)
    await rounds(3)
    assert taken == [1]


def failure(certificates: Certificates, client: ssl.SSLContext, **given: object) -> ssl.SSLError:
    """Shake hands with `client`, and return what that fails of at our side."""
    ours = Peer(client_context(client_settings(certificates.ec, **given)), server_side=True)
    theirs = Peer(client)
    out = theirs.shake()
    for _ in range(5):
        try:
            answer = ours.shake(out)
        except ssl.SSLError as error:
            return error
        try:
            out = theirs.shake(answer)
        except ssl.SSLError:
            out = theirs.outgoing.read()
    raise AssertionError("it did not fail")


def test_causes_have_names(certificates: Certificates) -> None:
    verify = {"client_tls_sslmode": "verify-full", "client_tls_ca_file": certificates.ca}
    stranger = certificates.other_authority.client("alice")
    outdated = trusting(certificates, minimum_version=ssl.TLSVersion.TLSv1_2, maximum_version=ssl.TLSVersion.TLSv1_2)
    distrustful = ssl.create_default_context(cafile=certificates.other_authority.certificate)
    for client, given, cause in (
        (trusting(certificates), verify, "client_certificate"),
        (trusting(certificates, stranger), verify, "client_certificate"),
        (outdated, {"client_tls_protocols": "tlsv1.3"}, "nothing_in_common"),
        (distrustful, {}, "refused_by_client"),
    ):
        assert cause_of(failure(certificates, client, **given)) == cause
    ours = Peer(client_context(client_settings(certificates.ec)), server_side=True)
    with pytest.raises(ssl.SSLError) as caught:
        ours.shake(b"GET / HTTP/1.1\r\n\r\n")
    assert cause_of(caught.value) == "no_tls"
    assert cause_of(ConnectionResetError()) == "client_gone"
