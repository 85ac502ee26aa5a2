"""What a server is sent in place of what its client has sent, and what the client is told in the end."""

import pytest

from pooler.client import ClientSession
from pooler.reasons import Reason
from pooler.server import ServerSession
from protocol.statements import PREFIX, TEXT_LIMIT, UNSURE
from tests.pooler.house import DONE, READY, House, answer, query, sent, wire
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


def test_a_parse_that_is_skipped_leaves_the_unnamed_statement_of_before() -> None:
    _, [server], [client] = party()
    exchange(client, server, parse("select 1") + sync(), PARSED + READY)
    exchange(client, server, execute("nowhere") + parse("select 2") + sync(), ERROR + READY)
    assert exchange(client, server, RUN, BOUND + RAN + READY) == (RUN, BOUND + RAN + READY)


def test_one_that_was_never_parsed_here_is_not_taken_for_what_is_skipped_later() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(client, server, parse("select 1") + sync(), PARSED + READY)
    exchange(other, server, parse("select 'secret'") + sync(), PARSED + READY)
    ahead = execute("nowhere") + bind() + sync() + execute("nowhere") + parse("select 2") + sync()
    exchange(client, server, ahead, (ERROR + READY) * 2)
    asked, _ = exchange(client, server, RUN, PARSED + BOUND + RAN + READY)
    assert asked == parse("select 1") + RUN


def test_a_parse_that_fails_leaves_no_unnamed_statement() -> None:
    _, [server], [client] = party()
    exchange(client, server, parse("select 1") + sync(), PARSED + READY)
    exchange(client, server, parse("bad") + sync(), ERROR + READY)
    asked, _ = exchange(client, server, RUN, CLOSED + ERROR + READY)
    assert asked == close_statement() + RUN


def test_what_a_run_sent_ahead_finds_unnamed_is_known_only_when_the_one_before_it_is_answered() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(client, server, parse("select 1") + sync(), PARSED + READY)
    exchange(other, server, parse("select 'secret'") + sync(), PARSED + READY)
    first = execute("nowhere") + parse("select 2") + sync()
    wire(client).receive(first + RUN)
    assert sent(wire(server)) == first, "it has select 'secret', if that fails"
    wire(server).receive(ERROR)
    assert not sent(wire(server))
    wire(server).receive(READY)
    assert sent(wire(server)) == parse("select 1") + RUN
    wire(server).receive(PARSED + BOUND + RAN + READY)
    assert sent(wire(client)) == ERROR + READY + BOUND + RAN + READY


def test_a_run_sent_ahead_goes_on_when_the_answer_it_waits_for_had_come_in_part() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(other, server, parse("select 2") + sync(), PARSED + READY)
    exchange(client, server, parse("select 1") + sync(), PARSED + READY[:3])
    wire(client).receive(RUN)
    assert not sent(wire(server))
    wire(server).receive(READY[3:])
    assert exchange(client, server, b"", BOUND + RAN + READY) == (RUN, READY[3:] + BOUND + RAN + READY)
    assert not server.exchange.edited


def test_an_error_that_has_nothing_to_do_with_it_leaves_the_unnamed_statement_where_it_is() -> None:
    _, [server], [client] = party()
    exchange(client, server, parse("commit") + sync(), PARSED + READY)
    exchange(client, server, execute("nowhere") + flush(), ERROR)
    exchange(client, server, bind() + sync(), READY)
    describe = describe_statement() + sync()
    assert exchange(client, server, describe, READY)[0] == describe, "in a failed transaction it could not be parsed"


def test_runs_sent_ahead_that_parse_what_they_bind_wait_for_nothing() -> None:
    _, [server], [client] = party()
    ahead = (parse("select 1") + RUN) * 3
    done = (PARSED + BOUND + RAN + READY) * 3
    assert exchange(client, server, ahead, done) == (ahead, done)


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
    asked, told = exchange(client, server, RUN, ERROR + READY)
    assert (asked, told) == (RUN, ERROR + READY), "for Postgres to say that it is not there"


# --- named statements


def named(name: str) -> bytes:
    return bind(statement=name) + execute() + sync()


def error(code: str, text: str) -> bytes:
    return message("E", f"SERROR\0C{code}\0M{text}\0\0".encode())


