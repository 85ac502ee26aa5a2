"""A cancel reaches the query that it was sent for, and never the next borrower of the connection."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

import pooler.cancel
from pooler.cancel import MAX_AT_ONCE, Canceller
from pooler.client import ClientSession
from pooler.reasons import Reason
from pooler.server import ServerSession
from pooler.upstream.dial import Conversation
from protocol.messages import cancel_request
from tests.pooler.house import DONE, READY, House, query, sent, wire
from tests.protocol.model import message
from tests.support.transport import MockTransport

Office = tuple[House, Canceller, list[MockTransport], list[str]]


@pytest.fixture
async def office(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    """A house, its canceller, the connections that it has opened, and what it has complained about."""
    opened: list[MockTransport] = []
    complaints: list[str] = []

    async def dial(host: str, port: int, ip: str) -> Conversation:
        await asyncio.sleep(0)
        conversation = Conversation()
        opened.append(MockTransport(conversation))
        conversation.connection_made(opened[-1])
        return conversation

    monkeypatch.setattr(pooler.cancel, "dial", dial)
    house = House()
    clients: dict[bytes, ClientSession] = {}
    canceller = Canceller(clients, 0.2, lambda _, text: complaints.append(text))
    house.server_duties = house.server_duties._replace(cancel=canceller.cancel_server)
    make = house.client
    house_clients = clients

    def client(*, slow: bool = False) -> ClientSession:
        session = make(slow=slow)
        house_clients[session.key] = session
        return session

    monkeypatch.setattr(house, "client", client)
    yield house, canceller, opened, complaints
    await canceller.close()


async def turns(condition: Callable[[], object], most: int = 50) -> None:
    for _ in range(most):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


def busy(house: House) -> tuple[ServerSession, ClientSession]:
    server, client = house.server(), house.client()
    wire(client).receive(query())
    sent(wire(server))
    return server, client


async def test_a_cancel_is_passed_on_with_the_servers_key(office: Office) -> None:
    house, canceller, opened, _ = office
    server, client = busy(house)
    done: list[bool] = []
    canceller.cancel_client(client.key, lambda: done.append(True))
    await turns(lambda: opened and opened[0].sent)
    assert sent(opened[0]) == cancel_request(server.key)
    assert not done
    opened[0].lose()
    await turns(lambda: done)
    assert opened[0].aborted


async def test_an_answer_before_the_cancel_has_set_out_makes_it_pointless(office: Office) -> None:
    house, canceller, opened, _ = office
    server, client = busy(house)
    canceller.cancel_client(client.key, lambda: None)
    wire(server).receive(DONE)
    heir = house.client()
    wire(heir).receive(query("next"))
    assert sent(wire(server)) == b"", "not before the cancel is settled"
    await turns(lambda: heir.server)
    assert not any(transport.sent for transport in opened)


async def test_an_answer_while_the_cancel_connects_makes_it_pointless(office: Office) -> None:
    house, canceller, opened, _ = office
    server, client = busy(house)
    canceller.cancel_client(client.key, lambda: None)
    await asyncio.sleep(0)
    wire(server).receive(DONE)
    await turns(lambda: house.census()["idle"])
    assert not any(transport.sent for transport in opened)
    assert all(transport.aborted for transport in opened)


async def test_the_next_borrower_waits_until_postgres_has_confirmed(office: Office) -> None:
    house, canceller, opened, _ = office
    server, client = busy(house)
    canceller.cancel_client(client.key, lambda: None)
    await turns(lambda: opened and opened[0].sent)
    wire(server).receive(DONE)
    heir = house.client()
    wire(heir).receive(query("next"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert heir.server is None
    opened[0].lose()
    await turns(lambda: heir.server is server)


async def test_a_cancel_that_is_never_confirmed_closes_the_server(office: Office) -> None:
    house, canceller, opened, complaints = office
    server, client = busy(house)
    canceller.cancel_client(client.key, lambda: None)
    await turns(lambda: opened and opened[0].sent)
    wire(server).receive(DONE)
    await asyncio.wait_for(canceller.cancel_server(server), 5)
    assert house.server_endings == {server: Reason.CANCEL_UNCONFIRMED}
    assert complaints == ["not confirmed within 0.2 s"]


async def test_a_cancel_that_can_not_be_delivered_leaves_the_server_in_use(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, canceller, _, complaints = office

    async def refuse(host: str, port: int) -> Conversation:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(pooler.cancel, "dial", refuse)
    server, client = busy(house)
    canceller.cancel_client(client.key, lambda: None)
    wire(server).receive(DONE)
    await turns(lambda: house.census()["idle"])
    assert complaints in (["refused"], [])


async def test_a_waiting_client_leaves_the_queue_at_once(office: Office) -> None:
    house, canceller, opened, _ = office
    client = house.client()
    wire(client).receive(query())
    done: list[bool] = []
    canceller.cancel_client(client.key, lambda: done.append(True))
    assert done
    assert house.census()["waiting"] == 0
    assert not opened


@pytest.mark.parametrize("key", [b"unknown", b""])
async def test_a_cancel_for_nobody_leads_nowhere(office: Office, key: bytes) -> None:
    _, canceller, opened, _ = office
    done: list[bool] = []
    canceller.cancel_client(key, lambda: done.append(True))
    assert done
    assert not opened


async def test_a_storm_of_cancels_is_no_storm_of_connections(office: Office) -> None:
    house, canceller, opened, _ = office
    house.pool.size = 100
    for _ in range(100):
        canceller.cancel_server(busy(house)[0])
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(opened) == MAX_AT_ONCE
    opened[0].lose()
    await turns(lambda: len(opened) == MAX_AT_ONCE + 1)


async def test_who_cancels_again_and_again_is_one_cancel(office: Office) -> None:
    house, canceller, opened, _ = office
    _, client = busy(house)
    for _ in range(20):
        canceller.cancel_client(client.key, lambda: None)
    await turns(lambda: opened and opened[0].sent)
    assert len(opened) == 1


async def test_what_gives_a_server_its_clients_settings_is_not_cancelled(office: Office) -> None:
    house, canceller, opened, _ = office
    server, client = house.server(), house.client()
    client.profile = house.sharing.profiles.of({"app.x": b"one"})
    wire(client).receive(query("select 1"))
    done: list[bool] = []
    canceller.cancel_client(client.key, lambda: done.append(True))
    assert done
    for _ in range(10):
        await asyncio.sleep(0)
    assert not opened
    wire(server).receive(message("C", b"COMMIT\0") + READY)
    canceller.cancel_client(client.key, lambda: None)
    await turns(lambda: opened and opened[0].sent)
