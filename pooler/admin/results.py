"""What a command comes to: its columns, which are known before it runs, and what running it brings."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

from protocol.console import Column, Kind, Value
from protocol.messages import ErrorFields

CANNOT_BE_DONE: Final = "08P01"
"""The SQLSTATE of whatever the console refuses: PgBouncer's."""

Columns = tuple[Column, ...]
Row = tuple[Value, ...]


class CommandError(Exception):
    """A command that can't be carried out: what its client is told."""

    def __init__(self, message: str, *, hint: str = "", detail: str = "", sqlstate: str = CANNOT_BE_DONE) -> None:
        super().__init__(message)
        self.fields = ErrorFields("ERROR", sqlstate, message, detail, hint)


class Outcome(NamedTuple):
    """What a command has brought."""

    tag: str
    """For the CommandComplete. A SELECT's is followed by how many rows there were."""
    rows: Iterable[Row] = ()
    notice: str = ""
    detail: str = ""
    """Of the notice."""


class Plan(NamedTuple):
    """A command that is understood, and not yet carried out."""

    run: Callable[[], Awaitable[Outcome]]
    columns: Columns | None = None
    """None: it returns no rows."""
    undo: Callable[[], None] | None = None
    """What is to be done if its client cancels it while it runs."""


def columns(**kinds: Kind) -> Columns:
    """Return columns in order."""
    return tuple(Column(name, kind) for name, kind in kinds.items())


def finished(outcome: Outcome) -> Callable[[], Awaitable[Outcome]]:
    """Return a Plan.run for what is known before."""

    async def run() -> Outcome:
        return outcome

    return run
