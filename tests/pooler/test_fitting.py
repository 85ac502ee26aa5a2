"""Startup parameters: tried once, on one server, for all who come with the same; refused in Postgres's words."""

import pytest

from pooler.entrance.fitting import Fittings, Parameters
from pooler.reasons import Ending, Reason
from pooler.server import ServerSession
from pooler.session_state.sharing import MOST_FITTED, Fitted
from protocol.messages import messages_in
from protocol.question import NAME
from tests.pooler.house import DONE, READY, House, answer, full_answer, query, sent, wire
from tests.protocol.model import message

PARAMETERS: Parameters = (("application_name", "shop"), ("DateStyle", "German"))
REPORTS = message("S", b"application_name\0shop\0") + message("S", b"DateStyle\0German, DMY\0")
APPLIED = message("C", b"COMMIT\0") + REPORTS + READY
FOUND = answer(first=True, application_name="shop", DateStyle="German, DMY")
OBJECTION = message("E", b'SERROR\0C22023\0Minvalid value for parameter "DateStyle": "x"\0DSo it is.\0HTry ISO.\0\0')
CANCELLED = message("E", b"SERROR\0C57014\0Mcanceling statement\0\0")
FAILED = message("Z", b"E")


class Guest:
    def __init__(self) -> None:
        self.let_in: Fitted | None = None
        self.turned_away: Ending | None = None

    def fitted(self, fitted: Fitted) -> None:
        assert not self.let_in
        self.let_in = fitted

    def end(self, ending: Ending) -> None:
        assert not self.turned_away
        self.turned_away = ending


class Tailor:
    def __init__(self, size: int = 1) -> None:
        self.house = House(watched=True, size=size)
        self.fittings = Fittings(lambda _: self.house.sharing, self.house.now)

    def arrive(self, parameters: Parameters = PARAMETERS) -> Guest:
        guest = Guest()
        self.fittings.begin(self.house.pool, parameters, guest)
        return guest

    def leave(self, guest: Guest, parameters: Parameters = PARAMETERS) -> None:
        self.fittings.leave(self.house.pool, parameters, guest)

    @property
    def idle(self) -> bool:
        return self.house.census() == {"idle": len(self.house.pool.servers), "linked": 0, "busy": 0, "waiting": 0}


def tries(server: ServerSession) -> bool:
    """Parameters are being tried on."""
    out = sent(wire(server))
    return out.startswith(b"Q") and b"set_config" in out and NAME in out


def test_whoever_comes_with_parameters_is_told_what_they_come_to() -> None:
    tailor = Tailor()
    server = tailor.house.server()
    guest = tailor.arrive()
    assert tries(server)
    wire(server).receive(APPLIED)
    assert tailor.fittings.find(tailor.house.pool, PARAMETERS) is None
    wire(server).receive(FOUND)
    fitted = guest.let_in
    assert fitted is not None
    assert fitted.profile is server.profile
    assert fitted.profile is not None
    assert fitted.profile.settings == {"application_name": b"shop", "DateStyle": b"German, DMY"}
    assert REPORTS in fitted.welcome
    assert tailor.idle


def test_the_next_one_waits_for_nothing() -> None:
    tailor = Tailor()
    server = tailor.house.server()
    guest = tailor.arrive()
    wire(server).receive(APPLIED + FOUND)
    assert tailor.fittings.find(tailor.house.pool, PARAMETERS) is guest.let_in
    assert tailor.fittings.find(tailor.house.pool, PARAMETERS[:1]) is None


def test_those_who_come_meanwhile_with_the_same_share_the_answer() -> None:
    tailor = Tailor()
    guests = [tailor.arrive(), tailor.arrive()]
    assert tailor.house.census()["waiting"] == 1
    server = tailor.house.server()
    guests.append(tailor.arrive())
    wire(server).receive(APPLIED + FOUND)
    assert all(guest.let_in is guests[0].let_in is not None for guest in guests)
    assert sent(wire(server)).count(b"set_config") == 2, "one for each parameter, once"


def test_others_are_tried_one_after_the_other() -> None:
    tailor = Tailor()
    server = tailor.house.server()
    guest, other = tailor.arrive(), tailor.arrive(PARAMETERS[:1])
    wire(server).receive(APPLIED + FOUND)
    assert (guest.let_in is None, other.let_in is None) == (False, True)
    wire(server).receive(APPLIED + answer(application_name="shop"))
    assert other.let_in
    assert tailor.idle


def test_parameters_that_postgres_refuses_are_refused_in_its_words() -> None:
    tailor = Tailor()
    server = tailor.house.server()
    guests = [tailor.arrive(), tailor.arrive()]
    wire(server).receive(OBJECTION + FAILED)
    wire(server).receive(message("3") + message("1") + message("E", b"SERROR\0C25P02\0Maborted\0\0") + FAILED)
    refusal = Ending(
        Reason.LOGIN_REFUSED, "22023", 'invalid value for parameter "DateStyle": "x"', "So it is.", "Try ISO."
    )
    assert [guest.turned_away for guest in guests] == [refusal] * 2
    assert tailor.fittings.find(tailor.house.pool, PARAMETERS) is None


