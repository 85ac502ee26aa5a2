"""The log: one line per event, as key=value pairs or as JSON, to wherever the settings say. None per query."""

import sys
from collections.abc import Sequence
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from config.settings import Settings
from pooler.outlets import Outlet, Stream, Syslog, log_file, standard_error

Log = FilteringBoundLogger

_FIRST_KEYS = ("timestamp", "level", "event")
_SEVERITY: Final = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}


def _tidy(_: object, __: str, event: EventDict) -> EventDict:
    """Leave out what is not known, and let no name that a client has chosen move the cursor or begin a line."""
    return {
        key: "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value)
        if isinstance(value, str) and key != "exception" and not value.isprintable()
        else value
        for key, value in event.items()
        if value is not None
    }


class Journal:
    """The log, and what can change while it is written: how much of it, in which form, and where to."""

    def __init__(self, outlets: Sequence[Outlet] = ()) -> None:
        self._outlets = outlets
        self._least = 0
        self._renderers: dict[str, Processor] = {
            "json": structlog.processors.JSONRenderer(),
            "text": structlog.processors.LogfmtRenderer(key_order=_FIRST_KEYS, drop_missing=True, bool_as_flag=False),
        }
        self._telling_of_loss = False
        self.shape("text", "info")
        self.log: Log = structlog.wrap_logger(
            _Lines(self),
            processors=[
                self._filter,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                _tidy,
                self._render,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        ).bind()

    def shape(self, log_format: str, level: str) -> None:
        """Write in this form, "text" or "json", what is at least as severe as `level`, "debug" to "error"."""
        self._renderer = self._renderers[log_format]
        self._least = _SEVERITY[level]

    def _filter(self, _: object, level: str, event: EventDict) -> EventDict:
        if _SEVERITY[level] < self._least:
            raise structlog.DropEvent
        return event

    def _render(self, logger: object, name: str, event: EventDict) -> str:
        return str(self._renderer(logger, name, event))

    def put(self, level: str, line: str) -> None:
        """Write a finished line everywhere; and that some were lost, where that is over."""
        for outlet in self._outlets:
            outlet.write(level, line)
        if not self._telling_of_loss:
            self._tell_of_loss()

    def _tell_of_loss(self) -> None:
        lost = [outlet for outlet in self._outlets if outlet.lost and outlet.drain()]
        if lost:
            self._telling_of_loss = True
            lines = max(outlet.lost for outlet in lost)
            for outlet in lost:
                outlet.lost = 0
            self.log.warning("log_lines_lost", lines=lines)
            self._telling_of_loss = False

    # --- where to

    def open(self, settings: Settings, *, quiet: bool = False) -> None:
        """Write as the settings say from now on, `quiet` for not to standard error. Raises OSError: nothing changes."""
        files = [log_file(settings.logfile)] if settings.logfile is not None else []
        syslog = [Syslog(settings.syslog_ident, settings.syslog_facility)] if settings.syslog else []
        self.close()
        self._outlets = [*files, *syslog, *([] if quiet else [standard_error()])]
        self.shape(settings.log_format, "debug" if settings.verbose else settings.log_level)

    def close(self) -> None:
        """Write what can still be written."""
        for outlet in self._outlets:
            outlet.close()
        self._outlets = ()


class _Lines:
    """What structlog calls a logger: it takes finished lines."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def debug(self, line: str) -> None:
        self._journal.put("debug", line)

    def info(self, line: str) -> None:
        self._journal.put("info", line)

    def warning(self, line: str) -> None:
        self._journal.put("warning", line)

    def error(self, line: str) -> None:
        self._journal.put("error", line)


def make_log(log_format: str, level: str, stream: TextIO | None = None) -> Log:
    """Return a log of this form and level that goes to a stream."""
    journal = Journal((Stream(stream or sys.stderr),))
    journal.shape(log_format, level)
    return journal.log
