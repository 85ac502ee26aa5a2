"""A context that follows its files: certificates are renewed while the pooler runs, and nobody is dropped for it."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from config.settings import Settings
from pooler.log import Log
from pooler.tls.certificate import expiry
from pooler.tls.connection import TlsContext
from pooler.tls.contexts import client_context, server_context

_Stamp = tuple[int, int, int] | None
"""What changes with a file's contents; None = it is not there."""


class WatchedContext:
    """What handshakes use from now on; those of before keep what they have begun with."""

    def __init__(self, side: str, make: Callable[[], TlsContext], files: Iterable[Path | None], log: Log) -> None:
        """`side` names it in the log: client or server. Raises TlsSettingsError if `make` does."""
        self.side = side
        self.expires: float | None = None
        """When the certificate that is shown does, in seconds since 1970; None = there is none."""
        self._make = make
        self._files = [file for file in files if file is not None]
        self._log = log
        self._stamps = self._look()
        self.context = make()
        self._examine()

    def _examine(self) -> None:
        shown = self.context.shown
        self.expires = expiry(shown) if shown else None
        if self.expires is not None and self.expires < time.time():
            self._log.warning(
                "tls_certificate_expired",
                side=self.side,
                expired=datetime.fromtimestamp(self.expires, UTC).isoformat(),
                advice="who checks certificates will not connect until there is a new one",
            )

    def reload(self) -> None:
        """Read the files again, if there are any; what can't be used changes nothing."""
        if not self._files:
            return
        self._stamps = self._look()
        try:
            self.context = self._make()
        except (ValueError, OSError) as error:  # TlsSettingsError among them; a file may go while it is read
            self._log.error("tls_reload_failed", side=self.side, error=str(error), advice="the old files stay in use")
        else:
            self._log.info("tls_reloaded", side=self.side)
            self._examine()

    def reload_if_changed(self) -> None:
        """Read the files again if one of them is another."""
        if self._look() != self._stamps:
            self.reload()

    def _look(self) -> list[_Stamp]:
        return [_stamp(file) for file in self._files]


def watch_client_context(settings: Settings, log: Log) -> WatchedContext:
    """Return what TLS towards clients uses. Raises TlsSettingsError."""
    files = settings.client_tls_cert_file, settings.client_tls_key_file, settings.client_tls_ca_file
    return WatchedContext("client", lambda: client_context(settings), files, log)


def watch_server_context(settings: Settings, log: Log) -> WatchedContext:
    """Return what TLS towards Postgres uses. Raises TlsSettingsError."""
    files = settings.server_tls_cert_file, settings.server_tls_key_file, settings.server_tls_ca_file
    return WatchedContext("server", lambda: server_context(settings), files, log)


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
