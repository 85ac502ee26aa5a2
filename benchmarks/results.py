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
BARE = "bare loop"
POOLERS = (PGFUNNEL, PGBOUNCER, BARE)


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
        path.parent.mkdir(parents=True, exist_ok=True)
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

    measure: str
    figure: Figure
    pgfunnel: Spread | None
    pgbouncer: Spread | None
    bare: Spread | None
    ratio: Spread | None
    """pgfunnel to PgBouncer."""
    bare_ratio: Spread | None
    """The bare loop to PgBouncer: never judged."""

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
    """Put the poolers side by side. Ratios are taken within each round, where conditions were most alike."""
    ours, theirs, bare = (results.by_round(measure, pooler, figure.name) for pooler in POOLERS)
    values = (Spread.of([*rounds.values()]) for rounds in (ours, theirs, bare))
    ratios = (
        Spread.of([value / theirs[number] for number, value in rounds.items() if theirs.get(number)])
        for rounds in (ours, bare)
    )
    return Row(measure, figure, *values, *ratios)


@dataclass(frozen=True, slots=True)
class Cpu:
    """What one operation cost a pooler, in microseconds: medians."""

    total: float
    user: float

    @property
    def system(self) -> float:
        """Time in the kernel."""
        return self.total - self.user

    @classmethod
    def of(cls, results: Results, measure: str, pooler: str) -> Self | None:
        """None where nothing was measured, or no CPU."""
        total, user = (
            Spread.of([*results.by_round(measure, pooler, figure).values()]) for figure in ("cpu_us", "user_us")
        )
        return cls(total.median, user.median) if total and user else None


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Whose turn it is, round by round; every other round runs backwards, so that drift favours nobody."""
    for number in range(1, rounds + 1):
        for name in names if number % 2 else reversed(names):
            yield number, name