def test_a_server_on_which_they_were_refused_is_asked_what_is_left() -> None:
    tailor = Tailor()
    server = tailor.house.server()
    tailor.arrive()
    wire(server).receive(OBJECTION + FAILED + OBJECTION + FAILED)
    assert sent(wire(server)).endswith(query("ROLLBACK"))
    wire(server).receive(message("C", b"ROLLBACK\0") + READY)
    assert NAME in sent(wire(server))
    wire(server).receive(answer(first=True))
    assert tailor.idle
    assert server.profile is None


def test_a_question_that_fails_is_no_refusal() -> None:
    tailor = Tailor()
    server = tailor.house.server()
    guest = tailor.arrive((("statement_timeout", "1"),))
    wire(server).receive(message("C", b"COMMIT\0") + READY + message("3") + CANCELLED + READY)
    assert guest.turned_away is None
    kinds = [kind for kind, _ in messages_in(sent(wire(server)))]
    assert kinds[-1] == ord("Q"), "asked once more, past the limit"
    wire(server).receive(full_answer(application_name="shop"))
    assert guest.let_in is not None
    assert tailor.idle


def test_a_question_that_fails_twice_is_the_end_of_it() -> None:
    tailor = Tailor()
    server = tailor.house.server()
    guest = tailor.arrive()
    wire(server).receive(APPLIED + CANCELLED + READY)
    wire(server).receive(CANCELLED + READY)
    assert guest.turned_away is not None
    assert guest.turned_away.sqlstate == "57014"


def test_a_server_that_is_lost_is_replaced_by_the_next() -> None:
    tailor = Tailor(size=2)
    first = tailor.house.server()
    guest = tailor.arrive()
    since = tailor.house.time
    tailor.house.time += 5
    wire(first).lose()
    assert tailor.house.census()["waiting"] == 1
    assert tailor.house.pool.waiting_since == since, "the place in time is not lost"
    second = tailor.house.server()
    assert tries(second)
    wire(second).receive(APPLIED + FOUND)
    assert guest.let_in


def test_a_server_whose_answer_cant_be_read_counts_as_lost() -> None:
    tailor = Tailor(size=2)
    first, guest = tailor.house.server(), tailor.arrive()
    wire(first).receive(APPLIED + message("D", b"\0\3xxx") + READY)
    assert tailor.house.server_endings == {first: Reason.SERVER_VIOLATION}
    second = tailor.house.server()
    wire(second).receive(APPLIED + FOUND)
    assert guest.let_in


def test_whoever_leaves_before_it_is_their_turn_leaves_nothing_behind() -> None:
    tailor = Tailor()
    guest = tailor.arrive()
    tailor.leave(guest)
    assert tailor.house.census()["waiting"] == 0
    assert not tailor.fittings._under_way
    tailor.leave(guest)


def test_whoever_stays_is_still_served() -> None:
    tailor = Tailor()
    guest, other = tailor.arrive(), tailor.arrive()
    tailor.leave(guest)
    server = tailor.house.server()
    wire(server).receive(APPLIED + FOUND)
    assert not guest.let_in
    assert other.let_in


@pytest.mark.parametrize("end", ["an answer", "a refusal", "a loss"])
def test_whoever_leaves_while_they_are_tried_on_is_told_nothing(end: str) -> None:
    tailor = Tailor()
    server = tailor.house.server()
    guest = tailor.arrive()
    tailor.leave(guest)
    if end == "an answer":
        wire(server).receive(APPLIED + FOUND)
    elif end == "a refusal":
        wire(server).receive(OBJECTION + FAILED + OBJECTION + FAILED)
    else:
        wire(server).lose()
    assert not guest.let_in
    assert not guest.turned_away
    assert not tailor.fittings._under_way
    assert tailor.house.census()["waiting"] == 0
    assert (tailor.fittings.find(tailor.house.pool, PARAMETERS) is not None) == (end == "an answer")


def test_whoever_comes_when_the_first_has_left_is_told() -> None:
    tailor = Tailor()
    server = tailor.house.server()
    tailor.leave(tailor.arrive())
    guest = tailor.arrive()
    wire(server).receive(APPLIED + FOUND)
    assert guest.let_in


def test_whoever_waits_too_long_is_told_as_all_are() -> None:
    tailor = Tailor()
    guests = [tailor.arrive(), tailor.arrive()]
    queued = tailor.house.pool.first
    assert queued is not None
    timeout = Ending(Reason.QUERY_WAIT_TIMEOUT, "57014", "waited")
    queued.end(timeout)
    assert [guest.turned_away for guest in guests] == [timeout] * 2
    assert tailor.house.census()["waiting"] == 0
    assert not tailor.fittings._under_way


def test_clients_and_fittings_are_served_in_order() -> None:
    tailor = Tailor()
    client = tailor.house.client()
    wire(client).receive(query("select 1"))
    tailor.arrive()
    server = tailor.house.server()
    assert sent(wire(server)) == query("select 1")
    wire(server).receive(DONE)
    assert tries(server)


def test_what_is_remembered_is_bounded() -> None:
    tailor = Tailor()
    sharing = tailor.house.sharing
    for number in range(2 * MOST_FITTED):
        sharing.remember_fitted((("application_name", str(number)),), Fitted(None, b""))
    assert len(sharing.fitted) <= MOST_FITTED
