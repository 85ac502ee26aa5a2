"""What takes so long that it is worth a line in the log."""

from typing import Final, Protocol, final


class Asked(Protocol):
    """The client that it took so long for."""

    id: int


@final
class Slow:
    """Thresholds in seconds, infinity for none."""

    __slots__ = ("least", "query", "transaction", "wait")

    def __init__(self) -> None:
        self.wait = self.transaction = self.query = self.least = float("inf")

    def waited(self, client: Asked, took: float) -> None:
        """A client has waited that long for a server."""

    def queried(self, client: Asked, request: bytes, took: float) -> None:
        """A query has taken that long."""

    def transacted(self, client: Asked, request: bytes, took: float) -> None:
        """A transaction has taken that long."""


NOTHING: Final = Slow()
