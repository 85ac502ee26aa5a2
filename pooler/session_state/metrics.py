"""The metrics of session state, read off the ledger and off what is known of prepared statements."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pooler.session_state.ledger import Ledger
from protocol.sql import words

_POOL: Final = ("database", "user")

Labels = Callable[[str, str], tuple[str, str]]
"""Returns the labels that a database and a user have; not each of them has its own."""


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


def state_metrics(ledger: Ledger, statements: StatementFigures, labels: Labels) -> Iterator[Metric]:
    """Yield the metrics."""
    pinned = Counter((pin.database, pin.user, word) for pin in ledger.pins for word in words(pin.states))
    # Pools that have pinned before show a 0 instead of vanishing.
    now = ((key, pinned[key]) for key in ledger.pins_made.by_pool)
    yield _add_up(
        GaugeMetricFamily("pgfunnel_pinned_clients", "Clients that are pinned", labels=[*_POOL, "class"]), now, labels
    )
    for name, text, account in (
        ("pgfunnel_pins", "How often clients were pinned", ledger.pins_made),
        ("pgfunnel_pins_refused", "Statements refused since they would have pinned", ledger.refusals),
        ("pgfunnel_hidden_state", "Finds of pin_audit", ledger.finds),
    ):
        yield _add_up(CounterMetricFamily(name, text, labels=[*_POOL, "class"]), account.by_pool.items(), labels)
    yield _add_up(
        CounterMetricFamily("pgfunnel_pinned_seconds", "How long clients were pinned, in all", labels=_POOL),
        ledger.pinned_seconds().items(),
        labels,
    )
    yield _add_up(
        CounterMetricFamily("pgfunnel_state_questions", "How often Postgres was asked what is left", labels=_POOL),
        ledger.questions.items(),
        labels,
    )
    yield GaugeMetricFamily("pgfunnel_prepared_statements", "Texts of prepared statements kept", statements.count)
    yield GaugeMetricFamily("pgfunnel_prepared_statement_bytes", "Their size", statements.bytes)
    yield CounterMetricFamily(
        "pgfunnel_prepared_statements_evicted", "Those that gave way to others", statements.evicted
    )


def _add_up(
    family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[tuple[tuple[str, ...], float]], labels: Labels
) -> Metric:
    sums: dict[tuple[str, ...], float] = {}
    for (database, user, *more), value in samples:
        key = (*labels(database, user), *more)
        sums[key] = sums.get(key, 0) + value
    for key, value in sums.items():
        family.add_metric(key, value)
    return family
