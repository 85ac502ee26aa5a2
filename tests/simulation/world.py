"""A world in which everything happens in an order that one seed decides: clients, servers, cancels, failures.

Real sessions and a real pool, mock transports between them and the model of Postgres. Each request carries a token
that the model puts into every reply it causes, so that a byte that reaches a stranger gives itself away.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from struct import unpack_from

from pooler.borrower import Borrower, ServerDuties
from pooler.client import PENDING_LIMIT, ClientDuties, ClientSession
from pooler.figures.slow import Slow
from pooler.hold import CANCELLING
from pooler.pool import Pool
from pooler.reasons import Ending, Reason
from pooler.server import ServerSession
from pooler.session_state.session import SessionState
from pooler.upstream.address import Address
from protocol.messages import READY_IDLE, ErrorFields, error_response
from protocol.parameters import Profile
from tests.pooler.house import LOGIN, new_sharing
from tests.protocol.model import ModelServer, message
from tests.protocol.session_model import SessionModel
from tests.support.transport import HIGH_WATER, MockTransport

Message = tuple[str, bytes]
ASYNC = b"asynchronous"
CANCELLED = error_response(ErrorFields("ERROR", "57014", "canceling statement due to user request"))
CHUNK = 40_000


def messages_in(data: bytes) -> tuple[list[Message], bytes]:
    """The whole messages in `data`, and what is left."""
    found, at = [], 0
    while at + 5 <= len(data):
        kind, length = unpack_from("!BI", data, at)
        if at + length + 1 > len(data):
            break
        found.append((chr(kind), data[at + 5 : at + length + 1]))
        at += length + 1
    return found, data[at:]


@dataclass
class SimServer:
    session: ServerSession
    transport: MockTransport
    model: ModelServer | SessionModel
    inbox: bytes = b""
    outbox: bytes = b""
    unflushed: bytes = b""
    """Answers that wait for a Sync, as Postgres's do."""
    request: bytes = b""
    """The token of the request read last."""


@dataclass
class SimClient:
    name: bytes
    session: ClientSession
    transport: MockTransport
    unsent: bytes = b""
    received: bytes = b""
    expected: list[Message] = field(default_factory=list)
    got: int = 0
    gone: bool = False
    cancelled_waiting: int = 0
    reports: dict[str, str] = field(default_factory=dict)
    """What it was told about settings."""
    numbers: "count[int]" = field(default_factory=count)


@dataclass
class Cancel:
    server: SimServer
    asked_by: Borrower | None
    """None: it has gone, and left its query behind."""
    sent: bool = False


