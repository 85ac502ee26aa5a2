"""Opening the connections that pools ask for, and what a failed attempt means.

Postgres that is not there, not ready or full is waited for; what can't succeed is told to the clients at once, in
Postgres's words.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

from config.settings import Settings
from pooler.borrower import ServerDuties
from pooler.credentials.source import SourceFailedError
from pooler.current import Current
from pooler.figures.tally import Tally
from pooler.log import Log
from pooler.pool import Pool
from pooler.reasons import Ending, Reason
from pooler.server import ServerSession
from pooler.session_state.session import SessionState
from pooler.sockets import keep_alive
from pooler.tls.connection import encryption
from pooler.upstream.connect import Login, LoginRefusedError, leave
from pooler.upstream.dial import ConnectFailedError
from pooler.upstream.place import Place
from pooler.upstream.server_logins import ServerLogins
from protocol.messages import ErrorFields

FIRST_RETRY_S: Final = 0.1
"""The pause after the first failed attempt; it doubles up to server_login_retry, give or take a quarter."""

ServerPool = Pool[ServerSession]


class Upstream:
    """What is known of the Postgres behind: when it last let us in, and what it last said if it did not."""

    def __init__(self) -> None:
        self.answered_at: float | None = None
        self.failing_since: float | None = None
        self.failure = ""

    def answered(self, now: float) -> None:
        """A login succeeded, or was refused by a Postgres that works."""
        self.answered_at = now
        self.failing_since = None
        self.failure = ""

    def failed(self, now: float, message: str) -> None:
        """It could not be reached, or is not ready."""
        self.failing_since = self.failing_since or now
        self.failure = message


class Book(Protocol):
    """Who knows all pools."""

    def place_of(self, pool: ServerPool) -> Place:
        """Return what belongs to a pool."""

    def duties(self, mode: str) -> ServerDuties:
        """Return what the server sessions of pools of a mode have to do."""

    def forget(self, pool: ServerPool) -> None:
        """Drop a pool."""


class Openings:
    """What is being opened."""

    def __init__(
        self,
        book: Book,
        logins: ServerLogins,
        current: Current,
        next_id: Callable[[], int],
        tally: Tally,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self._book = book
        self._logins = logins
        self._current = current
        self._next_id = next_id
        self._tally = tally
        self._log = log
        self._now = now
        self._attempts: set[asyncio.Task[None]] = set()
        self.upstream = Upstream()
        self.hopeful: Callable[[str, str], bool] = lambda _user, _database: False
        """Tells whether a client is about to bring another password for a user at a database."""
        self.closed = False

    @property
    def _settings(self) -> Settings:
        return self._current.settings

    def open(self, pool: ServerPool) -> None:
        """Begin to open a connection; see Pool."""
        if self.closed:
            pool.open_failed(float("inf"), self._now())
            return
        self.begin(self._attempt(pool, pool.era))

    def begin(self, attempt: Coroutine[None, None, None]) -> None:
        """Have something done that is given up at the end."""
        task = asyncio.get_running_loop().create_task(attempt)
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)

    async def _attempt(self, pool: ServerPool, era: int) -> None:
        """`era` is the pool's when it was decided: it may change before this begins to run."""
        began = self._now()
        try:
            place = self._book.place_of(pool)
            login = await self._logins.make_ready(place.terms, await self._logins.log_in(place))
        except ConnectFailedError as failure:
            self._failed(pool, failure)
        except SourceFailedError as failure:
            self._failed(pool, as_failure(failure))
        except LoginRefusedError as refusal:
            self._refused(pool, refusal.error)
        except BaseException:
            # Cancelled at shutdown, or a fault of ours: the place is given back all the same.
            self._retry_later(pool, self._now(), self._settings.server_login_retry)
            raise
        else:
            pool.stats.connects.note(self._now() - began)
            if pool.era == era:
                self.opened(pool, login)
            else:
                leave(login)
                pool.open_failed(0.0, self._now())
                self._retry(pool)

    def opened(self, pool: ServerPool, login: Login) -> None:
        """A connection is there, for which the pool has a place."""
        place = self._book.place_of(pool)
        now = self._now()
        try:
            self.prepare(login.transport, local=login.peer.local)
        except OSError as error:
            login.transport.abort()
            self._failed(pool, as_failure(error))
            return
        server = ServerSession(
            self._next_id(),
            pool,
            login.transport,
            login.key,
            login.peer,
            self._book.duties(pool.mode),
            SessionState(place.sharing, login.parameters),
        )
        server.profile = place.sharing.take_base(login.left)
        if not place.terms.server_lifetime:
            server.retire_after_use(Reason.SERVER_LIFETIME)
        login.transport.set_protocol(server)
        self.upstream.answered(now)
        self._tally.servers_opened += 1
        if self._settings.log_connections:
            self._log.info(
                "server_login",
                server=server.id,
                user=pool.user,
                database=pool.database,
                host=login.peer.host,
                port=login.peer.port,
                pid=int.from_bytes(login.key[:4], "big"),
                servers=len(pool.servers) + 1,
                **encryption(login.transport),
            )
        pool.failures = 0
        pool.failure = ""
        pool.opened(server, login.welcome, now)

    def prepare(self, transport: asyncio.Transport, *, local: bool) -> None:
        """Set the socket's options. Raises OSError if the connection has broken right after the login."""
        if transport.is_closing():
            raise ConnectionError("the server closed the connection right after the login")
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and not local:
            keep_alive(sock, self._settings)

    def _failed(self, pool: ServerPool, failure: ConnectFailedError) -> None:
        pool.failure = str(failure)
        delay = self._pause(pool)
        self.note_failure(pool, failure, delay)
        self._retry_later(pool, self._now(), delay)

    def note_failure(self, pool: ServerPool, failure: ConnectFailedError, delay: float | None = None) -> None:
        """Count and log it."""
        self._tally.servers_ended[failure.reason] += 1
        self.upstream.failed(self._now(), str(failure))
        if self._settings.log_pooler_errors:
            self._log.warning(
                "server_connect_failed",
                reason=failure.reason.value,
                user=pool.user,
                database=pool.database,
                error=str(failure),
                retry_in_s=round(delay, 2) if delay is not None else None,
                waiting=len(pool.waiters) + len(pool.newcomers),
            )

    def _refused(self, pool: ServerPool, error: ErrorFields) -> None:
        now = self._now()
        self.note_refusal(pool, error)
        # Those who have a server to wait for go on waiting: it was good enough for them a moment ago.
        keep = bool(pool.servers) or self.hopeful(pool.user, pool.database)
        if not keep:
            ending = Ending(Reason.SERVER_REFUSED, error.sqlstate, error.message, error.detail, error.hint)
            for queued in (*pool.newcomers, *pool.waiters):
                queued.end(ending)
        self._retry_later(pool, now, self._pause(pool) if keep else 0.0)
        if not pool.welcome and not pool.in_use and not pool.opening:
            self._book.forget(pool)

    def note_refusal(self, pool: ServerPool, error: ErrorFields) -> None:
        """Count and log it."""
        self._tally.servers_ended[Reason.SERVER_REFUSED] += 1
        self.upstream.answered(self._now())
        if self._settings.log_pooler_errors:
            self._log.warning(
                "server_login_failed",
                user=pool.user,
                database=pool.database,
                sqlstate=error.sqlstate,
                error=error.message,
            )

    def _pause(self, pool: ServerPool) -> float:
        longest = self._settings.server_login_retry
        pause = min(FIRST_RETRY_S * 2.0 ** min(pool.failures, 20), longest)
        pool.failures += 1
        return pause * random.uniform(0.75, 1.25)  # noqa: S311 - to spread attempts, not to keep secrets

    def _retry_later(self, pool: ServerPool, now: float, delay: float) -> None:
        pool.open_failed(now + delay, now)
        asyncio.get_running_loop().call_later(delay, self._retry, pool)

    def _retry(self, pool: ServerPool) -> None:
        if not self.closed:
            pool.grow(self._now())

    async def close(self) -> None:
        """Give up what is being opened."""
        self.closed = True
        attempts = list(self._attempts)
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)


def as_failure(error: ConnectFailedError | SourceFailedError | OSError) -> ConnectFailedError:
    """Return what any of these means for whoever waits for a connection."""
    if isinstance(error, ConnectFailedError):
        return error
    password = isinstance(error, SourceFailedError)
    return ConnectFailedError(Reason.SERVER_PASSWORD_FAILED if password else Reason.SERVER_CONNECT_FAILED, str(error))
