"""The command `pgfunnel`: reads the configuration, and runs the pooler, or a subcommand."""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence

import uvloop

from config.errors import ConfigurationError
from config.load import Loaded, load
from pooler.process.errors import StartError
from pooler.process.process import Process
from pooler.service import Pooler
from pooler.sockets import ListenError

Subcommand = Callable[[list[str]], int]


def main() -> None:
    """Run the command; ends the process with 0, 1 for what failed, 2 for a wrong configuration."""
    argv = sys.argv[1:]
    subcommand = _subcommand(argv)
    sys.exit(subcommand(argv[1:]) if subcommand is not None else _serve(argv))


def _subcommand(argv: Sequence[str]) -> Subcommand | None:
    """Return what is not the pooler, for which that has no use."""
    match argv[:1]:
        case ["demo"]:
            from pooler.demo import main as subcommand  # noqa: PLC0415 - needs an extra that a pooler does not
        case ["lint"]:
            from pooler.lint import main as subcommand  # noqa: PLC0415
        case ["check"]:
            from pooler.check import main as subcommand  # noqa: PLC0415
        case ["config"]:
            from config.command import main as subcommand  # noqa: PLC0415
        case _:
            return None
    return subcommand


def _serve(argv: Sequence[str]) -> int:
    try:
        loaded = load(argv, os.environ)
    except ConfigurationError as error:
        return _complain(str(error), 2)
    process = Process(loaded.settings, daemon=loaded.daemon, quiet=loaded.quiet)
    try:
        process.enter()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(loaded, process))
    except (StartError, ListenError) as error:
        process.failed(str(error))
        return _complain(str(error), 1)
    finally:
        process.leave()
    return 0


async def _run(loaded: Loaded, process: Process) -> None:
    try:
        pooler = Pooler(loaded, process)
    except ValueError as error:
        raise StartError(str(error)) from None
    await pooler.run()


def _complain(message: str, status: int) -> int:
    sys.stderr.write(f"pgfunnel: {message}".rstrip("\n") + "\n")
    return status


if __name__ == "__main__":
    main()
