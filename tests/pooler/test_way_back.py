"""How a server comes back: asked what its session holds, lent to its client again or to all, cleaned, or closed."""

import pytest

from pooler.client import PENDING_LIMIT, ClientSession
from pooler.hold import PINNED
from pooler.reasons import Ending, Reason
from pooler.server import ServerSession
from protocol.messages import TERMINATE, messages_in, read_error
from protocol.question import NAME
from protocol.sql import State
from tests.pooler.house import DONE, IN_TRANSACTION, READY, House, answer, full_answer, query, sent, wire
from tests.protocol.model import message
from tests.support.transport import HIGH_WATER
from tests.support.wire import bind, execute, flush, parse, sync

SET = message("C", b"SET\0") + READY
ERROR = message("E", b"SERROR\0C57014\0Mcanceling statement\0\0")
ROLLED_BACK = message("C", b"ROLLBACK\0") + READY
NOTIFICATION = message("A", b"\0\0\0\1jobs\0hello\0")
FREE = {"idle": 1, "linked": 0, "busy": 0, "waiting": 0}
LINKED = {"idle": 0, "linked": 1, "busy": 0, "waiting": 0}


def house_of(clients: int = 1, **settings: object) -> tuple[House, ServerSession, list[ClientSession]]:
    house = House(watched=True, **settings)  # type: ignore[arg-type]
    return house, house.server(), [house.client() for _ in range(clients)]


def asked(server: ServerSession) -> bool:
    """The server has just been asked what its session holds."""
    return NAME in sent(wire(server))


def kinds(data: bytes) -> str:
    return "".join(chr(kind) for kind, _ in messages_in(data))


def texts(data: bytes) -> list[str]:
    """The texts of the Queries in `data`."""
    return [payload[:-1].decode() for kind, payload in messages_in(data) if kind == ord("Q")]


def run(client: ClientSession, server: ServerSession, sql: str, reply: bytes = SET) -> None:
    """Let a client run a statement after which the server is asked."""
    wire(client).receive(query(sql))
    assert texts(sent(wire(server)))[-1] == sql
    wire(server).receive(reply)
    assert asked(server)
    assert sent(wire(client)).endswith(reply)


def pin(client: ClientSession, server: ServerSession) -> None:
    run(client, server, "listen jobs", message("C", b"LISTEN\0") + READY)
    wire(server).receive(answer("listen", first=not server.state.statements._made))
    assert client.server is server


def told(client: ClientSession) -> str:
    """The SQLSTATE of the error that a client was told last."""
    errors = [payload for kind, payload in messages_in(sent(wire(client))) if kind == ord("E")]
    return read_error(errors[-1]).sqlstate


# --- settings follow their client


def test_settings_are_found_again_on_another_server() -> None:
    house, first, [client] = house_of(size=2)
    run(client, first, "set app.x to 'one'")
    wire(first).receive(answer(first=True, app__x="one"))
    assert house.census() == FREE
    house.pool.idle.clear()
    second = house.server()
    wire(client).receive(query("select 1"))
    assert texts(sent(wire(second))) == ["BEGIN;SELECT pg_catalog.set_config('app.x','one',false);COMMIT", "select 1"]
    wire(second).receive(message("C", b"COMMIT\0") + READY + DONE)
    assert sent(wire(client)) == DONE
    assert second.profile is first.profile is client.profile


def test_a_server_that_has_them_is_lent_in_preference() -> None:
    house, first, [client, other] = house_of(clients=2, size=2)
    run(client, first, "set app.x to 'one'")
    wire(first).receive(answer(first=True, app__x="one"))
    second = house.server()
    wire(client).receive(query("select 1"))
    assert client.server is first
    wire(other).receive(query("select 2"))
    assert other.server is second
    assert sent(wire(second)) == query("select 2")


def test_nobody_else_has_them() -> None:
    _, server, [client, other] = house_of(clients=2)
    run(client, server, "set app.x to 'one'")
    wire(server).receive(answer(first=True, app__x="one"))
    wire(other).receive(query("select 1"))
    assert texts(sent(wire(server))) == ['BEGIN;RESET "app"."x";COMMIT', "select 1"]


