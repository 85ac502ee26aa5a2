"""What a server is sent in place of what its client has sent, and what the client is told in the end."""

from pooler.client import ClientSession
from pooler.server import ServerSession
from protocol.statements import PREFIX, TEXT_LIMIT, UNSURE
from tests.pooler.house import DONE, READY, House, query, sent, wire
from tests.protocol.model import message
from tests.support.wire import bind, close_statement, describe_statement, execute, flush, parse, sync

PARSED, BOUND, CLOSED = message("1"), message("2"), message("3")
ROW_TYPE = message("T", b"\0\0")
RAN = message("C", b"SELECT 1\0")
ERROR = message("E", b"SERROR\0C22012\0\0")


def party(clients: int = 1, **settings: object) -> tuple[House, list[ServerSession], list[ClientSession]]:
    """A house that watches session state, with as many servers as it has room for."""
    house = House(watched=True, **settings)  # type: ignore[arg-type]
    return house, [house.server() for _ in range(house.size)], [house.client() for _ in range(clients)]


def exchange(client: ClientSession, server: ServerSession, requests: bytes, replies: bytes) -> tuple[bytes, bytes]:
    """Let `client` send `requests` and the server answer; return what the server and what the client have got."""
    wire(client).receive(requests)
    asked = sent(wire(server))
    wire(server).receive(replies)
    return asked, sent(wire(client))


# --- the unnamed statement

RUN = bind() + execute() + sync()


def test_the_unnamed_statement_is_there_in_the_next_transaction() -> None:
    _, [server], [client] = party()
    exchange(client, server, parse("select 1") + sync(), PARSED + READY)
    assert exchange(client, server, RUN, BOUND + RAN + READY) == (RUN, BOUND + RAN + READY)


def test_the_unnamed_statement_is_parsed_anew_on_another_server() -> None:
    house, servers, [client] = party(size=2)
    exchange(client, servers[1], parse("select 1") + sync(), PARSED + READY)
    house.pool.idle.rotate()
    asked, told = exchange(client, servers[0], RUN, PARSED + BOUND + RAN + READY)
    assert (asked, told) == (parse("select 1") + RUN, BOUND + RAN + READY)


def test_the_unnamed_statement_is_parsed_anew_behind_another_clients() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(client, server, parse("select 1") + sync(), PARSED + READY)
    exchange(other, server, parse("select 2") + sync(), PARSED + READY)
    asked, told = exchange(client, server, RUN, PARSED + BOUND + RAN + READY)
    assert (asked, told) == (parse("select 1") + RUN, BOUND + RAN + READY)


def test_nobody_binds_the_unnamed_statement_of_another() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(client, server, parse("select 'secret'") + sync(), PARSED + READY)
    asked, told = exchange(other, server, RUN, CLOSED + ERROR + READY)
    assert (asked, told) == (close_statement() + RUN, ERROR + READY)


def test_a_query_ends_the_unnamed_statement() -> None:
    _, [server], [client] = party()
    exchange(client, server, parse("select 1") + sync(), PARSED + READY)
    exchange(client, server, query("select 2"), DONE)
    assert exchange(client, server, RUN, ERROR + READY) == (RUN, ERROR + READY)


def test_a_close_ends_the_unnamed_statement() -> None:
    _, [server], [client] = party()
    exchange(client, server, parse("select 1") + close_statement() + sync(), PARSED + CLOSED + READY)
    assert exchange(client, server, RUN, ERROR + READY) == (RUN, ERROR + READY)


def test_the_unnamed_statement_of_a_run_that_failed_is_not_taken_for_granted() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(other, server, parse("select 2") + sync(), PARSED + READY)
    skipped = parse("select 1") + bind() + execute() + parse("select 2") + sync()
    exchange(client, server, skipped, PARSED + BOUND + ERROR + READY)
    asked, _ = exchange(other, server, RUN, PARSED + BOUND + RAN + READY)
    assert asked == parse("select 2") + RUN, "the server has select 1, as the second Parse was skipped"


def test_nor_is_that_which_was_sent_while_the_server_skips() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(other, server, parse("select 2") + sync(), PARSED + READY)
    exchange(client, server, parse("select 1") + bind() + execute() + flush(), PARSED + BOUND + ERROR)
    exchange(client, server, parse("select 2") + query("select 3") + sync(), READY)
    asked, _ = exchange(other, server, RUN, PARSED + BOUND + RAN + READY)
    assert asked == parse("select 2") + RUN


def test_a_question_leaves_the_unnamed_statement_where_it_is() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(client, server, parse("select set_config('app.x', 'y', false)") + RUN, PARSED + BOUND + RAN + READY)
    wire(server).receive(CLOSED + PARSED + BOUND + RAN + READY)
    assert sent(wire(server)).count(PREFIX + b"question") == 3
    asked, _ = exchange(other, server, RUN, CLOSED + ERROR + READY)
    assert asked == close_statement() + RUN


def test_what_is_rolled_back_for_a_client_that_has_gone_leaves_its_unnamed_statement_in_doubt() -> None:
    house, [server], [client, other] = party(clients=2)
    exchange(client, server, parse("select 1") + bind() + flush(), PARSED + BOUND)
    wire(client).lose()
    house.settle_cancels()
    wire(server).receive(RAN + READY + READY)
    assert house.census()["idle"] == 1
    assert server.exchange.unnamed is UNSURE
    sent(wire(server))
    asked, _ = exchange(other, server, RUN, CLOSED + ERROR + READY)
    assert asked == close_statement() + RUN


LONG = "select '" + "x" * TEXT_LIMIT + "'"


def test_an_unnamed_statement_too_long_to_keep_can_be_bound_where_it_is() -> None:
    _, [server], [client] = party()
    data = parse(LONG) + bind() + execute() + sync()
    for at in range(0, len(data), 60_000):
        wire(client).receive(data[at : at + 60_000])
    assert sent(wire(server)) == data
    wire(server).receive(PARSED + BOUND + RAN + READY)
    assert sent(wire(client)) == PARSED + BOUND + RAN + READY
    assert server.cleaning, "nobody has read what it does, so the server is asked"


def test_an_unnamed_statement_too_long_to_keep_is_nobody_elses_and_nowhere_else() -> None:
    _, [server], [client, other] = party(clients=2)
    data = parse(LONG) + sync()
    for at in range(0, len(data), 60_000):
        wire(client).receive(data[at : at + 60_000])
    sent(wire(server))
    wire(server).receive(PARSED + READY)
    describe = describe_statement() + sync()
    assert exchange(client, server, describe, ROW_TYPE + READY)[0] == describe
    asked, _ = exchange(other, server, RUN, CLOSED + ERROR + READY)
    assert asked == close_statement() + RUN
    asked, told = exchange(client, server, RUN, CLOSED + ERROR + READY)
    assert (asked, told) == (close_statement() + RUN, ERROR + READY), "for Postgres to say that it is not there"
