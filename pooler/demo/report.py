"""The demo's one table: two storms side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table

from pooler.demo.storm import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pooler.demo.storm import Failure, Outcome

_RANKS: Final = (50, 95, 99)


def side_by_side(title: str, columns: dict[str, Outcome]) -> Table:
    """Return one column per storm, and a row per figure and per kind of failure in any of them."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    outcomes = list(columns.values())

    table.add_row("requests", *(f"{outcome.requests:,}" for outcome in outcomes))
    table.add_row("  served", *(f"{outcome.served:,}" for outcome in outcomes))
    table.add_row("  success rate", *(_rate(outcome) for outcome in outcomes), style="bold")
    table.add_row("clients", *(f"{outcome.clients:,}" for outcome in outcomes))
    table.add_row("  failed", *(f"{outcome.failures.total():,}" for outcome in outcomes))
    for failure in sorted({failure for outcome in outcomes for failure in outcome.failures}):
        table.add_row(_label(failure), *(f"{outcome.failures[failure]:,}" for outcome in outcomes))
    ranks = " / ".join(f"p{rank}" for rank in _RANKS)
    table.add_row(f"connect {ranks}, ms", *(_percentiles(outcome.connect_times) for outcome in outcomes))
    table.add_row(f"request {ranks}, ms", *(_percentiles(outcome.request_times) for outcome in outcomes))
    table.add_row("most server connections at once", *(f"{outcome.most_server_connections:,}" for outcome in outcomes))
    return table


def _label(failure: Failure) -> str:
    return f"  {failure.sqlstate} {failure.meaning}"


def _rate(outcome: Outcome) -> str:
    """Round down: one failed request in a million is not 100 %."""
    color = "green" if outcome.served == outcome.requests else "red"
    return f"[{color}]{int(outcome.success_rate * 1000) / 10:.1f} %"


def _percentiles(times: Sequence[float]) -> str:
    """Show milliseconds, or a dash where nothing succeeded."""
    values = [percentile(times, rank) for rank in _RANKS]
    return " / ".join("-" if value is None else f"{value * 1000:,.1f}" for value in values)
