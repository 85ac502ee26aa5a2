"""One pgfunnel as its system sees it: what happens around the pooler from the start to the end, in this order."""

import os
from collections.abc import Iterable
from pathlib import Path

from config.settings import Settings
from pooler.log import Journal
from pooler.outlets import keep_standard_descriptors
from pooler.process.daemon import Daemon, go_into_background
from pooler.process.errors import StartError
from pooler.process.notify import ServiceManager
from pooler.process.pidfile import Pidfile
from pooler.process.privileges import become, unreadable


class Process:
    """The process and its log."""

    def __init__(self, settings: Settings, *, daemon: bool = False, quiet: bool = False) -> None:
        self.journal = Journal()
        self.log = self.journal.log
        self._settings = settings
        self._quiet = quiet or daemon
        self._goes_into_background = daemon
        self._daemon: Daemon | None = None
        self._pidfile = Pidfile(settings.pidfile) if settings.pidfile is not None else None
        self._service_manager = ServiceManager()

    def enter(self) -> None:
        """Before anything else, while there is one thread and no loop. Raises StartError."""
        settings = self._settings
        keep_standard_descriptors()
        if self._pidfile is not None:
            self._pidfile.check()
        if self._goes_into_background:
            self._daemon = go_into_background()
        if failure := self._open_journal(settings):
            raise StartError(f"can't open logfile {settings.logfile}: {failure}")

    def _open_journal(self, settings: Settings) -> str:
        """Return why it can't be opened; then the log goes where it went before."""
        try:
            self.journal.open(settings, quiet=self._quiet)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def settle(self, files: Iterable[Path | None]) -> None:
        """After what only root may read was read, and before anything is listened on: become the user.

        Tell which of `files` can't be read again by then. Raises StartError.
        """
        settings = self._settings
        if settings.user:
            become(settings.user, [settings.logfile] if settings.logfile is not None else [])
            for path in unreadable(files):
                self.log.warning("file_not_readable", file=str(path), user=settings.user)
        if os.geteuid() == 0:
            self.log.warning("running_as_root", advice="set user, or start it as another user: it needs no privileges")

    def ready(self) -> None:
        """It serves. Raises StartError."""
        if self._pidfile is not None:
            self._pidfile.write()
        if self._daemon is not None:
            self._daemon.ready()
        self._service_manager.ready()

    def reloading(self) -> None:
        """The configuration will be read again."""
        self._service_manager.reloading()

    def reloaded(self, settings: Settings) -> None:
        """These settings are in force, or still are: go by them, and open the logfile by its name again."""
        if failure := self._open_journal(settings):
            self.log.error("logfile_not_opened", file=str(settings.logfile), error=failure)
        self._service_manager.ready()

    def stopping(self) -> None:
        """It will end."""
        self._service_manager.stopping()

    def failed(self, message: str) -> bool:
        """It can't start: tell whoever waits for the daemon; False if nobody does."""
        if self._daemon is None:
            return False
        self.log.error("start_failed", error=message)
        self._daemon.failed(f"pgfunnel: {message}")
        return True

    def leave(self) -> None:
        """The end."""
        if self._pidfile is not None:
            self._pidfile.remove()
        self.journal.close()
