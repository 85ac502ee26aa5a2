"""The pooler as a whole: puts its parts together, starts them, drains them and stops them."""

import asyncio
import contextlib
import gc
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Final

from config.errors import ConfigurationError
from config.load import Loaded, reload_access
from pooler.access.candidate import Candidate, Learnt
from pooler.access.gate import Gate
from pooler.access.lookup import lookup_for
from pooler.access.passthrough import Passthrough
from pooler.access.throttle import Throttle
from pooler.cancel import Canceller
from pooler.client import ClientDuties, Clients, ClientSession
from pooler.credentials.credential import Password
from pooler.credentials.sourced import sourced_passwords
from pooler.credentials.vault import Vault
from pooler.dial import ServerTls
from pooler.fitting import Fittings
from pooler.janitor import Janitor, Premises
from pooler.lobby import Departures, Lobby
from pooler.log import Log
from pooler.login import ClientLogin, LoginDuties, TlsOffer
from pooler.metrics import Figures
from pooler.pools import Pools
from pooler.reasons import Ending, Reason
from pooler.server import ServerDuties, ServerSession
from pooler.session_state.ledger import Ledger
from pooler.session_state.policy import ignored_everywhere
from pooler.sockets import ListenError, listening_sockets, raise_descriptor_limit
from pooler.tally import Tally
from pooler.tls.connection import encryption
from pooler.tls.handshakes import Handshakes
from pooler.tls.watched import WatchedContext, watch_client_context, watch_server_context
from pooler.web import Web
from protocol.startup import StartupMemory
from protocol.statements import Library

OWN_DESCRIPTORS: Final = 64
"""File descriptors for what is neither client nor server: log, metrics, listening sockets, cancels."""
LEAST_STRANGERS: Final = 64
MOST_STRANGERS: Final = 2048
"""How many connections may be on their way to a login at once."""

_SHUTDOWN: Final = Ending(
    Reason.SHUTDOWN, "57P01", "terminating connection: pgfunnel is shutting down", hint="Connect again."
)


class Shutdown(Enum):
    """What the pooler waits for before it ends."""

    WAIT_FOR_CLIENTS = auto()  # SIGTERM: busy clients finish their transaction
    WAIT_FOR_SERVERS = auto()  # SIGINT: as above, but who waits for a server is sent away
    IMMEDIATE = auto()  # SIGQUIT, or a second signal


