"""What a client sees of its session: requests go out whole and once, waiting is fair, and every end is told."""

import pytest

from pooler.client import PENDING_LIMIT, ClientSession
from pooler.reasons import Ending, Reason
from protocol.frontend import HOLD_LIMIT
from protocol.messages import READY_IDLE, TERMINATE, ErrorFields, error_response, read_error
from tests.pooler.house import DONE, IN_TRANSACTION, READY, House, query, sent, wire
from tests.protocol.model import message

FLUSH = message("H")
SYNC = message("S")


def told(client: ClientSession) -> str:
    """The SQLSTATE of the error that the client was sent last."""
    data = bytes(wire(client).sent)
    at = data.rindex(b"E\0")
    return read_error(data[at + 5 :]).sqlstate


def test_a_query_is_sent_on_as_it_came_and_its_answer_too() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query())
    assert sent(wire(server)) == query()
    wire(server).receive(DONE)
    assert sent(wire(client)) == DONE
    assert house.census() == {"idle": 1, "linked": 0, "busy": 0, "waiting": 0}


def test_a_transaction_keeps_its_server() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query("begin"))
    wire(server).receive(message("C", b"BEGIN\0") + IN_TRANSACTION)
    assert client.server is server
    wire(client).receive(query("commit"))
    wire(server).receive(DONE)
    assert client.server is None


@pytest.mark.parametrize("cut", range(1, len(query())))
def test_half_a_message_takes_no_server(cut: int) -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query()[:cut])
    assert sent(wire(server)) == b""
    assert house.census()["idle"] == 1
    wire(client).receive(query()[cut:])
    assert sent(wire(server)) == query()


def test_half_a_message_does_not_queue_either() -> None:
    house = House()
    client = house.client()
    wire(client).receive(query()[:7])
    assert house.census()["waiting"] == 0
    wire(client).receive(query()[7:])
    assert house.census()["waiting"] == 1


def test_a_request_too_long_to_hold_is_streamed() -> None:
    house = House()
    server, client = house.server(), house.client()
    long = query("x" * (3 * HOLD_LIMIT))
    for at in range(0, len(long), 1000):
        wire(client).receive(long[at : at + 1000])
        assert len(client.pending) < 5
    assert sent(wire(server)) == long


def test_clients_that_wait_are_served_in_order() -> None:
    house = House()
    clients = [house.client() for _ in range(4)]
    for number, client in enumerate(clients):
        wire(client).receive(query(str(number)))
    server = house.server()
    for number in range(4):
        assert sent(wire(server)) == query(str(number))
        wire(server).receive(DONE)
    assert house.census() == {"idle": 1, "linked": 0, "busy": 0, "waiting": 0}


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("nothing", [FLUSH, message("c"), message("d", b"data"), FLUSH + query()[:3]])
def test_a_waiting_client_that_asks_for_no_answer_leaves_the_server_to_the_next(nothing: bytes, others: int) -> None:
    house = House(size=1)
    first = house.client()
    wire(first).receive(nothing)
    waiting = [house.client() for _ in range(others)]
    for client in waiting:
        wire(client).receive(query())
    house.server()
    census = house.census()
    assert census["idle"] + census["linked"] == 1
    assert census["linked"] == min(others, 1)
    assert first.server is None


def test_many_waiting_clients_that_say_good_bye_are_no_deep_recursion() -> None:
    house = House(size=1)
    clients = [house.client() for _ in range(500)]
    for client in clients:
        wire(client).receive(FLUSH + TERMINATE)
    last = house.client()
    wire(last).receive(query())
    house.server()
    assert last.server is not None
    assert len(house.endings) == 500


def test_many_waiting_clients_that_break_the_protocol_are_no_deep_recursion() -> None:
    house = House(size=1)
    for _ in range(500):
        wire(house.client()).receive(FLUSH + b"\xff\0\0\0\4")
    last = house.client()
    wire(last).receive(query())
    house.server()
    assert last.server is not None


