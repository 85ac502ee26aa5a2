"""Lines in the log about what took long. Of texts they show the shape: no literal, and no parameter, is ever in one.

Decided when it is over, by the duration that is taken for the statistics anyway.
"""

from collections.abc import Iterator
from math import inf
from struct import Struct
from typing import Final, Protocol, final

from config.settings import Settings
from pooler.log import Log
from protocol.fingerprint import LIMIT, fingerprint
from protocol.kinds import BIND, FUNCTION_CALL, PARSE, QUERY
from protocol.statements import NAME_SIZE, Statement

LINES: Final = 20
"""How many lines there may be from one round of the janitor to the next: who logs everything must still be served."""

_header = Struct("!BI").unpack_from
_MOST_MESSAGES: Final = 16
"""How many messages of a request are looked at for texts."""


class Place(Protocol):
    """The pool that the client has waited for, or had a server of."""

    user: str
    database: str


class Asker(Protocol):
    """The client that it took so long for."""

    id: int
    unnamed: Statement | None
    statements: dict[bytes, Statement] | None


@final
class Slow:
    """Thresholds in seconds, infinity for none, and what is done about what reaches them."""

    __slots__ = ("_left", "_log", "_untold", "least", "query", "transaction", "wait")

    def __init__(self, log: Log | None = None) -> None:
        """Without a log nothing is slow."""
        self._log = log
        self._left = LINES
        self._untold = 0
        self.wait = self.transaction = self.query = inf
        self.least = inf
        """The lesser one of those of a transaction and a query."""

    def apply(self, settings: Settings) -> None:
        """Take over the thresholds."""
        self.wait = settings.log_slow_wait or inf
        self.transaction = settings.log_slow_transaction or inf
        self.query = settings.log_slow_query or inf
        self.least = min(self.transaction, self.query)

    def waited(self, place: Place, client: Asker, took: float, behind: int) -> None:
        """A client has waited for a server, and got one; so many still wait."""
        if self._log is not None and self._may_tell():
            self._log.info(
                "slow_wait",
                client=client.id,
                user=place.user,
                database=place.database,
                seconds=round(took, 6),
                still_waiting=behind,
            )

    def queried(self, place: Place, client: Asker, request: bytes, took: float) -> None:
        """A query is over that had begun with `request`."""
        if self._log is not None and self._may_tell():
            self._log.info(
                "slow_query",
                client=client.id,
                user=place.user,
                database=place.database,
                seconds=round(took, 6),
                query=shape_of(request, client),
            )

    def transacted(self, place: Place, client: Asker, request: bytes, took: float) -> None:
        """A transaction is over; its last query had begun with `request`."""
        if self._log is not None and self._may_tell():
            self._log.info(
                "slow_transaction",
                client=client.id,
                user=place.user,
                database=place.database,
                seconds=round(took, 6),
                last_query=shape_of(request, client),
            )

    def _may_tell(self) -> bool:
        self._left -= 1
        self._untold += self._left < 0
        return self._left >= 0

    def round(self) -> None:
        """Allow for more lines; called by the janitor."""
        self._left = LINES
        if self._untold and self._log is not None:
            self._log.info("slow_lines_left_out", lines=self._untold)
        self._untold = 0


def shape_of(request: bytes, client: Asker) -> str:
    """Return the texts that `request` begins with, or names, without literals."""
    shapes = [fingerprint(text) for text in _texts(request, client)]
    whole = "; ".join(dict.fromkeys(filter(None, shapes)))
    return whole if len(whole) <= LIMIT else whole[: LIMIT - 3] + "..."


def _texts(request: bytes, client: Asker) -> Iterator[bytes]:
    at = 0
    parsed = False
    for _ in range(_MOST_MESSAGES):
        if len(request) < at + 5:
            return
        kind, length = _header(request, at)
        body = request[at + 5 : at + length + 1]
        if kind == QUERY:
            yield body.rstrip(b"\0")
        elif kind == PARSE:
            parsed = True
            yield body.partition(b"\0")[2].partition(b"\0")[0]
        elif kind == BIND and not parsed:
            name = body.partition(b"\0")[2].partition(b"\0")[0][:NAME_SIZE]
            statement = (client.statements or {}).get(name) if name else client.unnamed
            if statement is not None:
                yield statement.text
        elif kind == FUNCTION_CALL:
            yield b"FunctionCall"
        at += length + 1
