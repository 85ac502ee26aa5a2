"""What is logged and counted when clients and servers come and go."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from pooler.admin.session import ConsoleSession
from pooler.client import Clients, ClientSession
from pooler.current import Current
from pooler.entrance.lobby import Lobby
from pooler.entrance.login import ClientLogin
from pooler.figures.tally import Tally
from pooler.log import Log
from pooler.pool import Pool
from pooler.reasons import Ending, Reason
from pooler.replication import Passage
from pooler.server import ServerSession
from pooler.tls.connection import encryption

_Key = TypeVar("_Key")


class Report:
    """Keeps the books of connections: each comes once, and ends once with one reason."""

    def __init__(
        self,
        current: Current,
        clients: Clients,
        lobby: Lobby,
        tally: Tally,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self._current = current
        self._clients = clients
        self._lobby = lobby
        self._tally = tally
        self._log = log
        self._now = now
        self._logged_in: Counter[tuple[str, str]] = Counter()
        self.clients_of: Counter[Pool[ServerSession]] = Counter()
        """How many clients each pool has."""

    def has_clients(self, user: str, database: str) -> bool:
        """Tell whether clients of a user are logged in at a database."""
        return (user, database) in self._logged_in

    # --- clients

    def login_left(self, login: ClientLogin, ending: Ending | None) -> None:
        """A login has become a session (None), or has ended."""
        joined = ending is None and login.proven
        self._lobby.left(login, joined=joined)
        if ending is None:
            return
        self._count_ending(ending)
        if self._current.settings.log_pooler_errors and ending.message:
            startup = login.startup if login.identified else None
            self._log.warning(
                "login_failed",
                client=login.id,
                reason=ending.reason.value,
                user=startup.user if startup else None,
                database=startup.database if startup else None,
                addr=address_of(login.transport),
                error=ending.message,
                why=ending.why or None,
                rule=login.rule or None,
            )

    def client_joined(self, session: ClientSession | Passage, login: ClientLogin) -> None:
        """A client has logged in."""
        startup = login.startup
        self._tally.logins += 1
        self._logged_in[startup.user, startup.database] += 1
        self.clients_of[session.pool] += 1
        session.pool.stats.client_login_count += 1
        session.pool.stats.logins.note(self._now() - login.since)
        if self._current.settings.log_connections:
            self._log.info(
                "client_login",
                client=session.id,
                user=startup.user,
                database=startup.database,
                addr=address_of(session.transport),
                application_name=startup.parameters.get("application_name"),
                rule=login.rule or None,
                **encryption(session.transport),
            )

    def client_ended(self, session: ClientSession, ending: Ending) -> None:
        """A client that was logged in has gone, or was sent away."""
        del self._clients[session.key]
        self._client_gone(session, ending)

    def _client_gone(self, session: ClientSession | Passage, ending: Ending) -> None:
        startup = session.login
        _take_one(self._logged_in, (startup.user, startup.database))
        _take_one(self.clients_of, session.pool)
        self._lobby.place_free(startup)
        self._count_ending(ending)
        if ending.sqlstate and self._current.settings.log_pooler_errors:
            self._log_client_end(session, ending, self._log.warning)
        elif self._current.settings.log_disconnections:
            self._log_client_end(session, ending, self._log.info)

    def console_ended(self, session: ConsoleSession, ending: Ending) -> None:
        """A client of the console has gone, or was sent away."""
        self._lobby.place_free(session.login, beside=session.placed_beside)
        self._count_ending(ending)
        settings = self._current.settings
        if settings.log_disconnections or (ending.sqlstate and settings.log_pooler_errors):
            self._log.info(
                "console_closed",
                client=session.id,
                reason=ending.reason.value,
                user=session.login.user,
                error=ending.message or None,
            )

    def _log_client_end(self, session: ClientSession | Passage, ending: Ending, write: Callable[..., None]) -> None:
        write(
            "client_closed",
            client=session.id,
            reason=ending.reason.value,
            user=session.login.user,
            database=session.login.database,
            error=ending.message or None,
        )

    def _count_ending(self, ending: Ending) -> None:
        self._tally.clients_ended[ending.reason] += 1
        if ending.sqlstate:
            self._tally.errors_sent[ending.sqlstate] += 1

    # --- replication

    def passage_joined(self, passage: Passage, login: ClientLogin) -> None:
        """A client that replicates has got a server connection of its own."""
        self.client_joined(passage, login)
        if self._current.settings.log_connections:
            peer = passage.server.peer
            self._log.info(
                "server_login",
                server=passage.server_id,
                user=passage.pool.user,
                database=passage.pool.database,
                host=peer.host,
                port=peer.port,
                pid=int.from_bytes(passage.server.key[:4], "big"),
                replication=passage.kind.value,
                client=passage.id,
                **encryption(passage.server.transport),
            )

    def passage_ended(self, passage: Passage, ending: Ending) -> None:
        """Such a client has gone, and its server connection with it."""
        self._client_gone(passage, ending)
        by_client = ending.reason in (Reason.CLIENT_QUIT, Reason.CLIENT_GONE, Reason.CLIENT_VIOLATION)
        reason = Reason.REPLICATION_OVER if by_client else ending.reason
        self._server_gone(passage.server_id, passage.pool, passage.connected_at, reason)

    # --- servers

    def server_ended(self, server: ServerSession, reason: Reason) -> None:
        """A server connection is gone."""
        self._server_gone(server.id, server.pool, server.connected_at, reason)

    def _server_gone(self, server: int, pool: Pool[ServerSession], connected_at: float, reason: Reason) -> None:
        self._tally.servers_ended[reason] += 1
        if self._current.settings.log_disconnections:
            self._log.info(
                "server_closed",
                server=server,
                reason=reason.value,
                user=pool.user,
                database=pool.database,
                age_s=round(self._now() - connected_at, 1),
            )

    def cancel_failed(self, server: ServerSession, message: str) -> None:
        """A cancel request has not reached Postgres, or that is not known."""
        self._tally.cancels_failed += 1
        if self._current.settings.log_pooler_errors:
            self._log.warning("cancel_failed", server=server.id, error=message)

    def forward_failed(self, peer_id: int, message: str) -> None:
        """A cancel request has not reached the peer that it is for, or that is not known."""
        self._tally.cancels_failed += 1
        if self._current.settings.log_pooler_errors:
            self._log.warning("cancel_not_forwarded", peer=peer_id, error=message)


def address_of(transport: asyncio.Transport) -> str:
    """Return where a client comes from: host:port, or unix."""
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"


def _take_one(counter: Counter[_Key], key: _Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
