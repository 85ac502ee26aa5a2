"""The pool as clients and Postgres see it: never too many connections, nobody refused, everyone in turn."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, CountBackends, StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.proxy import FaultProxy
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import ServerError, Wire, query


@contextmanager
def most_seen(count: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """Watch a count all the while, in a thread; afterwards the result says how high it ever was."""
    seen = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(count())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(seen)
    finally:
        done.set()
        watcher.join()


# --- how many


def test_a_hundred_clients_share_three_connections(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, backends: CountBackends
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=3)

    def work(number: int) -> str | None:
        with pooler.login() as wire:
            return wire.value(f"SELECT {number} FROM pg_sleep(0.01)")

    with most_seen(backends) as most, ThreadPoolExecutor(100) as clients:
        answers = list(clients.map(work, range(100)))
    assert answers == [str(number) for number in range(100)]
    assert 1 < most() <= 3


def test_pool_is_of_one_user_and_one_database(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, backends: CountBackends
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1, userlist={"alice": ""})
    with ExitStack() as open_:
        for user, dbname in (("postgres", "postgres"), ("alice", "postgres"), ("alice", "other")):
            wire = open_.enter_context(pooler.login(user, dbname))
            wire.query("BEGIN")
            assert wire.rows("SELECT current_user, current_database()") == [[user, dbname]]
        assert backends() == 3


@pytest.mark.parametrize(
    ("limit", "same", "apart"),
    [
        ("max_db_connections", [("alice", "postgres"), ("bob", "postgres")], ("alice", "other")),
        ("max_user_connections", [("alice", "postgres"), ("alice", "other")], ("bob", "postgres")),
    ],
)
def test_limit_over_several_pools(
    postgres: EmbeddedPostgres,
    pgfunnel: StartPgfunnel,
    backends: CountBackends,
    limit: str,
    same: list[tuple[str, str]],
    apart: tuple[str, str],
) -> None:
    limits = {limit: 2}
    pooler = pgfunnel(postgres.url(), default_pool_size=5, userlist={"alice": "", "bob": ""}, **limits)

    def work(number: int) -> str | None:
        with pooler.login(*same[number % 2]) as wire:
            return wire.value(f"SELECT {number} FROM pg_sleep(0.01)")

    with ThreadPoolExecutor(20) as clients, ExitStack() as open_:
        answers = clients.map(work, range(60))
        assert list(answers) == [str(number) for number in range(60)]
        eventually(lambda: backends() <= 2)
        for _ in range(2):
            open_.enter_context(pooler.login(*same[0])).query("BEGIN")
        late = open_.enter_context(pooler.login(*apart))
        assert late.value("SELECT 1") == "1"  # not under this limit
        assert backends() == 3


def test_idle_connection_makes_room_for_another_pool(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, backends: CountBackends
) -> None:
    pooler = pgfunnel(postgres.url(), max_db_connections=1, userlist={"alice": "", "bob": ""})
    with pooler.login("alice") as alice, pooler.login("bob") as bob:
        for _ in range(3):
            assert alice.value("SELECT current_user") == "alice"
            assert bob.value("SELECT current_user") == "bob"
    eventually(lambda: backends() == 1)


def test_pool_that_never_rests_does_not_starve_the_other(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), max_db_connections=2, userlist={"alice": "", "bob": ""})
    served = threading.Event()

    def hammer(_: int) -> None:
        with pooler.login("alice") as wire:
            while not served.is_set():
                wire.query("SELECT pg_sleep(0.01)")

    with ThreadPoolExecutor(6) as clients:
        busy = clients.map(hammer, range(6))
        try:
            with pooler.login("bob") as bob:
                assert bob.value("SELECT current_user") == "bob"
        finally:
            served.set()
        assert len(list(busy)) == 6


def test_reserve_is_used_once_clients_have_waited(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, backends: CountBackends
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1, reserve_pool_size=1, reserve_pool_timeout=0.5)
    with pooler.login() as holder, pooler.login() as second, pooler.login() as third:
        holder.query("BEGIN")
        started = time.monotonic()
        assert second.query("BEGIN")[-1].payload == b"T"
        assert 0.5 <= time.monotonic() - started < 4
        third.send(query("SELECT 3"))
        time.sleep(1)  # nothing tells that nothing happens
        assert backends() == 2
        assert pooler.waiting() == 1
        second.query("COMMIT")
        assert third.read_until()[1].columns == ["3"]


def test_minimum_is_kept_open_while_the_pool_is_in_use(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, backends: CountBackends
) -> None:
    pooler = pgfunnel(postgres.url(), min_pool_size=3, server_idle_timeout=1)
    with pooler.login() as wire:
        wire.query("SELECT 1")
        eventually(lambda: backends() == 3)
        postgres.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '' "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        eventually(lambda: backends() == 3)
        time.sleep(1.5)  # server_idle_timeout would have closed them
        assert backends() == 3


# --- in which order


def test_waiting_clients_are_served_in_order_of_arrival(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1)
    with ExitStack() as open_:
        clients = [open_.enter_context(pooler.login()) for _ in range(10)]
        holder = open_.enter_context(pooler.login())
        holder.query("CREATE SEQUENCE turns")
        try:
            holder.query("BEGIN")
            for number, client in enumerate(clients):
                client.send(query("SELECT nextval('turns')"))
                eventually(functools.partial(is_waiting, pooler, number + 1))
            gone = clients.pop(4)
            gone.reset()
            eventually(lambda: pooler.waiting() == 9)
            holder.query("COMMIT")
            turns = [client.read_until()[1].columns[0] for client in clients]
            assert turns == [str(turn) for turn in range(1, 10)]
        finally:
            holder.query("DROP SEQUENCE turns")


@pytest.mark.parametrize(("round_robin", "expected"), [("false", 1), ("true", 3)])
def test_connection_released_last_is_lent_first_unless_round_robin(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, round_robin: str, expected: int
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=3, server_round_robin=round_robin)
    with ExitStack() as open_:
        clients = [open_.enter_context(pooler.login()) for _ in range(3)]
        for client in clients:
            client.query("BEGIN")
        for client in clients:
            client.query("COMMIT")
        last = clients[0]
        assert len({last.value("SELECT pg_backend_pid()") for _ in range(6)}) == expected


# --- while Postgres is in trouble


def test_clients_stay_queued_while_postgres_has_no_connection_to_spare(
    own_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(own_postgres.url(user="alice"), server_login_retry=0.5)
    with ExitStack() as hogs, ThreadPoolExecutor(3) as clients:
        take_every_connection(own_postgres, hogs)
        answers = [clients.submit(value, pooler, "alice") for _ in range(3)]
        pooler.wait_for_log("event=server_connect_failed.*53300")
        assert not any(answer.done() for answer in answers)
        hogs.close()
        assert [answer.result(20) for answer in answers] == ["1"] * 3


def test_clients_stay_queued_while_postgres_is_not_there_yet(
    own_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    own_postgres.stop()
    pooler = pgfunnel(own_postgres.url(), server_login_retry=0.5)
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(value, pooler) for _ in range(3)]
        pooler.wait_for_log("event=server_connect_failed")
        own_postgres.start()
        assert [answer.result(20) for answer in answers] == ["1"] * 3


@pytest.mark.parametrize(
    ("end", "sqlstate"),
    [
        pytest.param(lambda postgres: postgres.stop("fast"), "57P01", id="stopped"),  # in Postgres's words
        pytest.param(lambda postgres: postgres.stop("immediate"), "08006", id="aborted"),  # it says a warning only
        pytest.param(lambda postgres: postgres.kill(), "57P01", id="killed"),  # its backends notice
    ],
)
def test_clients_outlive_a_restart_of_postgres(
    own_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, end: Callable[[EmbeddedPostgres], None], sqlstate: str
) -> None:
    pooler = pgfunnel(own_postgres.url(), default_pool_size=2, server_login_retry=0.5)
    with pooler.login() as idle, pooler.login() as linked, pooler.login() as second, pooler.login() as queued:
        idle.query("SELECT 1")
        linked.query("BEGIN")
        second.query("BEGIN")
        queued.send(query("SELECT 'served'"))
        eventually(lambda: pooler.waiting() == 1)
        end(own_postgres)
        error = linked.error()
        assert (error.sqlstate, error.severity) == (sqlstate, "FATAL")
        assert linked.read_to_end() == []
        own_postgres.start()
        assert queued.read_until()[1].columns == ["served"]
        assert idle.value("SELECT 1") == "1"


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        pytest.param(lambda peer: peer.error("57P03", "the database system is starting up"), "57P03", id="starting"),
        pytest.param(lambda peer: peer.error("53300", "sorry, too many clients already"), "53300", id="full"),
        pytest.param(lambda peer: peer.reset(), "", id="reset in login"),
        pytest.param(lambda _: None, "closed the connection", id="closed in login"),
        pytest.param(lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "", id="no Postgres at all"),
    ],
)
def test_clients_stay_queued_until_postgres_lets_them_in(
    pgfunnel: StartPgfunnel, trouble: Callable[[Conversation], None], reason: str
) -> None:
    def script(peer: Conversation) -> None:
        peer.read_startup()
        if peer.number <= 4:
            trouble(peer)
        else:
            peer.log_in()
            peer.serve()

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url(), server_login_retry=0.2, default_pool_size=1)
        with ThreadPoolExecutor(5) as clients:
            assert list(clients.map(lambda _: value(pooler), range(5))) == ["5"] * 5
        pooler.wait_for_log(f"event=server_connect_failed.*{reason}")


def test_attempts_at_a_postgres_in_trouble_are_few(pgfunnel: StartPgfunnel) -> None:
    with ScriptedServer(lambda peer: peer.error("57P03", "the database system is starting up")) as server:
        pooler = pgfunnel(server.url(), server_login_retry=10, query_wait_timeout=2)
        with ThreadPoolExecutor(20) as clients:
            refused = list(clients.map(lambda _: refusal(pooler), range(20)))
        assert {error.sqlstate for error in refused} == {"57014"}
        # 8 at once (server_connect_concurrency), then one after 0.1, 0.2, 0.4 and 0.8 s, each give or take a quarter
        assert server.connections <= 14


def test_silent_postgres_is_given_up_and_tried_again(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        pooler = pgfunnel(proxy.url(), server_connect_timeout=0.5, server_login_retry=0.5)
        started = time.monotonic()
        proxy.stall()
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(value, pooler)
            pooler.wait_for_log("reason=server_connect_timeout")
            assert time.monotonic() - started < 10
            proxy.resume()
            assert answer.result(20) == "1"


def test_wrong_password_of_the_upstream_is_told_at_once(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(user="scram", password=PASSWORD + "x"))
    started = time.monotonic()
    error = refusal(pooler, "scram")
    assert (error.sqlstate, error.message) == ("28P01", 'password authentication failed for user "scram"')
    assert time.monotonic() - started < 2


def test_broken_connection_is_told_to_its_client_and_nobody_else(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        pooler = pgfunnel(proxy.url(), default_pool_size=2)
        with pooler.login() as linked, pooler.login() as idle:
            idle.query("SELECT 1")
            linked.query("BEGIN")
            proxy.cut(reset=True)
            error = linked.error()
            assert (error.sqlstate, error.severity) == ("08006", "FATAL")
            assert linked.read_to_end() == []
            assert idle.value("SELECT 1") == "1"


def test_connection_that_postgres_ends_while_idle_is_not_lent(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1)
    with pooler.login() as wire:
        for _ in range(20):
            pid = wire.value("SELECT pg_backend_pid()")
            postgres.psql(f"SELECT pg_terminate_backend({pid}, 5000)")
            assert wire.value("SELECT pg_backend_pid()") != pid


def test_connection_that_has_announced_its_end_is_not_lent(pgfunnel: StartPgfunnel) -> None:
    announced = threading.Event()

    def script(peer: Conversation) -> None:
        peer.accept_login()
        if peer.number == 1:
            peer.read()
            peer.answer("1")
            peer.error("57P01", "terminating connection due to administrator command")
            announced.set()
            peer.wait_until_closed()
        peer.serve()

    with ScriptedServer(script) as server:
        pooler = pgfunnel(server.url())
        with pooler.login() as wire:
            assert wire.value("SELECT 1") == "1"
            announced.wait(10)
            pooler.wait_for_log("event=server_closed", timeout=3)
            assert wire.value("SELECT 1") == "2"


def take_every_connection(postgres: EmbeddedPostgres, hogs: ExitStack) -> None:
    with contextlib.suppress(ServerError):
        while True:
            hogs.enter_context(Wire(postgres.host, postgres.port)).login("alice", "postgres")


def is_waiting(pooler: Pgfunnel, count: int) -> bool:
    return pooler.waiting() == count


def value(pooler: Pgfunnel, user: str = "postgres") -> str | None:
    with pooler.login(user) as wire:
        return wire.value("SELECT 1")


def refusal(pooler: Pgfunnel, user: str = "postgres") -> ServerError:
    with pooler.connect() as wire, pytest.raises(ServerError) as refused:
        wire.login(user, "postgres")
    return refused.value
