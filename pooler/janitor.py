"""The janitor: one timer that a few times a second looks for whatever has taken too long.

Sessions set no timers and take no time stamps. The janitor keeps notes instead: a state that it finds again, with
nothing moved since it first saw it, has lasted at least that long. So a timeout is up to one round late, never early.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from config.terms import Terms
from pooler.access.throttle import Throttle
from pooler.cancel import Canceller
from pooler.client import PENDING_LIMIT, Clients, ClientSession
from pooler.current import Current
from pooler.entrance.lobby import Departures, Lobby
from pooler.entrance.login import ClientLogin
from pooler.figures.keeper import Keeper
from pooler.hold import PARTING, PINNED, SESSION
from pooler.pools import Pools
from pooler.reasons import REPLACED, Ending, Reason
from pooler.replication import Passages
from pooler.server import ServerSession
from pooler.session_state.advice import advise
from pooler.sockets import has_hung_up
from pooler.tls.handshakes import Handshakes
from pooler.upstream.opening import ServerPool
from protocol.kinds import IDLE
from protocol.messages import notice

ROUND_S: Final = 1 / 3
"""Seconds between rounds; as PgBouncer's."""
CLEANING_S: Final = 3.0
"""How long a server may take to finish what a vanished client has left, then it is cancelled, then closed; and how
long to answer a check."""
PATIENCE_S: Final = 1.0
"""How long a pool that has no server at all waits under a full cap, before a busy pool gives one up for it."""
ROUNDS_BETWEEN_LOOKS: Final = 9
"""Every so many rounds, 3 s, the janitor looks whether a file has changed."""


_OUTDATED: Final = frozenset((Reason.RECONNECT, Reason.ADDRESS_GONE, Reason.MISFIT))
"""Reasons for which a connection is to be replaced, and not just closed some time."""


class Reloadable(Protocol):
    """What comes from files, and can be read again while the pooler runs. What is wrong with them is logged."""

    def reload(self) -> None:
        """Read them again."""

    def reload_if_changed(self) -> None:
        """Read them again if one of them is another than before."""


class Premises(NamedTuple):
    """Where the janitor looks."""

    current: Current
    pools: Pools
    lobby: Lobby
    handshakes: Handshakes
    throttle: Throttle
    departures: Departures
    clients: Clients
    canceller: Canceller
    reloadables: Sequence[Reloadable]
    has_clients: Callable[[ServerPool], bool]
    now: Callable[[], float]
    passages: Passages
    keeper: Keeper


