"""Who gets a server and who waits, when another is opened, and how pools share what is limited."""

import pytest

from pooler.figures.statistics import Work
from pooler.pool import Cap, Pool
from pooler.reasons import Ending


class Server:
    def __init__(self, pool: "Pool[Server]") -> None:
        self.pool = pool
        self.since = 0.0
        self.checks = 0
        self.told_to_go = False

    @property
    def work(self) -> Work:
        return Work(0, 0, 0, 0, 0)

    @property
    def retired(self) -> bool:
        return self.told_to_go

    def check(self) -> None:
        self.checks += 1

    def make_room(self) -> None:
        self.told_to_go = True
        if self in self.pool.idle or self in self.pool.stale:
            self.pool.discard(self, 0.0)


class Client:
    waiting_since = 0.0

    def __init__(self, *, gives_back_to: "Pool[Server] | None" = None) -> None:
        self.gives_back_to = gives_back_to
        self.server: Server | None = None
        self.welcomed = False

    def serve(self, server: Server) -> None:
        if self.gives_back_to is not None:
            self.gives_back_to.put(server)
        else:
            self.server = server

    def welcome(self) -> None:
        self.welcomed = True

    def end(self, ending: Ending) -> None: ...


class Desk:
    """A pool, and the attempts that it has begun."""

    def __init__(self, *, size: int = 3, caps: "tuple[Cap[Server], ...]" = (), **limits: int) -> None:
        self.opens = 0
        limits = {"concurrency": 10, **limits}
        self.pool: Pool[Server] = Pool("u", "d", self._open, size=size, caps=caps, **limits)  # type: ignore[arg-type]

    def _open(self, _: Pool[Server]) -> None:
        self.opens += 1

    def open(self) -> Server:
        server = Server(self.pool)
        if not self.pool.opening:
            self.pool.opening += 1
        self.pool.opened(server, b"hello", 0.0)
        return server

    def queue(self, count: int, now: float = 0.0) -> list[Client]:
        clients = [Client() for _ in range(count)]
        for client in clients:
            self.pool.wait(client, now)
        return clients


def test_the_server_released_last_is_lent_first() -> None:
    desk = Desk()
    first, second = desk.open(), desk.open()
    assert desk.pool.borrow() is second
    assert desk.pool.borrow() is first
    assert desk.pool.borrow() is None


def test_round_robin_lends_the_one_idle_longest() -> None:
    desk = Desk(round_robin=True)
    first, second = desk.open(), desk.open()
    assert desk.pool.borrow() is first
    desk.pool.release(first, 0.0)
    assert desk.pool.borrow() is second


def test_waiting_clients_are_served_in_order_of_arrival() -> None:
    desk = Desk(size=1)
    clients = desk.queue(3)
    server = desk.open()
    for client in clients:
        assert client.server is server
        desk.pool.release(server, 0.0)
    assert list(desk.pool.idle) == [server]


def test_who_has_nothing_to_ask_is_passed_over() -> None:
    desk = Desk(size=1)
    for _ in range(2000):  # and the stack does not grow with them
        desk.pool.wait(Client(gives_back_to=desk.pool), 0.0)
    (client,) = desk.queue(1)
    server = desk.open()
    assert client.server is server
    assert not desk.pool.idle


def test_one_who_leaves_the_queue_gives_up_the_place() -> None:
    desk = Desk(size=1)
    clients = desk.queue(3)
    desk.pool.leave(clients[0])
    desk.pool.leave(clients[0])
    server = desk.open()
    assert clients[1].server is server
    assert clients[0].server is None


def test_as_many_are_opened_as_wait_and_no_more() -> None:
    desk = Desk(size=3)
    desk.queue(2)
    assert desk.opens == 2
    desk.queue(5)
    assert desk.opens == 3


def test_no_more_are_opened_at_the_same_time_than_allowed() -> None:
    desk = Desk(size=10, concurrency=2)
    desk.queue(5)
    assert desk.opens == 2
    desk.open()
    assert desk.opens == 3


def test_size_0_is_no_limit() -> None:
    desk = Desk(size=0, concurrency=100)
    desk.queue(50)
    assert desk.opens == 50


def test_after_a_failure_one_attempt_at_a_time_and_not_before_its_time() -> None:
    desk = Desk(size=3)
    desk.queue(3)
    for _ in range(3):
        desk.pool.open_failed(5.0, 0.0)
    desk.pool.grow(4.9)
    assert desk.opens == 3
    desk.pool.grow(5.0)
    desk.pool.grow(5.0)
    assert desk.opens == 4
    desk.open()
    assert desk.opens == 6, "it is back: the others may follow"


