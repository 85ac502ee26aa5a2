"""What lint prints: a table with advice for people, JSON for machines."""

import json
from collections.abc import Iterator, Sequence
from typing import Final

from pooler.lint.findings import Finding, Findings, Outcome
from pooler.session_state.advice import ADVICE
from protocol.sql import State, words

_HEADER: Final = ("outcome", "class", "times", "first seen", "statement")
_ALIGNMENT: Final = "<<><<"
_GAP: Final = "  "


def as_text(findings: Findings, width: int | None) -> str:
    """Return the table, the advice and a summary. Rows are cut off at `width` characters, unless it is None."""
    return "\n".join([*_text(findings, width), ""])


def _text(findings: Findings, width: int | None) -> Iterator[str]:
    found = [finding for finding in findings.gravest_first() if finding.outcome is not Outcome.IGNORED]
    if found:
        rows = [_HEADER, *map(_row, found)]
        yield from (line[:width].rstrip() for line in _columns(rows))
        yield ""
        to_change = {finding.state for finding in found if finding.outcome is not Outcome.TRACKED}
        yield from (f"{words(state)[0]}: {ADVICE[state]}" for state in State if state in to_change)
        yield from [""] if to_change else []
    totals = ", ".join(f"{findings.totals[outcome]:,} {outcome}" for outcome in Outcome)
    yield f"{findings.statements:,} statements: {totals}."


def _row(finding: Finding) -> tuple[str, ...]:
    return finding.outcome, words(finding.state)[0], f"{finding.times:,}", finding.first, finding.statement


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, _ALIGNMENT, strict=True)
        yield _GAP.join(f"{cell:{side}{width}}" for cell, width, side in cells).rstrip()


def as_json(findings: Findings, notes: Sequence[str]) -> str:
    """Return one JSON object with everything that was found; `notes` say what was left out."""
    document = {
        "statements": findings.statements,
        "policy": {words(state)[0]: findings.policy.action(state) for state in State},
        "totals": {outcome: findings.totals[outcome] for outcome in Outcome},
        "findings": [
            {
                "outcome": finding.outcome,
                "class": words(finding.state)[0],
                "times": finding.times,
                "first": finding.first,
                "statement": finding.statement,
                "advice": ADVICE[finding.state],
            }
            for finding in findings.gravest_first()
        ],
        "notes": list(notes),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
