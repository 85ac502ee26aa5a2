"""One line on a terminal that says how far lint has come; nothing where nobody looks."""

import time
from collections.abc import Callable
from typing import Final, TextIO

_PAUSE_S: Final = 0.2
_ERASE: Final = "\r\x1b[K"


class Progress:
    """How far an input has been read. Shows on `stream` if that is a terminal, a few times a second."""

    def __init__(self, stream: TextIO, found: Callable[[], int]) -> None:
        self._stream = stream
        self._shows = stream.isatty()
        self._found = found
        self._next = 0.0
        self._name = ""
        self._size = 0
        self._read = 0

    def begin(self, name: str, size: int) -> None:
        """Begin another input, of `size` bytes; 0 if that is not known."""
        self._name, self._size, self._read = name, size, 0

    def advance(self, count: int) -> None:
        """Note that `count` more bytes have been read."""
        self._read += count
        if self._shows and time.monotonic() >= self._next:
            share = f"{self._read * 100 // self._size} % of {self._size >> 20:,} MiB" if self._size else ""
            self._stream.write(f"{_ERASE}{self._name}: {share or f'{self._read >> 20:,} MiB'}, {self._found():,} found")
            self._stream.flush()
            self._next = time.monotonic() + _PAUSE_S

    def end(self) -> None:
        """Remove the line."""
        if self._shows and self._next:
            self._stream.write(_ERASE)
            self._stream.flush()
