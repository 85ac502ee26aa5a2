"""`pgfunnel lint`: which statements of an application would be pinned, tracked or refused, and what to write instead.

This module has the command line, and the exit status for those who run it in CI.
"""

import argparse
import asyncio
import csv
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from config.session_state import DEFAULTS, StatePolicies, parse
from pooler.lint.findings import Findings, Outcome
from pooler.lint.progress import Progress
from pooler.lint.report import as_json, as_text
from pooler.lint.statements import LONGEST_LINE, Format, Input, InputError
from pooler.lint.statistics import statistics
from pooler.session_state.policy import Policy

_FORMATS: Final[dict[str, Format]] = {"sql": "sql", "csvlog": "csvlog", "jsonlog": "jsonlog"}
_BY_SUFFIX: Final[dict[str, Format]] = {".csv": "csvlog", ".json": "jsonlog"}
_FAILURES: Final = {
    "pinned": (Outcome.REFUSED, Outcome.PINNED),
    "refused": (Outcome.REFUSED,),
    "never": (),
}
_VARIABLE: Final = "PGFUNNEL_SESSION_STATE"
_DESCRIPTION: Final = """
Reads SQL, and reports what it would leave behind in the session: what pgfunnel
refuses, pins, tracks or asks Postgres about; how often, where it stands first,
and what to write instead.
"""
_EXAMPLES: Final = """
examples:
  pgfunnel lint migrations/*.sql
  pgfunnel lint --fail-on refused --session-state "listen=reject" app.sql
  pgfunnel lint /var/log/postgresql/postgresql-Sat.csv
  pg_dump --schema-only app | pgfunnel lint -
  pgfunnel lint --pg-stat-statements postgresql://app:secret@db/app --json

outcomes:
  refused   the statement gets an error before it runs
  pinned    the client keeps its server connection, and shares it with nobody
  asked     Postgres is asked what the statement has left behind
  tracked   the setting follows the client to other server connections
  ignored   the state stays with the server connection (not in the table)

exit status: 0 if nothing was found that --fail-on names, 1 if something was, 2
if the command or an input was wrong.
"""


def main(argv: Sequence[str]) -> int:
    """Run lint and return its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.files and options.pg_stat_statements is None:
        parser.error("there is nothing to read: name a FILE, - for the standard input, or --pg-stat-statements URL")
    # As other filters: an interruption, or a reader such as head that has seen enough, is no error of ours.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    csv.field_size_limit(LONGEST_LINE)
    findings = Findings(Policy.of(options.session_state))
    notes: list[str] = []
    mistakes = list(_read_files(options.files, options.format, findings, notes))
    if options.pg_stat_statements is not None:
        try:
            asyncio.run(_read_statistics(options.pg_stat_statements, findings))
        except InputError as error:
            mistakes.append(str(error))
    for line in (*notes, *mistakes):
        sys.stderr.write(f"pgfunnel lint: {line}\n")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    sys.stdout.write(as_json(findings, notes) if options.json else as_text(findings, width))
    if mistakes:
        return 2
    return int(any(findings.totals[outcome] for outcome in _FAILURES[options.fail_on]))


def _read_files(names: Sequence[str], format_: Format | None, findings: Findings, notes: list[str]) -> Iterator[str]:
    """Add the statements of all files, and yield what is wrong with those that can't be read."""
    progress = Progress(sys.stderr, lambda: findings.totals[Outcome.REFUSED] + findings.totals[Outcome.PINNED])
    for name in names:
        try:
            with Path(name).open("rb") if name != "-" else os.fdopen(os.dup(0), "rb") as file:
                progress.begin(name, os.fstat(file.fileno()).st_size)
                read = Input(name, file, progress.advance, notes)
                for statement in read.statements(format_ or _BY_SUFFIX.get(Path(name).suffix, "sql")):
                    findings.add(statement)
        except OSError as error:
            yield f"{name}: {error.strerror}"
        except InputError as error:
            yield str(error)
    progress.end()


async def _read_statistics(url: str, findings: Findings) -> None:
    async for statement in statistics(url):
        findings.add(statement)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgfunnel lint",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="SQL script or log; - is the standard input")
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        help="of the files: SQL as for psql, or what Postgres writes with this log_destination (default: csvlog for "
        ".csv, jsonlog for .json, else sql)",
    )
    parser.add_argument(
        "--pg-stat-statements",
        metavar="URL",
        help="read what was run in this database from the extension pg_stat_statements there",
    )
    parser.add_argument(
        "--session-state",
        type=_session_state,
        default=os.environ.get(_VARIABLE, ""),
        metavar="CLASS=POLICY,...",
        help=f"the setting session_state, where it is not the default ({_VARIABLE} counts, too)",
    )
    parser.add_argument(
        "--fail-on",
        choices=_FAILURES,
        default="pinned",
        help="the mildest outcome with exit status 1 (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _session_state(text: str) -> StatePolicies:
    try:
        return {**DEFAULTS, **parse(text)}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