def test_the_reserve_is_opened_when_the_janitor_says_so() -> None:
    desk = Desk(size=1, reserve=1)
    desk.queue(3)
    assert desk.opens == 1
    desk.pool.use_reserve = True
    desk.pool.grow(0.0)
    assert desk.opens == 2


def test_a_pool_in_use_keeps_its_minimum() -> None:
    desk = Desk(size=5, min_size=3)
    desk.pool.grow(0.0)
    assert desk.opens == 0, "nobody has asked for it"
    desk.queue(1)
    assert desk.opens == 3


def test_newcomers_are_welcomed_by_the_first_server() -> None:
    desk = Desk(size=5)
    newcomers = [Client(), Client()]
    for newcomer in newcomers:
        desk.pool.greet(newcomer, 0.0)
    assert desk.opens == 1, "one server tells them all"
    server = desk.open()
    assert all(newcomer.welcomed for newcomer in newcomers)
    assert list(desk.pool.idle) == [server]


def test_a_stale_server_is_checked_before_it_is_lent() -> None:
    desk = Desk(size=1)
    server = desk.open()
    desk.pool.make_stale(server)
    assert desk.pool.borrow() is None
    (client,) = desk.queue(1)
    assert (server.checks, client.server) == (1, None)
    desk.pool.tested(server)
    assert client.server is server


def test_a_stale_server_that_is_dead_is_replaced() -> None:
    desk = Desk(size=1)
    server = desk.open()
    desk.pool.make_stale(server)
    desk.queue(1)
    desk.pool.discard(server, 0.0, testing=True)
    assert (desk.pool.testing, desk.opens) == (0, 1)


def test_a_server_is_forgotten_once() -> None:
    cap: Cap[Server] = Cap(5)
    desk = Desk(caps=(cap,))
    desk.queue(1)
    server = desk.open()
    assert cap.count == 1
    desk.pool.discard(server, 0.0)
    desk.pool.discard(server, 0.0)
    assert cap.count == 0
    assert not desk.pool.servers


def test_under_a_full_cap_an_idle_server_of_another_pool_makes_room() -> None:
    cap: Cap[Server] = Cap(1)
    rich, poor = Desk(caps=(cap,)), Desk(caps=(cap,))
    rich.queue(1)
    server = rich.open()
    assert poor.opens == 0
    rich.pool.release(server, 0.0)
    poor.queue(1)
    assert server.told_to_go
    assert (poor.opens, cap.count) == (1, 1)


def test_under_a_full_cap_the_place_goes_to_who_has_waited_longest() -> None:
    cap: Cap[Server] = Cap(1)
    busy, late, early = (Desk(caps=(cap,)) for _ in range(3))
    busy.queue(1)
    server = busy.open()
    early.queue(1, now=1.0)
    late.queue(1, now=2.0)
    busy.pool.discard(server, 3.0)
    assert (early.opens, late.opens) == (1, 0)


def test_a_pool_with_nothing_is_relieved_by_one_that_is_always_busy() -> None:
    cap: Cap[Server] = Cap(2)
    busy, starving = Desk(caps=(cap,)), Desk(caps=(cap,))
    busy.queue(2)
    servers = [busy.open(), busy.open()]
    starving.queue(1, now=10.0)
    cap.relieve(10.5, 1.0)
    assert not any(server.told_to_go for server in servers), "not yet"
    cap.relieve(11.5, 1.0)
    assert sum(server.told_to_go for server in servers) == 1


def test_a_paused_pool_opens_nothing_and_takes_nothing_from_others() -> None:
    cap: Cap[Server] = Cap(2)
    busy, paused = Desk(caps=(cap,)), Desk(caps=(cap,), min_size=1)
    busy.queue(1)
    server = busy.open()
    paused.pool.paused = True
    paused.queue(1, now=10.0)
    cap.relieve(100.0, 1.0)
    assert not server.told_to_go
    assert not paused.pool.take_place()
    assert paused.opens == 0
    paused.pool.paused = False
    paused.pool.grow(100.0)
    assert paused.opens == 1


@pytest.mark.parametrize("attempts", [3])
def test_a_failed_attempt_gives_its_place_under_a_cap_back(attempts: int) -> None:
    cap: Cap[Server] = Cap(1)
    desk = Desk(caps=(cap,))
    desk.queue(1)
    for attempt in range(attempts):
        desk.pool.open_failed(float(attempt), float(attempt))
    assert cap.count == desk.pool.opening


def test_leaving_a_long_queue_costs_the_same_as_a_short_one() -> None:
    desk = Desk(size=1)
    clients = desk.queue(20_000)
    for client in reversed(clients):  # a list would take 200 million steps
        desk.pool.leave(client)
    assert not desk.pool.waiters
