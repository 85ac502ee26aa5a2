"""What a run leaves behind: raw samples, the machine, the versions; and the statistics that are made of them.

Measures nothing and prints nothing.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.figures import Against, Figure

PGFUNNEL = "pgfunnel"
PGBOUNCER = "PgBouncer"


@dataclass(frozen=True, slots=True)
class Sample:
    """One load on one pooler."""

    measure: str
    round: int
    pooler: str
    figures: Mapping[str, float]


@dataclass(slots=True)
class Results:
    """Everything that one run found out."""

    date: str
    machine: dict[str, str]
    versions: Mapping[str, str]
    options: Mapping[str, float]
    samples: list[Sample] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write as JSON, one sample per line so that runs can be compared with diff."""
        document = asdict(self)
        samples = ",\n  ".join(json.dumps(sample) for sample in document.pop("samples"))
        head = json.dumps(document, indent=1).removesuffix("\n}")
        path.write_text(f'{head},\n "samples": [\n  {samples}\n ]\n}}\n')

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        document = json.loads(path.read_text())
        samples = [Sample(**sample) for sample in document.pop("samples")]
        return cls(**document, samples=samples)

    def by_round(self, measure: str, pooler: str, figure: str) -> dict[int, float]:
        """One figure of one pooler, round by round."""
        return {
            sample.round: sample.figures[figure]
            for sample in self.samples
            if (sample.measure, sample.pooler) == (measure, pooler) and figure in sample.figures
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """None of nothing."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, compared. `kept` is None where there is no bound, or nothing to hold it against."""

    figure: Figure
    pgfunnel: Spread | None
    pgbouncer: Spread | None
    ratio: Spread | None

    @property
    def kept(self) -> bool | None:
        """Say whether the bound is kept, by the median. What could not be measured keeps none."""
        bound = self.figure.bound
        if self.pgfunnel is None:
            return False
        if bound is None:
            return None
        judged = self.ratio if bound.against is Against.PGBOUNCER else self.pgfunnel
        return None if judged is None else bound.holds(judged.median)


def compare(results: Results, measure: str, figure: Figure) -> Row:
    """Put the two side by side. Ratios are taken within each round, where conditions were most alike."""
    ours, theirs = (results.by_round(measure, pooler, figure.name) for pooler in (PGFUNNEL, PGBOUNCER))
    ratios = [value / theirs[number] for number, value in ours.items() if theirs.get(number)]
    return Row(figure, Spread.of([*ours.values()]), Spread.of([*theirs.values()]), Spread.of(ratios))


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Whose turn it is, round by round; every other round runs backwards, so that drift favours nobody."""
    for number in range(1, rounds + 1):
        for name in names if number % 2 else reversed(names):
            yield number, name
