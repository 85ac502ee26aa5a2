"""Writes results as the Markdown table of docs/benchmarks.md. The prose around it is written by hand."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from benchmarks.figures import Against, Bound
from benchmarks.measure import Measure
from benchmarks.results import PGBOUNCER, POOLERS, Cpu, Results, Row, Spread, compare

BEGIN = "<!-- benchmarks: begin, written by `make bench` -->"
END = "<!-- benchmarks: end -->"

_HEAD = (
    "measure",
    "pgfunnel",
    "PgBouncer",
    "ratio (lowest to highest)",
    "must reach",
    "verdict",
    "bare loop (ratio)",
)
_CPU_WORDS = (
    "Where the time goes in the rows that were missed: CPU of the pooler's process in microseconds, "
    "medians of the rounds; then how far pgfunnel and the bare loop are from PgBouncer."
)
_CPU_HEAD = ("measure", "per", *POOLERS, "pgfunnel - PgBouncer", "bare loop - PgBouncer")


def rows(results: Results, measures: Iterable[Measure]) -> Iterator[Row]:
    """Compare figure by figure, in the table's order."""
    for measure in measures:
        for figure in measure.figures:
            yield compare(results, measure.name, figure)


def table(results: Results, measures: Iterable[Measure]) -> str:
    """Render one line per figure."""
    return _markdown([_HEAD, *(_cells(row) for row in rows(results, measures))])


def explanation(results: Results, measures: Sequence[Measure]) -> str:
    """Say of missed rows what CPU went where. Empty if none was missed, or only such as have no CPU."""
    missed = {row.measure for row in rows(results, measures) if row.kept is False}
    lines = [cells for measure in measures if measure.name in missed for cells in _cpu_cells(results, measure)]
    return f"{_CPU_WORDS}\n\n{_markdown([_CPU_HEAD, *lines])}" if lines else ""


def section(results: Results, measures: Sequence[Measure]) -> str:
    """Render the table with the machine and the versions that it stands for."""
    facts = [
        ("date", results.date),
        *results.machine.items(),
        *results.versions.items(),
        *((k, f"{v:g}") for k, v in results.options.items()),
    ]
    parts = [*_preface(results, measures), table(results, measures), explanation(results, measures), _listed(facts)]
    return "\n".join([BEGIN, "\n\n".join(part for part in parts if part), END])


def replaced(document: str, generated: str) -> str:
    """Put a section in the place of the one before. Raises ValueError if the document has no place for it."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks {BEGIN} and {END}")
    return head + generated + tail


def _preface(results: Results, measures: Iterable[Measure]) -> Iterator[str]:
    beside_others = {measure.name for measure in measures if measure.beside_others}
    if beside_others and not any(sample.pooler == PGBOUNCER for sample in results.samples):
        yield "**PgBouncer is not installed here: no ratio could be judged.**"


def _listed(facts: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts)


def _markdown(lines: Sequence[tuple[str, ...]]) -> str:
    head, *body = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, tuple("---" for _ in head), *body))


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
        _value(row.bare, unit) + (f" ({row.bare_ratio.median:.2f})" if row.bare_ratio else ""),
    )


def _cpu_cells(results: Results, measure: Measure) -> Iterator[tuple[str, ...]]:
    ours, theirs, bare = (Cpu.of(results, measure.name, pooler) for pooler in POOLERS)
    if ours:
        used = (_apportioned(cpu) for cpu in (ours, theirs, bare))
        yield (measure.name, measure.operation, *used, _apart(ours, theirs), _apart(bare, theirs))


def _apart(ours: Cpu | None, theirs: Cpu | None) -> str:
    if ours is None or theirs is None:
        return "-"
    return _apportioned(Cpu(ours.total - theirs.total, ours.user - theirs.user), "+")


def _apportioned(cpu: Cpu | None, sign: Literal["", "+"] = "") -> str:
    if cpu is None:
        return "-"
    return f"{cpu.total:{sign}.1f} (user {cpu.user:{sign}.1f}, system {cpu.system:{sign}.1f})"


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
