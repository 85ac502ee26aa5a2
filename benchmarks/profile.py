"""Runs one measure on pgfunnel alone under py-spy and prints where its time goes."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks import run
from benchmarks.measures import Measure
from benchmarks.servers import PgFunnel
from benchmarks.workload import Workload

_RATE = 400
_SHOWN = 30
_LINE_NUMBER = re.compile(r":\d+\)")


def profile(measure: Measure, workload: Workload, say: run.Report) -> None:
    """Sample stacks while the measure runs, and leave them in a file that speedscope.app shows."""
    py_spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if py_spy is None:
        say("py-spy is not installed: pip install py-spy")
        return
    stacks = Path(tempfile.gettempdir()) / f"pgfunnel-{measure.name}.stacks"
    with run.prepare(PgFunnel, measure, workload) as pooler:
        measure.sample(pooler, workload)
        recording = ["record", "--native", "--format", "raw", "--rate", str(_RATE), "--output", str(stacks)]
        recorder = subprocess.Popen(
            [py_spy, *recording, "--duration", str(round(workload.seconds)), "--pid", str(pooler.pid)],
            stdout=subprocess.DEVNULL,
        )
        while recorder.poll() is None:
            measure.sample(pooler, workload)
    own, total = own_and_total(stacks.read_text().splitlines())
    samples = sum(own.values())
    say("  own  total  where")
    for frame, count in own.most_common(_SHOWN):
        say(f"{count / samples:5.1%}  {total[frame] / samples:5.1%}  {frame}")
    say(f"stacks: {stacks}")


def own_and_total(stacks: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """Count samples in each function itself, and below it, from lines of `outer;...;inner count`."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = _LINE_NUMBER.sub(")", stack).split(";")
        own[frames[-1]] += int(count)
        for frame in {*frames}:
            total[frame] += int(count)
    return own, total
