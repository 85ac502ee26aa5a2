"""The pool of one user at one database: who has a server, who waits for one, and when another is opened.

Knows no sockets and no protocol, only servers that can be lent and clients that can be served. Everything here is
synchronous: borrowing changes the state at once, a waiter is the client's session itself, and nothing is polled.
Times are monotonic seconds.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from time import monotonic
from typing import Generic, Protocol, TypeVar, final

from pooler.figures.statistics import Statistics, Work
from pooler.reasons import Ending


class ServerLike(Protocol):
    """A connection to Postgres, as the pool sees it."""

    since: float
    """Since when it is in the state that it is in, lent or free; 0 = it has not been looked at since."""

    @property
    def retired(self) -> bool:
        """It will be closed when it is released."""

    @property
    def work(self) -> Work:
        """See statistics.Worker."""

    def check(self) -> None:
        """Find out whether the connection is alive; ends in Pool.tested() or Pool.discard()."""

    def make_room(self) -> None:
        """Close the connection at once if it is idle, else as soon as it is released."""


S = TypeVar("S", bound=ServerLike)
S_contra = TypeVar("S_contra", contravariant=True)


class Queued(Protocol):
    """Whoever waits in a queue of the pool."""

    waiting_since: float

    def end(self, ending: Ending) -> None:
        """Tell the client why it waited in vain, and close its connection."""


class Waiter(Queued, Protocol[S_contra]):
    """A client that has something to send and no server to send it to."""

    def serve(self, server: S_contra) -> None:
        """Take `server`, and give it back when done with it: maybe before this returns."""


class Newcomer(Queued, Protocol):
    """A client that has proven who it is, and has to be told the parameters of a server of this pool."""

    def welcome(self) -> None:
        """The pool now knows them."""


class Cap(Generic[S]):
    """An upper bound on the server connections of several pools: those of a database, or of a user."""

    __slots__ = ("count", "limit", "pools")

    def __init__(self, limit: int) -> None:
        """`limit` is in server connections; 0 = none."""
        self.limit = limit
        self.count = 0
        self.pools: list[Pool[S]] = []

    @property
    def full(self) -> bool:
        """No further connection may be opened."""
        return 0 < self.limit <= self.count

    def evict(self, for_pool: "Pool[S]") -> bool:
        """Close an idle connection of the pool that has most of them, for the good of another; False if none is."""
        pools = [pool for pool in self.pools if pool is not for_pool and pool.free]
        if pools:
            max(pools, key=lambda pool: pool.free).give_up_one()
        return bool(pools)

    def starving(self) -> "list[Pool[S]]":
        """Pools that wait, the one whose first client came first at the front."""
        pools = [pool for pool in self.pools if (pool.waiters or pool.newcomers) and not pool.paused]
        return sorted(pools, key=lambda pool: pool.waiting_since)

    def relieve(self, now: float, patience: float) -> None:
        """Let a pool that has no server at all have one that another pool, busy without a break, keeps from it."""
        for pool in self.starving():
            if not pool.servers and not pool.opening and now - pool.waiting_since > patience:
                max(self.pools, key=lambda other: len(other.servers)).give_up_one()
                return


@final
class Pool(Generic[S]):
    """Servers of one (user, database), lent to its clients in order of arrival."""

    __slots__ = (
        "_lending",
        "_open",
        "_returned",
        "ahead",
        "aside",
        "caps",
        "clock",
        "concurrency",
        "database",
        "era",
        "failure",
        "failures",
        "idle",
        "min_size",
        "mode",
        "newcomers",
        "notified",
        "on_loss",
        "opening",
        "paused",
        "reserve",
        "retry_at",
        "servers",
        "size",
        "stale",
        "stats",
        "take",
        "testing",
        "unused_since",
        "use_reserve",
        "user",
        "waiters",
        "welcome",
    )

    def __init__(
        self,
        user: str,
        database: str,
        open_server: "Callable[[Pool[S]], None]",
        *,
        size: int,
        min_size: int = 0,
        reserve: int = 0,
        concurrency: int = 1,
        round_robin: bool = False,
        mode: str = "transaction",
        caps: tuple[Cap[S], ...] = (),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`open_server` begins to open a connection and returns; opened() or open_failed() tell how it went."""
        self.clock = clock
        self.user = user
        self.database = database
        self._open = open_server
        self.mode = mode
        """When its servers come back; it never changes."""
        self.paused = False
        """Nothing is lent, and nothing opened."""
        self.on_loss: Callable[[], None] = _no_matter
        """Called when a connection, or the attempt to open one, has ended."""
        self.era = 0
        """How often all of its connections were given up: those that were begun to be opened before are, too."""
        self.size = size
        self.min_size = min_size
        self.ahead = False
        """Its minimum is there before anybody comes."""
        self.reserve = reserve
        self.concurrency = concurrency
        self.caps = caps
        for cap in caps:
            cap.pools.append(self)
        self.servers: set[S] = set()
        """Every open connection, in whatever state."""
        self.stats = Statistics(self.servers)
        self.idle: deque[S] = deque()
        """Free; the last one was released last."""
        self.take_in_turn(in_turn=round_robin)
        self._lending = False
        self._returned: list[S] = []
        self.stale: deque[S] = deque()
        """Free, but idle for so long that they are checked before they are lent (PgBouncer: sv_used)."""
        self.testing = 0
        """How many are being checked (PgBouncer: sv_tested)."""
        self.aside = 0
        """How many places are taken by connections that are not lent: each is one client's (replication)."""
        self.opening = 0
        """How many are being opened (PgBouncer: sv_login)."""
        self.waiters: OrderedDict[Waiter[S], None] = OrderedDict()
        self.newcomers: OrderedDict[Newcomer, None] = OrderedDict()
        self.welcome = b""
        """The ParameterStatus messages that newcomers are told; empty until a server has been seen."""
        self.use_reserve = False
        self.failures = 0
        """How many attempts to open a connection have failed in a row."""
        self.failure = ""
        """What the last of them failed for."""
        self.unused_since = self.notified = 0.0
        """When it was first seen without clients, 0 = it has some; and since when who waits has not been told so."""
        self.retry_at = 0.0
        """After a failure: no further attempt before this. 0 = the last attempt succeeded."""

    def take_in_turn(self, *, in_turn: bool) -> None:
        """Lend the server that has been idle longest, else the one that came back last."""
        self.take = self.idle.popleft if in_turn else self.idle.pop

    # --- lending: the hot path

    def borrow(self) -> S | None:
        """Return a free server, or None: wait()."""
        return self.take() if self.idle else None

    def swap(self, server: S, fits: Callable[[S], bool]) -> S:
        """Return an idle server that fits in place of `server`, which was just borrowed; else `server`."""
        if fits(server):
            return server
        for other in reversed(self.idle):
            if fits(other):
                self.idle.remove(other)
                self.idle.append(server)
                return other
        return server

    def release(self, server: S, now: float) -> None:
        """Take `server` back, free and whole: for the client that has waited longest, else to be kept idle."""
        if self.waiters:
            self.put(server)
        else:
            server.since = now
            self.idle.append(server)

    def put(self, server: S) -> None:
        """As release(), but after no transaction: `server` was just opened, checked or cleaned."""
        if self._lending:
            self._returned.append(server)  # by a client that had nothing to ask for: go on there, not deeper here
            return
        while True:
            if self.waiters:
                client, _ = self.waiters.popitem(last=False)
                self._lending = True
                try:
                    client.serve(server)
                finally:
                    self._lending = False
            else:
                server.since = 0.0
                self.idle.append(server)
            if not self._returned:
                return
            server = self._returned.pop()

    # --- waiting

    def wait(self, client: Waiter[S], now: float) -> None:
        """Put `client` at the end of the queue; its serve() will be called."""
        client.waiting_since = now
        self.waiters[client] = None
        # Once the pool is full, waiting costs no more than this.
        if self.stale or not self.size or len(self.servers) + self.opening + self.aside < self.size + self.reserve:
            self.grow(now)

    def leave(self, client: Waiter[S]) -> None:
        """Give up the place of a client, in no time."""
        self.waiters.pop(client, None)

    def greet(self, newcomer: Newcomer, now: float) -> None:
        """Let `newcomer` wait for the first server; its welcome() will be called."""
        newcomer.waiting_since = now
        self.newcomers[newcomer] = None
        self.grow(now)

    @property
    def first(self) -> Queued | None:
        """The one that has waited longest."""
        waiter: Queued | None = next(iter(self.waiters), None)
        newcomer: Queued | None = next(iter(self.newcomers), None)
        if waiter is None or (newcomer is not None and newcomer.waiting_since < waiter.waiting_since):
            return newcomer
        return waiter

    @property
    def waiting_since(self) -> float:
        """When that one began to; infinity if nobody waits."""
        first = self.first
        return float("inf") if first is None else first.waiting_since

    # --- growing

    def grow(self, now: float) -> None:
        """Check or open as many connections as those who wait can use and the limits allow."""
        wanted = (len(self.waiters) or bool(self.newcomers)) - self.opening - self.testing
        while wanted > 0 and self.stale and self.waiters:
            wanted -= 1
            self.testing += 1
            self.stale.pop().check()
        if self.in_use or self.ahead:
            wanted = max(wanted, self.min_size - len(self.servers) - self.opening)
        while wanted > 0 and self._may_open(now):
            wanted -= 1
            self._count_place()
            self._open(self)

    def take_place(self) -> bool:
        """Count a connection that has been opened by somebody else; opened() is to follow. False if it has no place."""
        if not self.paused and self._has_place():
            self._count_place()
            return True
        return False

    @property
    def in_use(self) -> bool:
        """It has connections, or is wanted."""
        return bool(self.servers or self.waiters or self.newcomers or self.aside)

    def _may_open(self, now: float) -> bool:
        # After a failure one attempt at a time finds out whether the server is back.
        if self.paused:
            return False
        if now < self.retry_at or self.opening >= (1 if self.retry_at else self.concurrency):
            return False
        return self._has_place()

    def _has_place(self) -> bool:
        size = self.size + self.reserve if self.use_reserve else self.size
        if self.size and len(self.servers) + self.opening + self.aside >= size:
            return False
        return all(not cap.full or (cap.evict(self) and not cap.full) for cap in self.caps)

    def _count_place(self) -> None:
        self.opening += 1
        for cap in self.caps:
            cap.count += 1

    def opened(self, server: S, welcome: bytes, now: float) -> None:
        """A connection has been opened; `welcome` is what to tell newcomers."""
        self.opening -= 1
        self.retry_at = 0.0
        self.welcome = welcome
        self.servers.add(server)
        while self.newcomers:
            newcomer, _ = self.newcomers.popitem(last=False)
            newcomer.welcome()
        self.put(server)
        self.grow(now)

    def open_failed(self, retry_at: float, now: float) -> None:
        """A connection could not be opened: no further attempt before `retry_at`."""
        self.opening -= 1
        self.retry_at = retry_at
        self._give_back_place(now)

    def tested(self, server: S) -> None:
        """A check() has found the connection alive."""
        self.testing -= 1
        self.put(server)

    def discard(self, server: S, now: float, *, testing: bool = False) -> None:
        """Forget a connection that has ended or is about to; nothing if it is forgotten already."""
        if server not in self.servers:
            return
        self.servers.remove(server)
        self.stats.keep(server)
        self.testing -= testing
        for free in (self.idle, self.stale):
            if server in free:
                free.remove(server)
        self._give_back_place(now)
        self.grow(now)

    def _give_back_place(self, now: float) -> None:
        for cap in self.caps:
            cap.count -= 1
        for cap in self.caps:
            for pool in cap.starving():
                pool.grow(now)
        self.on_loss()

    # --- connections that are not lent

    def take_aside(self) -> bool:
        """Take a place for a connection that is one client's alone, if need be that of an idle one; False: wait()."""
        if self.paused or self.waiters:
            return False
        if not self._has_place() and self.free:
            self.give_up_one()
        if not self._has_place():
            return False
        self._count_aside()
        return True

    def swap_aside(self, server: S) -> None:
        """As take_aside(), for a client that has waited: in the place of the server that it is served with."""
        self._count_aside()
        server.make_room()

    def give_back_aside(self, now: float) -> None:
        """That connection has ended."""
        self.aside -= 1
        self._give_back_place(now)
        self.grow(now)

    def _count_aside(self) -> None:
        self.aside += 1
        for cap in self.caps:
            cap.count += 1

    def make_stale(self, server: S) -> None:
        """`server` has been idle for long: it is to be checked before it is lent."""
        if server in self.idle:
            self.idle.remove(server)
            self.stale.append(server)

    # --- giving way to the other pools under a cap

    @property
    def free(self) -> int:
        """How many connections are idle."""
        return len(self.idle) + len(self.stale)

    def give_up_one(self) -> None:
        """Close the connection that has been idle longest, else the next one that is released."""
        free = self.stale or self.idle
        if free:
            free[0].make_room()
            return
        for server in self.servers:
            if not server.retired:
                server.make_room()
                return


def _no_matter() -> None:
    """Nobody wants to know."""
