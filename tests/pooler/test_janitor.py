"""Every timeout on a clock of the test's own: never early, and at most a round late."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from config.databases import Directory
from config.settings import Settings
from config.terms import Terms, terms_for
from pooler.access.throttle import Throttle
from pooler.client import ClientSession
from pooler.entrance.lobby import PATIENCE_S, Departures, Lobby
from pooler.entrance.login import ClientLogin
from pooler.janitor import CLEANING_S, ROUND_S, Janitor, Premises
from pooler.reasons import Ending, Reason
from pooler.server import ServerSession
from pooler.tls.handshakes import Handshakes
from protocol.messages import TERMINATE
from tests.pooler.house import DONE, IN_TRANSACTION, LOGIN, Boundless, House, query, sent, wire
from tests.protocol.model import message
from tests.support.transport import MockTransport

BEGIN = message("C", b"BEGIN\0") + IN_TRANSACTION


class Watch:
    """A house with a janitor, whose rounds the test walks."""

    def __init__(self, house: House | None = None, **settings: float) -> None:
        self.house = house or House()
        self.cancelled: list[ServerSession] = []
        self.clients: dict[bytes, ClientSession] = {}
        self.lobby = Lobby(1, 100, Boundless())
        self.departures = Departures(1000)
        self.throttle = Throttle(
            1.0, 1000, lambda transport: self.departures.linger(transport, self.house.now()), self.house.now
        )
        upstream = self.upstream = SimpleNamespace(failure="")
        house_pool = self.house.pool

        class Pools:
            caps: tuple[()] = ()

            def __iter__(self) -> Iterator[object]:
                return iter([house_pool])

            def terms_of(self, _: object) -> Terms:
                terms = terms_for(current.settings, current.directory, "shop", "alice")
                assert terms is not None
                return terms

            def sweep(self, used: object, now: float) -> None: ...

        pools: Any = Pools()
        pools.openings = SimpleNamespace(upstream=upstream)
        given: dict[str, Any] = {"server_idle_timeout": 0, "server_lifetime": 0, "query_wait_timeout": 0, **settings}
        current: Any = SimpleNamespace(
            settings=Settings(upstream="postgresql://alice@localhost/shop", **given), directory=Directory()
        )
        self.janitor = Janitor(
            Premises(
                current,
                pools,
                self.lobby,
                Handshakes(1),
                self.throttle,
                self.departures,
                self.clients,
                cast("Any", SimpleNamespace(cancel_server=self.cancelled.append)),
                (),
                lambda _: True,
                self.house.now,
                cast("Any", SimpleNamespace(sweep=lambda: None)),
                cast("Any", SimpleNamespace(round=lambda: None)),
            )
        )

    def client(self) -> ClientSession:
        session = self.house.client()
        self.clients[session.key] = session
        return session

    def walk(self, seconds: float) -> None:
        """Let time pass, a round at a time."""
        end = self.house.time + seconds
        while self.house.time + ROUND_S <= end:
            self.house.time += ROUND_S
            self.janitor.round()
        self.house.time = end

    def lasts(self, client: ClientSession, timeout: float) -> Reason:
        """Walk on until `client` is ended, which must come in time; return why."""
        self.walk(timeout - ROUND_S)
        assert client not in self.house.endings, "early"
        self.walk(3 * ROUND_S + 0.01)
        assert client in self.house.endings, "late"
        return self.house.endings[client].reason


def test_a_client_waits_no_longer_than_query_wait_timeout() -> None:
    watch = Watch(query_wait_timeout=5)
    client = watch.client()
    wire(client).receive(query())
    assert watch.lasts(client, 5) is Reason.QUERY_WAIT_TIMEOUT
    assert b"query_wait_timeout" in sent(wire(client))
    assert not watch.house.pool.waiters


def test_who_waits_long_is_told_so_once() -> None:
    watch = Watch(query_wait_notify=5)
    first, second = watch.client(), watch.client()
    wire(first).receive(query())
    watch.walk(2)
    wire(second).receive(query())
    watch.walk(2.9)
    assert sent(wire(first)) == b""
    watch.walk(1)
    assert b"client being queued" in sent(wire(first))
    assert sent(wire(second)) == b""
    watch.walk(60)
    assert sent(wire(first)) == b""
    said = sent(wire(second))
    assert b"Clients that came earlier: 1." in said
    assert watch.house.pool.stats.totals.sent > len(said), "what clients are told counts as sent"


def test_nobody_is_told_without_query_wait_notify() -> None:
    watch = Watch(query_wait_notify=0)
    client = watch.client()
    wire(client).receive(query())
    watch.walk(60)
    assert sent(wire(client)) == b""


@pytest.mark.parametrize("reason", [Reason.RECONNECT, Reason.ADDRESS_GONE, Reason.SERVER_LIFETIME])
@pytest.mark.parametrize("fast", [True, False])
def test_in_session_mode_a_client_leaves_what_is_to_be_replaced_only_by_server_fast_close(
    reason: Reason, *, fast: bool
) -> None:
    watch = Watch(House(session_mode=True), server_fast_close=fast)
    server, client = watch.house.server(), watch.client()
    wire(client).receive(query("begin"))
    wire(server).receive(BEGIN)
    server.retire(reason)
    watch.walk(5)
    assert client not in watch.house.endings
    wire(client).receive(query("commit"))
    wire(server).receive(DONE)
    watch.walk(1)
    assert (client in watch.house.endings) == (fast and reason is not Reason.SERVER_LIFETIME)
    if client in watch.house.endings:
        assert b"57P01" in sent(wire(client))
        assert watch.house.server_endings[server] is reason


def test_a_query_runs_no_longer_than_query_timeout() -> None:
    watch = Watch(query_timeout=5)
    watch.house.server()
    client = watch.client()
    wire(client).receive(query())
    assert watch.lasts(client, 5) is Reason.QUERY_TIMEOUT


def test_each_query_has_its_own_query_timeout() -> None:
    watch = Watch(query_timeout=5)
    server, client = watch.house.server(), watch.client()
    for _ in range(10):
        wire(client).receive(query())
        watch.walk(3)
        wire(server).receive(BEGIN)
    assert client not in watch.house.endings


def test_a_transaction_is_idle_no_longer_than_idle_transaction_timeout() -> None:
    watch = Watch(idle_transaction_timeout=5)
    server, client = watch.house.server(), watch.client()
    wire(client).receive(query("begin"))
    wire(server).receive(BEGIN)
    assert watch.lasts(client, 5) is Reason.IDLE_TRANSACTION_TIMEOUT


def test_a_transaction_takes_no_longer_than_transaction_timeout() -> None:
    watch = Watch(transaction_timeout=5)
    server, client = watch.house.server(), watch.client()
    for _ in range(4):
        wire(client).receive(query())
        wire(server).receive(BEGIN)
        watch.walk(1)
    watch.walk(2)
    assert watch.house.endings[client].reason is Reason.TRANSACTION_TIMEOUT


def test_short_transactions_one_after_the_other_are_no_long_one() -> None:
    watch = Watch(transaction_timeout=5)
    server, client = watch.house.server(), watch.client()
    for _ in range(20):
        wire(client).receive(query())
        watch.walk(1)
        wire(server).receive(DONE)
    assert client not in watch.house.endings


def test_in_session_mode_a_transaction_begins_when_it_begins() -> None:
    watch = Watch(House(session_mode=True), transaction_timeout=5)
    server, client = watch.house.server(), watch.client()
    wire(client).receive(query())
    wire(server).receive(DONE)
    watch.walk(60)
    wire(client).receive(query("begin"))
    wire(server).receive(BEGIN)
    watch.walk(2)
    assert client not in watch.house.endings, "ended after 2 s of 5"


def test_in_session_mode_short_transactions_are_no_long_one() -> None:
    watch = Watch(House(session_mode=True), transaction_timeout=5)
    server, client = watch.house.server(), watch.client()
    for _ in range(20):
        wire(client).receive(query())
        watch.walk(1)
        wire(server).receive(DONE)
    assert client not in watch.house.endings


def test_a_client_is_idle_no_longer_than_client_idle_timeout() -> None:
    watch = Watch(client_idle_timeout=5)
    assert watch.lasts(watch.client(), 5) is Reason.CLIENT_IDLE_TIMEOUT


def test_a_client_that_is_served_now_and_then_is_not_idle() -> None:
    watch = Watch(client_idle_timeout=5)
    server, client = watch.house.server(), watch.client()
    for _ in range(10):
        watch.walk(3)
        wire(client).receive(query())
        wire(server).receive(DONE)
    assert client not in watch.house.endings


def test_an_idle_server_is_closed_after_server_idle_timeout() -> None:
    watch = Watch(server_idle_timeout=5, server_check_delay=1000)
    server = watch.house.server()
    watch.walk(4.9)
    assert not watch.house.server_endings
    watch.walk(1)
    assert watch.house.server_endings == {server: Reason.SERVER_IDLE_TIMEOUT}


def test_an_idle_server_keeps_nothing_of_what_it_was_asked() -> None:
    watch = Watch()
    server, client = watch.house.server(), watch.client()
    wire(client).receive(query("alter role r password 'secret'"))
    wire(server).receive(DONE)
    assert server.request
    watch.walk(1)
    assert not server.request


def test_an_idle_server_is_checked_after_server_check_delay() -> None:
    watch = Watch(server_check_delay=5)
    server = watch.house.server()
    watch.walk(4.9)
    assert server in watch.house.pool.idle
    watch.walk(1)
    assert server in watch.house.pool.stale


def test_servers_of_one_age_are_retired_one_a_round() -> None:
    watch = Watch(House(size=3), server_lifetime=5)
    for _ in range(3):
        watch.house.server()
    watch.walk(4.9)
    assert not watch.house.server_endings
    watch.walk(ROUND_S + 0.1)
    assert list(watch.house.server_endings.values()) == [Reason.SERVER_LIFETIME]
    watch.walk(1)
    assert len(watch.house.server_endings) == 3


def test_what_a_vanished_client_left_is_cancelled_and_then_closed() -> None:
    watch = Watch()
    server, client = watch.house.server(), watch.client()
    wire(client).receive(query() + message("X"))
    wire(client).lose()
    watch.walk(CLEANING_S - ROUND_S)
    assert not watch.cancelled
    watch.walk(2 * ROUND_S)
    assert watch.cancelled[0] is server
    watch.walk(CLEANING_S)
    assert watch.house.server_endings == {server: Reason.SERVER_UNCLEAN}


def test_a_check_that_is_not_answered_closes_the_server() -> None:
    watch = Watch()
    server = watch.house.server()
    watch.house.pool.make_stale(server)
    wire(watch.client()).receive(query())
    watch.walk(2 * CLEANING_S + 1)
    assert watch.house.server_endings == {server: Reason.SERVER_CHECK_FAILED}
    assert watch.house.pool.testing == 0


class _Stranger:
    """A login, as the lobby and the janitor see it."""

    proven = False
    asked = False
    undecided = False
    hint = why = ""

    startup = LOGIN
    at_console = placed_beside = False

    def __init__(self, lobby: Lobby, since: float) -> None:
        self.lobby, self.since = lobby, since
        self.ended_at: Reason | None = None

    def go_on(self) -> None: ...

    def end(self, ending: Ending) -> None:
        self.ended_at = ending.reason
        self.hint, self.why = ending.hint, ending.why
        self.lobby.left(cast("ClientLogin", self), joined=False)


@pytest.mark.parametrize("identified", [False, True])
def test_a_login_takes_no_longer_than_client_login_timeout(identified: bool) -> None:
    watch = Watch(client_login_timeout=5)
    stranger = _Stranger(watch.lobby, watch.house.time)
    watch.lobby.arrived(cast("ClientLogin", stranger))
    if identified:
        watch.lobby.identified(cast("ClientLogin", stranger))
    watch.walk(4.9)
    assert stranger.ended_at is None
    watch.walk(2 * ROUND_S)
    assert stranger.ended_at is Reason.LOGIN_TIMEOUT


@pytest.mark.parametrize("undecided", [True, False])
def test_a_login_that_postgres_has_to_decide_on_is_told_that_it_has_not_and_the_log_why(undecided: bool) -> None:
    watch = Watch(client_login_timeout=5)
    stranger = _Stranger(watch.lobby, watch.house.time)
    stranger.undecided = undecided
    watch.lobby.arrived(cast("ClientLogin", stranger))
    watch.lobby.identified(cast("ClientLogin", stranger))
    watch.upstream.failure = "TLS with 10.0.0.7: certificate verify failed"
    watch.walk(6)
    assert stranger.ended_at is Reason.LOGIN_TIMEOUT
    told = ("Postgres could not be asked who may log in.", "TLS with 10.0.0.7: certificate verify failed")
    assert (stranger.hint, stranger.why) == (told if undecided else ("", "")), "else the client has not answered"


def test_a_login_that_was_slow_to_say_who_it_is_does_not_gain_time_behind_a_quick_one() -> None:
    watch = Watch(client_login_timeout=60)
    holder = _Stranger(watch.lobby, watch.house.time)
    holder.proven = True
    watch.lobby.arrived(cast("ClientLogin", holder))
    watch.lobby.identified(cast("ClientLogin", holder))
    slow = _Stranger(watch.lobby, watch.house.time)
    watch.lobby.arrived(cast("ClientLogin", slow))
    watch.walk(40)
    quick = _Stranger(watch.lobby, watch.house.time)
    watch.lobby.arrived(cast("ClientLogin", quick))
    watch.lobby.identified(cast("ClientLogin", quick))
    watch.lobby.identified(cast("ClientLogin", slow))
    watch.walk(21)
    assert slow.ended_at is Reason.TOO_MANY_CLIENTS
    assert quick.ended_at is None


def test_who_does_not_prove_who_it_is_does_not_keep_a_place_from_those_who_wait() -> None:
    watch = Watch(client_login_timeout=60)
    holder, next_one = (_Stranger(watch.lobby, watch.house.time) for _ in range(2))
    holder.asked = True
    watch.lobby.arrived(cast("ClientLogin", holder))
    watch.lobby.identified(cast("ClientLogin", holder))
    watch.walk(20)
    assert holder.ended_at is None, "nobody waits"
    watch.lobby.arrived(cast("ClientLogin", next_one))
    watch.lobby.identified(cast("ClientLogin", next_one))
    watch.walk(PATIENCE_S - 1)
    assert holder.ended_at is None
    holder.asked = False
    watch.walk(20)
    assert holder.ended_at is None, "Postgres has to decide"
    holder.asked = True
    watch.walk(PATIENCE_S + 1)
    assert cast("ClientLogin", next_one) in watch.lobby.proving
    assert holder.ended_at is Reason.LOGIN_TIMEOUT


def test_who_does_not_read_the_last_word_is_closed_in_the_end() -> None:
    watch = Watch()
    transport = MockTransport()
    watch.departures.linger(transport, watch.house.time)
    watch.walk(1.9)
    assert not transport.aborted
    watch.walk(2 * ROUND_S)
    assert transport.aborted


def test_settings_do_not_show_the_password() -> None:
    settings = Settings(upstream="postgresql://alice:hush@localhost/shop", users={"bob": SecretStr("hush")})
    assert "hush" not in repr(settings)


def test_who_says_good_bye_in_a_transaction_goes_when_the_answer_is_there() -> None:
    watch = Watch()
    house = watch.house
    server, client = house.server(), watch.client()
    wire(client).receive(query("begin") + TERMINATE)
    watch.walk(1)
    assert client not in house.endings, "it still waits for its answer"
    wire(server).receive(message("C", b"BEGIN\0") + IN_TRANSACTION)
    watch.walk(1)
    assert house.endings[client].reason is Reason.CLIENT_QUIT
    assert sent(wire(server)) == query("begin") + query("ROLLBACK")
