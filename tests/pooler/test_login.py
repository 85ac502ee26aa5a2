"""A client's way in, with its bytes cut anywhere: first packets, proof, welcome; and what a stranger may not do."""

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from config.access import Access
from config.authentication import AuthType
from config.settings import Settings
from pooler.access.gate import Gate
from pooler.access.throttle import Throttle
from pooler.cancel import Canceller
from pooler.client import ClientSession
from pooler.entrance.fitting import Fittings
from pooler.entrance.lobby import Lobby
from pooler.entrance.login import MAX_EARLY_SIZE, MAX_PASSWORD_SIZE, ClientLogin
from pooler.entrance.login_duties import LoginDuties
from pooler.reasons import Ending, Reason
from protocol.messages import TERMINATE, cancel_request
from protocol.startup import Startup, StartupMemory
from tests.pooler.house import DONE, Boundless, House, query, sent, wire
from tests.support import wire as client_side
from tests.support.transport import MockTransport

SECRET = "it's a sécret"


class Door:
    """Lets strangers in, to a house."""

    def __init__(
        self,
        auth_type: AuthType = "trust",
        *,
        places: int = 10,
        strangers: int = 1000,
        failure_delay: float = 0.0,
        disable_pqexec: bool = False,
    ) -> None:
        self.house = House()
        self.lobby = Lobby(places, strangers, Boundless())
        self.clients: dict[bytes, ClientSession] = {}
        self.endings: dict[ClientLogin, Ending | None] = {}
        self.joined: list[ClientSession] = []
        self.cancels: list[tuple[bytes, Callable[[], None]]] = []
        credentials: Mapping[str, SecretStr] = {"alice": SecretStr(SECRET)}
        self.house.client_duties = self.house.client_duties._replace(ended=self._client_ended)
        self.throttle = Throttle(failure_delay, strangers, self._linger, self.house.now)
        self.duties = LoginDuties(
            arrived=self.lobby.arrived,
            identified=self.lobby.identified,
            left=self._left,
            joined=lambda session, _: self.joined.append(session),
            cancel=lambda key, done: self.cancels.append((key, done)),
            new_key=Canceller(self.clients, 0.0, lambda *_: None).new_key,
            pool_of=lambda *_: self.house.pool,
            passed_on=lambda *_: None,
            fittings=Fittings(lambda _: self.house.sharing, self.house.now),
            passages=cast("Any", None),
            reception=cast("Any", None),
            current=cast(
                "Any",
                SimpleNamespace(settings=Settings(upstream="postgresql://localhost", disable_pqexec=disable_pqexec)),
            ),
            linger=self._linger,
            turn_away=self.throttle.turn_away,
            now=self.house.now,
            next_id=count(1).__next__,
            startups=StartupMemory(),
            gate=Gate(auth_type, Access(credentials), 4096),
            clients=self.clients,
            client_duties={"transaction": self.house.client_duties},
        )

    def _left(self, login: ClientLogin, ending: Ending | None) -> None:
        assert login not in self.endings, "left twice"
        self.endings[login] = ending
        self.lobby.left(login, joined=ending is None and login.proven)
        # As the log does: whoever has said who it is has a name.
        if ending is not None:
            assert not login.identified or isinstance(login.startup, Startup)

    def _client_ended(self, session: ClientSession, ending: Ending) -> None:
        del self.clients[session.key]
        self.lobby.place_free(session.login)

    def _linger(self, transport: asyncio.Transport) -> None:
        assert isinstance(transport, MockTransport)
        transport.eof = True

    def knock(self) -> tuple[ClientLogin, MockTransport]:
        login = ClientLogin(self.duties)
        transport = MockTransport(login)
        login.connection_made(transport)
        return login, transport


def startup(**parameters: str) -> bytes:
    return client_side.startup({"user": "alice", "database": "shop", **parameters})


def log_in(transport: MockTransport, cut: int = 1 << 30, password: str = SECRET) -> client_side.Login:
    """Log in as a driver would, sending `cut` bytes at a time; return what it has learned."""
    driver = client_side.Login("alice", password)
    _send(transport, startup(), cut)
    while not driver.ready:
        data = sent(transport)
        assert data, "no answer"
        while data:
            size = int.from_bytes(data[1:5], "big") + 1
            answer = driver.answer(client_side.Message(chr(data[0]), data[5:size]))
            data = data[size:]
            if answer:
                _send(transport, answer, cut)
    return driver


