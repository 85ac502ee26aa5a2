"""The command `pgfunnel`: reads the configuration, and runs the pooler or one of the other commands."""

import asyncio
import os
import sys

import uvloop

from config.errors import ConfigurationError
from config.load import load
from pooler.log import make_log
from pooler.service import Pooler
from pooler.sockets import ListenError


def main() -> None:
    """Run the command; ends the process with 0, 1 for what failed, 2 for a wrong configuration."""
    argv = sys.argv[1:]
    if argv[:1] == ["demo"]:
        from pooler.demo import main as demo  # noqa: PLC0415 - needs an extra that a pooler does not

        sys.exit(demo(argv[1:]))
    if argv[:1] == ["lint"]:
        from pooler.lint import main as lint  # noqa: PLC0415 - a pooler has no use for it

        sys.exit(lint(argv[1:]))
    if argv[:1] == ["config"]:
        from config.command import main as config  # noqa: PLC0415 - the same

        sys.exit(config(argv[1:], os.environ))
    try:
        loaded = load(argv, os.environ)
    except ConfigurationError as error:
        sys.exit(_complain(f"pgfunnel: {error}", 2))
    log = make_log(loaded.settings.log_format, loaded.settings.log_level)

    async def serve() -> None:
        try:
            pooler = Pooler(loaded, log)
        except ValueError as error:
            raise ListenError(str(error)) from None
        await pooler.run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except ListenError as error:
        sys.exit(_complain(f"pgfunnel: {error}", 1))


def _complain(message: str, status: int) -> int:
    sys.stderr.write(message.rstrip("\n") + "\n")
    return status


if __name__ == "__main__":
    main()
