"""Going into the background, with the word of whether that went well brought back to whoever has started it."""

import os
import sys
from typing import Final, NoReturn

_READY: Final = b"\0"


class Daemon:
    """This process, in the background. Whoever started it waits until it is ready or has ended."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Let the command that has started us end with 0."""
        self._tell(_READY)

    def failed(self, message: str) -> None:
        """Let it end with 1, and this message."""
        self._tell(message.encode())

    def _tell(self, data: bytes) -> None:
        if self._pipe >= 0:
            pipe, self._pipe = self._pipe, -1
            try:
                os.write(pipe, data)
            except BrokenPipeError:
                pass  # it waits no more
            finally:
                os.close(pipe)


def go_into_background() -> Daemon:
    """Return in a process that has no terminal and cannot get one; in the one that was started it does not return."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        _report(reading)
    os.close(reading)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    return Daemon(writing)


def _report(pipe: int) -> NoReturn:
    """End this process as the daemon says, or with 1 if it ends without a word."""
    with os.fdopen(pipe, "rb") as reading:
        word = reading.read()
    if word != _READY:
        why = word.decode(errors="replace") or "pgfunnel: it has ended before it was ready; its log may say why"
        sys.stderr.write(why + "\n")
        sys.stderr.flush()
    os._exit(word != _READY)