def prepare(client: ClientSession, server: ServerSession, name: str, sql: str = "select 1") -> None:
    exchange(client, server, parse(sql, name) + sync(), PARSED + READY)


def test_a_statement_is_prepared_under_a_name_of_the_poolers() -> None:
    _, [server], [client] = party()
    requests = parse("select 1", "a") + describe_statement("a") + named("a")
    asked, told = exchange(client, server, requests, PARSED + ROW_TYPE + BOUND + RAN + READY)
    assert asked == parse("select 1", "pgfunnel_1") + describe_statement("pgfunnel_1") + named("pgfunnel_1")
    assert told == PARSED + ROW_TYPE + BOUND + RAN + READY


def test_another_client_with_the_same_text_has_it_without_asking() -> None:
    _, [server], [client, other] = party(clients=2)
    prepare(client, server, "a")
    asked, told = exchange(other, server, parse("select 1", "b") + named("b"), BOUND + RAN + READY)
    assert asked == named("pgfunnel_1")
    assert told == PARSED + BOUND + RAN + READY


def test_a_lone_parse_of_what_is_there_is_answered_at_once() -> None:
    house, [server], [client, other] = party(clients=2)
    prepare(client, server, "a")
    wire(other).receive(parse("select 1", "b") + flush())
    assert sent(wire(other)) == PARSED
    assert sent(wire(server)) == flush()
    assert house.census()["idle"] == 1


def test_on_another_server_it_is_parsed_ahead_of_its_bind() -> None:
    house, servers, [client] = party(size=2)
    prepare(client, servers[1], "a")
    house.pool.idle.rotate()
    asked, told = exchange(client, servers[0], named("a"), PARSED + BOUND + RAN + READY)
    assert asked == parse("select 1", "pgfunnel_1") + named("pgfunnel_1")
    assert told == BOUND + RAN + READY


def test_what_was_used_least_recently_gives_way() -> None:
    _, [server], [client] = party(max_prepared=2)
    prepare(client, server, "a", "select 1")
    prepare(client, server, "b", "select 2")
    exchange(client, server, named("a"), BOUND + RAN + READY)
    asked, told = exchange(client, server, parse("select 3", "c") + sync(), CLOSED + PARSED + READY)
    assert asked == close_statement("pgfunnel_2") + parse("select 3", "pgfunnel_3") + sync()
    assert told == PARSED + READY
    assert len(server.state.statements) == 2


def test_closing_it_is_between_the_client_and_the_pooler() -> None:
    _, [server], [client, other] = party(clients=2)
    prepare(client, server, "a")
    assert exchange(client, server, close_statement("a") + sync(), CLOSED + READY)[0] == close_statement("a") + sync()
    assert not client.statements
    assert exchange(other, server, parse("select 1", "b") + sync(), READY) == (sync(), PARSED + READY)


def test_a_statement_that_does_not_exist_is_for_postgres_to_deny() -> None:
    _, [server], [client] = party()
    refusal = error("26000", 'prepared statement "x" does not exist') + READY
    assert exchange(client, server, named("x"), refusal) == (named("x"), refusal)


def test_the_poolers_own_names_are_nothing_to_a_client() -> None:
    _, [server], [client] = party()
    refusal = error("26000", 'prepared statement "pgfunnel_1?" does not exist') + READY
    asked, told = exchange(client, server, named("pgfunnel_1"), refusal)
    assert asked == named("pgfunnel_1?")
    assert told == error("26000", 'prepared statement "pgfunnel_1" does not exist') + READY


REFUSAL = error("42P05", 'prepared statement "pgfunnel_1" already exists') + READY


@pytest.mark.parametrize("cut", range(0, len(REFUSAL), 9))
def test_a_name_that_is_taken_is_denied_by_the_name_that_the_client_has_used(cut: int) -> None:
    _, [server], [client] = party()
    prepare(client, server, "z")
    prepare(client, server, "a")
    wire(client).receive(parse("select 2", "a") + sync())
    assert sent(wire(server)) == parse("select 2", "pgfunnel_1") + sync()
    wire(server).receive(REFUSAL[:cut])
    wire(server).receive(REFUSAL[cut:])
    assert sent(wire(client)) == error("42P05", 'prepared statement "a" already exists') + READY


