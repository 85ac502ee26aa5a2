"""A pool with sessions on both sides and no sockets: the test plays the clients, Postgres and the clock."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from struct import pack

import structlog

from config.session_state import DEFAULTS, StatePolicies
from pooler.borrower import ServerDuties
from pooler.client import ClientDuties, ClientSession
from pooler.figures.slow import Slow
from pooler.pool import Pool
from pooler.reasons import Ending, Reason
from pooler.server import ServerSession
from pooler.session_state.ledger import Ledger
from pooler.session_state.policy import Policy
from pooler.session_state.session import SessionState
from pooler.session_state.sharing import Sharing
from pooler.upstream.address import Address
from protocol.parameters import Profiles
from protocol.startup import Startup
from protocol.statements import Library
from tests.protocol.model import message
from tests.support.transport import MockTransport

MAX_PACKET = 1 << 30
PEER = Address("127.0.0.1", 5432)
READY = message("Z", b"I")
WELCOME = message("S", b"application_name\0known\0")
LOGIN = Startup("alice", "shop", 0, negotiate=False, unknown_options=[], parameters={})


class Boundless:
    """Any number of clients may come."""

    any = False

    def of_database(self, name: str) -> int:
        return 0

    def of_user(self, name: str) -> int:
        return 0


IN_TRANSACTION = message("Z", b"T")
DONE = message("C", b"SELECT 1\0") + READY


def query(sql: str = "select 1") -> bytes:
    return message("Q", sql.encode() + b"\0")


def sent(transport: MockTransport) -> bytes:
    return transport.take()


def answer(*states: str, first: bool = False, **settings: str) -> bytes:
    """What Postgres says to the question what the session holds; the `first` time it is asked, it is prepared."""
    rows = [("setting", name.replace("__", "."), value) for name, value in settings.items()]
    rows += [("user", "session_authorization", "alice"), *((state, "", "") for state in states)]
    told = b"".join(_row(kind, name.encode().hex(), value.encode().hex()) for kind, name, value in rows)
    return (message("3") + message("1")) * first + message("2") + told + message("C", b"SELECT 1\0") + READY


def full_answer(*states: str, role: str = "none", **settings: str) -> bytes:
    """The same where the question was asked in full."""
    settings["role"] = role
    return answer(*states, first=False, **settings)[len(message("2")) :]


def _row(*columns: str) -> bytes:
    return message("D", pack("!H", len(columns)) + b"".join(pack("!I", len(each)) + each.encode() for each in columns))


def wire(session: ClientSession | ServerSession) -> MockTransport:
    """The transport of a session."""
    assert isinstance(session.transport, MockTransport)
    return session.transport


def new_sharing(
    now: Callable[[], float],
    *,
    policies: StatePolicies | None = None,
    max_prepared: int = 200,
    max_pinned: int = 0,
    audit: float = 0.0,
    statement_memory: int = 1 << 20,
) -> Sharing:
    """The default policy for session state, with those of `policies` instead."""
    policy = Policy.of({**DEFAULTS, **(policies or {})})
    ledger = Ledger(now, log=structlog.get_logger(), log_pins=False)
    library = Library(statement_memory, policy.ignored, watch_all=bool(audit))
    return Sharing(policy, library, Profiles(), ledger, max_prepared=max_prepared, max_pinned=max_pinned, audit=audit)


@dataclass
class House:
    """Everything that the sessions of one pool need."""

    size: int = 1
    reset_query: str = ""
    session_mode: bool = False
    statement_mode: bool = False
    check_always: bool = False
    watched: bool = False
    """Session state is watched. Most tests are about what comes before and after, with texts that are no SQL."""
    policies: StatePolicies | None = None
    max_prepared: int = 200
    max_pinned: int = 0
    audit: float = 0.0
    statement_memory: int = 1 << 20
    time: float = 1000.0
    opens: int = 0
    cancels: list[ServerSession] = field(default_factory=list)
    endings: dict[ClientSession, Ending] = field(default_factory=dict)
    server_endings: dict[ServerSession, Reason] = field(default_factory=dict)
    lingering: list[MockTransport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = count(1)
        self.slow = Slow()
        self.pool: Pool[ServerSession] = Pool(
            "alice", "shop", self._open, size=self.size, concurrency=100, clock=self.now
        )
        self.pool.welcome = WELCOME
        self.server_duties = ServerDuties(
            cancel=self._cancel,
            ended=self.server_endings.__setitem__,
            now=self.now,
            check_query="",
            check_always=self.check_always,
            reset_query=self.reset_query,
            session_mode=self.session_mode,
            statement_mode=self.statement_mode,
            max_packet_size=2**31 - 1,
            slow=self.slow,
        )
        self.sharing = new_sharing(
            self.now,
            policies=self.policies,
            max_prepared=self.max_prepared,
            max_pinned=self.max_pinned,
            audit=self.audit,
            statement_memory=self.statement_memory,
        )
        self.library = self.sharing.library
        library = self.library if self.watched else None
        self.client_duties = ClientDuties(self._client_ended, self._linger, self.now, MAX_PACKET, library, self.slow)

    def now(self) -> float:
        return self.time

    def _open(self, _: Pool[ServerSession]) -> None:
        self.opens += 1

    def _cancel(self, server: ServerSession) -> None:
        if server not in self.cancels:
            server.cancel_sent()
            self.cancels.append(server)

    def settle_cancels(self) -> None:
        while self.cancels:
            self.cancels.pop(0).cancel_settled()

    def _client_ended(self, session: ClientSession, ending: Ending) -> None:
        assert session not in self.endings, "ended twice"
        self.endings[session] = ending

    def _linger(self, transport: object) -> None:
        assert isinstance(transport, MockTransport)
        self.lingering.append(transport)
        transport.set_protocol(asyncio.Protocol())
        transport.eof = True

    def server(self, *, slow: bool = False) -> ServerSession:
        """Open a connection, as if the pool had asked for it."""
        transport = MockTransport(slow_peer=slow)
        id_ = next(self._ids)
        session = ServerSession(
            id_, self.pool, transport, b"key%d" % id_, PEER, self.server_duties, self.session_state()
        )
        transport.protocol = session
        if not self.pool.opening:
            self.pool.opening += 1
        self.pool.opened(session, WELCOME, self.time)
        return session

    def session_state(self) -> SessionState:
        return SessionState(self.sharing, {"application_name": "known"})

    def client(self, *, slow: bool = False) -> ClientSession:
        transport = MockTransport(slow_peer=slow)
        id_ = next(self._ids)
        session = ClientSession(id_, self.pool, transport, b"client%d" % id_, self.client_duties, LOGIN)
        transport.protocol = session
        return session

    def census(self) -> dict[str, int]:
        """How many connections are in which state; each is in exactly one."""
        pool = self.pool
        free = [*pool.idle, *pool.stale]
        assert len(set(free)) == len(free), "a connection stands in the idle stack twice"
        linked = [server for server in pool.servers if server.client is not None]
        assert not set(free) & set(linked), "a connection is idle and linked"
        for server in linked:
            assert server.client is not None
            assert server.client.server is server
        busy = [server for server in pool.servers if server not in free and server not in linked]
        return {"idle": len(free), "linked": len(linked), "busy": len(busy), "waiting": len(pool.waiters)}


MakeHouse = Callable[..., House]
