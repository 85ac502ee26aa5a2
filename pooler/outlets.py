"""Where the lines of the log go: standard error, a file, syslog. None of them may hold up the pooler, or end it.

What can't be written now, to a full disk or into a pipe that nobody reads, is kept up to a bound, and goes first the
next time; what is more is lost and counted.
"""

import os
import select
import socket
import stat
import time
from contextlib import suppress
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Final, Protocol, TextIO

MOST_KEPT: Final = 1 << 20
"""Bytes that are kept for an outlet that takes none."""
_AT_ONCE: Final = select.PIPE_BUF
"""Bytes that a pipe takes without blocking whenever poll() says that it can be written to."""
_STDERR: Final = 2
_SYSLOG: Final = Path("/dev/log")


class Outlet(Protocol):
    """One place where lines go. Nothing here blocks, or raises OSError unless it says so."""

    lost: int
    """Lines that were lost, to be reset by whoever tells of it."""

    def write(self, level: str, line: str) -> None:
        """Write a line, now or later."""

    def drain(self, seconds: float = 0.0) -> bool:
        """Write what was kept, waiting for that long at most. Tell whether nothing is left."""

    def close(self) -> None:
        """Write what can still be written, and be done."""


class Stream:
    """A file of Python's own."""

    lost = 0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, level: str, line: str) -> None:
        """See Outlet."""
        self._stream.write(line + "\n")

    def drain(self, seconds: float = 0.0) -> bool:
        """See Outlet."""
        return True

    def close(self) -> None:
        """See Outlet."""


class Descriptor:
    """A file descriptor: a file, a pipe, a terminal or a socket."""

    def __init__(self, fd: int) -> None:
        self.lost = 0
        self._kept = bytearray()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, level: str, line: str) -> None:
        """See Outlet."""
        data = line.encode(errors="backslashreplace") + b"\n"
        if len(self._kept) + len(data) > MOST_KEPT:
            self.lost += 1
        else:
            self._kept += data
        self.drain()

    def drain(self, seconds: float = 0.0) -> bool:
        """See Outlet."""
        with suppress(OSError):
            while self._kept and self._poll.poll(seconds * 1000):
                del self._kept[: os.write(self._fd, self._kept[:_AT_ONCE])]
        return not self._kept

    def close(self) -> None:
        """See Outlet."""
        self.drain()
        os.close(self._fd)


def standard_error() -> Descriptor:
    """Return the outlet to standard error."""
    return Descriptor(_unblocked(_STDERR))


def log_file(path: Path) -> Descriptor:
    """Return the outlet to the end of a file. Raises OSError."""
    # Without O_NONBLOCK the open() of a named pipe would wait for somebody who reads it.
    return Descriptor(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))


class Syslog:
    """The system's log, by way of its socket; in the form that syslog(3) sends."""

    def __init__(self, ident: str, facility: str, path: Path = _SYSLOG) -> None:
        self.lost = 0
        self._ident = ident
        self._facility = SysLogHandler.facility_names[facility]
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, level: str, line: str) -> None:
        """See Outlet."""
        priority = self._facility << 3 | SysLogHandler.priority_names[level]
        header = f"<{priority}>{time.strftime('%b %e %H:%M:%S')} {self._ident}[{os.getpid()}]: "
        packet = (header + line).encode(errors="backslashreplace")
        if not (self._send(packet) or self._send(packet)):  # it may have been restarted: once more, on a new socket
            self.lost += 1

    def _send(self, packet: bytes) -> bool:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)  # noqa: FBT003
                self._socket.connect(str(self._path))
            self._socket.send(packet)
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        return True

    def drain(self, seconds: float = 0.0) -> bool:
        """See Outlet. Nothing is kept: the system's log has a queue of its own."""
        return True

    def close(self) -> None:
        """See Outlet."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _unblocked(fd: int) -> int:
    """Return a pipe or terminal opened once more, without blocking, which nobody notices who shares `fd`.

    Of anything else, and where that is not allowed, return a duplicate: poll() alone has to do.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return os.dup(fd)


def keep_standard_descriptors() -> None:
    """See that 0, 1 and 2 are open: else a client's socket could be one of them, and be taken for standard error."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
