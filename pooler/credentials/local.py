"""Asking for the password of Postgres on this machine: the environment, a file, a program."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Final

from config.password_source import FromCommand, FromEnvironment, FromFile, PasswordSource
from pooler.credentials.source import SourceFailedError

MOST_BYTES: Final = 64 * 1024
"""The longest file or output that is looked at. Tokens of some clouds have a few thousand bytes."""


class EnvironmentSource:
    """A variable of the environment that pgfunnel was started with."""

    keeps_s = 0.0

    def __init__(self, source: FromEnvironment, environ: Mapping[str, str]) -> None:
        self._source = source
        self._environ = environ

    async def ask(self, user: str) -> str:
        """See Source."""
        password = self._environ.get(self._source.variable, "")
        if not password:
            raise SourceFailedError(self._source, "the variable is not set: set it where pgfunnel is started")
        return password


class FileSource:
    """A file, read for each login: whoever replaces it need tell nobody."""

    keeps_s = 0.0

    def __init__(self, source: FromFile) -> None:
        self._source = source

    async def ask(self, user: str) -> str:
        """See Source."""
        try:
            content = await asyncio.to_thread(_read, self._source.path)  # it may be on a network
        except OSError as error:
            raise SourceFailedError(self._source, f"it can't be read: {error.strerror}") from None
        return _first_line(self._source, content)


class CommandSource:
    """A program, which is run without a shell and may ask whomever it likes."""

    keeps_s = inf

    def __init__(self, source: FromCommand) -> None:
        self._source = source

    async def ask(self, user: str) -> str:
        """See Source."""
        try:
            # What it says of errors is not logged: it may have secrets in it.
            process = await asyncio.create_subprocess_exec(
                *self._source.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise SourceFailedError(self._source, f"it can't be run: {error.strerror}") from None
        try:
            output = await self._read_output(process)
            status = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
            await process.wait()
            raise
        if status:
            raise SourceFailedError(self._source, f"it ended with status {status}: run it by hand to see why")
        return _first_line(self._source, output)

    async def _read_output(self, process: asyncio.subprocess.Process) -> bytes:
        output = b""
        while process.stdout is not None and (chunk := await process.stdout.read(MOST_BYTES)):
            output += chunk
            if len(output) > MOST_BYTES:
                raise SourceFailedError(self._source, f"it writes more than {MOST_BYTES} bytes, which is no password")
        return output


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES)


def _first_line(source: PasswordSource, content: bytes) -> str:
    try:
        password = content.partition(b"\n")[0].removesuffix(b"\r").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceFailedError(source, "its first line is not UTF-8") from None
    if not password or "\0" in password:
        raise SourceFailedError(source, "its first line, where the password should be, is empty or has a zero byte")
    return password
