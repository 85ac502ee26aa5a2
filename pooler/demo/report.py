"""The demo's one table: storms side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table

from pooler.demo.storm import percentile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pooler.demo.storm import Outcome

_RANKS: Final = (50, 95, 99)


def side_by_side(storms: Mapping[str, Outcome]) -> Table:
    """Return one column per storm, one row per figure and per kind of failure that any of them met."""
    table = Table("", *storms)
    for column in table.columns[1:]:
        column.justify = "right"
    outcomes = storms.values()

    table.add_row("requests", *(f"{outcome.requests:,}" for outcome in outcomes))
    table.add_row("  served", *(f"{outcome.served:,}" for outcome in outcomes))
    table.add_row("  success rate", *(_success_rate(outcome) for outcome in outcomes), end_section=True)

    table.add_row("clients", *(f"{outcome.clients:,}" for outcome in outcomes))
    table.add_row("  failed", *(f"{outcome.failures.total():,}" for outcome in outcomes))
    for failure in sorted({failure for outcome in outcomes for failure in outcome.failures}):
        counts = (f"{outcome.failures[failure]:,}" for outcome in outcomes)
        table.add_row(f"    {failure.sqlstate} {failure.meaning}", *counts)
    table.add_section()

    for rank in _RANKS:
        times = (_milliseconds(outcome.connect_times, rank) for outcome in outcomes)
        table.add_row(f"connect p{rank}, ms", *times)
    for rank in _RANKS:
        times = (_milliseconds(outcome.request_times, rank) for outcome in outcomes)
        table.add_row(f"request p{rank}, ms", *times)
    table.add_section()

    at_once = (f"{outcome.most_server_connections:,}" for outcome in outcomes)
    table.add_row("most server connections at once", *at_once)
    return table


def _success_rate(outcome: Outcome) -> str:
    """Round down: 100 % is said of nothing less."""
    style = "bold green" if outcome.served == outcome.requests else "bold red"
    return f"[{style}]{outcome.served * 1000 // outcome.requests / 10:.1f} %[/]"


def _milliseconds(times: Sequence[float], rank: float) -> str:
    """Show a dash where nothing succeeded."""
    value = percentile(times, rank)
    return "-" if value is None else f"{value * 1000:,.1f}"