class Pooler:
    """One pgfunnel process."""

    def __init__(self, loaded: Loaded, log: Log) -> None:
        self._loaded = loaded
        settings = self.settings = loaded.settings
        self.log = log
        self.tally = Tally()
        self.clients: Clients = {}
        self._logged_in: Counter[tuple[str, str]] = Counter()
        """How many of them there are of a user at a database."""
        self.now: Callable[[], float] = time.monotonic
        self.accepting = False
        self.port = 0
        self._stopping: Shutdown | None = None
        self._stop_changed = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._socket_paths: list[Path] = []

        self.places, strangers = self._count_places()
        self.departures = Departures(strangers)
        self.lobby = Lobby(self.places, strangers)
        self.handshakes = Handshakes(settings.client_tls_handshakes)
        self.identities: list[WatchedContext] = []
        server_tls = self._server_tls()
        self.canceller = Canceller(self.clients, settings.cancel_wait_timeout, self._cancel_failed, server_tls)
        self.vault = Vault(loaded.credentials, sourced_passwords(settings, self.now), self.now)
        ids = itertools.count(1)
        self.ledger = Ledger(self.now, log)
        self.library = Library(
            settings.max_statement_memory, ignored_everywhere(settings), watch_all=bool(settings.pin_audit)
        )
        self.pools = Pools(
            settings,
            self.vault,
            server_tls,
            ServerDuties(
                cancel=self.canceller.cancel_server,
                ended=self._server_ended,
                now=self.now,
                check_query=settings.server_check_query,
                check_always=not settings.server_check_delay,
                reset_query=settings.server_reset_query
                if settings.pool_mode == "session" or settings.server_reset_query_always
                else "",
                session_mode=settings.pool_mode == "session",
                statement_mode=settings.pool_mode == "statement",
                max_packet_size=settings.max_packet_size,
            ),
            ids.__next__,
            self.tally,
            log,
            self.library,
            self.ledger,
        )
        self.vault.brought.needed = self._has_clients
        self.lookup = lookup_for(
            settings, self.vault, server_tls, self.pools.upstream, self.tally.auth_query, self.now, log
        )
        self.passthrough = Passthrough(
            self.pools,
            self.vault.brought,
            max_age=settings.passthrough_max_age,
            cleartext=settings.passthrough_cleartext,
            outcomes=self.tally.passthrough,
            now=self.now,
            log=log,
        )
        self.pools.hopeful = self.passthrough.expects
        self.gate = Gate(
            settings.auth_type,
            loaded.access,
            settings.scram_iterations,
            everybody=settings.upstream.user or "",
            learn=self._learn,
            lookup=self.lookup,
            elsewhere=self.passthrough,
        )
        self.throttle = Throttle(settings.login_failure_delay, strangers, self._linger, self.now)
        self._login_duties = LoginDuties(
            arrived=self.lobby.arrived,
            identified=self.lobby.identified,
            left=self._login_left,
            joined=self._client_joined,
            cancel=self._cancel,
            pool_of=self.pools.get,
            fittings=Fittings(self.pools.sharing_of, self.now),
            linger=self._linger,
            turn_away=self.throttle.turn_away,
            now=self.now,
            next_id=ids.__next__,
            startups=StartupMemory(),
            gate=self.gate,
            clients=self.clients,
            client_duties=ClientDuties(
                self._client_ended,
                self._linger,
                self.now,
                settings.max_packet_size,
                None if settings.pool_mode == "session" else self.library,
            ),
            tls=self._tls_offer(),
        )
        self._janitor = Janitor(
            Premises(
                settings,
                self.pools,
                self.lobby,
                self.handshakes,
                self.throttle,
                self.departures,
                self.clients,
                self.canceller,
                self.identities,
                self.now,
            )
        )
        figures = Figures(
            self.clients,
            self.handshakes,
            self.identities,
            self.places,
            self.lobby,
            self.pools,
            self.tally,
            self.ledger,
            self.library,
            self.now,
        )
        self._web = Web(figures, lambda: self.accepting, settings) if settings.metrics_addr else None

    def _tls_offer(self) -> TlsOffer | None:
        """Return the TLS that clients get. Raises TlsSettingsError."""
        mode = self.settings.client_tls_sslmode
        if mode == "disable":
            return None
        identity = watch_client_context(self.settings, self.log)
        self.identities.append(identity)
        return TlsOffer(identity, self.handshakes, required=mode not in ("allow", "prefer"))

    def _server_tls(self) -> ServerTls | None:
        """Return the TLS towards Postgres. Raises TlsSettingsError."""
        mode = self.settings.server_tls_sslmode
        if mode == "disable" or self.settings.upstream.socket_path is not None:
            return None
        identity = watch_server_context(self.settings, self.log)
        self.identities.append(identity)
        return ServerTls(mode, identity, direct=self.settings.server_tls_sslnegotiation == "direct")

    def _count_places(self) -> tuple[int, int]:
        """Return how many clients and how many strangers the limit on open files has room for."""
        limit = raise_descriptor_limit()
        settings = self.settings
        servers = max(settings.default_pool_size + settings.reserve_pool_size, settings.max_db_connections)
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

    # --- life

    async def run(self) -> None:
        """Serve until a signal says otherwise. Raises ListenError."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._report)
        for number, how in (
            (signal.SIGTERM, Shutdown.WAIT_FOR_CLIENTS),
            (signal.SIGINT, Shutdown.WAIT_FOR_SERVERS),
            (signal.SIGQUIT, Shutdown.IMMEDIATE),
        ):
            loop.add_signal_handler(number, self.stop, how, number.name)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            # In PgBouncer's hands they pause and resume; unhandled they would end the process.
            loop.add_signal_handler(number, self._ignore, number.name)
        await self._start()
        try:
            await self._serve_until_stopped()
        finally:
            await self._close()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._web is not None:
            try:
                await self._web.start()
            except OSError as error:
                where = f"{self.settings.metrics_addr} port {self.settings.metrics_port}"
                raise ListenError(f"can't serve metrics on {where}: {error.strerror or error}") from None
        # First all of them, so that nobody is let in if one address can't be listened on.
        places = []
        for sock in list(listening_sockets(self.settings)):
            name = sock.getsockname()
            if isinstance(name, str):
                self._socket_paths.append(Path(name))
                listener = await loop.create_unix_server(
                    self._new_local_login, sock=sock, backlog=self.settings.listen_backlog
                )
            else:
                self.port = name[1]
                listener = await loop.create_server(self._new_login, sock=sock, backlog=self.settings.listen_backlog)
            self._listeners.append(listener)
            places.append(name if isinstance(name, str) else f"{name[0]}:{name[1]}")
        for place in places:  # once whoever waits for the first such line can come by any of them
            self.log.info("listening", on=place)
        self.accepting = True
        self._janitor.start()
        # What exists now stays: the collector need not look at it again, and rarely at the clients that come.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    def reload(self) -> None:
        """Read again what comes from files."""
        self._reload_access()
        for identity in self.identities:
            identity.reload()

    def _reload_access(self) -> None:
        try:
            access = reload_access(self._loaded)
            self.gate.reload(access)
            self.vault.reload(access.users)
        except ConfigurationError as error:
            mistakes = error.mistakes
        except ValueError as error:
            mistakes = (str(error),)
        else:
            self.log.info("access_reloaded", users=len(access.users), rules=len(access.rules))
            return
        self.log.error("access_reload_failed", error="; ".join(mistakes), advice="what was read before stays in use")

    def _ignore(self, signal_name: str) -> None:
        self.log.warning("signal_ignored", signal=signal_name)

    def _report(self, _: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        """Log what nobody has caught: a fault of ours. The connection in whose callback it happened is closed."""
        exception = context.get("exception")
        self.log.error(
            "internal_error",
            error=str(context.get("message")),
            exc_info=exception if isinstance(exception, BaseException) else None,
        )

    def _new_login(self) -> ClientLogin:
        return ClientLogin(self._login_duties)

    def _new_local_login(self) -> ClientLogin:
        """As PgBouncer and Postgres, offer no TLS on a Unix socket, and ask for none."""
        return ClientLogin(self._login_duties._replace(tls=None))

    def stop(self, how: Shutdown, signal_name: str = "") -> None:
        """Begin to shut down; asked again, do so at once."""
        if self._stopping is not None:
            how = Shutdown.IMMEDIATE
        self.log.info("shutting_down", how=how.name.lower(), signal=signal_name or None, clients=len(self.clients))
        self._stopping = how
        self._stop_changed.set()

    async def _serve_until_stopped(self) -> None:
        await self._stop_changed.wait()
        self._stop_changed.clear()
        self._stop_accepting()
        try:
            async with asyncio.timeout(self.settings.shutdown_timeout or None):
                while self._stopping is not Shutdown.IMMEDIATE and self._drain():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop_changed.wait(), 0.05)
        except TimeoutError:
            self.log.warning("shutdown_timeout", seconds=self.settings.shutdown_timeout, clients=len(self.clients))

    def _stop_accepting(self) -> None:
        self.accepting = False
        for listener in self._listeners:
            listener.close()
        for path in self._socket_paths:
            path.unlink(missing_ok=True)
        for queue in (self.lobby.strangers, self.lobby.queue, self.lobby.proving):
            for login in list(queue):
                login.end(_SHUTDOWN)

    def _drain(self) -> bool:
        """Send away every client that has nothing under way; True if some are left."""
        for client in list(self.clients.values()):
            busy = client.server is not None and not client.server.exchange.settled
            keep = busy or (client.waiting and self._stopping is Shutdown.WAIT_FOR_CLIENTS)
            if not keep:
                client.end(_SHUTDOWN)
        cleaning = any(server.cleaning for pool in self.pools for server in pool.servers)
        return bool(self.clients or len(self.departures) or cleaning)

    async def _close(self) -> None:
        for client in list(self.clients.values()):
            client.end(_SHUTDOWN)
        self.throttle.close()
        self._janitor.stop()
        await self.canceller.close()
        await self.passthrough.close()
        if self.lookup is not None:
            await self.lookup.close()
        await self.pools.close()
        # What has been written to clients still has to arrive.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.departures.all_gone(), 1.0)
        self.departures.close()
        if self._web is not None:
            await self._web.close()
        self.log.info("stopped")

    # --- what the sessions report

    def _learn(self, candidate: Candidate, learnt: Learnt) -> None:
        startup = candidate.startup
        self.vault.learn(startup.user, startup.database, Password(learnt) if isinstance(learnt, str) else learnt)

    def _has_clients(self, user: str, database: str) -> bool:
        return (user, database) in self._logged_in

    def _linger(self, transport: asyncio.Transport) -> None:
        self.departures.linger(transport, self.now())

    def _cancel(self, key: bytes, done: Callable[[], None]) -> None:
        self.tally.cancels += 1
        self.canceller.cancel_client(key, done)

    def _cancel_failed(self, server: ServerSession, message: str) -> None:
        self.tally.cancels_failed += 1
        if self.settings.log_pooler_errors:
            self.log.warning("cancel_failed", server=server.id, error=message)

    def _login_left(self, login: ClientLogin, ending: Ending | None) -> None:
        joined = ending is None and login.proven
        self.lobby.left(login, joined=joined)
        if ending is not None:
            self._count_ending(ending)
            if self.settings.log_pooler_errors and ending.message:
                startup = login.startup if login.identified else None
                self.log.warning(
                    "login_failed",
                    client=login.id,
                    reason=ending.reason.value,
                    user=startup.user if startup else None,
                    database=startup.database if startup else None,
                    addr=_address(login.transport),
                    error=ending.message,
                    why=ending.why or None,
                    rule=login.rule or None,
                )

    def _client_joined(self, session: ClientSession, login: ClientLogin) -> None:
        self.tally.logins += 1
        self._logged_in[session.pool.user, session.pool.database] += 1
        if self.settings.log_connections:
            startup = login.startup
            self.log.info(
                "client_login",
                client=session.id,
                user=startup.user,
                database=startup.database,
                addr=_address(session.transport),
                application_name=startup.parameters.get("application_name"),
                rule=login.rule or None,
                **encryption(session.transport),
            )

    def _client_ended(self, session: ClientSession, ending: Ending) -> None:
        del self.clients[session.key]
        pair = session.pool.user, session.pool.database
        self._logged_in[pair] -= 1
        if not self._logged_in[pair]:
            del self._logged_in[pair]
        self.lobby.place_free()
        self._count_ending(ending)
        if ending.sqlstate and self.settings.log_pooler_errors:
            self._log_client_end(session, ending, self.log.warning)
        elif self.settings.log_disconnections:
            self._log_client_end(session, ending, self.log.info)

    def _log_client_end(self, session: ClientSession, ending: Ending, write: Callable[..., None]) -> None:
        write(
            "client_closed",
            client=session.id,
            reason=ending.reason.value,
            user=session.pool.user,
            database=session.pool.database,
            error=ending.message or None,
        )

    def _count_ending(self, ending: Ending) -> None:
        self.tally.clients_ended[ending.reason] += 1
        if ending.sqlstate:
            self.tally.errors_sent[ending.sqlstate] += 1

    def _server_ended(self, server: ServerSession, reason: Reason) -> None:
        self.tally.servers_ended[reason] += 1
        if self.settings.log_disconnections:
            self.log.info(
                "server_closed",
                server=server.id,
                reason=reason.value,
                user=server.pool.user,
                database=server.pool.database,
                age_s=round(self.now() - server.connected_at, 1),
            )


def _address(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"
