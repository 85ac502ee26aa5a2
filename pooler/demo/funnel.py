"""pgfunnel as the demo runs it: a process of its own, started as a user would start it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_START_TIMEOUT: Final = 30.0
_STOP_TIMEOUT: Final = 5.0
_POLL_INTERVAL: Final = 0.02


class FunnelError(Exception):
    """pgfunnel did not start, or ended by itself; the message carries the end of its log."""


class Funnel:
    """A running pgfunnel within a `with`. `settings` are its command-line options, without the dashes."""

    def __init__(self, settings: dict[str, object], *, metrics_port: int) -> None:
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._command = [sys.executable, "-m", "pooler.main", *options, f"--metrics-port={metrics_port}"]
        self.metrics_url = f"http://127.0.0.1:{metrics_port}"
        self._metrics_port = metrics_port
        self._directory = TemporaryDirectory(prefix="pgfunnel-demo-")
        self.log_file = Path(self._directory.name) / "pgfunnel.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # None of the user's own pgfunnel settings; and a session of its own: Ctrl-C is for the demo to act on.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PGFUNNEL_")}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            self._await_ready(self._process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def wait(self) -> None:
        """Wait until it ends, which it should not do by itself."""
        if self._process is not None:
            self._process.wait()
        raise FunnelError(f"pgfunnel ended; the end of its log:\n{self._log_tail()}")

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), self._http() as connection:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == HTTPStatus.OK:
                    return
            time.sleep(_POLL_INTERVAL)
        raise FunnelError(f"pgfunnel did not start; the end of its log:\n{self._log_tail()}")

    def _http(self) -> contextlib.closing[HTTPConnection]:
        return contextlib.closing(HTTPConnection("127.0.0.1", self._metrics_port, timeout=1))

    def _log_tail(self) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-10:])

    def _end(self) -> None:
        """Let it drain as SIGTERM does; clients that still hold on are the demo's own guests."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._directory.cleanup()
