"""Where the messages begin and end in a stream that is passed on as it comes."""

from struct import Struct
from typing import Final, final

from protocol.errors import ProtocolViolation

_HEADER_SIZE: Final = 5
_length = Struct("!I").unpack_from


@final
class Boundaries:
    """One direction of a conversation. Give it every chunk, in order."""

    __slots__ = ("_head", "_rest", "last", "seen")

    def __init__(self, noted: bytes, rest: int = 0) -> None:
        """`noted` are the kinds of messages to look out for, `rest` the bytes missing of one that has begun."""
        self.seen = dict.fromkeys(noted, 0)
        """How many there were, by kind."""
        self._head = b""
        """The header of a message, as far as it has come."""
        self._rest = rest
        """How many bytes of the last message are still to come."""
        self.last = 0
        """The kind of the last message that was to be noted; 0 = there was none."""

    @property
    def between(self) -> bool:
        """All messages that have begun are whole."""
        return not self._rest and not self._head

    def follow(self, data: bytes) -> int:
        """Take a chunk; return where in it the first message begins that is to be noted, -1 if there is none.

        Raises ProtocolViolation for an impossible length.
        """
        found = -1
        size = len(data)
        at = self._rest
        if self._head:
            begun = len(self._head)
            head = self._head + data[: _HEADER_SIZE - begun]
            if len(head) < _HEADER_SIZE:
                self._head = head
                return found
            self._head = b""
            at = _whole(head, 0) - begun
        while at < size:
            kind = data[at]
            if kind in self.seen:
                self.seen[kind] += 1
                self.last = kind
                found = at if found < 0 else found
            if at + _HEADER_SIZE > size:
                self._head = data[at:]
                self._rest = 0
                return found
            at += _whole(data, at)
        self._rest = at - size
        return found


def _whole(data: bytes, at: int) -> int:
    """Return the size of the message whose header is at `at`."""
    (length,) = _length(data, at + 1)
    if length < 4:
        raise ProtocolViolation(f"invalid length {length} of a message of type {chr(data[at])!r}")
    return int(length) + 1
