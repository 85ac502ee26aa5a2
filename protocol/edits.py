"""Edits: where what a client is told differs from what its server says.

A named statement that this server lacks is parsed there ahead of its Bind, and the client must not see that reply; one
that is there already is not parsed again, and the client must see one. Such differences are noted beside the request
that they belong to, in the entry of the queue of owed replies (see exchange.py), so that an error that makes the
server skip a request also drops what was noted for it; changes of the unnamed statement, too (see unnamed.py).
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol, final

from protocol.statements import Statement


class Op(Enum):
    """What is done to a reply."""

    WATCH = auto()  # nothing; but if the request is skipped after an error, what it was to bring about is undone
    NAME = auto()  # an error names a statement as its client does; `reply` is the server's name, a NUL, the client's
    SWALLOW = auto()  # the reply is not passed on: the request was the pooler's own
    INSERT = auto()  # a reply to a request that was not sent, passed on before the reply of the request that follows
    ERROR = auto()  # the error that answers the request is replaced: the pooler has refused it
    STAND_IN = auto()  # the tag of the UNLISTEN that was sent instead is replaced: the pooler carries out the statement
    LAST = auto()  # nothing; but when all is answered, whatever the answers, it is undone
    DROP = auto()  # nothing; but unless the server says that it has dropped its statements, that is undone


@final
class Edit:
    """One edit; `at` is how many requests of its run were sent before the one it belongs to, -1 for a Query."""

    __slots__ = ("at", "done", "op", "reply", "undo")

    def __init__(
        self,
        op: Op,
        reply: bytes = b"",
        undo: Callable[[], object] | None = None,
        done: Callable[[], object] | None = None,
        *,
        at: int = -1,
    ) -> None:
        self.op = op
        self.at = at
        self.reply = reply
        """What the client is told instead."""
        self.undo = undo
        """Called if the request fails or is skipped."""
        self.done = done
        """Called if it is carried out."""


class Holder(Protocol):
    """The client."""

    unnamed: Statement | None
    """Its unnamed statement, which lives on after the server has gone to somebody else."""


@final
class Change:
    """A change of the client's unnamed statement that an error may prevent, or that comes behind one of these."""

    __slots__ = ("at", "before", "there")

    def __init__(self, at: int, before: Statement | None, there: Statement | None) -> None:
        self.at = at
        """How many requests of its run were sent before the one that makes it."""
        self.before = before
        """What is the unnamed statement if it is not made."""
        self.there = there
        """What is the server's then, as Exchange.unnamed."""


@final
class Unit(int):
    """An entry of Exchange.owed with edits or changes. As an int it is what it would be without them."""

    edits: list[Edit]
    changes: list[Change]
    hidden: bool
    """All of its replies are for the pooler."""

    def __new__(
        cls,
        entry: int,
        edits: list[Edit] | None = None,
        changes: list[Change] | None = None,
        *,
        hidden: bool = False,
    ) -> "Unit":
        """Return the entry `entry` with `edits` and `changes`, in the order of the requests they belong to."""
        unit = super().__new__(cls, entry)
        unit.edits = edits or []
        unit.changes = changes or []
        unit.hidden = hidden
        return unit