def test_what_is_sent_while_the_server_is_asked_waits_and_goes_on() -> None:
    house, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(client).receive(query("select 1"))
    wire(client).receive(query("select 2")[:7])
    assert sent(wire(server)) == b""
    wire(server).receive(answer(first=True, app__x="one"))
    assert sent(wire(server)) == query("select 1")
    wire(server).receive(DONE)
    wire(client).receive(query("select 2")[7:])
    assert sent(wire(server)) == query("select 2")
    wire(server).receive(DONE)
    assert house.census() == FREE


def test_a_client_that_sends_too_much_while_the_server_is_asked_is_not_read_from() -> None:
    _, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(client).receive(query("select 1") * 10_000)
    assert not wire(client).reading
    wire(server).receive(answer(first=True, app__x="one"))
    assert wire(client).reading
    assert sent(wire(server)) == query("select 1") * 10_000


def test_who_waits_is_served_before_the_one_who_was_asked_about() -> None:
    _, server, [client, other] = house_of(clients=2)
    run(client, server, "set app.x to 'one'")
    wire(other).receive(query("select 2"))
    wire(client).receive(query("select 1"))
    wire(server).receive(answer(first=True, app__x="one"))
    assert texts(sent(wire(server)))[-1] == "select 2"
    assert client.waiting


@pytest.mark.parametrize("cut", range(0, len(answer(first=True, app__x="one")), 7))
def test_an_answer_in_pieces_is_one(cut: int) -> None:
    house, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    reply = answer(first=True, app__x="one")
    wire(server).receive(reply[:cut])
    assert client.server is server
    wire(server).receive(reply[cut:])
    assert client.profile is not None
    assert client.profile.settings == {"app.x": b"one"}
    assert house.census() == FREE
    assert sent(wire(client)) == b""


def test_a_setting_that_a_function_changes_is_noticed_if_it_is_reported() -> None:
    _, server, [client] = house_of()
    wire(client).receive(query("select innocent()"))
    sent(wire(server))
    wire(server).receive(message("S", b"TimeZone\0CET\0") + DONE)
    assert asked(server)


def test_a_setting_that_is_back_where_it_was_is_no_reason_to_ask() -> None:
    house, server, [client] = house_of()
    wire(client).receive(query("begin; set local application_name to 'x'; commit"))
    sent(wire(server))
    reports = message("S", b"application_name\0x\0") + message("S", b"application_name\0known\0")
    for at in range(0, len(reports), 5):
        wire(server).receive(reports[at : at + 5])
    wire(server).receive(DONE)
    assert house.census() == FREE
    assert sent(wire(server)) == b""


def test_a_report_cut_in_half_is_noticed_too() -> None:
    _, server, [client] = house_of()
    wire(client).receive(query("select innocent()"))
    sent(wire(server))
    report = message("S", b"TimeZone\0CET\0")
    wire(server).receive(report[:9])
    wire(server).receive(report[9:] + DONE)
    assert asked(server)
    assert sent(wire(client)) == report + DONE


# --- settings that can't be put on


def dressed(house: House, server: ServerSession, client: ClientSession, other: ClientSession) -> None:
    """Have a client with settings of its own linked to a server that lacks them."""
    run(client, server, "set role to bob")
    wire(server).receive(answer(first=True, role="bob"))
    assert texts(sent(wire(server)))[0].startswith("BEGIN;")
    wire(server).receive(full_answer(role="bob"))
    wire(other).receive(query("select 2"))
    wire(server).receive(message("C", b"COMMIT\0") + READY + DONE)
    assert sent(wire(other)) == DONE
    sent(wire(server))
    sent(wire(client))
    wire(client).receive(query("delete from t"))
    assert texts(sent(wire(server))) == [
        "BEGIN;SELECT pg_catalog.set_config('role','bob',false);COMMIT",
        "delete from t",
    ]


NO_ROLE = message("E", b'SERROR\0C22023\0Mrole "bob" does not exist\0\0')
FAILED = message("Z", b"E")
NOT_RUN = NO_ROLE + FAILED + message("E", b"SERROR\0C25P02\0Maborted\0\0") + FAILED


