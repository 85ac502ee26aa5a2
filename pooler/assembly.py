"""The parts of the pooler: made and put together here, and given what a reload has changed.

How they are started, drained and stopped is the service's affair.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Final

from config.load import Loaded
from config.pools import PoolMode
from config.settings import Settings
from config.terms import limits_clients, most_clients_of_database, most_clients_of_user
from config.timeouts import EMPTY_QUERY
from pooler.access.candidate import Candidate, Learnt
from pooler.access.gate import Gate
from pooler.access.lookups import Lookups
from pooler.access.passthrough import Passthrough
from pooler.access.throttle import Throttle
from pooler.admin.consoles import Consoles
from pooler.admin.office import Office, Service
from pooler.admin.operations import Operations
from pooler.admin.reception import Reception
from pooler.borrower import ServerDuties
from pooler.cancel import Canceller
from pooler.client import ClientDuties, Clients
from pooler.credentials.credential import Password
from pooler.credentials.sourced import sourced_passwords
from pooler.credentials.vault import Vault
from pooler.current import Current
from pooler.databases import Databases
from pooler.entrance.extended_only import protocol_of
from pooler.entrance.fitting import Fittings
from pooler.entrance.lobby import Departures, Lobby
from pooler.entrance.login import ClientLogin
from pooler.entrance.login_duties import LoginDuties, TlsOffer
from pooler.figures.keeper import Keeper
from pooler.figures.metrics import Figures
from pooler.figures.slow import Slow
from pooler.figures.statistics import Period
from pooler.figures.tally import Tally
from pooler.janitor import Janitor, Premises
from pooler.log import Log
from pooler.peers import Peers, as_given_out, most_connections
from pooler.pools import Pools
from pooler.reasons import Ending, Reason
from pooler.replication import PassageDuties, Passages
from pooler.report import Report
from pooler.session_state.ledger import Ledger
from pooler.session_state.policy import ignored_everywhere
from pooler.sockets import ListenError, raise_descriptor_limit
from pooler.tls.handshakes import Handshakes
from pooler.tls.watched import WatchedContext, watch_client_context, watch_server_context
from pooler.upstream.dial import ServerTls
from pooler.upstream.hosts import Hosts
from pooler.upstream.opening import ServerPool
from pooler.upstream.resolver import Resolver
from protocol.startup import StartupMemory
from protocol.statements import Library

OWN_DESCRIPTORS: Final = 64
"""File descriptors for what is neither client nor server: log, metrics, listening sockets, cancels."""
LEAST_STRANGERS: Final = 64
MOST_STRANGERS: Final = 2048
"""How many connections may be on their way to a login at once."""

_NO_USER: Final = Ending(
    Reason.LOGIN_REFUSED,
    "28000",
    "auth_type any takes a user for this database: user= of its entry, or that of the upstream URL",
)


class Limits:
    """How many clients there may be of a database and of a user; see lobby.ClientLimits."""

    def __init__(self, current: Current) -> None:
        self._current = current
        self.apply()

    def apply(self) -> None:
        """Take over what a reload has changed."""
        self.any = limits_clients(self._current.settings, self._current.directory)

    def of_database(self, name: str) -> int:
        """See ClientLimits."""
        return most_clients_of_database(self._current.settings, self._current.directory, name)

    def of_user(self, name: str) -> int:
        """See ClientLimits."""
        return most_clients_of_user(self._current.settings, self._current.directory, name)


class Parts:
    """All of them. Raises ValueError for what can't be used, and ListenError where there is no room for clients."""

    def __init__(self, loaded: Loaded, log: Log, service: Service) -> None:
        self.current = Current(loaded)
        settings = loaded.settings
        self.log = log
        self.now: Callable[[], float] = time.monotonic
        self.next_id = itertools.count(1).__next__
        self.tally = Tally()
        self.clients: Clients = {}
        self.databases = Databases(self.current, self.now)
        self.ledger = Ledger(self.now, log)
        self.library = Library(
            settings.max_statement_memory, ignored_everywhere(settings), watch_all=bool(settings.pin_audit)
        )
        self._make_doors(settings)
        self._make_pools(settings)
        self._make_gate(settings)
        self._make_console(service)
        self.keeper = Keeper(self.current, self.pools, self.period, self.slow, log, self.now)
        self.login_duties = self._login_duties()
        self.janitor = Janitor(
            Premises(
                self.current,
                self.pools,
                self.lobby,
                self.handshakes,
                self.throttle,
                self.departures,
                self.clients,
                self.canceller,
                self.identities,
                self.report.clients_of.__contains__,
                self.now,
                self.passages,
                self.keeper,
            )
        )
        self.figures = Figures(
            self.clients,
            self.handshakes,
            self.identities,
            self.lobby,
            self.pools,
            self.databases,
            self.report.clients_of,
            self.keeper,
            self.tally,
            self.ledger,
            self.library,
            self.now,
        )

    def _make_doors(self, settings: Settings) -> None:
        """What clients pass on their way in and out."""
        places, strangers = self._count_places(settings)
        self.departures = Departures(strangers)
        self.limits = Limits(self.current)
        self.lobby = Lobby(places, strangers, self.limits)
        self.report = Report(self.current, self.clients, self.lobby, self.tally, self.log, self.now)
        self.handshakes = Handshakes(settings.client_tls_handshakes)
        self.throttle = Throttle(settings.login_failure_delay, strangers, self.linger, self.now)
        self.identities: list[WatchedContext] = []
        self.tls_offer = self._tls_offer(settings)

    def _make_pools(self, settings: Settings) -> None:
        server_tls = self._server_tls(settings)
        self.peers = Peers(self.current, self.report.forward_failed)
        self.canceller = Canceller(
            self.clients, settings.cancel_wait_timeout, self.report.cancel_failed, server_tls, self.peers
        )
        self.vault = Vault(self.current.loaded.credentials, sourced_passwords(settings, self.now), self.now)
        self.vault.brought.needed = self.report.has_clients
        self.slow = Slow(self.log)
        self.slow.apply(settings)
        self.resolver = Resolver(self.current, self.now, self.log)
        self.pools = Pools(
            self.current,
            self.databases,
            self.vault,
            server_tls,
            Hosts(self.current, self.resolver, self.now, self.log),
            self._server_duties,
            self.next_id,
            self.tally,
            self.log,
            self.library,
            self.ledger,
            self.now,
        )

        self.passages = Passages(
            PassageDuties(
                log_in=self.pools.log_in_beside,
                wait_s=lambda pool: self.pools.terms_of(pool).query_wait_timeout,
                retry_s=lambda: self.current.settings.server_login_retry,
                ended=self.report.passage_ended,
                linger=self.linger,
                now=self.now,
                next_id=self.next_id,
            )
        )
        self.canceller.beside = self.passages.server_of
        self.pools.passages = lambda: self.passages

    def _make_gate(self, settings: Settings) -> None:
        self.lookups = Lookups(
            self.current,
            self.vault,
            self.pools.openings.upstream,
            lambda: self.pools.logins.tls,
            self.tally.auth_query,
            self.now,
            self.log,
        )
        self.passthrough = Passthrough(
            self.pools,
            self.vault.brought,
            max_age=settings.passthrough_max_age,
            cleartext=settings.passthrough_cleartext,
            outcomes=self.tally.passthrough,
            now=self.now,
            log=self.log,
        )
        self.pools.openings.hopeful = self.passthrough.expects
        self.gate = Gate(
            settings.auth_type,
            self.current.access,
            settings.scram_iterations,
            everybody=_everybody(settings),
            learn=self._learn,
            lookup=self.lookups,
            elsewhere=self.passthrough,
        )

    def _make_console(self, service: Service) -> None:
        self.period = Period(self.now())
        self.consoles = Consoles()
        office = Office(
            service=service,
            current=self.current,
            pools=self.pools,
            databases=self.databases,
            clients=self.clients,
            consoles=self.consoles,
            lobby=self.lobby,
            canceller=self.canceller,
            peers=self.peers,
            ledger=self.ledger,
            library=self.library,
            period=self.period,
            passages=self.passages,
            resolver=self.resolver,
            now=self.now,
        )
        self.operations = Operations(office)
        self.reception = Reception(office, self.operations, self.linger, self.report.console_ended, self.log)

    def _login_duties(self) -> LoginDuties:
        return LoginDuties(
            arrived=self.lobby.arrived,
            identified=self.lobby.identified,
            left=self.report.login_left,
            joined=self.report.client_joined,
            passed_on=self.report.passage_joined,
            cancel=self._cancel,
            new_key=self.canceller.new_key,
            pool_of=self._pool_of,
            fittings=Fittings(self.pools.sharing_of, self.now),
            passages=self.passages,
            current=self.current,
            linger=self.linger,
            turn_away=self.throttle.turn_away,
            now=self.now,
            next_id=self.next_id,
            startups=StartupMemory(),
            gate=self.gate,
            clients=self.clients,
            reception=self.reception,
            client_duties={mode: self._client_duties(mode) for mode in ("session", "transaction", "statement")},
            tls=self.tls_offer,
        )

    # --- single parts

    def _tls_offer(self, settings: Settings) -> TlsOffer | None:
        """Return the TLS that clients get. Raises TlsSettingsError."""
        mode = settings.client_tls_sslmode
        if mode == "disable":
            return None
        identity = watch_client_context(settings, self.log)
        self.identities.append(identity)
        return TlsOffer(identity, self.handshakes, required=mode not in ("allow", "prefer"))

    def _server_tls(self, settings: Settings) -> ServerTls | None:
        """Return the TLS towards Postgres. Raises TlsSettingsError."""
        if settings.server_tls_sslmode == "disable":
            return None
        identity = watch_server_context(settings, self.log)
        self.identities.append(identity)
        direct = settings.server_tls_sslnegotiation == "direct"
        return ServerTls(settings.server_tls_sslmode, identity, direct=direct)

    def _server_duties(self, mode: PoolMode) -> ServerDuties:
        settings = self.current.settings
        resets = mode == "session" or settings.server_reset_query_always
        return ServerDuties(
            cancel=self.canceller.cancel_server,
            ended=self.report.server_ended,
            now=self.now,
            check_query="" if settings.server_check_query == EMPTY_QUERY else settings.server_check_query,
            check_always=bool(settings.server_check_query) and not settings.server_check_delay,
            reset_query=settings.server_reset_query if resets else "",
            session_mode=mode == "session",
            statement_mode=mode == "statement",
            max_packet_size=settings.max_packet_size,
            slow=self.slow,
        )

    def _client_duties(self, mode: str) -> ClientDuties:
        return ClientDuties(
            self.report.client_ended,
            self.linger,
            self.now,
            self.current.settings.max_packet_size,
            None if mode == "session" else self.library,
            self.slow,
        )

    def _count_places(self, settings: Settings) -> tuple[int, int]:
        """Return how many clients and how many strangers the limit on open files has room for."""
        limit = raise_descriptor_limit()
        servers = _most_servers(settings) + most_connections(self.current.directory, settings)
        left = limit - OWN_DESCRIPTORS - servers
        wanted = settings.max_client_conn
        # Whoever is on the way in or out needs a descriptor, too: four kinds of them.
        strangers = max(LEAST_STRANGERS, min(MOST_STRANGERS, (left - wanted) // 4))
        places = min(wanted, left - 4 * strangers)
        if places < 1:
            raise ListenError(f"the limit of {limit} open files (ulimit -Hn) leaves no room for clients")
        if places < wanted:
            self.log.warning(
                "file_descriptor_limit",
                limit=limit,
                max_client_conn=wanted,
                places=places,
                advice=f"raise the hard limit on open files (ulimit -Hn, LimitNOFILE) to "
                f"{wanted + servers + OWN_DESCRIPTORS + 4 * strangers}, or lower max_client_conn; until then "
                f"{places} clients are let in at a time and further ones wait",
            )
        return places, strangers

    # --- what the sessions ask for

    def new_login(self) -> ClientLogin:
        """Return who talks to a client that has come over TCP."""
        return ClientLogin(self.login_duties)

    def new_local_login(self) -> ClientLogin:
        """As PgBouncer and Postgres, offer no TLS on a Unix socket, and ask for none."""
        return ClientLogin(self.login_duties._replace(tls=None))

    def _pool_of(self, user: str, database: str) -> ServerPool | Ending:
        refusal = self.databases.refusal(database)
        if refusal is not None:
            return refusal
        pool = self.pools.get(user, database)
        settings = self.current.settings
        if pool is None or (
            settings.auth_type == "any" and not _everybody(settings) and not self.pools.terms_of(pool).forced_user
        ):
            return _NO_USER  # whoever comes would be whoever it says it is
        return pool

    def _learn(self, candidate: Candidate, learnt: Learnt) -> None:
        startup = candidate.startup
        self.vault.learn(startup.user, startup.database, Password(learnt) if isinstance(learnt, str) else learnt)

    def linger(self, transport: asyncio.Transport) -> None:
        """Close a connection such that what has been written still arrives."""
        self.departures.linger(transport, self.now())

    def _cancel(self, key: bytes, done: Callable[[], None]) -> None:
        self.tally.cancels += 1
        session = self.consoles.find(key) or self.consoles.find(as_given_out(key))
        if session is not None:
            session.cancel()
            done()
        else:
            self.canceller.cancel_client(key, done)

    # --- changes while running

    def apply(self, loaded: Loaded) -> None:
        """Let a new configuration be in force. Raises ValueError for what can't be used; then the old one stays."""
        old, new = self.current.settings, loaded.settings
        changed = {name for name in type(new).model_fields if getattr(old, name) != getattr(new, name)}
        client_tls = any(name.startswith("client_tls") for name in changed)
        server_tls = any(name.startswith("server_tls") for name in changed)
        identities = list(self.identities)
        try:
            offer = self._tls_offer(new) if client_tls or "auth_type" in changed else self.tls_offer
            towards = self._server_tls(new) if server_tls else self.pools.logins.tls
            self.gate.reload(new.auth_type, loaded.access, new.scram_iterations, _everybody(new))
            self.vault.reload(loaded.credentials)
        except ValueError:
            self.identities[:] = identities
            raise
        self.current.replace(loaded)
        self.slow.apply(new)
        self._replace_tls(offer, towards)
        if "server_password_source" in changed:
            self.vault.take_source(sourced_passwords(new, self.now))
        self._apply_to_doors(new)
        for database in self.databases.apply():
            self._database_removed(database.name)
        self.pools.apply()
        if server_tls:
            for pool in self.pools:
                self.pools.reconnect(pool)
        self.lookups.apply()
        self.login_duties = self.login_duties._replace(
            client_duties={mode: self._client_duties(mode) for mode in self.login_duties.client_duties}, tls=offer
        )
        for client in list(self.clients.values()):
            client.take_duties(self.login_duties.client_duties[client.pool.mode])
            if "disable_pqexec" in changed:
                client.transport.set_protocol(protocol_of(client, simple_queries=not new.disable_pqexec))
        for login in (*self.lobby.strangers, *self.lobby.queue, *self.lobby.proving):
            login.take_duties(self.login_duties.client_duties)

    def _replace_tls(self, offer: TlsOffer | None, towards: ServerTls | None) -> None:
        self.tls_offer = offer
        self.pools.logins.tls = self.canceller.tls = towards
        in_use = [each.identity for each in (offer, towards) if each is not None]
        self.identities[:] = in_use
        for identity in in_use:
            identity.reload()

    def _apply_to_doors(self, settings: Settings) -> None:
        self.limits.apply()
        self.lobby.places, _ = self._count_places(settings)
        self.lobby.let_in_more()
        self.handshakes.take_limit(settings.client_tls_handshakes)
        self.throttle.take_delay(settings.login_failure_delay)
        self.canceller.timeout_s = settings.cancel_wait_timeout
        self.passthrough.take_settings(settings.passthrough_max_age, cleartext=settings.passthrough_cleartext)
        self.library.reconsider(
            settings.max_statement_memory, ignored_everywhere(settings), watch_all=bool(settings.pin_audit)
        )

    def _database_removed(self, name: str) -> None:
        ending = Ending(
            Reason.DATABASE_REMOVED, "57P01", f'database "{name}" was removed from the configuration of pgfunnel'
        )
        for client in (*self.clients.values(), *self.passages):
            if client.pool.database == name:
                client.end(ending)
        for login in list(self.lobby.proving):  # whatever it waits for would lead there, or never comes
            if login.startup.database == name:
                login.end(ending)


def _everybody(settings: Settings) -> str:
    """Return as whom auth_type any serves where a database's entry names nobody."""
    return settings.upstream.user or "" if settings.upstream is not None else ""


def _most_servers(settings: Settings) -> int:
    """Return how many server connections to leave descriptors for: those of one pool, or of one database."""
    sizes = (settings.default_pool_size, settings.max_db_connections)
    pool, database = (size if isinstance(size, int) else 0 for size in sizes)
    return max(pool + settings.reserve_pool_size, database)
