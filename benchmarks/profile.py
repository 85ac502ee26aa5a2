"""Runs one measure on pgfunnel alone, with a sampler inside, and prints where its CPU time goes."""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks import run
from benchmarks.measure import Measure
from benchmarks.servers import PgFunnel
from benchmarks.workload import Workload

_SAMPLES = 3
_SHOWN = 25
_LINE_NUMBER = re.compile(r":\d+\)")


class SampledPgFunnel(PgFunnel):
    """pgfunnel under benchmarks.sampler."""

    @property
    def stacks(self) -> Path:
        """Where the stacks are once it has stopped."""
        return Path(tempfile.gettempdir()) / "pgfunnel.stacks"

    def command(self) -> list[str]:
        """Run the sampler, which runs pgfunnel."""
        return [sys.executable, "-m", "benchmarks.sampler", str(self.stacks)]


@dataclass(slots=True)
class Profile:
    """Samples by function: in itself, and in itself or below it; and by the line that was running."""

    own: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, stacks: Iterable[str]) -> Self:
        """Count collapsed stacks: lines of `outer;...;inner count`."""
        profile = cls()
        for line in stacks:
            stack, _, count = line.rpartition(" ")
            functions = _LINE_NUMBER.sub(")", stack).split(";")
            profile.own[functions[-1]] += int(count)
            profile.lines[stack.rpartition(";")[2]] += int(count)
            for function in {*functions}:
                profile.total[function] += int(count)
        return profile


def profile(measure: Measure, workload: Workload, say: run.Report) -> None:
    """Load pgfunnel with a measure and print what its samples say."""
    with run.prepare(SampledPgFunnel, measure, workload) as pooler:
        stacks = pooler.stacks
        for _ in range(_SAMPLES):
            measure.sample(pooler, workload)
    found = Profile.of(stacks.read_text().splitlines())
    samples = found.own.total()
    say(f"{samples} samples of CPU time; {stacks} has the stacks\n\n  own  total  function")
    for name, count in found.own.most_common(_SHOWN):
        say(f"{count / samples:5.1%}  {found.total[name] / samples:5.1%}  {name}")
    say("\n  own  line")
    for name, count in found.lines.most_common(_SHOWN):
        say(f"{count / samples:5.1%}  {name}")