@pytest.mark.parametrize("cut", range(0, len(NOT_RUN), 6))
def test_a_client_whose_settings_cant_be_put_on_is_told_why(cut: int) -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(server).receive(NOT_RUN[:cut])
    wire(server).receive(NOT_RUN[cut:])
    assert house.endings[client].reason is Reason.SETTINGS_LOST
    out = sent(wire(client))
    assert kinds(out) == "E", "nothing but the reason"
    assert b'role "bob" does not exist' in out
    house.settle_cancels()
    assert texts(sent(wire(server))) == ["ROLLBACK"]
    wire(server).receive(ROLLED_BACK)
    assert asked(server)
    wire(server).receive(answer())
    assert house.census() == FREE
    assert server.profile is None


def test_a_server_that_was_not_dressed_is_not_taken_for_dressed_when_its_client_has_gone() -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(client).lose()
    assert house.cancels == [server]
    wire(server).receive(NOT_RUN)
    house.settle_cancels()
    wire(server).receive(ROLLED_BACK)
    assert asked(server), "it may have been the cancel that hit"
    wire(server).receive(answer())
    assert house.census() == FREE
    assert server.profile is None
    wire(other).receive(query("select 3"))
    assert sent(wire(server)) == query("select 3")
    wire(server).receive(DONE)
    assert sent(wire(other)) == DONE, "the error was the other's"


DRESSED = message("C", b"COMMIT\0") + READY


def test_a_client_that_vanishes_while_its_settings_are_put_on_stops_nobody() -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(client).lose()
    wire(server).receive(DRESSED + DONE)
    house.settle_cancels()
    wire(other).receive(query("begin"))
    assert texts(sent(wire(server)))[-1] == "begin"
    wire(server).receive(DRESSED + message("C", b"BEGIN\0") + IN_TRANSACTION)
    wire(other).receive(query("select 3"))
    assert texts(sent(wire(server))) == ["select 3"]


def test_a_good_bye_while_settings_are_put_on_waits_for_the_answers() -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(client).receive(TERMINATE)
    assert client not in house.endings
    wire(server).receive(DRESSED + DONE)
    assert sent(wire(client)) == DONE
    assert house.endings[client].reason is Reason.CLIENT_QUIT


def test_a_good_bye_that_follows_nothing_but_settings_is_said_at_once() -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(server).receive(DRESSED + DONE)
    wire(other).receive(query("select 4"))
    wire(server).receive(DRESSED + DONE)
    wire(client).receive(flush() + TERMINATE)
    assert client not in house.endings
    wire(server).receive(DRESSED)
    assert house.endings[client].reason is Reason.CLIENT_QUIT


def test_so_does_what_may_run_such_a_statement_by_the_name_it_was_prepared_under() -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(server).receive(DRESSED + DONE)
    wire(client).receive(parse("rollback", "out") + sync())
    sent(wire(server))
    wire(server).receive(message("1") + READY)
    wire(other).receive(query("select 4"))
    wire(server).receive(DRESSED + DONE)
    sent(wire(server))
    wire(client).receive(bind(statement="out") + execute() + sync() + query("delete from t"))
    assert kinds(sent(wire(server))) == "Q", "the settings alone"
    wire(server).receive(DRESSED)
    assert kinds(sent(wire(server))) == "BESQ"


@pytest.mark.parametrize("text", ["rollback; delete from t", "PREPARE transaction 'x'; delete from t"])
def test_what_could_end_a_failed_transaction_waits_for_the_settings(text: str) -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(server).receive(DRESSED + DONE)
    wire(other).receive(query("select 4"))
    wire(server).receive(DRESSED + DONE)
    sent(wire(server))
    wire(client).receive(query(text))
    assert len(texts(sent(wire(server)))) == 1
    wire(client).receive(query("select 5"))
    assert sent(wire(server)) == b""
    wire(server).receive(DRESSED)
    assert texts(sent(wire(server))) == [text, "select 5"]
    wire(server).receive(DONE + DONE)
    assert house.census() == FREE


def test_what_comes_behind_the_first_request_waits_for_the_settings() -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(client).receive(query("rollback"))
    assert sent(wire(server)) == b""
    wire(server).receive(DRESSED)
    assert texts(sent(wire(server))) == ["rollback"]
    wire(server).receive(DONE + DONE)
    assert sent(wire(client)) == DONE + DONE
    assert house.census() == FREE


def test_what_waits_for_the_settings_is_sent_when_everything_before_is_answered_at_once() -> None:
    house, server, [client, other] = house_of(clients=2)
    dressed(house, server, client, other)
    wire(client).receive(query("select 6"))
    wire(server).receive(DRESSED + DONE)
    assert texts(sent(wire(server))) == ["select 6"]
    wire(server).receive(DONE)
    assert sent(wire(client)) == DONE + DONE
    assert house.census() == FREE


