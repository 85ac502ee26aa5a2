"""All pools, by user and database: makes them when they are first asked for, and lets them follow what is set.

How their connections are opened is the affair of pooler.upstream.opening.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

from config.databases import FALLBACK
from config.pools import PoolMode
from config.settings import Settings
from config.terms import Terms, terms_for
from pooler.borrower import ServerDuties
from pooler.credentials.credential import Password
from pooler.credentials.source import SourceFailedError
from pooler.credentials.vault import Vault
from pooler.current import Current
from pooler.databases import CONSOLE, Databases, DatabaseState
from pooler.figures.tally import Tally
from pooler.log import Log
from pooler.pool import Cap, Pool
from pooler.reasons import Reason
from pooler.replication import Passage
from pooler.server import ServerSession
from pooler.session_state.ledger import Ledger
from pooler.session_state.policy import policy_for, tracked_names
from pooler.session_state.sharing import Sharing
from pooler.upstream.connect import Login, LoginRefusedError, leave
from pooler.upstream.dial import ConnectFailedError, ServerTls
from pooler.upstream.hosts import Hosts
from pooler.upstream.opening import Openings, ServerPool, as_failure
from pooler.upstream.place import Place
from pooler.upstream.server_logins import ServerLogins
from pooler.upstream.shares import Shares
from protocol.messages import ErrorFields
from protocol.parameters import Profiles
from protocol.statements import Library


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
        now: Callable[[], float],
    ) -> None:
        self._current = current
        self.databases = databases
        self._hosts = hosts
        self._duties_of = duties_of
        self._duties: dict[str, ServerDuties] = {}
        self._tally = tally
        self._log = log
        self._library = library
        self._ledger = ledger
        self._now = now
        self._profiles = Profiles()
        self.watchers: set[Callable[[], None]] = set()
        """To be called when a connection has ended, or a pause."""
        self._pools: dict[tuple[str, str], ServerPool] = {}
        """By user at Postgres, and database."""
        self._routes: dict[tuple[str, str], ServerPool] = {}
        """The same by the user that a client is, as far as it was asked for."""
        self._places: dict[ServerPool, Place] = {}
        self._former: set[ServerPool] = set()
        """Pools that new clients do not get any more, as their mode has changed or what they lead to is gone."""
        self._user_caps: dict[str, Cap[ServerSession]] = {}
        self.shares = Shares(self.terms_of, now, log)
        self.shares.apply(current.settings, current.directory)
        self.passages: Callable[[], Iterable[Passage]] = lambda: ()
        """What replicates, over connections that are not in the pools."""
        self.logins = ServerLogins(current, vault, tls, hosts, self.shares, log)
        self.logins.resized = self._resize
        self.openings = Openings(self, self.logins, current, next_id, tally, log, now)

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

    def place_of(self, pool: ServerPool) -> Place:
        """See opening.Book."""
        return self._places[pool]

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
            self.openings.open,
            size=0,
            mode=terms.pool_mode,
            caps=(state.cap, user_cap),
            clock=self._now,
        )
        self._pools[terms.user, terms.database] = pool
        self._places[pool] = Place(terms, self._new_sharing(terms))
        self._measure(pool, terms)
        pool.paused = self.databases.is_paused(terms.database)
        pool.on_loss = self._lost_one
        return pool

    def _measure(self, pool: ServerPool, terms: Terms) -> None:
        """Give a pool its sizes and limits."""
        settings = self._settings
        pool.size = self.shares.count(terms.pool_size, terms)
        pool.min_size = min(terms.min_pool_size, pool.size or terms.min_pool_size)
        pool.ahead = terms.forced_user and pool.min_size > 0 and pool not in self._former
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

    def forget(self, pool: ServerPool) -> None:
        """See opening.Book: the names of databases are the clients' to choose."""
        self._former.discard(pool)
        heir = self._pools.get((pool.user, pool.database))
        if heir is pool:
            del self._pools[pool.user, pool.database]
        elif heir is not None:
            heir.stats.absorb(pool.stats)
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

    def _share(self, pool: ServerPool, place: Place) -> None:
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
        pool.ahead = False

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

    def _make_ahead(self) -> None:
        """Have the pools of databases with a user of their own that keep a minimum, as PgBouncer does."""
        for name, entry in self._current.directory.databases.items():
            least = self._settings.min_pool_size if entry.min_pool_size is None else entry.min_pool_size
            if entry.user is not None and name != FALLBACK and least and (entry.user, name) not in self._pools:
                self.get(entry.user, name)

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
        if self.shares.used:
            self.shares.enforce()  # what was being opened when a server shrank is open by now
        for pool in self.shares.due():
            self.openings.begin(self._look_again(self._places[pool]))
        self._make_ahead()
        idle_timeout = self._settings.pool_idle_timeout
        for pool in self:
            if used(pool) or pool.waiters or pool.newcomers or pool.opening or pool.aside:
                pool.unused_since = 0.0
                continue
            pool.unused_since = pool.unused_since or now
            obsolete = pool in self._former or self.databases.known(pool.database) is None
            if obsolete or (not pool.ahead and 0 < idle_timeout <= now - pool.unused_since):
                for server in list(pool.servers):
                    server.retire(Reason.POOL_IDLE_TIMEOUT)
                if not pool.servers:
                    self.forget(pool)
        forgotten = self.databases.sweep(
            lambda name: any(used(pool) or pool.in_use or pool.opening for pool in self.of_database(name))
        )
        for database in forgotten:
            for pool in self.of_database(database.name):
                self.forget(pool)

    # --- connections that no pool has asked for

    async def knock(self) -> None:
        """Find out whether Postgres answers, by a login that is closed at once."""
        place = self._somewhere()
        if place is None:
            return
        try:
            login = await self.logins.log_in(place)
        except (ConnectFailedError, SourceFailedError) as failure:
            self.openings.upstream.failed(self._now(), str(failure))
        except LoginRefusedError:
            self.openings.upstream.answered(self._now())  # it does not let us in, but it is there
        else:
            self.openings.upstream.answered(self._now())
            leave(login)

    def _somewhere(self) -> Place | None:
        """Return a pool that stands for all of Postgres: one there is, or that of the upstream or the first entry."""
        for pool in self:
            return self._places[pool]
        url, directory = self._settings.upstream, self._current.directory
        user = (url.user if url is not None else None) or self._settings.auth_user or "postgres"
        name = next((name for name in directory.databases if name != FALLBACK), "")
        terms = terms_for(self._settings, directory, name or (url.dbname if url is not None else None) or user, user)
        return Place(terms, self._new_sharing(terms)) if terms is not None else None

    async def log_in_beside(self, pool: ServerPool, parameters: Mapping[str, str]) -> Login:
        """Log in as for a connection of `pool`, with startup parameters of a client's, for that client alone.

        Raises LoginRefusedError or ConnectFailedError.
        """
        place = self._places[pool]
        try:
            login = await self.logins.log_in(place, parameters)
            self.openings.prepare(login.transport, local=login.peer.local)
        except (ConnectFailedError, SourceFailedError, OSError) as failure:
            self.openings.note_failure(pool, as_failure(failure))
            raise as_failure(failure) from None
        except LoginRefusedError as refusal:
            self.openings.note_refusal(pool, refusal.error)
            raise
        self.openings.upstream.answered(self._now())
        self._tally.servers_opened += 1
        return login

    def _resize(self, pools: list[ServerPool]) -> None:
        """Take over what a server has now, for those whose size is a share of it."""
        for pool in pools:
            place = self._places[pool]
            self._measure(pool, place.terms)
            place.sharing.max_pinned = self._new_sharing(place.terms).max_pinned
        if pools:
            self.shares.enforce()

    async def _look_again(self, place: Place) -> None:
        """Log in once more, for what the server has now."""
        try:
            leave(await self.logins.log_in(place))
        except (ConnectFailedError, SourceFailedError, LoginRefusedError):
            return  # the next login of the pool finds out, and tells

    async def prove(self, user: str, database: str, password: Password, *, physical: bool = False) -> Login:
        """Log in with what a client has brought. Raises LoginRefusedError or ConnectFailedError.

        With `physical` for physical replication: not at a database, of which there may be none of that name.
        """
        somewhere = self._somewhere() if database in CONSOLE else None
        if somewhere is not None:
            database = somewhere.terms.database  # the console is nowhere at Postgres, and any database will do
        terms = terms_for(self._settings, self._current.directory, database, user)
        if terms is None:
            raise LoginRefusedError(ErrorFields("FATAL", "3D000", f'no such database: "{database}"'))
        terms = replace(terms, endpoint=replace(terms.endpoint, user=user))
        try:
            login = await self.logins.log_in_with(terms, password, {"replication": "true"} if physical else {})
            if not physical:
                login = await self.logins.make_ready(terms, login)
        except ConnectFailedError as failure:
            self.openings.upstream.failed(self._now(), str(failure))
            raise
        except LoginRefusedError:
            self.openings.upstream.answered(self._now())
            raise
        self.openings.upstream.answered(self._now())
        return login

    def adopt(self, user: str, database: str, login: Login) -> None:
        """Put a connection into its pool, if there is room; else close it."""
        if not self.openings.closed and database not in CONSOLE:
            pool = self.get(user, database)
            if pool is not None and pool.user == user and pool.take_place():
                self.openings.opened(pool, login)
                return
        leave(login)

    # --- the end

    async def close(self) -> None:
        """Give up what is being opened, and close every connection."""
        await self.openings.close()
        await self._hosts.resolver.close()
        for pool in self:
            for server in list(pool.servers):
                server.end(Reason.SHUTDOWN)
