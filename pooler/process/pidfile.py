"""The file that has the number of the process in it, so that there is one of each configuration."""

import os
from contextlib import suppress
from pathlib import Path

from pooler.process.errors import StartError


class Pidfile:
    """The file, ours once it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> None:
        """See that no other process has it; what one that has died has left is removed. Raises StartError."""
        try:
            text = self._path.read_text(errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StartError(f"can't read pidfile {self._path}: {error.strerror}") from None
        if not _is_stale(text):
            number = text.strip()
            why = f"process {number} runs with it" if number.isdecimal() else "it is none of a process; remove it"
            raise StartError(f"pidfile {self._path} exists: {why}, or set another")
        try:
            self._path.unlink()
        except OSError as error:
            raise StartError(f"can't remove stale pidfile {self._path}: {error.strerror}") from None

    def write(self) -> None:
        """Write our number. Raises StartError, also if another process was quicker."""
        try:
            with self._path.open("x") as file:
                file.write(f"{os.getpid()}\n")
        except OSError as error:
            raise StartError(f"can't write pidfile {self._path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove it, if it is still ours."""
        with suppress(OSError):
            if self._path.read_text(errors="replace") == f"{os.getpid()}\n":
                self._path.unlink()


def _is_stale(text: str) -> bool:
    """Tell whether a pidfile is of a process that has gone. One without a number could be anything."""
    try:
        pid = int(text)
    except ValueError:
        return False
    if pid <= 0 or pid == os.getpid():
        return pid > 0  # in a container everybody is number 1
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False