# --- whoever is gone meanwhile


def test_a_client_that_vanishes_while_its_server_is_asked_leaves_it_to_the_next() -> None:
    house, server, [client, other] = house_of(clients=2)
    run(client, server, "set app.x to 'one'")
    wire(client).lose()
    assert house.cancels == []
    wire(other).receive(query("select 2"))
    wire(server).receive(answer(first=True, app__x="one"))
    assert texts(sent(wire(server))) == ['BEGIN;RESET "app"."x";COMMIT', "select 2"]
    assert house.endings[client].reason is Reason.CLIENT_GONE


def test_a_client_that_says_good_bye_while_its_server_is_asked_has_not_vanished() -> None:
    house, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(client).receive(TERMINATE)
    assert house.endings[client].reason is Reason.CLIENT_QUIT
    wire(server).receive(answer(first=True, app__x="one"))
    assert house.census() == FREE


def test_a_server_that_is_lost_while_it_is_asked_ends_its_client_with_a_word() -> None:
    house, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(client).receive(query("select 1"))
    wire(server).lose()
    assert told(client) == "08006"
    assert house.endings[client].reason is Reason.SERVER_LOST


@pytest.mark.parametrize("last", [answer(first=True)[:20], ERROR])
def test_that_the_answer_has_begun_is_nothing_to_the_client(last: bytes) -> None:
    _, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(server).receive(last)
    wire(server).lose()
    assert told(client) == "08006"


def test_a_client_that_is_ended_while_the_answer_has_begun_is_told_why() -> None:
    _, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(server).receive(answer(first=True)[:20])
    client.end(Ending(Reason.SHUTDOWN, "57P01", "bye"))
    assert told(client) == "57P01"


def test_a_client_that_vanishes_in_a_transaction_that_has_set_something_has_its_server_asked() -> None:
    house, server, [client] = house_of()
    wire(client).receive(query("begin"))
    wire(server).receive(message("C", b"BEGIN\0") + IN_TRANSACTION)
    wire(client).receive(query("set app.x to 'one'"))
    wire(server).receive(message("C", b"SET\0") + IN_TRANSACTION)
    sent(wire(server))
    wire(client).lose()
    assert texts(sent(wire(server))) == ["ROLLBACK"]
    wire(server).receive(ROLLED_BACK)
    assert asked(server)
    wire(server).receive(answer(first=True))
    assert house.census() == FREE


def test_what_is_reported_after_its_client_has_vanished_is_noticed() -> None:
    house, server, [client] = house_of()
    wire(client).receive(query("select innocent()"))
    sent(wire(server))
    wire(client).lose()
    house.settle_cancels()
    wire(server).receive(message("S", b"TimeZone\0CET\0") + DONE)
    assert asked(server), "the function has set it for the next one"
    wire(server).receive(answer(first=True, TimeZone="CET"))
    assert server.profile is not None
    assert house.census() == FREE


# --- cancels


def test_a_question_waits_for_a_cancel_that_is_on_its_way() -> None:
    house, server, [client] = house_of()
    wire(client).receive(query("set app.x to 'one'"))
    sent(wire(server))
    house._cancel(server)
    wire(server).receive(SET)
    wire(client).receive(query("select 1"))
    assert sent(wire(server)) == b"", "the cancel could hit it"
    house.settle_cancels()
    assert asked(server)
    wire(server).receive(answer(first=True))
    assert sent(wire(server)) == query("select 1")


def test_a_notification_that_comes_before_the_question_is_told() -> None:
    house, server, [client] = house_of()
    pin(client, server)
    wire(client).receive(query("unlisten *"))
    house._cancel(server)
    wire(server).receive(SET)
    sent(wire(client))
    wire(server).receive(NOTIFICATION)
    assert sent(wire(client)) == NOTIFICATION


@pytest.mark.parametrize("end", ["the server's", "the client's"])
def test_nothing_is_told_in_the_middle_of_a_notification(end: str) -> None:
    house, server, [client] = house_of()
    pin(client, server)
    wire(client).receive(query("unlisten *"))
    house._cancel(server)
    wire(server).receive(SET + NOTIFICATION[:12])
    if end == "the client's":
        client.end(Ending(Reason.SHUTDOWN, "57P01", "bye"))
    else:
        wire(server).lose()
    assert sent(wire(client)).endswith(SET + NOTIFICATION[:12])