def test_a_client_that_vanishes_while_it_waits_gives_up_its_place() -> None:
    house = House()
    gone, patient = house.client(), house.client()
    wire(gone).receive(query("a"))
    wire(patient).receive(query("b"))
    wire(gone).lose()
    server = house.server()
    assert sent(wire(server)) == query("b")
    assert house.endings[gone].reason is Reason.CLIENT_GONE


def test_a_client_that_waits_is_read_from_only_up_to_a_limit() -> None:
    house = House()
    client = house.client()
    for _ in range(100):
        wire(client).receive(query("x" * 4000))
    assert not wire(client).reading
    assert len(client.pending) <= PENDING_LIMIT + 4096
    server = house.server()
    assert wire(client).reading
    wire(client).receive()
    assert sent(wire(server)) == query("x" * 4000) * 100


def test_a_client_that_does_not_read_stops_its_server_and_is_not_read_from() -> None:
    house = House()
    server, client = house.server(), house.client(slow=True)
    wire(client).receive(query())
    wire(server).receive(message("D", b"x" * 100_000))
    assert not wire(server).reading
    wire(client).take()
    assert wire(server).reading
    wire(server).receive(DONE)
    assert client.server is None


def test_a_server_is_free_even_if_its_client_has_not_read_the_answer() -> None:
    house = House()
    server, client = house.server(), house.client(slow=True)
    wire(client).receive(query())
    wire(server).receive(message("D", b"x" * 100_000) + DONE)
    assert house.census()["idle"] == 1
    assert wire(server).reading
    assert not wire(client).reading, "it could ask for more than it reads"
    wire(client).take()
    assert wire(client).reading


def test_a_client_that_cancels_and_does_not_read_gets_no_unlimited_answer() -> None:
    house = House(size=1)
    client = house.client(slow=True)
    server = house.server()
    # Just short of the limit, then over it with answers of the pooler's own.
    wire(client).receive(query())
    wire(server).receive(message("D", b"x" * 65_450) + DONE)
    assert not wire(client).paused
    other = house.client()
    while not wire(client).paused:
        wire(other).receive(query())
        wire(client).receive(query())
        client.cancel_waiting()
        wire(server).receive(DONE)
    wire(client).receive(query())
    if client.server is not None:
        for _ in range(100):
            wire(server).receive(message("D", b"x" * 100_000))
    assert len(wire(client).sent) < 400_000


def test_a_waiting_client_that_cancels_gets_the_answer_that_postgres_gives() -> None:
    house = House()
    client = house.client()
    wire(client).receive(query())
    client.cancel_waiting()
    answer = sent(wire(client))
    assert answer == (
        error_response(ErrorFields("ERROR", "57014", "canceling statement due to user request")) + READY_IDLE
    )
    assert house.census()["waiting"] == 0
    assert client not in house.endings


def test_a_cancel_while_waiting_answers_one_unit_and_keeps_the_others() -> None:
    house = House()
    client = house.client()
    unit = message("P", b"\0\0\0\0") + message("B", b"\0") + message("E", b"\0") + SYNC
    wire(client).receive(unit + query("second") + query("third")[:4])
    client.cancel_waiting()
    assert client.waiting
    server = house.server()
    assert sent(wire(server)) == query("second")


@pytest.mark.parametrize("half", [message("P", b"\0\0\0\0") + message("B", b"\0"), query("x" * HOLD_LIMIT)[:-1]])
def test_a_cancel_in_the_middle_of_a_request_ends_the_client(half: bytes) -> None:
    house = House()
    client = house.client()
    wire(client).receive(half)
    client.cancel_waiting()
    assert house.endings[client].reason is Reason.CANCELLED
    assert told(client) == "57014"
    assert house.census()["waiting"] == 0


def test_requests_wait_until_a_cancel_for_the_one_before_is_settled() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query("begin"))
    wire(server).receive(message("C", b"BEGIN\0") + IN_TRANSACTION)
    server.cancel_sent()
    sent(wire(server))
    wire(client).receive(query("a"))
    wire(client).receive(query("b"))
    assert sent(wire(server)) == b""
    server.cancel_settled()
    assert sent(wire(server)) == query("a") + query("b")