class Janitor:
    """Walks its round until it is stopped."""

    def __init__(self, premises: Premises) -> None:
        self._premises = premises
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._rounds = 0

    def start(self) -> None:
        """Begin."""
        self._due = self._premises.now() + ROUND_S
        self._timer = asyncio.get_running_loop().call_later(ROUND_S, self._walk)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _walk(self) -> None:
        self._premises.keeper.late(self._premises.now() - self._due)
        self.start()
        self.round()

    def round(self) -> None:
        """Look everywhere once."""
        premises = self._premises
        now = premises.now()
        self._sweep_logins(now)
        premises.lobby.sweep(now)
        premises.handshakes.sweep(now)
        premises.throttle.sweep(now)
        for pool in premises.pools:
            terms = premises.pools.terms_of(pool)
            self._sweep_queues(pool, terms, now)
            self._notify_waiting(pool, now)
            self._sweep_hung_up(pool)
            self._retire_oldest(pool, terms, now)
            for server in list(pool.servers):
                if server.client is not None:
                    self._sweep_linked(server, terms, now)
                elif server.cleaning:
                    self._sweep_cleaning(server, now)
                else:
                    self._sweep_free(pool, server, now)
            pool.grow(now)
        premises.passages.sweep()
        for cap in premises.pools.caps:
            if cap.full:
                cap.relieve(now, PATIENCE_S)
        self._sweep_idle_clients(now)
        premises.pools.sweep(premises.has_clients, now)
        premises.departures.sweep(now)
        premises.keeper.round()
        self._rounds += 1
        if self._rounds % ROUNDS_BETWEEN_LOOKS == 0:
            for reloadable in premises.reloadables:
                reloadable.reload_if_changed()

    # --- clients

    def _sweep_logins(self, now: float) -> None:
        lobby, timeout = self._premises.lobby, self._premises.current.settings.client_login_timeout
        if not timeout:
            return
        too_slow = Ending(
            Reason.LOGIN_TIMEOUT, "57014", f"the login took more than {timeout:g} s (client_login_timeout)"
        )
        for login in _older(lobby.strangers, now - timeout):
            login.end(too_slow)
        for login in [login for login in lobby.queue if login.since <= now - timeout]:
            login.end(lobby.too_many(login.startup, f"for {timeout:g} s (client_login_timeout)"))
        for login in _older(lobby.proving, now - timeout):
            if not login.proven:  # else it waits for us
                login.end(self._undecided(too_slow) if login.undecided else too_slow)

    def _undecided(self, ending: Ending) -> Ending:
        """Add why, for the log alone: to a stranger it would tell hosts and files."""
        failure = self._premises.pools.openings.upstream.failure
        return ending._replace(hint="Postgres could not be asked who may log in.", why=failure) if failure else ending

    def _sweep_queues(self, pool: ServerPool, terms: Terms, now: float) -> None:
        patience = self._premises.current.settings.reserve_pool_timeout
        pool.use_reserve = bool(pool.reserve and 0 < patience <= now - pool.waiting_since)
        timeout = terms.query_wait_timeout
        while timeout and (first := pool.first) is not None and now - first.waiting_since >= timeout:
            first.end(
                Ending(
                    Reason.QUERY_WAIT_TIMEOUT,
                    "57014",
                    f"waited {now - first.waiting_since:.1f} s for a server connection (query_wait_timeout), "
                    f"first of {len(pool.waiters) + len(pool.newcomers)} in the queue of the pool of user "
                    f'"{pool.user}" at database "{pool.database}", which has {len(pool.servers)} of '
                    f"{pool.size or 'any number of'} connections",
                    hint=self._advice(pool),
                )
            )

    def _notify_waiting(self, pool: ServerPool, now: float) -> None:
        """Tell, once, whoever waits for so long. None of its requests is being answered: it has no server."""
        patience = self._premises.current.settings.query_wait_notify
        told = pool.notified
        for ahead, client in enumerate(pool.waiters):
            if not 0 < patience <= now - client.waiting_since:
                break
            if client.waiting_since > pool.notified and isinstance(client, ClientSession):
                told = max(told, client.waiting_since)
                client.tell(
                    notice(
                        "No server connection available in postgres backend, client being queued",
                        f"Clients that came earlier: {ahead}. Connections of the pool: {len(pool.servers)}.",
                    )
                )
        pool.notified = told

    def _sweep_hung_up(self, pool: ServerPool) -> None:
        """Send away who waits and has gone, unnoticed because so much was unread that reading was stopped."""
        for client in list(pool.waiters):
            if isinstance(client, ClientSession) and len(client.pending) > PENDING_LIMIT:
                sock = client.transport.get_extra_info("socket")
                if sock is not None and has_hung_up(sock):
                    client.transport.abort()

    def _advice(self, pool: ServerPool) -> str:
        if pool.paused:
            return "It was paused on pgfunnel's console (PAUSE or KILL), or by SIGUSR1; RESUME ends that."
        if not pool.servers:
            failure = pool.failure
            return f"No connection to Postgres could be opened: {failure or 'the limits leave no room for one'}."
        return "Shorten the transactions that hold the connections, or raise pool_size or default_pool_size."

    def _sweep_idle_clients(self, now: float) -> None:
        pools = self._premises.pools
        timeouts = {pool: pools.terms_of(pool).client_idle_timeout for pool in pools}
        # Once in a while for the console, too, which says when a client was last heard of.
        if any(timeouts.values()) or self._rounds % ROUNDS_BETWEEN_LOOKS == 0:
            for client in list(self._premises.clients.values()):
                self._sweep_idle_client(client, timeouts[client.pool], now)

    def _sweep_idle_client(self, client: ClientSession, timeout: float, now: float) -> None:
        if client.server is not None or client.waiting:
            client.idle_since = 0.0
        elif not client.idle_since:
            client.idle_since = now
        elif 0 < timeout <= now - client.idle_since:
            client.end(
                Ending(
                    Reason.CLIENT_IDLE_TIMEOUT,
                    "57P05",
                    f"the connection was idle for {timeout:g} s (client_idle_timeout)",
                )
            )

    # --- servers

    def _sweep_linked(self, server: ServerSession, terms: Terms, now: float) -> None:
        """The timeouts of transactions and queries."""
        exchange = server.exchange
        server.since = server.since or now
        quiet = exchange.quiet
        if self._is_to_be_replaced(server):
            if server.client is not None:
                server.client.end(REPLACED._replace(reason=server.retired_for))
            return
        if quiet and server.hold & PARTING and server.client is not None:
            server.client.depart()  # it has left a transaction open, so nothing else tells when it has its answers
            return
        if exchange.queries != server.seen_queries or quiet != server.seen_quiet:
            server.seen_queries, server.seen_quiet, server.seen_at = exchange.queries, quiet, now
        if quiet and exchange.status == IDLE:
            server.since = now  # session mode, or pinned: neither a query nor a transaction
            self._sweep_pinned(server, unmoved=now - server.seen_at)
            return
        ending = _overdue(terms, quiet, unmoved=now - server.seen_at, lasted=now - server.since)
        if ending is not None and server.client is not None:
            server.client.end(ending)

    def _is_to_be_replaced(self, server: ServerSession) -> bool:
        """Tell whether it has to leave its client now, which would keep it (server_fast_close)."""
        return (
            bool(server.hold & (SESSION | PINNED))
            and server.retired
            and server.retired_for in _OUTDATED
            and server.exchange.settled
            and self._premises.current.settings.server_fast_close
        )

    def _sweep_pinned(self, server: ServerSession, unmoved: float) -> None:
        timeout = self._premises.current.settings.pinned_idle_timeout
        if server.hold & PINNED and server.client is not None and 0 < timeout <= unmoved:
            server.client.end(
                Ending(
                    Reason.PINNED_IDLE_TIMEOUT,
                    "57P05",
                    f"the connection was idle for {timeout:g} s while it kept a server connection from the others "
                    f"(pinned_idle_timeout)",
                    hint=advise(server.state.pins),
                )
            )

    def _retire_oldest(self, pool: ServerPool, terms: Terms, now: float) -> None:
        """End what is over its lifetime: one a round, so that a pool opened at once is not closed at once."""
        lifetime = terms.server_lifetime
        aged = [server for server in pool.servers if not server.retired]
        if lifetime and aged:
            oldest = min(aged, key=lambda server: server.connected_at)
            if now - oldest.connected_at >= lifetime:
                oldest.retire(Reason.SERVER_LIFETIME)

    def _sweep_cleaning(self, server: ServerSession, now: float) -> None:
        """A query of the pooler's own, or what a vanished client has left."""
        took = now - server.since
        if took >= CLEANING_S and server.testing:
            server.end(Reason.SERVER_CHECK_FAILED)
        elif took >= 2 * CLEANING_S:
            server.end(Reason.SERVER_UNCLEAN)
        elif took >= CLEANING_S:
            self._premises.canceller.cancel_server(server)

    def _sweep_free(self, pool: ServerPool, server: ServerSession, now: float) -> None:
        settings = self._premises.current.settings
        server.request = b""  # who has sent it has its answer
        server.since = server.since or now
        idle = now - server.since
        above_minimum = len(pool.servers) > pool.min_size
        if settings.server_idle_timeout and idle >= settings.server_idle_timeout and above_minimum:
            server.retire(Reason.SERVER_IDLE_TIMEOUT)
        elif settings.server_check_query and idle >= settings.server_check_delay:
            pool.make_stale(server)


