"""What becomes of a server connection: lent only when it is free, cleaned when its client has gone, closed at last."""

import pytest

from pooler.client import ClientSession
from pooler.reasons import Reason
from pooler.server import ServerSession
from pooler.upstream.address import Address
from protocol.messages import TERMINATE
from tests.pooler.house import DONE, IN_TRANSACTION, READY, WELCOME, House, query, sent, wire
from tests.protocol.model import message
from tests.support.transport import MockTransport

COPY_FAIL = message("f", b"the client has gone\0")
SYNC = message("S")
BEGIN = message("C", b"BEGIN\0") + IN_TRANSACTION
ROLLED_BACK = message("C", b"ROLLBACK\0") + READY


def linked(house: House, request: bytes = b"", *, slow: bool = False) -> tuple[ServerSession, ClientSession]:
    server, client = house.server(slow=slow), house.client()
    wire(client).receive(request or query())
    assert sent(wire(server)) == (request or query())
    return server, client


def free_again(house: House) -> bool:
    return house.census() == {"idle": 1, "linked": 0, "busy": 0, "waiting": 0}


def test_a_vanished_clients_query_is_cancelled_and_its_server_reused() -> None:
    house = House()
    server, client = linked(house)
    wire(client).lose()
    assert house.cancels == [server]
    wire(server).receive(message("E", b"\0") + READY)
    assert not free_again(house), "the cancel may still come"
    house.settle_cancels()
    assert free_again(house)


def test_a_vanished_clients_transaction_is_rolled_back() -> None:
    house = House()
    server, client = linked(house, query("begin"))
    wire(server).receive(BEGIN)
    wire(client).lose()
    assert sent(wire(server)) == query("ROLLBACK")
    assert house.cancels == []
    wire(server).receive(ROLLED_BACK)
    assert free_again(house)


def test_a_rollback_that_fails_closes_the_server() -> None:
    house = House()
    server, client = linked(house, query("begin"))
    wire(server).receive(BEGIN)
    wire(client).lose()
    wire(server).receive(message("E", b"\0") + READY)
    assert house.server_endings == {server: Reason.SERVER_UNCLEAN}


def test_the_rollback_waits_for_the_cancel() -> None:
    house = House()
    server, client = linked(house, query("begin"))
    wire(server).receive(BEGIN)
    wire(client).receive(query("slow"))
    sent(wire(server))
    wire(client).lose()
    wire(server).receive(message("E", b"\0") + message("Z", b"E"))
    assert sent(wire(server)) == b"", "it would be hit by the cancel"
    house.settle_cancels()
    assert sent(wire(server)) == query("ROLLBACK")
    wire(server).receive(ROLLED_BACK)
    assert free_again(house)


def test_a_copy_in_is_failed_for_a_client_that_vanishes() -> None:
    house = House()
    server, client = linked(house, query("copy t from stdin"))
    wire(server).receive(message("G", b"\0\0\0"))
    wire(client).lose()
    assert sent(wire(server)) == COPY_FAIL
    wire(server).receive(message("E", b"\0") + READY)
    house.settle_cancels()
    assert free_again(house)


def test_a_copy_in_that_begins_after_its_client_has_gone_is_failed_too() -> None:
    house = House()
    server, client = linked(house, query("copy t from stdin"))
    wire(client).lose()
    wire(server).receive(message("G", b"\0\0\0"))
    assert sent(wire(server)) == COPY_FAIL
    wire(server).receive(message("E", b"\0") + READY)
    house.settle_cancels()
    assert free_again(house)


@pytest.mark.parametrize("before", [True, False], ids=["response before", "response after"])
def test_an_extended_copy_in_is_failed_and_synced(before: bool) -> None:
    house = House()
    run = message("P", b"\0\0\0\0") + message("B", b"\0") + message("E", b"\0")
    server, client = linked(house, run + SYNC)
    replies = message("1") + message("2") + message("G", b"\0\0\0")
    if before:
        wire(server).receive(replies)
        wire(client).lose()
    else:
        wire(client).lose()
        wire(server).receive(replies)
    assert sent(wire(server)) == COPY_FAIL + query("ROLLBACK") + SYNC
    wire(server).receive(message("E", b"\0") + READY)
    house.settle_cancels()
    assert free_again(house)


def test_a_run_without_its_sync_is_rolled_back_and_synced() -> None:
    house = House()
    server, client = linked(house, message("P", b"\0\0\0\0") + message("H"))
    wire(client).lose()
    assert sent(wire(server)) == query("ROLLBACK") + SYNC, "a Sync alone would commit"
    wire(server).receive(message("1") + ROLLED_BACK + READY)
    house.settle_cancels()
    assert free_again(house)