def test_a_statement_that_fails_to_parse_is_not_there() -> None:
    _, [server], [client, other] = party(clients=2)
    exchange(client, server, parse("bad", "a") + sync(), ERROR + READY)
    assert not client.statements
    assert len(server.state.statements) == 0
    asked, _ = exchange(other, server, parse("bad", "b") + sync(), ERROR + READY)
    assert asked == parse("bad", "pgfunnel_2") + sync()


def test_what_is_sent_ahead_waits_where_it_depends_on_a_statement_that_may_fail() -> None:
    _, [server], [client] = party()
    wire(client).receive(parse("select 1", "a") + sync() + parse("select 2", "a") + sync())
    assert sent(wire(server)) == parse("select 1", "pgfunnel_1") + sync()
    wire(server).receive(ERROR + READY)
    assert sent(wire(server)) == parse("select 2", "pgfunnel_2") + sync()
    wire(server).receive(PARSED + READY)
    assert sent(wire(client)) == ERROR + READY + PARSED + READY


def test_another_name_for_a_statement_that_may_fail_is_parsed_for_itself() -> None:
    _, [server], [client] = party()
    requests = parse("select 1", "a") + sync() + parse("select 1", "b") + sync()
    wire(client).receive(requests)
    expected = parse("select 1", "pgfunnel_1") + sync()
    expected += close_statement("pgfunnel_1") + parse("select 1", "pgfunnel_2") + sync()
    assert sent(wire(server)) == expected
    wire(server).receive(ERROR + READY + CLOSED + PARSED + READY)
    assert sent(wire(client)) == ERROR + READY + PARSED + READY
    assert client.statements is not None
    assert [*client.statements] == [b"b"]


def test_a_name_that_is_sent_ahead_is_given_only_if_the_transaction_has_not_failed() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    exchange(client, server, query("begin"), message("C", b"BEGIN\0") + message("Z", b"T"))
    wire(client).receive(RUN + parse("select 1", "b") + sync())
    assert parse("select 1", PREFIX.decode() + "2") in sent(wire(server)), "Postgres is to say whether it can be had"
    aborted, failed = error("25P02", "aborted"), message("Z", b"E")
    wire(server).receive(ERROR + failed + CLOSED + aborted + failed)
    assert sent(wire(client)) == ERROR + failed + aborted + failed
    assert client.statements is not None
    assert list(client.statements) == [b"a"]


@pytest.mark.parametrize("sql", ["deallocate a", "deallocate all"])
def test_a_deallocate_that_is_sent_ahead_waits_too(sql: str) -> None:
    _, [server], [client] = party()
    wire(client).receive(parse("select 1", "a") + sync() + query(sql))
    assert sent(wire(server)) == parse("select 1", "pgfunnel_1") + sync()
    wire(server).receive(ERROR + READY)
    assert sent(wire(server)) == query(sql)


def test_what_is_named_behind_a_deallocate_all_waits_until_that_is_done() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    wire(client).receive(bind(statement="x") + parse("deallocate all") + bind() + execute() + sync())
    sent(wire(server))
    wire(client).receive(parse("select 2", "a") + sync())
    assert sent(wire(server)) == b""
    wire(server).receive(error("26000", "x") + READY)
    assert sent(wire(server)) == parse("select 2", "pgfunnel_1") + sync(), "the name is taken, as Postgres will say"


def test_a_server_that_is_lost_takes_the_names_of_a_failed_deallocate_all_with_it() -> None:
    house, [server], [client] = party()
    prepare(client, server, "a")
    wire(client).receive(query("deallocate all"))
    wire(server).lose()
    assert client in house.endings
    assert all(not statement.users for statement in house.library._known.values())


def test_what_waits_goes_on_although_other_answers_are_still_to_come() -> None:
    _, [server], [client] = party()
    wire(client).receive(parse("select 1", "a") + sync() + parse("select 2", "b") + parse("select 3", "a") + sync())
    assert sent(wire(server)) == parse("select 1", "pgfunnel_1") + sync() + parse("select 2", "pgfunnel_2")
    wire(server).receive(ERROR + READY)  # and no more: Postgres has not been asked for that
    assert sent(wire(server)) == parse("select 3", "pgfunnel_3") + sync()


def test_a_close_that_was_skipped_has_closed_nothing() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    prepare(client, server, "")
    failing = bind(statement="x") + close_statement("a") + close_statement() + sync()
    exchange(client, server, failing, error("26000", "x") + READY)
    assert exchange(client, server, RUN + named("a"), b"")[0] == RUN + named("pgfunnel_1")