def test_a_question_that_was_cancelled_all_the_same_is_asked_again() -> None:
    house, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(server).receive(message("3") + message("1") + ERROR + READY)
    assert texts(sent(wire(server)))[0].startswith("BEGIN;")
    wire(server).receive(full_answer(app__x="one"))
    assert house.census() == FREE
    assert client.profile is not None


def test_a_server_that_does_not_answer_the_second_time_either_is_closed() -> None:
    house, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(server).receive(ERROR + READY)
    wire(server).receive(ERROR + READY)
    assert house.server_endings == {server: Reason.SERVER_UNCLEAN}
    assert told(client) == "08006"


@pytest.mark.parametrize("bad", [message("D", b"\0\3xxxx") + READY, message("D", b"\0\3" + b"\0\0\0\1x" * 3) + READY])
def test_a_server_whose_answer_cant_be_read_is_closed(bad: bytes) -> None:
    house, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    wire(server).receive(bad)
    assert house.server_endings == {server: Reason.SERVER_VIOLATION}
    assert told(client) == "08006"


def test_an_answer_without_end_closes_the_server() -> None:
    house, server, [client] = house_of()
    run(client, server, "set app.x to 'one'")
    row = message("D", b"\0\1\0\0\0\1x" * 100_000)
    while server in house.pool.servers:
        wire(server).receive(row)
    assert house.server_endings == {server: Reason.SERVER_VIOLATION}


# --- slow ones


def slow_client(house: House) -> ClientSession:
    return house.client(slow=True)


def test_a_client_that_reads_slowly_does_not_keep_its_server_from_being_asked() -> None:
    house, server, _ = house_of()
    client = slow_client(house)
    wire(client).receive(query("set app.x to 'one'"))
    sent(wire(server))
    wire(server).receive(message("N", b"x" * (HIGH_WATER + 1)) + SET)
    assert client.choked
    assert asked(server)
    wire(server).receive(answer(first=True, app__x="one"))
    assert house.census() == FREE
    assert not wire(client).reading, "what it asks for next waits"
    wire(client).receive(query("select 1"))
    assert sent(wire(server)) == b""
    wire(client).take()
    wire(client).receive()
    assert texts(sent(wire(server))) == ["select 1"]


def test_a_client_that_is_pinned_while_it_reads_slowly_goes_on_when_it_has_read() -> None:
    house, server, _ = house_of()
    client = slow_client(house)
    wire(client).receive(query("listen jobs"))
    sent(wire(server))
    wire(server).receive(message("N", b"x" * (HIGH_WATER + 1)) + SET)
    wire(client).receive(query("select 1"))
    assert asked(server)
    wire(server).receive(answer("listen", first=True))
    assert client.server is server
    assert not wire(server).reading
    wire(client).take()
    assert texts(sent(wire(server))) == ["select 1"]
    assert wire(server).reading