def test_a_client_that_breaks_the_protocol_is_told_and_what_came_before_is_sent() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query() + b"\xff\0\0\0\x08abcd")
    assert sent(wire(server)) == query()
    assert told(client) == "08P01"
    assert house.endings[client].reason is Reason.CLIENT_VIOLATION


def test_an_error_is_not_written_into_the_middle_of_an_answer() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query())
    row = message("D", b"x" * 100)
    wire(server).receive(row[:50])
    client.end(Ending(Reason.QUERY_TIMEOUT, "57014", "too long"))
    assert sent(wire(client)) == row[:50]
    assert house.lingering == [wire(client)]


@pytest.mark.parametrize("cut", [1, 4, 5, 50])
def test_a_server_lost_in_the_middle_of_a_message_leaves_it_as_it_is(cut: int) -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query())
    row = message("D", b"x" * 100)
    wire(server).receive(row[:cut])
    wire(server).lose()
    assert sent(wire(client)) == row[:cut], "the error would be read as part of the row"
    assert house.endings[client].reason is Reason.SERVER_LOST


def test_a_lost_server_is_told_with_what_to_do() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query())
    wire(server).lose()
    assert told(client) == "08006"
    assert house.census() == {"idle": 0, "linked": 0, "busy": 0, "waiting": 0}


def test_postgres_own_words_at_the_end_are_enough() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query())
    words = message("E", b"SFATAL\0C57P01\0Mterminating connection\0\0")
    wire(server).receive(words)
    wire(server).lose()
    assert sent(wire(client)) == words


def test_a_polite_client_that_does_not_wait_has_its_last_query_finished() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query() + TERMINATE)
    wire(client).lose()
    assert sent(wire(server)) == query()
    assert house.endings[client].reason is Reason.CLIENT_QUIT
    assert house.cancels == []
    wire(server).receive(DONE)
    assert house.census()["idle"] == 1


def test_in_session_mode_the_server_stays_and_is_reset_for_the_next_client() -> None:
    house = House(session_mode=True, reset_query="DISCARD ALL")
    server, client = house.server(), house.client()
    wire(client).receive(query())
    wire(server).receive(DONE)
    assert client.server is server
    sent(wire(server))
    wire(client).receive(TERMINATE)
    assert sent(wire(server)) == query("DISCARD ALL")
    assert house.census()["busy"] == 1
    wire(server).receive(DONE)
    assert house.census()["idle"] == 1


def test_in_statement_mode_a_transaction_is_refused_and_rolled_back() -> None:
    house = House(statement_mode=True)
    server, client = house.server(), house.client()
    wire(client).receive(query("begin"))
    wire(server).receive(message("C", b"BEGIN\0") + IN_TRANSACTION)
    assert told(client) == "0A000"
    assert sent(wire(server)) == query("begin") + query("ROLLBACK")
    wire(server).receive(message("C", b"ROLLBACK\0") + READY)
    assert house.census()["idle"] == 1


def test_data_of_a_failed_copy_in_is_swallowed() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query("copy t from stdin"))
    wire(server).receive(message("G", b"\0\0\0"))
    wire(client).receive(message("d", b"1\n"))
    wire(server).receive(message("E", b"\0") + READY)
    wire(client).receive(message("d", b"2\n") + message("c"))
    assert house.census() == {"idle": 1, "linked": 0, "busy": 0, "waiting": 0}


def test_a_good_bye_right_behind_a_query_lets_the_answer_arrive() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query() + TERMINATE)
    assert not wire(client).closing
    wire(server).receive(DONE)
    assert sent(wire(client)) == DONE
    assert wire(client).closing
    assert house.endings[client].reason is Reason.CLIENT_QUIT
    assert house.census() == {"idle": 1, "linked": 0, "busy": 0, "waiting": 0}
    assert house.cancels == []
    assert server.client is None


def test_what_follows_a_good_bye_is_not_sent_on() -> None:
    house = House()
    server, client = house.server(), house.client()
    wire(client).receive(query() + TERMINATE)
    sent(wire(server))
    wire(client).receive(query("drop table t"))
    wire(server).receive(DONE)
    assert sent(wire(server)) == b""
