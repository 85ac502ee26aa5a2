"""Writes results as the Markdown table of docs/benchmarks.md. The prose around it is written by hand."""

from collections.abc import Iterable, Iterator

from benchmarks.figures import Against, Bound
from benchmarks.measures import Measure
from benchmarks.results import PGBOUNCER, Results, Row, Spread, compare

BEGIN = "<!-- benchmarks: begin, written by `make bench` -->"
END = "<!-- benchmarks: end -->"

_HEAD = ("measure", "pgfunnel", "PgBouncer", "ratio (lowest to highest)", "must reach", "verdict")


def rows(results: Results, measures: Iterable[Measure]) -> Iterator[Row]:
    """Compare figure by figure, in the table's order."""
    for measure in measures:
        for figure in measure.figures:
            yield compare(results, measure.name, figure)


def table(results: Results, measures: Iterable[Measure]) -> str:
    """Render one line per figure."""
    lines = [_HEAD, tuple("---" for _ in _HEAD), *(_cells(row) for row in rows(results, measures))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def section(results: Results, measures: Iterable[Measure]) -> str:
    """Render the table with the machine and the versions that it stands for."""
    facts = [
        ("date", results.date),
        *results.machine.items(),
        *results.versions.items(),
        *((k, f"{v:g}") for k, v in results.options.items()),
    ]
    return "\n".join([BEGIN, *_preface(results), table(results, measures), "", *_listed(facts), END])


def replaced(document: str, generated: str) -> str:
    """Put a section in the place of the one before. Raises ValueError if the document has no place for it."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks {BEGIN} and {END}")
    return head + generated + tail


def _preface(results: Results) -> Iterator[str]:
    if not any(sample.pooler == PGBOUNCER for sample in results.samples):
        yield "**PgBouncer is not installed here: pgfunnel ran alone, and no ratio could be judged.**"
        yield ""


def _listed(facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, value in facts:
        yield f"- {name}: {value}"


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {True: "met", False: "**missed**", None: ""}[row.kept] if row.pgfunnel else "**failed**"
    ratio = f"{row.ratio.median:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})" if row.ratio else "-"
    unit = row.figure.unit
    return (
        row.figure.title,
        _value(row.pgfunnel, unit),
        _value(row.pgbouncer, unit),
        ratio,
        _bound(row),
        verdict,
    )


def _value(spread: Spread | None, unit: str) -> str:
    if spread is None:
        return "-"
    median = spread.median
    digits = 0 if median >= 1000 or median % 1 == 0 else 1 if median >= 10 else 2
    return f"{median:,.{digits}f} {unit}".replace(" /s", "/s").rstrip()


def _bound(row: Row) -> str:
    match row.figure.bound:
        case None:
            return ""
        case Bound(sign, limit, Against.PGBOUNCER):
            return f"{sign} {limit:g}"
        case Bound(sign, limit):
            return f"{sign} {limit:g} {row.figure.unit}".rstrip()
