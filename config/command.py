"""`pgfunnel config`: a pgbouncer.ini as TOML, and what holds and why."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from config import ini, pgbouncer, toml
from config.errors import ConfigurationError
from config.load import load
from config.shown import report
from config.validation import validate

_IMPORT: Final = """
Writes the TOML file that means the same as a pgbouncer.ini, with PgBouncer's
defaults where pgfunnel has others. Passwords stand in it as they do there.
"""
_SHOW: Final = """
Prints what holds with the same options, variables and file as pgfunnel is
started with, and where each value came from. Passwords are hidden.
"""
_EXAMPLES: Final = """
examples:
  pgfunnel config import /etc/pgbouncer/pgbouncer.ini -o pgfunnel.toml
  pgfunnel config show /etc/pgbouncer/pgbouncer.ini
  pgfunnel config show --changed --config pgfunnel.toml
"""


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run the command and return its exit status: 0, 1 if a file could not be written, 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(
        prog="pgfunnel config",
        description="Look at a configuration, or bring PgBouncer's along.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="import|show")
    importing = commands.add_parser("import", help="write a pgbouncer.ini as TOML", description=_IMPORT)
    importing.add_argument("file", type=Path, metavar="FILE", help="the pgbouncer.ini")
    importing.add_argument("-o", "--output", type=Path, metavar="FILE", help="write a new file, readable by you only")
    showing = commands.add_parser(
        "show",
        help="print what holds, and where it came from",
        description=_SHOW,
        usage="%(prog)s [--changed] [FILE] [OPTION]...",
        allow_abbrev=False,
    )
    showing.add_argument("--changed", action="store_true", help="only what is not a default")

    options, rest = parser.parse_known_args(argv)
    try:
        if options.command == "show":
            sys.stdout.write(report(load(rest, environ), only_changed=options.changed))
            return 0
        if rest:
            importing.error("it takes one FILE")  # not quoting the others: they could be anything
        return _import(options.file, options.output)
    except ConfigurationError as error:
        sys.stderr.write(f"pgfunnel: {error}\n")
        return 2


def _import(file: Path, output: Path | None) -> int:
    content = ini.read(file)
    text = toml.from_pgbouncer(content)
    reading = pgbouncer.read(content)
    _, mistakes = validate({**pgbouncer.defaults(), **reading.given})
    if mistakes:
        raise ConfigurationError(mistakes)
    for note in reading.notes:
        sys.stderr.write(f"pgfunnel: {note}\n")
    if output is None:
        sys.stdout.write(text)
        return 0
    try:
        with open(output, "x", encoding="utf-8", opener=_for_the_owner) as target:
            target.write(text)
    except OSError as error:
        sys.stderr.write(f"pgfunnel: '{output}' cannot be written: {error.strerror}\n")
        return 1
    return 0


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)