def test_a_client_that_vanishes_leaves_neither_names_nor_edits_behind() -> None:
    house, [server], [client, other] = party(clients=2)
    wire(client).receive(parse("select 1", "a") + bind(statement="x") + parse("select 2", "b") + sync())
    wire(client).lose()
    house.settle_cancels()
    wire(server).receive(PARSED + ERROR + READY)
    assert house.census()["idle"] == 1
    assert server.exchange.edited == 0
    assert not server.state.unsettled
    assert len(server.state.statements) == 1
    assert all(not statement.users for statement in house.library._known.values())
    sent(wire(server))
    asked, told = exchange(other, server, parse("select 1", "a") + named("a"), BOUND + RAN + READY)
    assert (asked, told) == (named("pgfunnel_1"), PARSED + BOUND + RAN + READY)


def test_a_server_that_has_lost_a_statement_is_given_all_of_them_anew() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    exchange(client, server, named("a"), error("26000", 'prepared statement "pgfunnel_1" does not exist') + READY)
    asked, told = exchange(client, server, named("a"), CLOSED + PARSED + BOUND + RAN + READY)
    assert asked == close_statement("pgfunnel_1") + parse("select 1", "pgfunnel_2") + named("pgfunnel_2")
    assert told == BOUND + RAN + READY


def test_plans_that_went_stale_are_made_anew_on_each_server() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    stale = message("E", b"SERROR\0C0A000\0Mcached plan\0RRevalidateCachedQuery\0\0")
    exchange(client, server, named("a"), stale + READY)
    asked, _ = exchange(client, server, named("a"), CLOSED + PARSED + BOUND + RAN + READY)
    assert asked == close_statement("pgfunnel_1") + parse("select 1", "pgfunnel_2") + named("pgfunnel_2")


def test_a_statement_too_long_to_keep_cant_have_a_name() -> None:
    house, _, [client] = party()
    wire(client).receive(parse("x" * TEXT_LIMIT, "a")[:100])
    assert house.endings[client].reason is Reason.CLIENT_VIOLATION


def test_a_library_without_room_refuses_the_next_name() -> None:
    _, [server], [client] = party(statement_memory=1000)
    prepare(client, server, "a", "select 1")
    asked, told = exchange(client, server, parse("select " + "2" * 300, "b") + sync(), ERROR + READY)
    assert b"refused" in asked
    assert b"C53400" in told
    assert b"max_statement_memory" in told


def test_without_max_prepared_statements_names_pass_as_they_are() -> None:
    _, [server], [client] = party(max_prepared=0)
    requests = parse("select 1", "a") + named("a")
    assert exchange(client, server, requests, PARSED + BOUND + RAN + READY)[0] == requests


def test_what_names_that_pass_as_they_are_stand_for_is_found_out() -> None:
    _, [server], [client] = party(max_prepared=0)
    prepare(client, server, "a", "select 1")
    exchange(client, server, named("a"), BOUND + RAN + READY)
    assert sent(wire(server)) == b""
    prepare(client, server, "b", "set app.x to 'one'")
    wire(server).receive(answer())
    exchange(client, server, named("b"), BOUND + RAN + READY)
    assert b"pgfunnel_question" in sent(wire(server)), "Postgres is asked what is left"


def test_a_violation_behind_a_bind_cuts_nothing_in_two() -> None:
    house, [server], [client] = party()
    prepare(client, server, "a")
    wire(client).receive(named("a") + b"\xff\0\0\0\4")
    assert sent(wire(server)).startswith(named("pgfunnel_1"))
    assert house.endings[client].reason is Reason.CLIENT_VIOLATION


# --- DEALLOCATE

DEALLOCATED = message("C", b"DEALLOCATE\0")
STAND_IN = "UNLISTEN pgfunnel_nothing"
STOOD_IN = message("C", b"UNLISTEN\0")


def test_a_rollback_that_is_not_answered_yet_may_have_ended_a_failed_transaction() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    exchange(client, server, query("begin; select 1/0"), ERROR + message("Z", b"E"))
    assert exchange(client, server, query("deallocate a"), ERROR + message("Z", b"E"))[1] == ERROR + message("Z", b"E")
    assert client.statements
    rolled_back = message("C", b"ROLLBACK\0") + READY
    told = exchange(client, server, query("rollback") + query("deallocate a"), rolled_back + STOOD_IN + READY)[1]
    assert told == rolled_back + DEALLOCATED + READY
    assert not client.statements


