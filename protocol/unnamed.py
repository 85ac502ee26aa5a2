"""The unnamed statement: what the client's is, what the server's is, and what errors make of both.

What changes the client's is believed when it is sent. A Parse that begins a run can't be skipped, only fail, and that
there was one is all that `Exchange.first_parse` has to tell. What may be skipped, or comes behind what may, is noted as
a Change: it costs the replies nothing, and an error finds there what the unnamed statement was.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from protocol.edits import Change, Holder, Op, Unit
from protocol.statements import UNSURE, Statement

if TYPE_CHECKING:
    from protocol.exchange import Exchange


def change_unnamed(exchange: "Exchange", holder: Holder, statement: Statement | None) -> None:
    """Note that the extended request that is booked next makes `statement` the client's, or ends it."""
    if exchange.skipping:
        return
    if exchange.run or exchange.owed:
        _note_change(exchange, holder)
    else:
        exchange.first_parse = exchange.queries
    holder.unnamed = exchange.unnamed = statement


def end_unnamed(exchange: "Exchange", holder: Holder) -> None:
    """Note that the Query that is booked next ends it."""
    if exchange.skipping:
        return
    if exchange.run or unnamed_in_doubt(exchange):
        _note_change(exchange, holder)
        exchange.mark_run()
    holder.unnamed = exchange.unnamed = None


def replace_unnamed(exchange: "Exchange", statement: Statement | None) -> None:
    """Note that the pooler's own request that is booked next makes `statement` the server's; not while `skipping`."""

    def lose() -> None:
        exchange.unnamed = UNSURE
        for change in _changes_of(exchange.entries):
            change.there = UNSURE

    exchange.doubt = exchange.queries + len(exchange.owed)
    exchange.unnamed = statement
    exchange.edit(Op.SWALLOW, undo=lose)


def unnamed_in_doubt(exchange: "Exchange") -> bool:
    """An earlier run may still fail, and with it what was to change the client's unnamed statement or the server's.

    Not what this run has changed: if that is skipped, so is what comes next.
    """
    return (
        bool(exchange.owed) and not exchange.changes and exchange.queries <= max(exchange.doubt, exchange.first_parse)
    )


def restore_unnamed(exchange: "Exchange") -> None:
    """An error has come: the client's is what it was before what is skipped; none if its Parse is what failed."""
    skipped, later = _skip_changes(exchange.entries, exchange.answered)
    before: Statement | None
    there: Statement | None
    if exchange.first_parse == exchange.queries and not exchange.answered:
        before, there = None, UNSURE
    elif skipped:
        before, there = skipped[0].before, skipped[0].there
    else:
        return
    if later is not None:
        later.before, later.there = before, there
    else:
        exchange.unnamed = there
        exchange.on_unnamed(before)


def _note_change(exchange: "Exchange", holder: Holder) -> None:
    exchange.changes.append(Change(exchange.run, holder.unnamed, exchange.unnamed))
    exchange.doubt = exchange.queries + len(exchange.owed)


def _skip_changes(entries: Iterable[int], answered: int) -> tuple[list[Change], Change | None]:
    """Strike off what is not changed because the request `answered` of the first of `entries` has failed.

    Return that, and the first change that is made nevertheless, behind the Sync that ends the skipping.
    """
    rest = iter(entries)
    skipped: list[Change] = []
    at = answered
    for entry in rest:
        changes = entry.changes if isinstance(entry, Unit) else []
        skipped += [change for change in changes if change.at >= at]
        if at == answered >= 0 and skipped and skipped[0].at == at:
            skipped[0].before, skipped[0].there = None, UNSURE  # it is the Parse that has failed
        changes.clear()
        at = -1
        if entry >= 0:
            break
    return skipped, next(_changes_of(rest), None)


def _changes_of(entries: Iterable[int]) -> Iterator[Change]:
    """Yield the changes that all of `entries` make."""
    for entry in entries:
        if isinstance(entry, Unit):
            yield from entry.changes