def _send(transport: MockTransport, data: bytes, cut: int) -> None:
    for at in range(0, len(data), cut):
        transport.receive(data[at : at + cut])


@pytest.mark.parametrize("auth_type", ["trust", "plain", "md5", "scram-sha-256"])
@pytest.mark.parametrize("cut", [1, 2, 7, 1 << 30])
def test_a_client_logs_in_however_its_bytes_are_cut(auth_type: AuthType, cut: int) -> None:
    door = Door(auth_type)
    _, transport = door.knock()
    driver = log_in(transport, cut)
    assert driver.ready
    assert door.joined[0].key in door.clients
    assert door.lobby.clients == 1


def test_a_login_that_a_reload_comes_into_becomes_a_session_by_what_holds_then() -> None:
    door = Door("plain")
    login, transport = door.knock()
    transport.receive(startup())
    anew = door.house.client_duties._replace(max_packet_size=1024)
    login.take_duties({"transaction": anew})
    transport.receive(client_side.password_message(SECRET))
    assert door.joined[0]._duties is anew


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_a_wrong_password_is_told_as_postgres_tells_it(auth_type: AuthType) -> None:
    door = Door(auth_type)
    login, transport = door.knock()
    with pytest.raises(client_side.ServerError, match="28P01"):
        log_in(transport, password="wrong")
    ending = door.endings[login]
    assert ending is not None
    assert ending.reason is Reason.LOGIN_FAILED
    assert door.lobby.clients == 0


def test_a_failure_is_counted_at_once_and_told_later() -> None:
    door = Door("plain", places=1, failure_delay=1.0)
    login, transport = door.knock()
    transport.receive(startup())
    sent(transport)
    transport.receive(client_side.password_message("wrong"))
    assert not sent(transport)
    ending = door.endings[login]
    assert ending is not None
    assert (ending.reason, ending.why) == (Reason.LOGIN_FAILED, "wrong password")
    assert door.lobby.clients == 0, "it keeps a place from others"
    door.house.time += 1.0
    door.throttle.sweep(door.house.time)
    assert b"28P01" in sent(transport)


