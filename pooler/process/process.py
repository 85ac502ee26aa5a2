"""One pgfunnel as its system sees it: what happens around the pooler from the start to the end, in this order."""

import os
from collections.abc import Iterator
from pathlib import Path

from config.load import Loaded
from config.settings import Settings
from pooler.log import Journal
from pooler.outlets import keep_standard_descriptors
from pooler.process.daemon import go_into_background, tell_ready
from pooler.process.errors import StartError
from pooler.process.notify import ServiceManager
from pooler.process.pidfile import Pidfile
from pooler.process.privileges import acting_as, become


class Process:
    """The process and its log."""

    def __init__(self, settings: Settings, *, daemon: bool = False, quiet: bool = False) -> None:
        self.journal = Journal()
        self.log = self.journal.log
        self._settings = settings
        self._quiet = quiet or daemon
        self._daemon = daemon
        self._pidfile = Pidfile(settings.pidfile) if settings.pidfile is not None else None
        self._service_manager = ServiceManager()

    def enter(self) -> None:
        """Before anything else, while there is one thread and no loop. Raises StartError."""
        settings = self._settings
        keep_standard_descriptors()
        with acting_as(settings.user):
            if self._pidfile is not None:
                self._pidfile.check()
            if self._daemon:
                go_into_background()
            if failure := self._open_journal(settings):
                raise StartError(f"can't open logfile {settings.logfile}: {failure}")

    def _open_journal(self, settings: Settings) -> str:
        """Return why it can't be opened; then the log goes where it went before."""
        try:
            self.journal.open(settings, quiet=self._quiet)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def settle(self, loaded: Loaded) -> None:
        """Become the user, after what only root may read was read, and before anything is listened on.

        What can't be read again by then, the log tells. Raises StartError.
        """
        user = self._settings.user
        if user:
            become(user)
            for path in files_of(loaded):
                if not os.access(path, os.R_OK):
                    self.log.warning("file_not_readable", file=str(path), user=user)
        if os.geteuid() == 0:
            self.log.warning("running_as_root", advice="set user, or start it as another user: it needs no privileges")

    def ready(self) -> None:
        """It serves. Raises StartError."""
        if self._pidfile is not None:
            self._pidfile.write()
        if self._daemon:
            tell_ready()
        self._service_manager.ready()

    def reloading(self) -> None:
        """The configuration will be read again."""
        self._service_manager.reloading()

    def follow(self, settings: Settings) -> None:
        """Log as these settings say from now on, and open the logfile by its name again."""
        if failure := self._open_journal(settings):
            self.log.error("logfile_not_opened", file=str(settings.logfile), error=failure)

    def reloaded(self) -> None:
        """The configuration was read again."""
        self._service_manager.ready()

    def stopping(self) -> None:
        """It will end."""
        self._service_manager.stopping()

    def failed(self, message: str) -> None:
        """It can't start: say so in the log, too, where that is not standard error."""
        if self._quiet:
            self.log.error("start_failed", error=message)

    def leave(self) -> None:
        """The end."""
        if self._pidfile is not None:
            self._pidfile.remove()
        self.journal.close()


def files_of(loaded: Loaded) -> Iterator[Path]:
    """Yield the files that a reload reads."""
    if loaded.file is not None:
        yield loaded.file
    for name in Settings.model_fields:
        value = getattr(loaded.settings, name)
        if name.endswith("_file") and isinstance(value, Path):
            yield value
