"""The log: one line per event on standard error, as key=value pairs or as JSON. None per query."""

import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

Log = FilteringBoundLogger

_FIRST_KEYS = ("timestamp", "level", "event")


def _tidy(_: object, __: str, event: EventDict) -> EventDict:
    """Leave out what is not known, and let no name that a client has chosen move the cursor or begin a line."""
    return {
        key: "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value)
        if isinstance(value, str) and key != "exception" and not value.isprintable()
        else value
        for key, value in event.items()
        if value is not None
    }


def make_log(log_format: str, level: str, stream: TextIO | None = None) -> Log:
    """Return the logger to hand to those who log. `log_format` is "text" or "json", `level` "debug" to "error"."""
    renderer: Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.processors.LogfmtRenderer(key_order=_FIRST_KEYS, drop_missing=True, bool_as_flag=False)
    logger: Log = structlog.wrap_logger(
        structlog.PrintLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _tidy,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    ).bind()
    return logger
