"""All pools, by user and database: makes them when they are first asked for, and opens their connections.

Here is decided what a failed attempt means: Postgres that is not there, not ready or full is waited for; what can't
succeed is told to the clients at once, in Postgres's words.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from typing import Final

from config.settings import Settings
from pooler.connect import Login, LoginRefusedError, Target, log_in
from pooler.credentials.brought import MOST_EACH
from pooler.credentials.credential import Credential, Password
from pooler.credentials.source import SourceFailedError
from pooler.credentials.vault import Vault
from pooler.dial import ConnectFailedError, ServerTls
from pooler.log import Log
from pooler.pool import Cap, Pool
from pooler.reasons import Ending, Reason
from pooler.server import ServerDuties, ServerSession
from pooler.session_state.ledger import Ledger
from pooler.session_state.policy import policy_for
from pooler.session_state.session import SessionState
from pooler.session_state.sharing import Sharing
from pooler.sockets import keep_alive
from pooler.tally import Tally
from pooler.tls.connection import encryption
from protocol.messages import TERMINATE, ErrorFields
from protocol.parameters import Profiles
from protocol.statements import Library

_AUTHENTICATION_FAILED: Final = frozenset(("28000", "28P01"))
"""SQLSTATEs of a refusal that may be over with another password."""
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


class Pools:
    """The pools of this pooler."""

    def __init__(
        self,
        settings: Settings,
        vault: Vault,
        tls: ServerTls | None,
        duties: ServerDuties,
        next_id: Callable[[], int],
        tally: Tally,
        log: Log,
        library: Library,
        ledger: Ledger,
    ) -> None:
        self._settings = settings
        self._vault = vault
        self._tls = tls
        self._duties = duties
        self._next_id = next_id
        self._tally = tally
        self._log = log
        self._library = library
        self._ledger = ledger
        self._profiles = Profiles()
        self._pools: dict[tuple[str, str], ServerPool] = {}
        self._sharing: dict[ServerPool, Sharing] = {}
        self._database_caps: dict[str, Cap[ServerSession]] = {}
        self._user_caps: dict[str, Cap[ServerSession]] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self.upstream = Upstream()
        self.hopeful: Callable[[str, str], bool] = lambda _user, _database: False
        """Tells whether a client is about to bring another password for a user at a database."""
        self.closed = False

    def __iter__(self) -> Iterator[ServerPool]:
        return iter(list(self._pools.values()))

    @property
    def caps(self) -> Iterator[Cap[ServerSession]]:
        """All limits that pools share."""
        yield from list(self._database_caps.values())
        yield from list(self._user_caps.values())

    def get(self, user: str, database: str) -> ServerPool:
        """Return the pool of a user and a database, made now if need be."""
        pool = self._pools.get((user, database))
        if pool is None:
            settings = self._settings
            pool = self._pools[user, database] = Pool(
                user,
                database,
                self._open,
                size=settings.default_pool_size,
                min_size=settings.min_pool_size,
                reserve=settings.reserve_pool_size,
                concurrency=settings.server_connect_concurrency,
                round_robin=settings.server_round_robin,
                caps=tuple(self._caps_of(user, database)),
            )
            self._sharing[pool] = self._new_sharing(user, database)
        return pool

    def sharing_of(self, pool: ServerPool) -> Sharing:
        """Return what the sessions of `pool` have to know of session state."""
        return self._sharing[pool]

    def _new_sharing(self, user: str, database: str) -> Sharing:
        settings = self._settings
        size = settings.default_pool_size
        policy = policy_for(settings, user, database)
        if settings.server_reset_query and settings.server_reset_query_always:
            policy = policy.ignoring_all()  # nothing outlives its transaction
        return Sharing(
            policy,
            self._library,
            self._profiles,
            self._ledger,
            max_prepared=settings.max_prepared_statements,
            max_pinned=settings.max_pinned or (max(1, size // 2) if size else 0),
            audit=settings.pin_audit,
        )

    def _caps_of(self, user: str, database: str) -> Iterator[Cap[ServerSession]]:
        settings = self._settings
        if settings.max_db_connections:
            yield self._database_caps.setdefault(database, Cap(settings.max_db_connections))
        if settings.max_user_connections:
            yield self._user_caps.setdefault(user, Cap(settings.max_user_connections))

    def _forget(self, pool: ServerPool) -> None:
        """Drop a pool that has never served anybody: the names of databases are the clients' to choose."""
        del self._pools[pool.user, pool.database]
        del self._sharing[pool]
        for caps, name in ((self._database_caps, pool.database), (self._user_caps, pool.user)):
            if name in caps:
                caps[name].pools.remove(pool)
                if not caps[name].pools:
                    del caps[name]

    # --- opening connections

    def _open(self, pool: ServerPool) -> None:
        if self.closed:
            pool.open_failed(float("inf"), self._duties.now())
            return
        task = asyncio.get_running_loop().create_task(self._attempt(pool))
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)

    async def _attempt(self, pool: ServerPool) -> None:
        try:
            login = await self._log_in(pool.user, pool.database)
        except ConnectFailedError as failure:
            self._failed(pool, failure)
        except SourceFailedError as failure:
            self._failed(pool, ConnectFailedError(Reason.SERVER_PASSWORD_FAILED, str(failure)))
        except LoginRefusedError as refusal:
            self._refused(pool, refusal.error)
        except BaseException:
            # Cancelled at shutdown, or a fault of ours: the place is given back all the same.
            self._retry_later(pool, self._duties.now(), self._settings.server_login_retry)
            raise
        else:
            self._opened(pool, login)

    async def knock(self) -> None:
        """Find out whether Postgres answers, by a login that is closed at once."""
        url = self._settings.upstream
        user = url.user or "postgres"
        try:
            login = await self._log_in(user, url.dbname or user)
        except (ConnectFailedError, SourceFailedError) as failure:
            self.upstream.failed(self._duties.now(), str(failure))
        except LoginRefusedError:
            self.upstream.answered(self._duties.now())  # it does not let us in, but it is there
        else:
            self.upstream.answered(self._duties.now())
            _leave(login)

    async def _log_in(self, user: str, database: str) -> Login:
        """Log in with what the vault knows; if that is refused, with what it then knows instead."""
        credential = await self._vault.fetch(user, database)
        tried = [credential]
        while True:
            try:
                return await self._log_in_with(user, database, credential)
            except LoginRefusedError as refusal:
                # What is refused at the door is not refused for its password.
                if refusal.at_the_door or refusal.error.sqlstate not in _AUTHENTICATION_FAILED:
                    raise
                credential = await self._vault.fetch(user, database, refused=credential)
                if credential in tried or len(tried) > MOST_EACH:
                    raise
                tried.append(credential)

    async def _log_in_with(self, user: str, database: str, credential: Credential | None) -> Login:
        upstream = self._settings.upstream
        target = Target(upstream.host, upstream.port, user, database, credential, self._tls, upstream.channel_binding)
        return await log_in(target, {}, self._settings.server_connect_timeout)

    # --- connections that clients' passwords have opened

    async def prove(self, user: str, database: str, password: Password) -> Login:
        """Log in with what a client has brought. Raises LoginRefusedError or ConnectFailedError."""
        try:
            login = await self._log_in_with(user, database, password)
        except ConnectFailedError as failure:
            self.upstream.failed(self._duties.now(), str(failure))
            raise
        except LoginRefusedError:
            self.upstream.answered(self._duties.now())
            raise
        self.upstream.answered(self._duties.now())
        return login

    def adopt(self, user: str, database: str, login: Login) -> None:
        """Put a connection into its pool, if there is room; else close it."""
        if not self.closed:
            pool = self.get(user, database)
            if pool.take_place():
                self._opened(pool, login)
                return
        _leave(login)

    def _opened(self, pool: ServerPool, login: Login) -> None:
        upstream = self._settings.upstream
        now = self._duties.now()
        try:
            self._prepare(login.transport)
        except OSError as error:
            login.transport.abort()
            self._failed(pool, ConnectFailedError(Reason.SERVER_CONNECT_FAILED, str(error)))
            return
        server = ServerSession(
            self._next_id(),
            pool,
            login.transport,
            login.key,
            (upstream.host, upstream.port),
            self._duties,
            SessionState(self._sharing[pool], login.parameters),
        )
        if not self._settings.server_lifetime:
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
                host=upstream.host,
                port=upstream.port,
                pid=int.from_bytes(login.key[:4], "big"),
                servers=len(pool.servers) + 1,
                **encryption(login.transport),
            )
        pool.failures = 0
        pool.opened(server, login.welcome, now)

    def _prepare(self, transport: asyncio.Transport) -> None:
        """Set the socket's options. Raises OSError if the connection has broken right after the login."""
        if transport.is_closing():
            raise ConnectionError("the server closed the connection right after the login")
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and not self._settings.upstream.host.startswith("/"):
            keep_alive(sock, self._settings)

    def _failed(self, pool: ServerPool, failure: ConnectFailedError) -> None:
        now = self._duties.now()
        self._tally.servers_ended[failure.reason] += 1
        self.upstream.failed(now, str(failure))
        delay = self._pause(pool)
        if self._settings.log_pooler_errors:
            self._log.warning(
                "server_connect_failed",
                reason=failure.reason.value,
                user=pool.user,
                database=pool.database,
                error=str(failure),
                retry_in_s=round(delay, 2),
                waiting=len(pool.waiters) + len(pool.newcomers),
            )
        self._retry_later(pool, now, delay)

    def _refused(self, pool: ServerPool, error: ErrorFields) -> None:
        now = self._duties.now()
        self._tally.servers_ended[Reason.SERVER_REFUSED] += 1
        self.upstream.answered(now)
        if self._settings.log_pooler_errors:
            self._log.warning(
                "server_login_failed",
                user=pool.user,
                database=pool.database,
                sqlstate=error.sqlstate,
                error=error.message,
            )
        # Those who have a server to wait for go on waiting: it was good enough for them a moment ago.
        keep = bool(pool.servers) or self.hopeful(pool.user, pool.database)
        if not keep:
            ending = Ending(Reason.SERVER_REFUSED, error.sqlstate, error.message, error.detail, error.hint)
            for queued in (*pool.newcomers, *pool.waiters):
                queued.end(ending)
        self._retry_later(pool, now, self._pause(pool) if keep else 0.0)
        if not pool.welcome and not pool.in_use and not pool.opening:
            self._forget(pool)

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
            pool.grow(self._duties.now())

    # --- the end

    async def close(self) -> None:
        """Give up what is being opened, and close every connection."""
        self.closed = True
        attempts = list(self._attempts)
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        for pool in self:
            for server in list(pool.servers):
                server.end(Reason.SHUTDOWN)


def _leave(login: Login) -> None:
    """Close a connection that nobody needs."""
    login.transport.write(TERMINATE)
    login.transport.close()