def test_a_server_that_reads_slowly_is_asked_when_it_has_caught_up_and_its_client_goes_on() -> None:
    house = House(watched=True)
    server, client = house.server(slow=True), house.client()
    wire(client).receive(query("set app.x to 'one'"))
    sent(wire(server))
    wire(client).receive(flush() * (HIGH_WATER // 4))
    assert not wire(client).reading
    wire(server).receive(SET)
    assert NAME not in wire(server).sent
    assert wire(server).take()
    assert asked(server)
    assert wire(client).reading
    wire(server).receive(answer(first=True, app__x="one"))
    wire(client).receive(query("select 1"))
    assert sent(wire(server)) == query("select 1")


def test_slowness_on_both_sides_stops_the_client_that_does_not_read() -> None:
    house = House(watched=True)
    server, client = house.server(slow=True), house.client(slow=True)
    wire(client).receive(query("select 1"))
    sent(wire(server))
    wire(client).receive(flush() * (HIGH_WATER // 4))
    wire(server).receive(message("N", b"x" * (HIGH_WATER + 1)) + DONE)
    assert client.server is None
    assert not wire(client).reading
    wire(client).take()
    assert wire(client).reading


# --- pins


def test_a_client_that_listens_keeps_its_server() -> None:
    house, server, [client, other] = house_of(clients=2)
    pin(client, server)
    assert house.census() == LINKED
    assert house.sharing.pinned == 1
    assert server.hold & PINNED
    wire(other).receive(query("select 2"))
    assert other.waiting
    wire(server).receive(NOTIFICATION)
    assert sent(wire(client)) == NOTIFICATION
    wire(client).receive(query("select 1"))
    wire(server).receive(DONE)
    assert house.census() == {**LINKED, "waiting": 1}


def test_it_keeps_it_until_the_server_says_that_nothing_is_left() -> None:
    house, server, [client, other] = house_of(clients=2)
    pin(client, server)
    wire(other).receive(query("select 2"))
    run(client, server, "unlisten *", message("C", b"UNLISTEN\0") + READY)
    wire(server).receive(answer())
    assert house.sharing.pinned == 0
    assert client.server is None
    assert texts(sent(wire(server))) == ["select 2"]


def test_a_pinned_client_is_not_asked_about_without_reason() -> None:
    _, server, [client] = house_of()
    pin(client, server)
    wire(client).receive(query("select 1"))
    sent(wire(server))
    wire(server).receive(DONE)
    assert sent(wire(server)) == b""


@pytest.mark.parametrize("cut", range(0, len(NOTIFICATION + answer("listen")), 9))
def test_a_notification_that_comes_with_the_answer_is_told(cut: int) -> None:
    _, server, [client] = house_of()
    pin(client, server)
    run(client, server, "listen more", message("C", b"LISTEN\0") + READY)
    reply = NOTIFICATION + answer("listen")
    wire(server).receive(reply[:cut])
    wire(server).receive(reply[cut:])
    assert sent(wire(client)) == NOTIFICATION
    assert client.server is server


@pytest.mark.parametrize("first", [message("2") + NOTIFICATION + ERROR + READY, NOTIFICATION + answer(role="bob")])
def test_a_notification_that_comes_before_all_is_asked_for_is_told(first: bytes) -> None:
    _, server, [client] = house_of()
    pin(client, server)
    run(client, server, "listen more", message("C", b"LISTEN\0") + READY)
    wire(server).receive(first)
    assert sent(wire(client)) == NOTIFICATION
    wire(server).receive(full_answer("listen") + NOTIFICATION)
    assert sent(wire(client)) == NOTIFICATION
    assert client.server is server


def test_a_pinned_client_that_vanishes_has_its_server_cleaned_and_proven_clean() -> None:
    house, server, [client] = house_of()
    pin(client, server)
    wire(client).lose()
    assert asked(server)
    wire(server).receive(answer("listen", "temporary"))
    assert texts(sent(wire(server))) == ["DISCARD ALL"]
    wire(server).receive(message("C", b"DISCARD ALL\0") + READY)
    assert asked(server)
    wire(server).receive(answer(first=True))
    assert house.census() == FREE
    assert house.sharing.pinned == 0
    assert [*house.sharing.ledger.pins] == []


@pytest.mark.parametrize(
    "replies",
    [
        [answer("listen"), ERROR + READY],
        [answer("listen"), message("C", b"DISCARD ALL\0") + READY, answer("listen", first=True)],
        [answer("listen"), message("C", b"DISCARD ALL\0") + READY, ERROR + READY],
    ],
    ids=["DISCARD ALL fails", "something is left", "no answer"],
)
def test_a_server_that_is_not_clean_after_its_client_is_closed(replies: list[bytes]) -> None:
    house, server, [client] = house_of()
    pin(client, server)
    wire(client).lose()
    for reply in replies:
        assert server in house.pool.servers
        wire(server).receive(reply)
    assert house.server_endings == {server: Reason.SERVER_UNCLEAN}
    assert house.sharing.pinned == 0


def test_a_pinned_client_whose_server_is_lost_is_told() -> None:
    house, server, [client] = house_of()
    pin(client, server)
    sent(wire(client))
    wire(server).lose()
    assert told(client) == "08006"
    assert house.sharing.pinned == 0


def test_a_pinned_server_that_is_to_be_closed_is_closed_when_it_is_free() -> None:
    house, server, [client] = house_of()
    pin(client, server)
    server.retire(Reason.SERVER_LIFETIME)
    wire(client).receive(query("select 1"))
    sent(wire(server))
    wire(server).receive(DONE)
    assert house.census() == LINKED
    run(client, server, "unlisten *")
    wire(server).receive(answer())
    assert house.server_endings == {server: Reason.SERVER_LIFETIME}
    assert client not in house.endings


def test_a_client_that_says_good_bye_behind_what_pins_it_has_its_answer_first() -> None:
    house, server, [client] = house_of()
    wire(client).receive(query("listen jobs") + TERMINATE)
    wire(server).receive(SET)
    assert sent(wire(client)) == SET
    assert house.endings[client].reason is Reason.CLIENT_QUIT
    assert texts(sent(wire(server)))[0] == "listen jobs"
    wire(server).receive(answer("listen", first=True))
    assert texts(sent(wire(server))) == ["DISCARD ALL"]


@pytest.mark.parametrize("gone", ["before its answer", "while it is asked", "when it is pinned"])
def test_a_server_that_has_loaded_a_library_is_closed_after_its_client(gone: str) -> None:
    house, server, [client] = house_of()
    wire(client).receive(query("load 'x'"))
    if gone == "before its answer":
        wire(client).lose()
        house.settle_cancels()
    wire(server).receive(message("C", b"LOAD\0") + READY)
    if gone == "while it is asked":
        wire(client).lose()
    wire(server).receive(answer(first=True))
    if gone == "when it is pinned":
        assert house.census() == LINKED
        wire(client).lose()
        wire(server).receive(answer())
    assert house.server_endings == {server: Reason.LIBRARY_LOADED}


def test_a_transaction_keeps_its_pinned_server_in_statement_mode_too() -> None:
    house, server, [client] = house_of(statement_mode=True)
    pin(client, server)
    wire(client).receive(query("begin"))
    wire(server).receive(message("C", b"BEGIN\0") + IN_TRANSACTION)
    assert house.endings[client].reason is Reason.STATEMENT_MODE


# --- max_pinned


def full_house() -> tuple[House, ServerSession, ServerSession, ClientSession]:
    """One client is pinned, and that is as many as may be; return another."""
    house, server, [pinned, client] = house_of(clients=2, size=2, max_pinned=1)
    pin(pinned, server)
    return house, server, house.server(), client


def test_one_too_many_is_refused_by_its_text() -> None:
    house, _, server, client = full_house()
    wire(client).receive(query("listen more"))
    assert texts(sent(wire(server))) == ["pgfunnel has refused a statement"]
    wire(server).receive(ERROR + READY)
    assert told(client) == "53400"
    assert house.census()["idle"] == 1
    assert client not in house.endings


def test_one_too_many_is_refused_by_the_text_of_what_it_binds() -> None:
    house, _, server, client = full_house()
    wire(client).receive(parse("listen more") + bind() + execute() + sync())
    wire(server).receive(message("1") + ERROR + READY)
    assert told(client) == "53400"
    assert house.census()["idle"] == 1


def test_one_too_many_that_is_found_by_asking_is_ended() -> None:
    house, _, server, client = full_house()
    run(client, server, "do 'begin perform pg_advisory_lock(1); end'")
    wire(server).receive(answer("advisory_lock", first=True))
    assert house.endings[client].reason is Reason.MAX_PINNED
    assert told(client) == "53400"
    assert texts(sent(wire(server))) == ["DISCARD ALL"]
    wire(server).receive(message("C", b"DISCARD ALL\0") + READY)
    wire(server).receive(answer(first=True))
    assert house.census()["idle"] == 1
    assert house.sharing.pinned == 1


def test_one_too_many_that_has_loaded_a_library_leaves_no_server() -> None:
    house, _, server, client = full_house()
    house.sharing.max_pinned = 0
    wire(client).receive(query("load 'x'"))
    house.sharing.max_pinned = 1  # it is another that was faster
    wire(server).receive(message("C", b"LOAD\0") + READY)
    wire(server).receive(answer(first=True))
    assert told(client) == "53400"
    assert house.server_endings == {server: Reason.LIBRARY_LOADED}


def test_whoever_is_pinned_already_may_leave_more() -> None:
    house, server, _, _ = full_house()
    [client] = [client for client in (server.client,) if isinstance(client, ClientSession)]
    run(client, server, "create temp table t (i int)")
    wire(server).receive(answer("listen", "temporary"))
    assert server.state.pins == State.LISTEN | State.TEMPORARY
    assert house.sharing.pinned == 1


# --- what a client has logged in with


def logged_in(sql: str) -> tuple[House, ServerSession, ClientSession]:
    """A client with startup parameters, whose `sql` has been sent, together with more."""
    house, server, [client] = house_of()
    client.startup = client.profile = server.profile = house.sharing.profiles.of({"TimeZone": b"CET"})
    wire(client).receive(query(sql) + query("select 1") + query("select 2")[:9])
    assert texts(sent(wire(server))) == [sql]
    wire(client).receive(query("select 2")[9:])
    assert sent(wire(server)) == b""
    return house, server, client


@pytest.mark.parametrize("sql", ["discard all", "reset all", "reset timezone", "set role to default"])
def test_what_is_sent_behind_a_reset_runs_with_the_settings_of_the_login(sql: str) -> None:
    house, server, _ = logged_in(sql)
    wire(server).receive(message("C", sql.upper().encode() + b"\0") + READY)
    assert asked(server)
    wire(server).receive(answer(first=True))
    put_on = "BEGIN;SELECT pg_catalog.set_config('TimeZone','CET',false);COMMIT"
    assert texts(sent(wire(server))) == [put_on, "select 1", "select 2"]
    wire(server).receive(DRESSED + DONE + DONE)
    assert house.census() == FREE
    assert not server.hold


def test_a_reset_that_fails_holds_nothing_up() -> None:
    _, server, _ = logged_in("reset all; select fail")
    wire(server).receive(ERROR + READY)
    wire(server).receive(answer(first=True, TimeZone="CET"))
    assert texts(sent(wire(server)))[-2:] == ["select 1", "select 2"]


def test_a_client_that_vanishes_behind_a_reset_holds_nobody_up() -> None:
    house, server, client = logged_in("reset all")
    other = house.client()
    wire(client).lose()
    house.settle_cancels()
    wire(server).receive(message("C", b"RESET\0") + READY)
    wire(server).receive(answer(first=True))
    assert house.census() == FREE
    assert not server.hold
    wire(other).receive(query("select 3"))
    assert texts(sent(wire(server)))[-1] == "select 3"


def test_a_good_bye_behind_a_reset_waits_for_its_answer() -> None:
    house, server, [client] = house_of()
    client.startup = client.profile = server.profile = house.sharing.profiles.of({"TimeZone": b"CET"})
    wire(client).receive(query("reset all"))
    wire(client).receive(TERMINATE)
    assert client not in house.endings
    wire(server).receive(message("C", b"RESET\0") + READY)
    assert house.endings[client].reason is Reason.CLIENT_QUIT
    assert sent(wire(client)) == message("C", b"RESET\0") + READY


# --- what else may be on the way


def test_the_reset_query_runs_after_the_question() -> None:
    house, server, [client] = house_of(reset_query="RESET ALL")
    run(client, server, "listen jobs")
    wire(server).receive(answer(first=True))
    assert texts(sent(wire(server))) == ["RESET ALL"]
    wire(server).receive(DONE)
    assert house.census() == FREE


def test_discard_all_as_the_reset_query_leaves_neither_settings_nor_statements() -> None:
    house, server, [client] = house_of(reset_query="discard all;")
    run(client, server, "set app.x to 'one'")
    wire(server).receive(answer(first=True, app__x="one"))
    wire(server).receive(DONE)
    assert house.census() == FREE
    assert server.profile is None
    assert not server.state.asks_by_name


def test_a_share_of_transactions_is_asked_about_without_reason() -> None:
    house, server, [client] = house_of(audit=1.0)
    wire(client).receive(query("select innocent()"))
    wire(server).receive(DONE)
    sent(wire(server))
    wire(server).receive(answer("advisory_lock", first=True))
    assert client.server is server, "its lock is nobody else's"
    assert house.sharing.ledger.finds.by_pool == {("shop", "alice", "advisory_lock"): 1}
    assert house.sharing.pinned == 1


@pytest.mark.parametrize("audit", [0.0, 1.0])
def test_nothing_is_asked_where_nothing_was_done(audit: float) -> None:
    house, server, [client] = house_of(audit=audit)
    wire(client).receive(flush())
    assert house.census() == FREE
    assert sent(wire(server)) == flush()
    assert len(client.pending) < PENDING_LIMIT