def test_a_query_that_was_not_synced_is_cancelled_too() -> None:
    house = House()
    run = message("P", b"\0\0\0\0") + message("B", b"\0") + message("E", b"\0")
    server, client = linked(house, run + message("H"))
    wire(client).lose()
    assert house.cancels == [server]


def test_a_request_that_nobody_can_complete_closes_the_server() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query("x" * 50_000)[:30_000])
    wire(client).lose()
    assert house.server_endings == {server: Reason.SERVER_UNCLEAN}
    assert house.census() == {"idle": 0, "linked": 0, "busy": 0, "waiting": 0}


def test_a_polite_clients_transaction_is_rolled_back_without_a_cancel() -> None:
    house = House()
    server, client = linked(house, query("begin"))
    wire(client).receive(TERMINATE)
    wire(client).lose()
    assert house.cancels == []
    wire(server).receive(BEGIN)
    assert sent(wire(server)) == query("ROLLBACK")
    wire(server).receive(ROLLED_BACK)
    assert free_again(house)


def test_an_answer_in_the_time_between_is_not_sent_to_the_next_client() -> None:
    house = House()
    server, client = linked(house)
    wire(client).lose()
    heir = house.client()
    wire(heir).receive(query("next"))
    wire(server).receive(message("D", b"secret") + DONE)
    assert sent(wire(heir)) == b""
    house.settle_cancels()
    assert sent(wire(server)) == query("next")


def test_a_server_that_is_cancelled_is_not_lent_until_that_is_settled() -> None:
    house = House()
    server, client = linked(house)
    server.cancel_sent()
    wire(server).receive(DONE)
    assert client.server is None
    assert house.census()["idle"] == 0
    server.cancel_settled()
    assert free_again(house)


def test_a_server_that_reads_too_slowly_stops_its_client() -> None:
    house = House()
    server, client = house.server(slow=True), house.client()
    wire(client).receive(query("copy t from stdin"))
    wire(server).receive(message("G", b"\0\0\0"))
    wire(client).receive(message("d", b"x" * 100_000))
    assert not wire(client).reading
    wire(server).take()
    assert wire(client).reading


def test_a_server_that_has_answered_more_than_it_has_read_is_lent_only_later() -> None:
    house = House()
    server, client = house.server(slow=True), house.client()
    wire(client).receive(query("copy t from stdin"))
    wire(server).receive(message("G", b"\0\0\0"))
    wire(client).receive(message("d", b"x" * 100_000))
    wire(server).receive(message("E", b"\0") + READY)
    assert client.server is None
    assert not free_again(house)
    wire(server).take()
    assert free_again(house)


def test_a_server_that_reads_slowly_is_not_lent_on_after_its_client_has_gone() -> None:
    house = House()
    server, client = house.server(slow=True), house.client()
    wire(client).receive(query("copy t from stdin"))
    wire(server).receive(message("G", b"\0\0\0"))
    wire(client).receive(message("d", b"x" * 100_000))
    wire(server).receive(message("E", b"\0") + READY)
    wire(client).lose()
    house.settle_cancels()
    next_client = house.client()
    for _ in range(20):
        wire(next_client).receive(query("x" * 50_000))
    assert len(wire(server).sent) < 300_000


def test_a_retired_server_ends_when_its_client_is_done() -> None:
    house = House()
    server, client = linked(house, query("begin"))
    wire(server).receive(BEGIN)
    server.retire(Reason.SERVER_LIFETIME)
    assert client.server is server
    wire(client).receive(query("commit"))
    wire(server).receive(DONE)
    assert sent(wire(client)) == BEGIN + DONE
    assert house.server_endings == {server: Reason.SERVER_LIFETIME}
    assert sent(wire(server)).endswith(TERMINATE)


def test_an_idle_server_retires_at_once() -> None:
    house = House()
    server = house.server()
    server.retire(Reason.SERVER_IDLE_TIMEOUT)
    assert house.server_endings == {server: Reason.SERVER_IDLE_TIMEOUT}
    assert house.pool.servers == set()


def test_a_waiting_client_that_asks_for_nothing_does_not_wear_out_a_retired_server_twice() -> None:
    house = House()
    asks_nothing, asks = house.client(), house.client()
    wire(asks_nothing).receive(message("H"))
    wire(asks).receive(query())
    server, transport = _server_to_be_retired(house)
    house.pool.opening += 1
    house.pool.opened(server, WELCOME, house.time)
    assert not transport.closing or asks.server is not server, "lent although it is closed"
    house.census()


