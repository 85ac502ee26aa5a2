"""The metrics, read off the pooler when they are asked for."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pooler import __version__
from pooler.client import Clients
from pooler.lobby import Lobby
from pooler.pools import Pools
from pooler.reasons import Reason
from pooler.session_state.ledger import Ledger
from pooler.session_state.metrics import state_metrics
from pooler.tally import Tally
from pooler.tls.connection import TlsConnection
from pooler.tls.handshakes import Handshakes
from pooler.tls.watched import WatchedContext
from protocol.statements import Library

_POOL = ("database", "user")


class Figures(NamedTuple):
    """Where the figures stand."""

    clients: Clients
    handshakes: Handshakes
    identities: Sequence[WatchedContext]
    """What TLS uses, on either side."""
    lobby: Lobby
    pools: Pools
    tally: Tally
    ledger: Ledger
    library: Library
    now: Callable[[], float]


class PoolerCollector(Collector):
    """Turns the pooler's plain counts into metrics."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield InfoMetricFamily("pgfunnel", "The version that runs", {"version": __version__})
        yield from self._clients()
        yield from self._pools()
        yield from self._totals()
        yield from state_metrics(self._figures.ledger, self._figures.library)

    def _clients(self) -> Iterator[Metric]:
        figures = self._figures
        yield _gauge("pgfunnel_clients", "Clients that are logged in", len(figures.clients))
        encrypted = sum(isinstance(client.transport, TlsConnection) for client in list(figures.clients.values()))
        yield _gauge("pgfunnel_tls_clients", "Those that use TLS", encrypted)
        expires = GaugeMetricFamily(
            "pgfunnel_tls_certificate_expiry_timestamp_seconds", "When pgfunnel's certificate expires", labels=["side"]
        )
        for identity in figures.identities:
            if identity.expires is not None:
                expires.add_metric([identity.side], identity.expires)
        yield expires
        yield _gauge("pgfunnel_max_client_connections", "How many there may be", figures.lobby.places)
        lobby = GaugeMetricFamily(
            "pgfunnel_logins", "Connections that are not logged in, by what they wait for", labels=["state"]
        )
        shaking = len(figures.handshakes.under_way) + len(figures.handshakes.queue)
        lobby.add_metric(["first_packet"], len(figures.lobby.strangers) - shaking)
        lobby.add_metric(["tls"], shaking)
        lobby.add_metric(["place"], len(figures.lobby.queue))
        lobby.add_metric(["proof"], len(figures.lobby.proving))
        yield lobby

    def _pools(self) -> Iterator[Metric]:
        now = self._figures.now()
        servers = GaugeMetricFamily(
            "pgfunnel_pool_servers", "Server connections, by what they do", labels=[*_POOL, "state"]
        )
        size = GaugeMetricFamily("pgfunnel_pool_size", "How many there may be; 0 = no limit", labels=_POOL)
        waiting = GaugeMetricFamily("pgfunnel_pool_clients_waiting", "Clients that wait for a server", labels=_POOL)
        longest = GaugeMetricFamily(
            "pgfunnel_pool_maxwait_seconds", "How long the first of them has waited", labels=_POOL
        )
        transactions = CounterMetricFamily("pgfunnel_transactions", "Transactions served", labels=_POOL)
        waits = CounterMetricFamily("pgfunnel_waits", "How often a client has waited and was served", labels=_POOL)
        waited = CounterMetricFamily("pgfunnel_wait_seconds", "How long, in all", labels=_POOL)
        for pool in self._figures.pools:
            # Clients choose the names, and not all bytes are UTF-8.
            labels = tuple(name.encode("utf-8", "backslashreplace").decode() for name in (pool.database, pool.user))
            busy = sum(server.client is not None for server in pool.servers)
            cleaning = sum(server.cleaning and not server.testing for server in pool.servers)
            servers.add_metric((*labels, "active"), busy)
            servers.add_metric((*labels, "idle"), len(pool.idle))
            servers.add_metric((*labels, "stale"), len(pool.stale))
            servers.add_metric((*labels, "tested"), pool.testing)
            servers.add_metric((*labels, "cleaning"), cleaning)
            servers.add_metric((*labels, "login"), pool.opening)
            size.add_metric(labels, pool.size)
            waiting.add_metric(labels, len(pool.waiters) + len(pool.newcomers))
            longest.add_metric(labels, max(0.0, now - pool.waiting_since))
            transactions.add_metric(labels, pool.stats.totals.xact_count)
            waits.add_metric(labels, pool.stats.waits.count)
            waited.add_metric(labels, pool.stats.waits.sum)
        yield from (servers, size, waiting, longest, transactions, waits, waited)

    def _totals(self) -> Iterator[Metric]:
        tally = self._figures.tally
        yield CounterMetricFamily("pgfunnel_client_logins", "Clients that have logged in", tally.logins)
        yield CounterMetricFamily("pgfunnel_server_logins", "Server connections opened", tally.servers_opened)
        yield CounterMetricFamily("pgfunnel_cancels", "Cancel requests received", tally.cancels)
        yield CounterMetricFamily("pgfunnel_cancels_failed", "Those that did not get to Postgres", tally.cancels_failed)
        yield _by_label(
            "pgfunnel_tls_handshakes_failed",
            "TLS handshakes with clients that failed",
            "cause",
            self._figures.handshakes.failed,
        )
        yield _by_label("pgfunnel_auth_query_lookups", "Users looked up by auth_query", "outcome", tally.auth_query)
        yield _by_label("pgfunnel_passthrough_logins", "Passwords passed through", "outcome", tally.passthrough)
        yield _by_label("pgfunnel_clients_ended", "Client connections ended", "reason", tally.clients_ended)
        yield _by_label(
            "pgfunnel_servers_ended", "Server connections ended, or not opened", "reason", tally.servers_ended
        )
        yield _by_label(
            "pgfunnel_errors_sent", "Errors of pgfunnel's own sent to clients", "sqlstate", tally.errors_sent
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value)


def _by_label(name: str, text: str, label: str, counts: Counter[Reason] | Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in list(counts.items()):
        family.add_metric([str(value)], count)
    return family


def make_registry(figures: Figures) -> CollectorRegistry:
    """Return a registry with the pooler's metrics and the process's."""
    registry = CollectorRegistry()
    registry.register(PoolerCollector(figures))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
