"""The shape of a SHOW: columns, a line for SHOW HELP, and where its rows come from."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pooler.admin.office import Office
from pooler.admin.results import Columns, Row


class Table(NamedTuple):
    """One SHOW."""

    help: str
    columns: Columns
    rows: Callable[[Office], Iterable[Row]]
    """May be asked for row by row while the pooler goes on."""
    for_admins: bool = False
    """stats_users may not see it."""


def microseconds(seconds: float) -> tuple[int, int]:
    """Return whole seconds, and the microseconds on top: PgBouncer has columns for both."""
    whole = int(seconds)
    return whole, int((seconds - whole) * 1_000_000)
