"""What counts as the time of a query, of a transaction and of waiting; with a clock that the test moves."""

from pooler.client import ClientSession
from pooler.server import ServerSession
from protocol.messages import READY_IDLE
from tests.pooler.house import DONE, IN_TRANSACTION, House, query, wire
from tests.protocol.model import message

BEGUN = message("C", b"BEGIN\0") + IN_TRANSACTION
COPY_IN = message("G", b"\0\0\0")


def opened(**settings: object) -> tuple[House, ServerSession, ClientSession]:
    house = House(**settings)  # type: ignore[arg-type]
    return house, house.server(), house.client()


def pass_time(house: House, seconds: float) -> None:
    house.time += seconds


def exchange(house: House, client: ClientSession, server: ServerSession, reply: bytes, seconds: float) -> None:
    """Ask, and get `reply` after so many seconds."""
    wire(client).receive(query())
    pass_time(house, seconds)
    wire(server).receive(reply)


def times(house: House) -> tuple[float, float, float]:
    """Seconds in transactions, in queries, and in the queue."""
    totals = house.pool.stats.totals
    return totals.xact_time / 1e6, totals.query_time / 1e6, totals.wait_time / 1e6


def test_a_query_outside_of_a_block_is_a_transaction() -> None:
    house, server, client = opened()
    exchange(house, client, server, DONE, 0.25)
    pass_time(house, 3)
    exchange(house, client, server, DONE, 0.5)
    assert times(house) == (0.75, 0.75, 0)


def test_a_transaction_goes_on_between_its_queries() -> None:
    house, server, client = opened()
    exchange(house, client, server, BEGUN, 1)
    pass_time(house, 5)
    exchange(house, client, server, message("C", b"SELECT 1\0") + IN_TRANSACTION, 2)
    pass_time(house, 5)
    exchange(house, client, server, DONE, 1)
    pass_time(house, 100)
    assert times(house) == (14, 4, 0)
    assert house.pool.stats.queries.count == 3
    assert house.pool.stats.transactions.count == 1


def test_between_transactions_a_client_that_keeps_its_server_takes_no_time() -> None:
    house, server, client = opened(session_mode=True)
    exchange(house, client, server, DONE, 1)
    pass_time(house, 50)
    exchange(house, client, server, BEGUN, 1)
    pass_time(house, 5)
    exchange(house, client, server, DONE, 1)
    pass_time(house, 50)
    assert times(house) == (8, 3, 0)


def test_what_comes_in_pieces_is_timed_to_the_last_of_them() -> None:
    house, server, client = opened()
    wire(client).receive(query())
    pass_time(house, 1)
    wire(server).receive(DONE[:7])
    pass_time(house, 1)
    wire(server).receive(DONE[7:])
    assert times(house) == (2, 2, 0)


def test_a_copy_is_timed_from_its_query_on() -> None:
    house, server, client = opened()
    exchange(house, client, server, BEGUN, 1)
    wire(client).receive(query("copy t from stdin"))
    wire(server).receive(COPY_IN)
    for _ in range(3):
        pass_time(house, 1)
        wire(client).receive(message("d", b"line"))
    wire(client).receive(message("c"))
    pass_time(house, 1)
    wire(server).receive(message("C", b"COPY 3\0") + IN_TRANSACTION)
    pass_time(house, 10)
    assert times(house) == (0, 5, 0)
    exchange(house, client, server, DONE, 0)
    assert times(house) == (15, 5, 0)


def test_what_is_sent_before_the_answer_counts_with_what_is_under_way() -> None:
    house, server, client = opened()
    wire(client).receive(query())
    pass_time(house, 1)
    wire(client).receive(query())
    pass_time(house, 1)
    wire(server).receive(DONE)
    pass_time(house, 1)
    wire(server).receive(DONE)
    assert times(house) == (3, 3, 0)


def test_waiting_is_no_part_of_a_transaction() -> None:
    house, server, first = opened()
    second = house.client()
    wire(first).receive(query())
    wire(second).receive(query())
    pass_time(house, 4)
    wire(server).receive(DONE)
    pass_time(house, 1)
    wire(server).receive(DONE)
    assert times(house) == (5, 5, 4)
    assert house.pool.stats.waits.count == 1


def test_a_client_that_goes_has_had_its_time() -> None:
    house, server, client = opened()
    exchange(house, client, server, BEGUN, 1)
    pass_time(house, 2)
    wire(client).lose()
    pass_time(house, 60)
    wire(server).receive(message("C", b"ROLLBACK\0") + READY_IDLE)
    assert times(house) == (3, 1, 0)
    assert house.pool.stats.totals.xact_count == 1


def test_a_server_that_is_lost_has_taken_its_time() -> None:
    house, server, client = opened()
    wire(client).receive(query())
    pass_time(house, 2)
    wire(server).lose()
    assert times(house) == (2, 2, 0)
    totals = house.pool.stats.totals
    assert (totals.xact_count, totals.query_count, totals.server_assignment_count) == (1, 1, 1)
