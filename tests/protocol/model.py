"""A model of PostgreSQL's main loop: which requests it answers, skips, swallows and ignores.

Written from the protocol documentation, message by message and without any of the shortcuts of protocol/exchange,
so that the two can be held against each other.
"""

from collections.abc import Callable
from struct import pack


def message(kind: str, payload: bytes = b"") -> bytes:
    return kind.encode() + pack("!I", len(payload) + 4) + payload


class ModelServer:
    """Takes requests one at a time and returns the reply's bytes. `choose(n)` decides among n outcomes."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self.choose = choose
        self.status = "I"
        self.skipping = False
        self.copying: str | None = None  # "simple" or "extended" while it reads copy data
        self.unsynced = False

    @property
    def idle(self) -> bool:
        return self.status == "I" and not self.skipping and self.copying is None and not self.unsynced

    def answer(self, kind: str) -> bytes:
        if self.copying is not None:
            return self._answer_in_copy(kind)
        if kind in "dc" or kind == "f":
            return b""
        if self.skipping and kind != "S":
            return b""
        if kind in "QF":
            return self._answer_query(kind)
        if kind == "S":
            self.skipping = self.unsynced = False
            failed = self.choose(8) == 0
            return (message("E", b"\0") if failed else b"") + self._ready()
        if kind == "H":
            return b""
        return self._answer_extended(kind)

    def _answer_in_copy(self, kind: str) -> bytes:
        if kind in "dHS":
            return b""
        how, self.copying = self.copying, None
        if kind == "c" and self.choose(4):
            reply = message("C", b"COPY 1\0")
            return reply + self._ready() if how == "simple" else reply
        return self._fail(how)

    def _answer_query(self, kind: str) -> bytes:
        if kind == "F":
            return (message("V", b"\xff\xff\xff\xff") if self.choose(3) else message("E", b"\0")) + self._ready()
        outcome = self.choose(6)
        if outcome == 0:
            return message("E", b"\0") + self._ready()
        if outcome == 1:
            self.copying = "simple"
            return message("C", b"SET\0") * self.choose(2) + message("G", b"\0\0\0")
        rows = message("D", b"\0\0") * self.choose(40)
        replies = [
            message("I"),
            message("T", b"\0\0") + rows + message("C", b"SELECT\0"),
            message("N", b"\0"),
        ]
        return replies[self.choose(3)] * (1 + self.choose(2)) + self._ready()

    def _answer_extended(self, kind: str) -> bytes:
        self.unsynced = True
        if self.choose(5) == 0:
            return self._fail("extended")
        if kind == "E" and self.choose(3) == 0:
            self.copying = "extended"
            return message("G", b"\0\0\0")
        if kind == "E":
            ends = [message("C", b"SELECT\0"), message("I"), message("s")]
            return message("D", b"\0\0") * self.choose(3) + ends[self.choose(3)]
        if kind == "D":
            return (message("t", b"\0\0") * self.choose(2)) + (
                message("n") if self.choose(2) else message("T", b"\0\0")
            )
        return message({"P": "1", "B": "2", "C": "3"}[kind])

    def _fail(self, how: str | None) -> bytes:
        if self.status == "T":
            self.status = "E"
        if how == "extended":
            self.skipping = True
            return message("E", b"\0")
        return message("E", b"\0") + self._ready()

    def _ready(self) -> bytes:
        self.status = "ITE"[self.choose(3)] if self.choose(3) == 0 else "I"
        # A simple query, too, ends the implicit transaction that unsynced requests began.
        self.unsynced = False
        return message("Z", self.status.encode())
