"""`pgfunnel demo`: the same storm of clients at an embedded Postgres, without and with pgfunnel.

This module has the command line only; it must import where the extra `demo` is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from typing import TYPE_CHECKING, Final

from pooler.demo.storm import Storm

if TYPE_CHECKING:
    from types import FrameType

_MAX_CONNECTIONS: Final = 100


def main(argv: list[str]) -> int:
    """Run the demo and return its exit status: 1 if pgfunnel failed a request or something could not start."""
    options = _parser().parse_args(argv)
    if importlib.util.find_spec("rich") is None:
        print("pgfunnel demo needs the extra demo: pip install 'pgfunnel[demo]'", file=sys.stderr)
        return 1
    from pooler.demo.demonstration import Demonstration  # noqa: PLC0415 - it needs the extra

    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, _interrupt_once)
    try:
        return Demonstration(
            storm=Storm(options.clients, own_work=options.own_work),
            pool_size=options.pool_size,
            max_connections=_MAX_CONNECTIONS,
            once=options.once,
            listen_port=options.port,
            metrics_port=options.metrics_port,
            postgres_version=options.postgres_version,
        ).run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgfunnel demo",
        description=f"Start a Postgres that takes {_MAX_CONNECTIONS} connections, send it a storm of clients that "
        "behave like serverless functions, first directly and then through pgfunnel, and show both side by side.",
    )
    parser.add_argument(
        "--clients",
        type=_count,
        default=1000,
        metavar="N",
        help="functions that start within one second (default: %(default)s)",
    )
    parser.add_argument(
        "--own-work",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="about how long a function does something else after each request (default: %(default)s)",
    )
    parser.add_argument(
        "--pool-size",
        type=_pool_size,
        default=20,
        metavar="N",
        help="server connections that pgfunnel may use (default: %(default)s)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="exit after the table instead of staying up, with status 1 if pgfunnel failed one request",
    )
    parser.add_argument(
        "--port", type=_count, metavar="PORT", help="where pgfunnel listens (default: 6432 or, if taken, another)"
    )
    parser.add_argument(
        "--metrics-port",
        type=_count,
        metavar="PORT",
        help="where pgfunnel serves its metrics (default: 9127 or, if taken, another)",
    )
    parser.add_argument(
        "--postgres-version",
        type=_count,
        metavar="N",
        help="major version of Postgres (default: the newest that is installed)",
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no duration")
    return number


def _pool_size(text: str) -> int:
    number = _count(text)
    # Postgres keeps three for superusers, and there should be room to look around beside the pool.
    if number > _MAX_CONNECTIONS - 10:
        raise argparse.ArgumentTypeError(f"{number} leaves too few of Postgres's {_MAX_CONNECTIONS} connections")
    return number


def _interrupt_once(_signal: int, _frame: FrameType | None) -> None:
    """Turn Ctrl-C or SIGTERM into KeyboardInterrupt, once: a second one must not interrupt the tidying up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
