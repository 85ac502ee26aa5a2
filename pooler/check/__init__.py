"""The command `pgfunnel check`: reads the configuration, logs in at each database, and says what it has found."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence

import uvloop

from config.errors import ConfigurationError
from config.load import load
from pooler.check.findings import failures, table, warnings
from pooler.check.visits import Visits


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Return 0 if every database can be used, 1 if one can't, 2 for a wrong configuration."""
    try:
        loaded = load(argv, environ)
        visits = Visits(loaded)
    except (ConfigurationError, ValueError) as error:
        sys.stderr.write(f"pgfunnel: {error}\n")
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        findings = runner.run(visits.make())
    wrong = list(failures(findings))
    sys.stdout.write(table(findings))
    for kind, texts in (
        ("note", loaded.notes),
        ("warning", [*visits.unvisited, *warnings(findings)]),
        ("FAILED", wrong),
    ):
        for text in texts:
            sys.stdout.write(f"{kind}: {text}\n")
    return 1 if wrong or any(finding.failure for finding in findings) else 0
