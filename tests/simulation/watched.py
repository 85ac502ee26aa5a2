"""The world of world.py with session state that is watched: what clients prepare, set and leave behind is SQL.

Each client has a second model of a session for itself, on which nothing fails that is not its own doing. What it is
told must be the same. Rows tell all that a session holds, so that whatever leaks or is lost shows at once.
"""

from struct import pack

from pooler.client import ClientDuties, ClientSession
from pooler.figures.slow import Slow
from pooler.hold import PINNED
from pooler.server import ServerSession
from protocol.frontend import first_unit
from protocol.parameters import Profile
from tests.pooler.house import new_sharing
from tests.protocol.model import ModelServer, message
from tests.protocol.session_model import SessionModel
from tests.protocol.test_statements import check_books
from tests.simulation.world import ASYNC, SimClient, World, messages_in

NAMES = (b"", b"", b"a", b"b")
SHARED = ("select 1", "select 2", "select fail", "bad")
OWN = (
    "set app.x to '{0}'",
    "select set_config('app.y','{0}',false)",
    "set role to {0}",
    "set application_name to '{0}'",
)
PINNING = (
    "listen {0}",
    "do 'listen {0}'",
    "create temp table {0}()",
    "declare {0} cursor with hold for select 1",
    "prepare {0} as select 1",
    "select pg_advisory_lock(1)",
)
UNDOING = (
    "unlisten *",
    "drop table {0}",
    "close {0}",
    "deallocate all",
    "discard all",
    "select pg_advisory_unlock_all()",
    "reset app.x",
    "rollback",
)
BLOCKS = ("begin", "commit", "rollback")
SEVERAL = ("begin; select 1", "commit; select 2", "set app.x to '{0}'; select fail")


