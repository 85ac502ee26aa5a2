"""Going into the background, with the word of whether that went well brought back to whoever has started it."""

import os
import sys
from contextlib import suppress
from typing import Final, NoReturn

_READY: Final = b"\0"
_STDERR: Final = 2


def go_into_background() -> None:
    """Return in a process that has no terminal and cannot get one; in the one that was started it does not return.

    That one waits until the other is ready or has ended, and passes on what it says on standard error.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        _report(reading)
    os.close(reading)
    os.setsid()
    if os.fork():
        os._exit(0)
    _replace(os.open(os.devnull, os.O_RDWR), 0, 1)
    _replace(writing, _STDERR)


def tell_ready() -> None:
    """Let the command that has started us end with 0; nothing is said to it any more."""
    with suppress(BrokenPipeError):  # it waits no more
        os.write(_STDERR, _READY)
    _replace(os.open(os.devnull, os.O_RDWR), _STDERR)


def _replace(fd: int, *others: int) -> None:
    for other in others:
        os.dup2(fd, other)
    os.close(fd)


def _report(pipe: int) -> NoReturn:
    """End this process with 0 if the daemon is ready, else with 1."""
    with os.fdopen(pipe, "rb") as reading:
        said = reading.read()
    ready = said.endswith(_READY)
    sys.stderr.write(said.removesuffix(_READY).decode(errors="replace"))
    sys.stderr.flush()
    os._exit(0 if ready else 1)
