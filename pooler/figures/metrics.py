"""The metrics, read off the pooler when they are asked for."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pooler import __version__
from pooler.client import Clients
from pooler.databases import Databases
from pooler.entrance.lobby import Lobby
from pooler.figures.keeper import Keeper
from pooler.figures.pool_metrics import Pairs, PoolPage, histogram_family
from pooler.figures.tally import Tally
from pooler.pools import Pools
from pooler.reasons import Reason
from pooler.session_state.ledger import Ledger
from pooler.session_state.metrics import state_metrics
from pooler.tls.connection import TlsConnection
from pooler.tls.handshakes import Handshakes
from pooler.tls.watched import WatchedContext
from pooler.upstream.opening import ServerPool
from protocol.statements import Library

_HOST: Final = ("host", "port")


class Figures(NamedTuple):
    """Where the figures stand."""

    clients: Clients
    handshakes: Handshakes
    identities: Sequence[WatchedContext]
    """What TLS uses, on either side."""
    lobby: Lobby
    pools: Pools
    databases: Databases
    clients_of: Mapping[ServerPool, int]
    keeper: Keeper
    tally: Tally
    ledger: Ledger
    library: Library
    now: Callable[[], float]


class PoolerCollector(Collector):
    """Turns the pooler's plain counts into metrics."""

    def __init__(self, figures: Figures, pairs: Pairs) -> None:
        self._figures = figures
        self._pairs = pairs

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield InfoMetricFamily("pgfunnel", "The version that runs", {"version": __version__})
        yield from self._clients()
        yield from self._servers()
        yield from self._totals()
        yield from state_metrics(self._figures.ledger, self._figures.library, self._pairs.of)

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

    def _servers(self) -> Iterator[Metric]:
        most = GaugeMetricFamily(
            "pgfunnel_postgres_max_connections", "What Postgres allows, where a share of it is set", labels=_HOST
        )
        available = GaugeMetricFamily(
            "pgfunnel_postgres_available_connections", "The same without those that it reserves", labels=_HOST
        )
        for capacity in self._figures.pools.shares.capacities():
            most.add_metric((capacity.host, str(capacity.port)), capacity.max_connections)
            available.add_metric((capacity.host, str(capacity.port)), capacity.available)
        yield from (most, available)

    def _totals(self) -> Iterator[Metric]:
        tally = self._figures.tally
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


class Page:
    """What Prometheus gets, in its text format."""

    def __init__(self, figures: Figures) -> None:
        pairs = Pairs()
        self._keeper = figures.keeper
        self._of_pools = PoolPage(figures.pools, figures.databases, figures.clients_of, pairs, figures.now)
        self._registry = CollectorRegistry()
        self._registry.register(PoolerCollector(figures, pairs))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return it."""
        of_pools = self._of_pools.render()  # first, for this is where pairs get their labels
        lag = histogram_family("pgfunnel_event_loop_lag_seconds", "How late a timer was", self._keeper.lag)
        return b"".join((generate_latest(self._registry), lag.encode(), of_pools.encode()))