class WatchedWorld(World):
    """One simulation. Where `max_pinned` is set, clients are refused what they would not be by Postgres."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        rng = self.rng
        self.stumbling = rng.choice((0, 0, 30))
        self.max_pinned = rng.choice((0, 0, 1))
        self.sharing = new_sharing(
            lambda: self.time,
            max_prepared=rng.choice((1, 2, 200)),
            max_pinned=self.max_pinned,
            audit=rng.choice((0.0, 0.0, 1.0)),
            statement_memory=rng.choice((1 << 20, 20_000)),
        )
        library = self.sharing.library
        self.client_duties = ClientDuties(self._client_ended, self._linger, lambda: self.time, 1 << 30, library, Slow())
        self.server_duties = self.server_duties._replace(session_mode=False, statement_mode=False, reset_query="")
        self.direct: dict[ClientSession, SessionModel] = {}
        """What each client would see on a connection of its own."""
        self.unfed: dict[ClientSession, bytes] = {}
        """What that has not been asked yet."""

    # --- what happens

    def _new_model(self) -> ModelServer | SessionModel:
        return SessionModel(stumbles=lambda: bool(self.stumbling) and self.rng.randrange(self.stumbling) == 0)

    def _startup(self, name: bytes) -> Profile | None:
        if self.rng.randrange(2):
            return None
        return self.sharing.profiles.of({"application_name": b"start-" + name, "DateStyle": b"German"})

    def _arrive(self) -> None:
        before = set(self.clients)
        super()._arrive()
        for session in set(self.clients) - before:
            startup = session.startup.settings if session.startup is not None else {}
            self.direct[session] = SessionModel({name: value.decode() for name, value in startup.items()})
            self.unfed[session] = b""

    def _bound_text(self, client: SimClient) -> str:
        """What may be prepared: no reset of what it has logged in with, as what it sends ahead is not held up there."""
        text = self._text(client)
        return "select 1" if text == "discard all" and client.session.startup is not None else text

    def _text(self, client: SimClient) -> str:
        kinds = (SHARED, SHARED, SHARED, OWN, OWN, PINNING, UNDOING, UNDOING, BLOCKS)
        return self.rng.choice(self.rng.choice(kinds)).format(client.name.decode())

    def _requests(self, client: SimClient) -> bytes:
        rng = self.rng
        if rng.randrange(3) == 0:
            text = rng.choice(SEVERAL).format(client.name.decode()) if rng.randrange(6) == 0 else self._text(client)
            return message("Q", text.encode() + b"\0")
        made = b""
        for _ in range(1 + rng.randrange(4)):
            name = rng.choice(NAMES)
            kind = rng.randrange(6)
            if kind <= 2 or (kind == 3 and not name):  # where it is not, it can't be described in a failed transaction
                made += message("P", name + b"\0" + self._bound_text(client).encode() + b"\0" + pack("!H", 0))
            if kind != 3:
                made += message("B", b"\0" + name + b"\0" + pack("!HHH", 0, 0, 0)) + message("E", b"\0" + pack("!I", 0))
            if kind == 3:
                made += message(rng.choice("DC"), b"S" + name + b"\0")
            if kind == 4:
                made += message("H")
        return made + message("S")

    def _receive(self, client: SimClient, data: bytes) -> None:
        self.unfed[client.session] += data
        super()._receive(client, data)

    def _feed(self, client: SimClient, *, everything: bool = False) -> None:
        """Let the client's own model answer what has been sent, as far as it is needed."""
        session = client.session
        while client.got >= len(client.expected) or everything:
            found, _ = messages_in(self.unfed[session])
            if not found:
                return
            kind, payload = found[0]
            if kind == "X":
                return  # nothing that comes after it is answered
            self.unfed[session] = self.unfed[session][len(payload) + 5 :]
            told = messages_in(self.direct[session].answer(kind, payload))[0]
            client.expected += [each for each in told if each[0] != "S"]

    def _client_cancels(self) -> None:
        """What a waiting client has cancelled, no server will see."""
        client = self._some_client()
        if client is None or client.session.ended:
            return
        if client.session.waiting:
            self._cancel_waiting(client)
        elif client.session.server is not None and not client.session.server.exchange.quiet:
            self._cancel_server(client.session.server)

    def _cancel_waiting(self, client: SimClient) -> None:
        session, pending = client.session, client.session.pending
        unit = first_unit(pending)
        if unit:
            sent = self.unfed[session]
            at = len(sent) - len(pending) - len(client.transport.inbox)
            assert at >= 0, "it was answered, and yet it waits"
            self.unfed[session] = sent[:at] + sent[at + unit :]
            client.cancelled_waiting += 1
        session.cancel_waiting()

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
        assert isinstance(server.model, SessionModel)
        server.unflushed += server.model.answer(kind, payload)
        if kind in "SHQ" or server.model.skipping or self.rng.randrange(4) == 0:
            server.outbox += server.unflushed
            server.unflushed = b""

    def _compare(self, client: SimClient, kind: str, payload: bytes) -> None:
        if payload.startswith(ASYNC):
            return
        if kind == "S":
            name, value, _ = payload.decode().split("\0")
            client.reports[name] = value
            return
        if kind == "E" and b"SFATAL\0" in payload:
            assert client.session in self.endings
            return
        if kind == "D":
            self._check_row(client, payload)
        if self.max_pinned:
            client.got = len(client.expected)
            return
        self._feed(client)
        super()._compare(client, kind, payload)

    def _check_row(self, client: SimClient, payload: bytes) -> None:
        """Nothing of another client's is in it."""
        others = [each.name for each in self.everyone.values() if each is not client]
        held = payload.rpartition(b"|")[2].replace(b"start-", b"")
        words = set(held.replace(b"=", b",").replace(b"/", b",").split(b","))
        assert not words & set(others), f"{client.name!r} sees {payload!r}"

    # --- what must hold

    def check(self) -> None:
        super().check()
        counted = 0
        for session in self.pool.servers:
            counted += session.state._counted
            if session.state._counted or (session.hold & PINNED and not session.cleaning):
                assert session.state.pins
                assert session.hold & PINNED
        assert self.sharing.pinned == counted
        assert len(self.sharing.ledger.pins) == sum(bool(session.state.pins) for session in self.pool.servers)

    def _check_server(self, session: ServerSession, *, is_free: bool) -> None:
        super()._check_server(session, is_free=is_free)
        model = self.servers[session].model
        assert isinstance(model, SessionModel)
        if is_free:
            assert not session.hold & PINNED
            assert not session.exchange.edited
            assert not session.state.unsettled
            assert not model.pins, f"lent on with {model.pins}"
            profile = session.profile.settings if session.profile is not None else {}
            known = {name: value.decode() for name, value in profile.items() if value}
            assert known == {name: value for name, value in model.held.settings.items() if value}
            for statement, copy in session.state.statements._copies.items():
                assert model.statements.get(copy.name) == statement.text

    def check_end(self) -> None:
        for client in self.clients.values():
            if client.session.waiting or self.max_pinned:
                client.got = len(client.expected)
            elif not client.gone and not client.session.ended:
                self._feed(client, everything=True)
                model = self.direct[client.session]
                known = {**model.told_at_login, **client.reports}
                assert known == model.reported, f"{client.name!r} believes in {known}"
        super().check_end()
        assert not self.sharing.pinned
        assert not self.sharing.ledger.pins
        check_books(self.sharing.library, [])
