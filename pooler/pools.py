"""All pools, by user and database: makes them when they are first asked for, and opens their connections.

Here is decided what a failed attempt means: Postgres that is not there, not ready or full is waited for; what can't
succeed is told to the clients at once, in Postgres's words.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, cast

from config.databases import FALLBACK
from config.pools import PoolMode
from config.settings import Settings
from config.terms import Terms, terms_for
from pooler.connect import Login, LoginRefusedError, leave
from pooler.connect_query import run_connect_query
from pooler.credentials.brought import MOST_EACH
from pooler.credentials.credential import Credential, Password
from pooler.credentials.source import SourceFailedError
from pooler.credentials.vault import Vault
from pooler.current import Current
from pooler.databases import CONSOLE, Databases, DatabaseState
from pooler.dial import ConnectFailedError, ServerTls
from pooler.hosts import Hosts
from pooler.log import Log
from pooler.pool import Cap, Pool
from pooler.reasons import Ending, Reason
from pooler.replication import Passage
from pooler.server import ServerDuties, ServerSession
from pooler.session_state.ledger import Ledger
from pooler.session_state.policy import policy_for, tracked_names
from pooler.session_state.session import SessionState
from pooler.session_state.sharing import Sharing
from pooler.shares import Shares
from pooler.slow import Slow
from pooler.sockets import keep_alive
from pooler.tally import Tally
from pooler.tls.connection import encryption
from protocol.messages import ErrorFields
from protocol.parameters import Profiles
from protocol.statements import Library

_AUTHENTICATION_FAILED: Final = frozenset(("28000", "28P01"))
"""SQLSTATEs of a refusal that may be over with another password."""
FIRST_RETRY_S: Final = 0.1
"""The pause after the first failed attempt; it doubles up to server_login_retry, give or take a quarter."""

_NO_PARAMETERS: Final[Mapping[str, str]] = MappingProxyType({})

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


class _Place:
    """What belongs to one pool, and is not the pool's to know."""

    __slots__ = ("password", "sharing", "terms")

    def __init__(self, terms: Terms, sharing: Sharing) -> None:
        self.terms = terms
        self.sharing = sharing
        self.password = _password_of(terms)

    def take_terms(self, terms: Terms) -> None:
        """From now on, these hold."""
        if terms.endpoint != self.terms.endpoint:
            self.password = _password_of(terms)
        self.terms = terms