def test_a_password_at_any_other_time_is_a_violation() -> None:
    door = Door("trust")
    door.house.server()
    login, transport = door.knock()
    transport.receive(client_side.password_message(SECRET))
    ending = door.endings[login]
    assert ending is not None
    assert ending.reason is Reason.CLIENT_VIOLATION


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_a_second_startup_packet_in_the_middle_of_the_proof_is_a_violation(auth_type: AuthType) -> None:
    door = Door(auth_type)
    login, transport = door.knock()
    transport.receive(startup())
    if auth_type == "scram-sha-256":
        transport.receive(client_side.sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r=abc"))
    transport.receive(client_side.startup({"user": "mallory", "database": "shop"}))
    ending = door.endings[login]
    assert ending is not None
    assert ending.reason is Reason.CLIENT_VIOLATION
    assert login.startup.user == "alice"


@pytest.mark.parametrize("length", [0, 3, MAX_PASSWORD_SIZE + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_an_impossible_length_of_a_password_message_is_a_violation(length: int) -> None:
    door = Door("scram-sha-256")
    login, transport = door.knock()
    transport.receive(startup() + b"p" + length.to_bytes(4, "big"))
    ending = door.endings[login]
    assert ending is not None
    assert ending.reason is Reason.CLIENT_VIOLATION


def test_requests_that_come_with_the_startup_packet_are_served() -> None:
    door = Door()
    server = door.house.server()
    _, transport = door.knock()
    transport.receive(startup() + query("early"))
    assert sent(wire(server)) == query("early")


@pytest.mark.parametrize("size", [MAX_EARLY_SIZE - 60, MAX_EARLY_SIZE - 10, MAX_EARLY_SIZE, 3 * MAX_EARLY_SIZE])
def test_a_client_that_has_sent_much_too_early_is_read_from_once_it_is_in(size: int) -> None:
    door = Door()
    server = door.house.server()
    _, transport = door.knock()
    transport.receive(startup() + query("x" * size))
    wire(server).receive(DONE)
    assert transport.reading


def test_a_client_in_the_queue_for_a_place_is_read_from_up_to_a_limit() -> None:
    door = Door(places=0)
    _, transport = door.knock()
    transport.receive(startup())
    for _ in range(100):
        transport.receive(b"x" * 1000)
    assert not transport.reading
    assert len(transport.inbox) > 50_000


@pytest.mark.parametrize("request_", [client_side.SSL_REQUEST, client_side.GSSENC_REQUEST])
@pytest.mark.parametrize("cut", [1, 8])
def test_encryption_is_declined_and_the_login_goes_on(request_: bytes, cut: int) -> None:
    door = Door()
    _, transport = door.knock()
    _send(transport, request_, cut)
    assert sent(transport) == b"N"
    assert log_in(transport).ready


def test_bytes_behind_an_unanswered_encryption_request_are_refused() -> None:
    door = Door()
    login, transport = door.knock()
    transport.receive(client_side.SSL_REQUEST + startup())
    ending = door.endings[login]
    assert ending is not None
    assert ending.reason is Reason.CLIENT_VIOLATION
    assert sent(transport)[:1] != b"N"


def test_a_cancel_request_is_carried_out_and_the_connection_closed() -> None:
    door = Door()
    _, transport = door.knock()
    transport.receive(cancel_request(b"\0\0\0\1key!"))
    ((key, done),) = door.cancels
    assert key == b"\0\0\0\1key!"
    assert not transport.is_closing()
    done()
    assert transport.closing
    assert sent(transport) == b""


def test_a_cancel_that_takes_too_long_can_be_ended() -> None:
    door = Door()
    login, transport = door.knock()
    transport.receive(cancel_request(b"\0\0\0\1key!"))
    login.end(Ending(Reason.SHUTDOWN, "57P01", "shutting down"))
    door.cancels[0][1]()
    assert list(door.endings) == [login]


def test_a_client_waits_for_the_first_server_of_its_pool() -> None:
    door = Door()
    door.house.pool.welcome = b""
    _, transport = door.knock()
    transport.receive(startup() + query())
    assert sent(transport) == b""
    server = door.house.server()
    assert b"known" in sent(transport)
    assert sent(wire(server)) == query()


def test_a_client_that_goes_while_it_waits_for_a_server_leaves_nothing_behind() -> None:
    door = Door()
    door.house.pool.welcome = b""
    _, transport = door.knock()
    transport.receive(startup())
    transport.lose()
    assert not door.house.pool.newcomers
    assert door.lobby.clients == 0


def test_the_next_in_the_queue_gets_a_free_place() -> None:
    door = Door(places=1)
    _, first = door.knock()
    _, second = door.knock()
    first.receive(startup())
    second.receive(startup())
    assert sent(second) == b""
    first.receive(TERMINATE)
    assert sent(second)
    assert door.lobby.clients == 1


def test_many_in_the_queue_who_are_all_refused_are_no_deep_recursion() -> None:
    door = Door(places=1, disable_pqexec=True)
    _, first = door.knock()
    first.receive(startup())
    for _ in range(500):
        _, transport = door.knock()
        transport.receive(startup(replication="database"))
    _, last = door.knock()
    last.receive(startup())
    first.receive(TERMINATE)
    assert sent(last)
    assert door.lobby.clients == 1


def test_newer_protocols_are_negotiated() -> None:
    door = Door()
    _, transport = door.knock()
    transport.receive(client_side.startup({"user": "alice", "_pq_.novelty": "1"}, protocol=(3 << 16) | 9))
    answer = sent(transport)
    assert answer[:1] == b"v"
    assert b"_pq_.novelty\0" in answer


@pytest.mark.parametrize("minor", [0, 2])
def test_cancel_keys_have_the_length_of_the_protocol_version(minor: int) -> None:
    door = Door()
    _, transport = door.knock()
    transport.receive(client_side.startup({"user": "alice"}, protocol=(3 << 16) | minor))
    assert len(door.joined[0].key) == (8 if minor == 0 else 36)


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x09\0\4\0\0\0"]
)
def test_what_is_no_first_packet_is_refused(garbage: bytes) -> None:
    door = Door()
    login, transport = door.knock()
    transport.receive(garbage)
    ending = door.endings[login]
    assert ending is not None
    assert ending.reason is Reason.CLIENT_VIOLATION


def test_too_many_strangers_and_the_oldest_has_to_go() -> None:
    door = Door(strangers=2)
    logins = [door.knock()[0] for _ in range(3)]
    assert list(door.endings) == [logins[0]]
