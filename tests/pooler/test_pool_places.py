"""Whatever happens in whatever order, the places of pools under a common limit add up, and nobody is forgotten."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pooler.figures.statistics import Work
from pooler.pool import Cap, Pool
from pooler.reasons import Ending

SIZE = 2
LIMIT = 3
POOLS = st.integers(0, 1)


class Server:
    def __init__(self, pool: "Pool[Server]") -> None:
        self.pool = pool
        self.since = 0.0
        self.lent = False
        self.retired = False

    @property
    def work(self) -> Work:
        return Work(0, 0, 0, 0, 0)

    def check(self) -> None:
        raise AssertionError("nothing is stale here")

    def make_room(self) -> None:
        if self.lent:
            self.retired = True
        else:
            self.pool.discard(self, 0.0)


class Client:
    """Wants a server for a while."""

    waiting_since = 0.0

    def __init__(self, lent: list[Server]) -> None:
        self._lent = lent

    def serve(self, server: Server) -> None:
        server.lent = True
        self._lent.append(server)

    def end(self, ending: Ending) -> None: ...


class Guest:
    """Wants a place for a connection of its own."""

    waiting_since = 0.0

    def __init__(self, pool: "Pool[Server]", placed: "list[Guest]") -> None:
        self.pool = pool
        self._placed = placed

    def serve(self, server: Server) -> None:
        self.pool.swap_aside(server)
        self._placed.append(self)

    def end(self, ending: Ending) -> None: ...


class Places(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cap: Cap[Server] = Cap(LIMIT)
        self.pools = [self._pool(user) for user in ("alice", "bob")]
        self.lent: list[Server] = []
        self.placed: list[Guest] = []
        self.now = 0.0

    def _pool(self, user: str) -> Pool[Server]:
        return Pool(user, "shop", lambda _: None, size=SIZE, concurrency=10, caps=(self.cap,))

    def later(self) -> float:
        self.now += 1.0
        return self.now

    @rule(number=POOLS)
    def a_client_comes(self, number: int) -> None:
        client = Client(self.lent)
        server = self.pools[number].borrow()
        if server is None:
            self.pools[number].wait(client, self.later())
        else:
            client.serve(server)

    @rule(number=POOLS)
    def a_guest_comes(self, number: int) -> None:
        pool = self.pools[number]
        guest = Guest(pool, self.placed)
        if pool.take_aside():
            self.placed.append(guest)
        else:
            pool.wait(guest, self.later())

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def a_server_comes_back(self, data: st.DataObject) -> None:
        server = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
        server.lent = False
        if server.retired:
            server.pool.discard(server, self.now)
        else:
            server.pool.release(server, 0.0)

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def a_guest_leaves(self, data: st.DataObject) -> None:
        guest = self.placed.pop(data.draw(st.integers(0, len(self.placed) - 1)))
        guest.pool.give_back_aside(self.now)

    @precondition(lambda self: any(pool.waiters for pool in self.pools))
    @rule(data=st.data())
    def one_that_waits_leaves(self, data: st.DataObject) -> None:
        pool = data.draw(st.sampled_from([pool for pool in self.pools if pool.waiters]))
        pool.leave(data.draw(st.sampled_from(list(pool.waiters))))

    @precondition(lambda self: any(pool.opening for pool in self.pools))
    @rule(data=st.data(), succeeds=st.booleans())
    def an_attempt_ends(self, data: st.DataObject, *, succeeds: bool) -> None:
        pool = data.draw(st.sampled_from([pool for pool in self.pools if pool.opening]))
        if succeeds:
            pool.opened(Server(pool), b"hello", self.now)
        else:
            pool.open_failed(0.0, self.now)

    @precondition(lambda self: any(pool.idle for pool in self.pools))
    @rule(data=st.data())
    def an_idle_server_is_lost(self, data: st.DataObject) -> None:
        pool = data.draw(st.sampled_from([pool for pool in self.pools if pool.idle]))
        pool.discard(pool.idle[0], self.now)

    @invariant()
    def places_add_up(self) -> None:
        for pool in self.pools:
            assert pool.aside == sum(guest.pool is pool for guest in self.placed)
            assert 0 <= len(pool.servers) + pool.opening + pool.aside <= SIZE
        assert self.cap.count == sum(len(pool.servers) + pool.opening + pool.aside for pool in self.pools) <= LIMIT

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        for pool in self.pools:
            assert not (pool.idle and pool.waiters), "there is an idle server"
            taken = len(pool.servers) + pool.opening + pool.aside
            assert not pool.waiters or taken == SIZE or self.cap.count == LIMIT or pool.opening, "there is room"


Places.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_the_places_of_pools = Places.TestCase
