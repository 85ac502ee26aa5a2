"""The metrics of session state, read off the ledger and off what is known of prepared statements."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pooler.session_state.ledger import Account, Ledger
from protocol.sql import words

_POOL: Final = ("database", "user")


class StatementFigures(Protocol):
    """What is counted of prepared statements."""

    @property
    def count(self) -> int:
        """Texts that are kept now."""

    @property
    def bytes(self) -> int:
        """Their size."""

    @property
    def evicted(self) -> int:
        """How many have given way to others."""

    @property
    def parses(self) -> int:
        """How often one was prepared on a server connection."""


def state_metrics(ledger: Ledger, statements: StatementFigures) -> Iterator[Metric]:
    """Yield the metrics. The classes of state and the pools that have pinned bound the number of their labels."""
    pinned = Counter((pin.database, pin.user, word) for pin in ledger.pins for word in words(pin.states))
    # Pools that have pinned before show a 0 instead of vanishing.
    now = ((key, pinned[key]) for key in ledger.pins_made.by_pool)
    yield _add_up(
        GaugeMetricFamily("pgfunnel_pinned_clients", "Clients that are pinned", labels=[*_POOL, "class"]), now
    )
    yield _by_class("pgfunnel_pins", "How often clients were pinned", ledger.pins_made)
    yield _by_class("pgfunnel_pins_refused", "Statements refused since they would have pinned", ledger.refusals)
    yield _by_class("pgfunnel_hidden_state", "Finds of pin_audit", ledger.finds)
    yield _add_up(
        CounterMetricFamily("pgfunnel_pinned_seconds", "How long clients were pinned, in all", labels=_POOL),
        ledger.pinned_seconds().items(),
    )
    yield _add_up(
        CounterMetricFamily("pgfunnel_state_questions", "How often Postgres was asked what is left", labels=_POOL),
        ledger.questions.items(),
    )
    yield GaugeMetricFamily("pgfunnel_prepared_statements", "Texts of prepared statements kept", statements.count)
    yield GaugeMetricFamily("pgfunnel_prepared_statement_bytes", "Their size", statements.bytes)
    yield CounterMetricFamily(
        "pgfunnel_prepared_statements_evicted", "Those that gave way to others", statements.evicted
    )
    yield CounterMetricFamily(
        "pgfunnel_prepared_statement_parses", "How often one was prepared on a server connection", statements.parses
    )


def _by_class(name: str, text: str, account: Account) -> Metric:
    return _add_up(CounterMetricFamily(name, text, labels=[*_POOL, "class"]), account.by_pool.items())


def _add_up(
    family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