def _server_to_be_retired(house: House) -> tuple[ServerSession, MockTransport]:
    transport = MockTransport()
    server = ServerSession(
        99, house.pool, transport, b"key", Address("localhost", 1), house.server_duties, house.session_state()
    )
    transport.protocol = server
    server.retire_after_use(Reason.SERVER_LIFETIME)
    return server, transport


def test_a_server_that_is_reset_always_is_reset_after_each_transaction() -> None:
    house = House(reset_query="DISCARD ALL")
    server, client = linked(house)
    wire(server).receive(DONE)
    assert sent(wire(client)) == DONE
    assert sent(wire(server)) == query("DISCARD ALL")
    wire(server).receive(message("E", b"\0") + READY)
    assert house.server_endings == {server: Reason.SERVER_RESET_FAILED}


def test_a_server_is_checked_each_time_if_so_configured() -> None:
    house = House(check_always=True)
    server, client = linked(house)
    wire(server).receive(DONE)
    assert client.server is None
    assert sent(wire(server)) == query("")
    assert house.pool.testing == 1
    wire(server).receive(message("I") + READY)
    assert house.pool.testing == 0
    assert free_again(house)


def test_a_failed_check_closes_the_server() -> None:
    house = House()
    server = house.server()
    house.pool.make_stale(server)
    client = house.client()
    wire(client).receive(query())
    assert sent(wire(server)) == query("")
    wire(server).receive(message("E", b"\0"))
    wire(server).lose()
    assert house.pool.testing == 0
    assert house.opens == 1
    assert client.waiting


def test_a_server_that_answers_what_nobody_asked_is_closed() -> None:
    house = House()
    server = house.server()
    wire(server).receive(READY)
    assert house.server_endings == {server: Reason.SERVER_VIOLATION}


def test_a_notice_for_an_idle_server_reaches_nobody() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(server).receive(message("N", b"\0") + message("S", b"TimeZone\0UTC\0"))
    assert sent(wire(client)) == b""
    assert free_again(house)


def test_a_slow_clients_server_is_read_again_when_the_client_goes() -> None:
    house = House()
    server, client = house.server(), house.client(slow=True)
    wire(client).receive(query())
    wire(server).receive(message("D", b"x" * 100_000))
    assert not wire(server).reading
    wire(client).lose()
    assert wire(server).reading
    wire(server).receive(message("E", b"\0") + READY)
    house.settle_cancels()
    assert free_again(house)


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_half_a_notice_for_an_idle_server_does_not_reach_the_next_client(cut: int) -> None:
    house = House()
    server, client = house.server(), house.client()
    notice = message("N", b"SNOTICE\0Mfor nobody\0\0")
    wire(server).receive(notice[:cut])
    wire(client).receive(query())
    wire(server).receive(notice[cut:])
    assert b"nobody" not in sent(wire(client))
    house.census()


def test_a_server_is_not_forgotten_when_half_a_notice_comes_before_its_cancel_is_settled() -> None:
    house = House()
    server, _client = linked(house)
    server.cancel_sent()
    wire(server).receive(DONE)
    notice = message("N", b"SNOTICE\0Mfor nobody\0\0")
    wire(server).receive(notice[:7])
    server.cancel_settled()
    wire(server).receive(notice[7:])
    assert free_again(house) or server not in house.pool.servers


def test_a_run_that_ends_in_a_stray_copy_end_is_rolled_back_and_synced_too() -> None:
    house = House()
    server, client = linked(house, message("P", b"\0\0\0\0") + message("c"))
    wire(client).lose()
    assert sent(wire(server)) == query("ROLLBACK") + SYNC, "a Sync alone would commit"
    wire(server).receive(message("1") + ROLLED_BACK + READY)
    house.settle_cancels()
    assert free_again(house)


@pytest.mark.parametrize("check_always", [False, True])
def test_a_server_lost_before_its_cancel_is_settled_does_not_come_back(check_always: bool) -> None:
    house = House(check_always=check_always)
    server, _client = linked(house)
    server.cancel_sent()
    wire(server).receive(DONE)
    wire(server).lose()
    server.cancel_settled()
    assert house.census() == {"idle": 0, "linked": 0, "busy": 0, "waiting": 0}
    assert house.pool.testing == 0


def test_a_check_is_not_sent_into_a_cancel() -> None:
    house = House(check_always=True)
    server, _client = linked(house)
    server.cancel_sent()
    wire(server).receive(DONE)
    assert sent(wire(server)) == b"", "it would be hit by the cancel"