def _older(logins: "Mapping[ClientLogin, object]", than: float) -> "list[ClientLogin]":
    """Return those that arrived before `than`, from a queue in order of arrival."""
    found = []
    for login in logins:
        if login.since > than:
            break
        found.append(login)
    return found


def _overdue(terms: Terms, quiet: bool, *, unmoved: float, lasted: float) -> Ending | None:
    """Say how a transaction is ended that has `lasted` so many seconds, the last ones with nothing `unmoved`."""
    if 0 < terms.query_timeout <= unmoved and not quiet:
        return Ending(
            Reason.QUERY_TIMEOUT,
            "57014",
            f"the query ran for more than {terms.query_timeout:g} s (query_timeout)",
            hint="It has been cancelled.",
        )
    if 0 < terms.idle_transaction_timeout <= unmoved and quiet:
        return Ending(
            Reason.IDLE_TRANSACTION_TIMEOUT,
            "25P03",
            f"the transaction was idle for {terms.idle_transaction_timeout:g} s (idle_transaction_timeout)",
            hint="It has been rolled back.",
        )
    if 0 < terms.transaction_timeout <= lasted:
        return Ending(
            Reason.TRANSACTION_TIMEOUT,
            "25P04",
            f"the transaction took more than {terms.transaction_timeout:g} s (transaction_timeout)",
            hint="It has been rolled back.",
        )
    return None