class World:
    """One simulation. step() does one random thing; check() says whether the invariants hold."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.time = 1000.0
        self.ids = count(1)
        session_mode = rng.randrange(8) == 0
        reset = "DISCARD ALL" if session_mode or rng.randrange(6) == 0 else ""
        self.server_duties = ServerDuties(
            cancel=self._cancel_server,
            ended=lambda server, reason: self.ended_servers.append((server, reason)),
            now=lambda: self.time,
            check_query="",
            check_always=rng.randrange(8) == 0,
            reset_query=reset,
            session_mode=session_mode,
            statement_mode=rng.randrange(10) == 0,
            max_packet_size=1 << 30,
            slow=Slow(),
        )
        self.client_duties = ClientDuties(self._client_ended, self._linger, lambda: self.time, 1 << 30, None, Slow())
        self.sharing = new_sharing(lambda: self.time)
        self.size = 1 + rng.randrange(4)
        self.pool: Pool[ServerSession] = Pool(
            "alice",
            "shop",
            self._open,
            size=self.size,
            concurrency=2,
            round_robin=rng.randrange(2) == 0,
            clock=lambda: self.time,
        )
        self.pool.welcome = b"known"
        self.servers: dict[ServerSession, SimServer] = {}
        self.clients: dict[ClientSession, SimClient] = {}
        self.everyone: dict[bytes, SimClient] = {}
        self.cancels: list[Cancel] = []
        self.attempts = 0
        self.ended_servers: list[tuple[ServerSession, Reason]] = []
        self.endings: dict[ClientSession, Ending] = {}
        self.seen_requests: set[bytes] = set()
        self.closing = False
        self.steps = [
            (3, self._arrive),
            (30, self._client_sends),
            (40, self._server_reads),
            (40, self._server_sends),
            (25, self._client_reads),
            (6, self._server_catches_up),
            (2, self._client_cancels),
            (8, self._cancel_goes_on),
            (2, self._client_dies),
            (2, self._client_quits),
            (1, self._server_dies),
            (6, self._attempt_ends),
            (1, self._retire),
            (1, self._stale),
            (2, self._notice),
            (1, self._timeout),
            (3, self._janitor),
        ]

    # --- what the sessions need

    def _open(self, _: Pool[ServerSession]) -> None:
        self.attempts += 1

    def _client_ended(self, session: ClientSession, ending: Ending) -> None:
        assert session not in self.endings, "ended twice"
        self.endings[session] = ending

    def _linger(self, transport: object) -> None:
        assert isinstance(transport, MockTransport)
        transport.set_protocol(asyncio.Protocol())
        transport.eof = True

    def _cancel_server(self, session: ServerSession) -> None:
        server = self.servers[session]
        if not any(cancel.server is server for cancel in self.cancels):
            session.cancel_sent()
            self.cancels.append(Cancel(server, session.client))

    # --- what happens

    def step(self) -> None:
        before = list(self.pool.waiters)
        self.time += self.rng.random() / 100
        weights = [weight for weight, _ in self.steps]
        self.rng.choices(self.steps, weights)[0][1]()
        self._check_order(before)
        self.check()

    def _some_client(self) -> SimClient | None:
        living = [client for client in self.clients.values() if not client.gone]
        return self.rng.choice(living) if living else None

    def _some_server(self) -> SimServer | None:
        living = [server for server in self.servers.values() if not server.transport.lost]
        return self.rng.choice(living) if living else None

    def _arrive(self) -> None:
        if self.closing or sum(not client.gone for client in self.clients.values()) >= 8:
            return
        name = b"c%d" % next(self.ids)
        transport = MockTransport(slow_peer=True)
        startup = self._startup(name)
        session = ClientSession(next(self.ids), self.pool, transport, name, self.client_duties, LOGIN, startup)
        transport.protocol = session
        self.clients[session] = self.everyone[name] = SimClient(name, session, transport)

    def _startup(self, name: bytes) -> Profile | None:
        return None

    def _new_model(self) -> ModelServer | SessionModel:
        return ModelServer(self.rng.randrange)

    def _requests(self, client: SimClient) -> bytes:
        rng = self.rng
        kinds = rng.choice(["Q", "Q", "Q", "PBES", "PBDES", "PBE", "S", "H", "QQ", "QX"[:1], "PBESPBES", "ddc", "F"])
        if rng.randrange(4) == 0:
            kinds = "".join(rng.choice("QPBDECHSSSFdcf") for _ in range(1 + rng.randrange(6)))
        made = b""
        for kind in kinds:
            token = client.name + b"/%d;" % next(client.numbers)
            padding = b"x" * rng.choice((0, 0, 0, 0, 10, 300, 20_000 if kind in "QPBd" else 0))
            made += message(kind, token + padding)
        return made

    def _client_sends(self) -> None:
        client = self._some_client()
        if client is None or client.transport.closing:
            return
        if not client.unsent:
            if self.closing:
                return
            client.unsent = self._requests(client)
        self._send_some(client)

    def _send_some(self, client: SimClient) -> None:
        if not client.unsent:
            return
        if client.transport.inbox and not client.transport.is_reading():
            return
        most = min(len(client.unsent), CHUNK)
        size = self.rng.choice((most, 1 + self.rng.randrange(most)))
        data, client.unsent = client.unsent[:size], client.unsent[size:]
        self._receive(client, data)

    def _receive(self, client: SimClient, data: bytes) -> None:
        client.transport.receive(data)

    def _server_reads(self) -> None:
        server = self._some_server()
        if server is None:
            return
        server.inbox += server.transport.take(self.rng.choice((None, 10_000)))
        found, _ = messages_in(server.inbox)
        if not found:
            return
        kind, payload = found[0]
        server.inbox = server.inbox[len(payload) + 5 :]
        if kind == "X":
            server.transport.lose()
            return
        token = payload.partition(b";")[0] if b";" in payload[:40] and payload[:1] == b"c" else b""
        if token:
            assert token not in self.seen_requests, f"{token!r} was sent twice"
            self.seen_requests.add(token)
        server.request = token
        assert isinstance(server.model, ModelServer)
        if token or kind not in "QE" or server.model.skipping:
            self._reply(server, server.model.answer(kind))
        elif kind == "E":
            self._reply(server, message("C", b"SELECT 0\0"))  # of the question what the session holds
        else:
            self._reply(server, self._answer_pooler(server))

    def _answer_pooler(self, server: SimServer) -> bytes:
        """Carry out a query of the pooler's own, or fail."""
        model = server.model
        assert isinstance(model, ModelServer)
        if model.copying is not None or model.skipping:
            return model.answer("Q")
        if self.rng.randrange(20) == 0:
            return message("E", b"\0") + message("Z", model.status.encode())
        model.status, model.unsynced = "I", False
        return message("C", b"DONE\0") + message("Z", b"I")

    def _reply(self, server: SimServer, replies: bytes) -> None:
        found, rest = messages_in(replies)
        assert not rest
        client = self.everyone.get(server.request.partition(b"/")[0])
        for kind, payload in found:
            marked = payload if kind == "Z" else server.request + b";" + payload
            if client is not None:
                client.expected.append((kind, marked))
            server.outbox += message(kind, marked)

    def _server_sends(self) -> None:
        server = self._some_server()
        if server is None or not server.outbox or not server.transport.is_reading():
            return
        size = self.rng.choice((len(server.outbox), 1 + self.rng.randrange(len(server.outbox))))
        data, server.outbox = server.outbox[:size], server.outbox[size:]
        server.transport.receive(data)

    def _client_reads(self) -> None:
        client = self._some_client()
        if client is not None:
            self._take(client, self.rng.choice((None, 1000)))

    def _take(self, client: SimClient, size: int | None) -> None:
        client.received += client.transport.take(size)
        while client.cancelled_waiting and client.received.startswith(CANCELLED + READY_IDLE):
            client.received = client.received[len(CANCELLED + READY_IDLE) :]
            client.cancelled_waiting -= 1
        found, rest = messages_in(client.received)
        for at, (kind, payload) in enumerate(found):
            if (kind, payload) == ("E", CANCELLED[5:]) and client.cancelled_waiting:
                # Ours, in its place among the others: look at it and its ReadyForQuery when both are there.
                client.received = b"".join(message(*each) for each in found[at:]) + rest
                if len(found) > at + 1:
                    self._take(client, 0)
                return
            self._compare(client, kind, payload)
        client.received = rest

    def _compare(self, client: SimClient, kind: str, payload: bytes) -> None:
        if payload.startswith(ASYNC):
            return
        if kind == "E" and b"SFATAL\0" in payload:
            assert client.session in self.endings
            return
        assert client.got < len(client.expected), f"{client.name!r} got {kind} {payload[:30]!r} that was nobody's"
        expected = client.expected[client.got]
        assert (kind, payload) == expected, f"{client.name!r} got {kind} {payload[:30]!r}, not {expected!r}"
        client.got += 1

    def _server_catches_up(self) -> None:
        server = self._some_server()
        if server is not None:
            server.inbox += server.transport.take()

    def _client_cancels(self) -> None:
        client = self._some_client()
        if client is None or client.session.ended:
            return
        if client.session.waiting:
            client.cancelled_waiting += 1
            client.session.cancel_waiting()
        elif client.session.server is not None and not client.session.server.exchange.quiet:
            self._cancel_server(client.session.server)

    def _cancel_goes_on(self) -> None:
        if not self.cancels:
            return
        cancel = self.rng.choice(self.cancels)
        session = cancel.server.session
        if not cancel.sent and self.rng.randrange(5) and not session.exchange.quiet:
            cancel.sent = True
            return
        self.cancels.remove(cancel)
        if cancel.sent:
            # Postgres signals the backend, and then closes the connection that brought the cancel.
            assert session.client in (None, cancel.asked_by), "a cancel has hit the next borrower"
            if self.rng.randrange(6) == 0:
                session.retire(Reason.CANCEL_UNCONFIRMED)
        session.cancel_settled()

    def _client_dies(self) -> None:
        client = self._some_client()
        if client is not None:
            client.gone = True
            client.transport.lose()

    def _client_quits(self) -> None:
        client = self._some_client()
        if client is not None and not client.unsent and not client.transport.inbox and not client.transport.closing:
            self._receive(client, message("X"))

    def _server_dies(self) -> None:
        server = self._some_server()
        if server is None or self.closing:
            return
        if self.rng.randrange(2) and server.transport.is_reading():
            last = message("E", ASYNC + b" FATAL")
            if not server.outbox:
                server.transport.receive(last)
        server.transport.lose()

    def _attempt_ends(self) -> None:
        if not self.attempts:
            return
        self.attempts -= 1
        if not self.closing and self.rng.randrange(5) == 0:
            self.pool.open_failed(self.time + self.rng.random(), self.time)
            return
        transport = MockTransport(slow_peer=True)
        id_ = next(self.ids)
        session = ServerSession(
            id_, self.pool, transport, b"k%d" % id_, Address("h", 1), self.server_duties, SessionState(self.sharing, {})
        )
        transport.protocol = session
        if self.rng.randrange(12) == 0:
            session.retire_after_use(Reason.SERVER_LIFETIME)
        self.servers[session] = SimServer(session, transport, self._new_model())
        self.pool.opened(session, b"known", self.time)

    def _retire(self) -> None:
        server = self._some_server()
        if server is not None and server.session in self.pool.servers:
            server.session.retire(Reason.SERVER_LIFETIME)

    def _stale(self) -> None:
        if self.pool.idle:
            self.pool.make_stale(self.rng.choice(list(self.pool.idle)))

    def _notice(self) -> None:
        server = self._some_server()
        if server is not None:
            server.outbox += message(self.rng.choice("NAS"), ASYNC)

    def _timeout(self) -> None:
        client = self._some_client()
        if client is not None and not self.closing:
            client.session.end(Ending(Reason.TRANSACTION_TIMEOUT, "25P04", "too long"))

    def _janitor(self) -> None:
        self.pool.grow(self.time)
        for server in list(self.pool.servers):
            if server.cleaning and self.time - server.since > 2:
                server.end(Reason.SERVER_UNCLEAN)

    # --- what must hold

    def _check_order(self, before: Sequence[object]) -> None:
        """Those who left the queue and were served had waited longest."""
        remaining = set(self.pool.waiters)
        passed_over = False
        for waiter in before:
            assert isinstance(waiter, ClientSession)
            if waiter in remaining:
                passed_over = True
            elif not waiter.ended and waiter.server is not None:
                assert not passed_over, "served before one who had waited longer"

    def check(self) -> None:
        pool = self.pool
        free = [*pool.idle, *pool.stale]
        assert len(free) == len(set(free)), "twice in the idle stack"
        assert set(free) <= pool.servers
        assert len(pool.servers) + pool.opening <= self.size, "more connections than the pool has room for"
        assert pool.opening == self.attempts
        assert not (pool.waiters and pool.idle), "a client waits while a server is idle"
        assert pool.testing == sum(server.testing for server in pool.servers)
        assert all(client.waiting and not client.ended for client in pool.waiters if isinstance(client, ClientSession))
        for session in pool.servers:
            self._check_server(session, is_free=session in free)
        for client in self.clients.values():
            session_ = client.session
            assert len(session_.pending) <= PENDING_LIMIT + 2 * CHUNK
            assert len(client.transport.sent) <= HIGH_WATER + 2 * CHUNK
            if session_.server is not None:
                assert session_ in (session_.server.client, session_.server.asker)
                assert not session_.ended
                assert not session_.waiting

    def _check_server(self, session: ServerSession, *, is_free: bool) -> None:
        server = self.servers[session]
        assert len(server.transport.sent) <= HIGH_WATER + 4 * CHUNK
        if session.client is not None:
            assert not is_free, "idle, and linked"
            assert session.client.server is session
        elif is_free:
            assert not session.cleaning
            assert not session.hold & CANCELLING, "idle while a cancel is on its way"
            assert all(cancel.server is not server for cancel in self.cancels)
            assert session.exchange.settled
            unread, rest = messages_in(server.inbox + bytes(server.transport.sent))
            assert not rest
            assert all(kind in "Hdcf" for kind, _ in unread), f"idle with unread requests {unread}"
            assert server.model.idle
            owed, _ = messages_in(server.outbox)
            assert all(payload.startswith(ASYNC) for _, payload in owed), "idle, and owes a reply"
        else:
            assert session.cleaning or session.hold & CANCELLING, "neither free, nor linked, nor busy: lost"

    def settle(self) -> None:
        """Let everything come to its end: whoever is connected sends the rest of its request and a Sync, and reads."""
        self.closing = True
        for client in list(self.clients.values()):
            if not client.gone and not client.session.ended:
                for kind in "fS":
                    client.unsent += message(kind, client.name + b"/%d;" % next(client.numbers))
                if client.transport.is_reading():
                    client.transport.receive(b"")
        self._run_down(3000)

    def _run_down(self, rounds: int) -> None:
        for _ in range(rounds):
            self.time += 0.001
            for client in list(self.clients.values()):
                if client.gone:
                    continue
                self._take(client, None)
                if client.unsent and not client.transport.closing and client.transport.is_reading():
                    data, client.unsent = client.unsent[:CHUNK], client.unsent[CHUNK:]
                    self._receive(client, data)
                client.transport.receive()
            for server in list(self.servers.values()):
                if not server.transport.lost:
                    server.inbox += server.transport.take()
            for what in (self._server_reads, self._server_sends, self._cancel_goes_on, self._attempt_ends):
                what()
            self.pool.grow(self.time)
            self.check()

    def check_end(self) -> None:
        """Whoever has stayed has got every answer."""
        for client in self.clients.values():
            if not client.gone and not client.session.ended:
                assert client.got == len(client.expected), f"{client.name!r} misses an answer"
                assert not client.received, "half a message"
                assert client.transport.reading or client.session.waiting, "never read from again"
        if self.pool.waiters:
            held = [server for server in self.pool.servers if server.client is not None]
            assert len(held) == self.size, "waits for ever"
        for client in self.clients.values():
            client.gone = True
            client.transport.lose()
        self._run_down(1000)
        assert not self.pool.waiters
        assert not self.cancels
        assert self.pool.free == len(self.pool.servers), "a connection is neither free nor closed"