class Pools:
    """The pools of this pooler."""

    def __init__(
        self,
        current: Current,
        databases: Databases,
        vault: Vault,
        tls: ServerTls | None,
        hosts: Hosts,
        duties_of: Callable[[PoolMode], ServerDuties],
        next_id: Callable[[], int],
        tally: Tally,
        log: Log,
        library: Library,
        ledger: Ledger,
        slow: Slow,
        now: Callable[[], float],
    ) -> None:
        self._current = current
        self.databases = databases
        self._vault = vault
        self.tls = tls
        self._hosts = hosts
        self._duties_of = duties_of
        self._duties: dict[str, ServerDuties] = {}
        self._next_id = next_id
        self._tally = tally
        self._log = log
        self._library = library
        self._ledger = ledger
        self._slow = slow
        self._now = now
        self._profiles = Profiles()
        self.watchers: set[Callable[[], None]] = set()
        """To be called when a connection has ended, or a pause."""
        self._pools: dict[tuple[str, str], ServerPool] = {}
        """By user at Postgres, and database."""
        self._routes: dict[tuple[str, str], ServerPool] = {}
        """The same by the user that a client is, as far as it was asked for."""
        self._places: dict[ServerPool, _Place] = {}
        self._former: set[ServerPool] = set()
        """Pools that new clients do not get any more, as their mode has changed or what they lead to is gone."""
        self._user_caps: dict[str, Cap[ServerSession]] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self.upstream = Upstream()
        self.hopeful: Callable[[str, str], bool] = lambda _user, _database: False
        """Tells whether a client is about to bring another password for a user at a database."""
        self.shares = Shares(self.terms_of, now, log)
        self.shares.apply(current.settings, current.directory)
        self.passages: Callable[[], Iterable[Passage]] = lambda: ()
        """What replicates, over connections that are not in the pools."""
        self.closed = False

    @property
    def _settings(self) -> Settings:
        return self._current.settings

    def __iter__(self) -> Iterator[ServerPool]:
        return iter([*self._pools.values(), *self._former])

    def of_database(self, database: str) -> list[ServerPool]:
        """Return the pools of a database."""
        return [pool for pool in self if pool.database == database]

    @property
    def caps(self) -> Iterator[Cap[ServerSession]]:
        """All limits that pools share."""
        yield from (database.cap for database in self.databases)
        yield from list(self._user_caps.values())
        yield from self.shares.caps

    def get(self, user: str, database: str) -> ServerPool | None:
        """Return the pool of a client's user at a database, made now if need be; None if there is no such database."""
        pool = self._routes.get((user, database))
        if pool is None:
            terms = terms_for(self._settings, self._current.directory, database, user)
            state = self.databases.find(database)
            if terms is None or state is None:
                return None
            pool = self._pools.get((terms.user, database)) or self._new_pool(terms, state)
            self._routes[user, database] = pool
        return pool

    def terms_of(self, pool: ServerPool) -> Terms:
        """Return what holds for `pool`."""
        return self._places[pool].terms

    def sharing_of(self, pool: ServerPool) -> Sharing:
        """Return what the sessions of `pool` have to know of session state."""
        return self._places[pool].sharing

    def _new_pool(self, terms: Terms, state: DatabaseState) -> ServerPool:
        user_cap = self._user_caps.get(terms.user)
        if user_cap is None:
            user_cap = self._user_caps[terms.user] = Cap(0)
        pool: ServerPool = Pool(
            terms.user,
            terms.database,
            self._open,
            size=0,
            mode=terms.pool_mode,
            caps=(state.cap, user_cap),
            clock=self._now,
            slow=self._slow,
        )
        self._pools[terms.user, terms.database] = pool
        self._places[pool] = _Place(terms, self._new_sharing(terms))
        self._measure(pool, terms)
        pool.paused = self.databases.is_paused(terms.database)
        pool.on_loss = self._lost_one
        return pool

    def _measure(self, pool: ServerPool, terms: Terms) -> None:
        """Give a pool its sizes and limits."""
        settings = self._settings
        pool.size = self.shares.count(terms.pool_size, terms)
        pool.min_size = min(terms.min_pool_size, pool.size or terms.min_pool_size)
        pool.reserve = terms.reserve_pool_size
        pool.concurrency = settings.server_connect_concurrency
        pool.take_in_turn(in_turn=settings.server_round_robin)
        database_cap, user_cap, *_ = pool.caps
        database_cap.limit = self.shares.count(terms.max_db_connections, terms)
        user_cap.limit = terms.max_user_connections
        self.shares.join(pool, terms)

    def _new_sharing(self, terms: Terms) -> Sharing:
        settings = self._settings
        size = self.shares.count(terms.pool_size, terms)
        policy, tracked = policy_for(settings, terms.user, terms.database), tracked_names(settings)
        if settings.server_reset_query and settings.server_reset_query_always:
            policy, tracked = policy.ignoring_all(), frozenset()  # nothing outlives its transaction
        return Sharing(
            policy,
            self._library,
            self._profiles,
            self._ledger,
            max_prepared=settings.max_prepared_statements,
            max_pinned=settings.max_pinned or (max(1, size // 2) if size else 0),
            audit=settings.pin_audit,
            always_tracked=tracked,
        )

    def duties(self, mode: str) -> ServerDuties:
        """Return what the server sessions of pools of a mode have to do."""
        duties = self._duties.get(mode)
        if duties is None:
            duties = self._duties[mode] = self._duties_of(cast("PoolMode", mode))
        return duties

    def _forget(self, pool: ServerPool) -> None:
        """Drop a pool: the names of databases are the clients' to choose."""
        self._former.discard(pool)
        if self._pools.get((pool.user, pool.database)) is pool:
            del self._pools[pool.user, pool.database]
        self._places.pop(pool, None)
        self._routes = {key: other for key, other in self._routes.items() if other is not pool}
        for cap in pool.caps:
            cap.pools.remove(pool)
        if not self.of_database(pool.database):
            self.databases.forget(pool.database)
        if pool.user in self._user_caps and not self._user_caps[pool.user].pools:
            del self._user_caps[pool.user]

    # --- changes while running

    def apply(self) -> None:
        """Take over what a reload has changed; connections that lead elsewhere now go when they come back."""
        self._routes.clear()
        self._duties.clear()
        self._hosts.resolver.expire()
        self.shares.apply(self._settings, self._current.directory)
        for pool in self:
            place = self._places[pool]
            terms = terms_for(self._settings, self._current.directory, pool.database, pool.user)
            if terms is None or terms.user != pool.user:
                self._detach(pool)  # its database is gone, or its user is another now
                self.reconnect(pool)
                continue
            moved = terms.endpoint != place.terms.endpoint
            place.take_terms(terms)
            if moved:
                self.reconnect(pool)
            if terms.pool_mode != pool.mode:
                self._detach(pool)
            self._measure(pool, terms)
            self._share(pool, place)
            for server in pool.servers:
                server.take_duties(self.duties(pool.mode))

    def _share(self, pool: ServerPool, place: _Place) -> None:
        """Take over what a reload has changed about session state."""
        new = self._new_sharing(place.terms)
        sharing = place.sharing
        sharing.policy, sharing.pinning = new.policy, new.pinning
        sharing.always_tracked = new.always_tracked
        sharing.max_pinned, sharing.audit = new.max_pinned, new.audit
        if sharing.max_prepared != new.max_prepared:
            sharing.max_prepared = new.max_prepared
            self.reconnect(pool)

    def _detach(self, pool: ServerPool) -> None:
        """Leave a pool to the clients that it has."""
        if self._pools.get((pool.user, pool.database)) is pool:
            del self._pools[pool.user, pool.database]
        self._former.add(pool)

    def reconnect(self, pool: ServerPool) -> None:
        """Close every connection of a pool as soon as it comes back, and what is being opened, too."""
        pool.era += 1
        pool.retry_at = 0.0
        for server in list(pool.servers):
            server.retire(Reason.RECONNECT)

    def pause(self, pool: ServerPool) -> None:
        """Lend and open nothing until resume(), and close every connection as soon as it comes back."""
        pool.paused = True
        pool.era += 1
        for server in list(pool.servers):
            server.retire(Reason.PAUSED)

    def resume(self, pool: ServerPool) -> None:
        """Lend and open again."""
        pool.paused = False
        self._lost_one()
        pool.grow(self._now())

    def _lost_one(self) -> None:
        for watcher in list(self.watchers):
            watcher()

    def sweep(self, used: Callable[[ServerPool], bool], now: float) -> None:
        """Forget pools without clients: those of databases that are gone, of another mode, and those long unused.

        And retire the connections whose host is not what it was any more.
        """
        servers = (
            (server, place.terms.endpoint.target_session_attrs)
            for pool, place in list(self._places.items())
            for server in pool.servers.copy()
        )
        self._hosts.sweep(servers, self.passages())
        for pool in self.shares.due():
            self._begin(self._look_again(pool))
        idle_timeout = self._settings.pool_idle_timeout
        for pool in self:
            if used(pool) or pool.waiters or pool.newcomers or pool.opening:
                pool.unused_since = 0.0
                continue
            pool.unused_since = pool.unused_since or now
            obsolete = pool in self._former or self.databases.known(pool.database) is None
            if obsolete or 0 < idle_timeout <= now - pool.unused_since:
                for server in list(pool.servers):
                    server.retire(Reason.POOL_IDLE_TIMEOUT)
                if not pool.servers:
                    self._forget(pool)
        forgotten = self.databases.sweep(lambda name: any(used(pool) or pool.in_use for pool in self.of_database(name)))
        for database in forgotten:
            for pool in self.of_database(database.name):
                self._forget(pool)

    # --- opening connections

    def _open(self, pool: ServerPool) -> None:
        if self.closed:
            pool.open_failed(float("inf"), self._now())
            return
        self._begin(self._attempt(pool))

    def _begin(self, attempt: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(attempt)
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)

    async def _attempt(self, pool: ServerPool) -> None:
        era = pool.era
        began = self._now()
        try:
            place = self._places[pool]
            login = await self._make_ready(place.terms, await self._log_in(place))
        except ConnectFailedError as failure:
            self._failed(pool, failure)
        except SourceFailedError as failure:
            self._failed(pool, _as_failure(failure))
        except LoginRefusedError as refusal:
            self._refused(pool, refusal.error)
        except BaseException:
            # Cancelled at shutdown, or a fault of ours: the place is given back all the same.
            self._retry_later(pool, self._now(), self._settings.server_login_retry)
            raise
        else:
            pool.stats.connects.note(self._now() - began)
            if pool.era == era:
                self._opened(pool, login)
            else:
                leave(login)
                pool.open_failed(0.0, self._now())
                self._retry(pool)

    async def knock(self) -> None:
        """Find out whether Postgres answers, by a login that is closed at once."""
        place = self._somewhere()
        if place is None:
            return
        try:
            login = await self._log_in(place)
        except (ConnectFailedError, SourceFailedError) as failure:
            self.upstream.failed(self._now(), str(failure))
        except LoginRefusedError:
            self.upstream.answered(self._now())  # it does not let us in, but it is there
        else:
            self.upstream.answered(self._now())
            leave(login)

    def _somewhere(self) -> _Place | None:
        """Return a pool that stands for all of Postgres: one there is, or that of the upstream or the first entry."""
        for pool in self:
            return self._places[pool]
        url, directory = self._settings.upstream, self._current.directory
        user = (url.user if url is not None else None) or self._settings.auth_user or "postgres"
        name = next((name for name in directory.databases if name != FALLBACK), "")
        terms = terms_for(self._settings, directory, name or (url.dbname if url is not None else None) or user, user)
        return _Place(terms, self._new_sharing(terms)) if terms is not None else None

    async def log_in_beside(self, pool: ServerPool, parameters: Mapping[str, str]) -> Login:
        """Log in as for a connection of `pool`, with startup parameters of a client's, for that client alone.

        Raises LoginRefusedError or ConnectFailedError.
        """
        place = self._places[pool]
        try:
            login = await self._log_in(place, parameters)
            self._prepare(login.transport, local=login.peer.local)
        except (ConnectFailedError, SourceFailedError, OSError) as failure:
            self._note_failure(pool, _as_failure(failure))
            raise _as_failure(failure) from None
        except LoginRefusedError as refusal:
            self._note_refusal(pool, refusal.error)
            raise
        self.upstream.answered(self._now())
        self._tally.servers_opened += 1
        return login

    async def _log_in(self, place: _Place, parameters: Mapping[str, str] = _NO_PARAMETERS) -> Login:
        """Log in with what the vault knows; if that is refused, with what it then knows instead."""
        if place.password is not None:
            return await self._log_in_with(place.terms, place.password, parameters)
        user, database = place.terms.user, place.terms.database
        credential = await self._vault.fetch(user, database)
        tried = [credential]
        while True:
            try:
                return await self._log_in_with(place.terms, credential, parameters)
            except LoginRefusedError as refusal:
                # What is refused at the door is not refused for its password.
                if refusal.at_the_door or refusal.error.sqlstate not in _AUTHENTICATION_FAILED:
                    raise
                credential = await self._vault.fetch(user, database, refused=credential)
                if credential in tried or len(tried) > MOST_EACH:
                    raise
                tried.append(credential)

    async def _log_in_with(
        self, terms: Terms, credential: Credential | None, parameters: Mapping[str, str] = _NO_PARAMETERS
    ) -> Login:
        endpoint = terms.endpoint
        login = await self._hosts.log_in(endpoint, credential, self.tls, {**dict(endpoint.parameters), **parameters})
        if self.shares.used and "replication" not in parameters:
            self._resize(await self.shares.read(login, self._settings.server_connect_timeout))
        return login

    def _resize(self, pools: list[ServerPool]) -> None:
        """Take over what a server has now, for those whose size is a share of it."""
        for pool in pools:
            place = self._places[pool]
            self._measure(pool, place.terms)
            place.sharing.max_pinned = self._new_sharing(place.terms).max_pinned
        if pools:
            self.shares.enforce()

    async def _look_again(self, pool: ServerPool) -> None:
        """Log in once more, for what the server has now."""
        try:
            leave(await self._log_in(self._places[pool]))
        except (ConnectFailedError, SourceFailedError, LoginRefusedError):
            return  # the next login of the pool finds out, and tells

    async def _make_ready(self, terms: Terms, login: Login) -> Login:
        """Run connect_query. Raises ConnectFailedError."""
        sql = terms.endpoint.connect_query
        if not sql:
            return login
        login = await run_connect_query(login, terms.user, sql, self._settings.server_connect_timeout)
        if login.objection is not None and self._settings.log_pooler_errors:
            self._log.warning(
                "connect_query_failed",
                user=terms.user,
                database=terms.database,
                sqlstate=login.objection.sqlstate,
                error=login.objection.message,
                advice="the connection is used all the same, as in PgBouncer",
            )
        return login

    # --- connections that clients' passwords have opened

    async def prove(self, user: str, database: str, password: Password) -> Login:
        """Log in with what a client has brought. Raises LoginRefusedError or ConnectFailedError."""
        somewhere = self._somewhere() if database in CONSOLE else None
        if somewhere is not None:
            database = somewhere.terms.database  # the console is nowhere at Postgres, and any database will do
        terms = terms_for(self._settings, self._current.directory, database, user)
        if terms is None:
            raise LoginRefusedError(ErrorFields("FATAL", "3D000", f'no such database: "{database}"'))
        terms = replace(terms, endpoint=replace(terms.endpoint, user=user))
        try:
            login = await self._make_ready(terms, await self._log_in_with(terms, password))
        except ConnectFailedError as failure:
            self.upstream.failed(self._now(), str(failure))
            raise
        except LoginRefusedError:
            self.upstream.answered(self._now())
            raise
        self.upstream.answered(self._now())
        return login

    def adopt(self, user: str, database: str, login: Login) -> None:
        """Put a connection into its pool, if there is room; else close it."""
        if not self.closed and database not in CONSOLE:
            pool = self.get(user, database)
            if pool is not None and pool.user == user and pool.take_place():
                self._opened(pool, login)
                return
        leave(login)

    def _opened(self, pool: ServerPool, login: Login) -> None:
        place = self._places[pool]
        now = self._now()
        try:
            self._prepare(login.transport, local=login.peer.local)
        except OSError as error:
            login.transport.abort()
            self._failed(pool, _as_failure(error))
            return
        server = ServerSession(
            self._next_id(),
            pool,
            login.transport,
            login.key,
            login.peer,
            self.duties(pool.mode),
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

    def _prepare(self, transport: asyncio.Transport, *, local: bool) -> None:
        """Set the socket's options. Raises OSError if the connection has broken right after the login."""
        if transport.is_closing():
            raise ConnectionError("the server closed the connection right after the login")
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and not local:
            keep_alive(sock, self._settings)

    def _failed(self, pool: ServerPool, failure: ConnectFailedError) -> None:
        pool.failure = str(failure)
        delay = self._pause(pool)
        self._note_failure(pool, failure, delay)
        self._retry_later(pool, self._now(), delay)

    def _note_failure(self, pool: ServerPool, failure: ConnectFailedError, delay: float | None = None) -> None:
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
        self._note_refusal(pool, error)
        # Those who have a server to wait for go on waiting: it was good enough for them a moment ago.
        keep = bool(pool.servers) or self.hopeful(pool.user, pool.database)
        if not keep:
            ending = Ending(Reason.SERVER_REFUSED, error.sqlstate, error.message, error.detail, error.hint)
            for queued in (*pool.newcomers, *pool.waiters):
                queued.end(ending)
        self._retry_later(pool, now, self._pause(pool) if keep else 0.0)
        if not pool.welcome and not pool.in_use and not pool.opening:
            self._forget(pool)

    def _note_refusal(self, pool: ServerPool, error: ErrorFields) -> None:
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


def _password_of(terms: Terms) -> Password | None:
    password = terms.endpoint.password
    return Password(password.get_secret_value()) if password is not None else None


def _as_failure(error: ConnectFailedError | SourceFailedError | OSError) -> ConnectFailedError:
    """Return what any of these means for whoever waits for a connection."""
    if isinstance(error, ConnectFailedError):
        return error
    password = isinstance(error, SourceFailedError)
    return ConnectFailedError(Reason.SERVER_PASSWORD_FAILED if password else Reason.SERVER_CONNECT_FAILED, str(error))