def test_a_rollback_ahead_opens_no_way_around_the_policy() -> None:
    _, [server], [client] = party(policies={"listen": "reject"})
    exchange(client, server, query("begin; select 1/0"), ERROR + message("Z", b"E"))
    wire(client).receive(query("rollback") + query("listen jobs"))
    assert b"listen jobs" not in sent(wire(server))


def test_deallocate_of_a_named_statement_is_answered_as_postgres_would() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    asked, told = exchange(client, server, query("DEALLOCATE a"), STOOD_IN + READY)
    assert (asked, told) == (query(STAND_IN), DEALLOCATED + READY)
    assert not client.statements


@pytest.mark.parametrize("name", ["", "d"])
def test_deallocate_may_be_bound(name: str) -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    prepare(client, server, name, "deallocate a")
    asked, told = exchange(client, server, named(name), PARSED + BOUND + STOOD_IN + READY)
    assert (asked, told) == (parse(STAND_IN) + named(""), BOUND + DEALLOCATED + READY)
    assert b"a" not in (client.statements or {})


def test_deallocate_that_is_never_executed_deallocates_nothing() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    exchange(client, server, parse("deallocate a") + bind() + sync(), PARSED + PARSED + BOUND + READY)
    assert client.statements is not None
    assert b"a" in client.statements
    assert client.statements[b"a"].users == 1


def test_an_unlisten_ahead_of_a_deallocate_is_still_told_of() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    requests = parse("unlisten x") + bind() + execute() + parse("deallocate a") + bind() + execute() + sync()
    unlistened = PARSED + BOUND + STOOD_IN
    _, told = exchange(client, server, requests, unlistened + PARSED + PARSED + BOUND + STOOD_IN + READY)
    assert told == unlistened + PARSED + BOUND + DEALLOCATED + READY


def test_deallocate_that_is_sent_ahead_into_a_failed_transaction_deallocates_nothing() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    failed = message("Z", b"E")
    _, told = exchange(client, server, query("begin; bad") + query("deallocate a"), (ERROR + failed) * 2)
    assert told == (ERROR + failed) * 2
    assert b"a" in (client.statements or {})


def test_deallocate_of_what_sql_has_prepared_goes_to_postgres() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    assert exchange(client, server, query("deallocate b"), DEALLOCATED + READY)[0] == query("deallocate b")


@pytest.mark.parametrize("sql", ["DEALLOCATE ALL", "discard all"])
def test_deallocate_all_ends_the_statements_of_its_client_alone(sql: str) -> None:
    house, [server], [client, other] = party(clients=2)
    prepare(client, server, "a")
    prepare(other, server, "b")
    exchange(client, server, query(sql), message("C", sql.upper().encode() + b"\0") + READY)
    if sent(wire(server)):
        wire(server).receive(answer(first=True))
    assert not client.statements
    assert other.statements
    assert len(server.state.statements) == 0
    assert house.census()["idle"] == 1
    asked, told = exchange(other, server, named("b"), PARSED + BOUND + RAN + READY)
    assert (asked, told) == (parse("select 1", "pgfunnel_2") + named("pgfunnel_2"), BOUND + RAN + READY)


def test_discard_all_that_fails_ends_nothing() -> None:
    _, [server], [client] = party()
    prepare(client, server, "a")
    exchange(client, server, query("begin; discard all"), ERROR + message("Z", b"E"))
    exchange(client, server, query("rollback"), message("C", b"ROLLBACK\0") + READY)
    assert PREFIX + b"question" in sent(wire(server))
    wire(server).receive(answer(first=True))
    asked, _ = exchange(client, server, named("a"), BOUND + RAN + READY)
    assert asked == named("pgfunnel_1")


def test_discard_all_that_fails_for_a_client_that_has_gone_keeps_nothing_for_it() -> None:
    house, [server], [client] = party()
    prepare(client, server, "a")
    wire(client).receive(query("begin; discard all"))
    wire(client).lose()
    house.settle_cancels()
    wire(server).receive(ERROR + message("Z", b"E"))
    assert client.statements is None
    assert all(not statement.users for statement in house.library._known.values())
