"""Runs pgfunnel with a sampler inside that counts its stacks by CPU used, not by time passed.

    python -m benchmarks.sampler STACKS [pgfunnel's arguments]

Where the poolers, Postgres and pgbench share cores, a profiler that looks on from outside by the clock mostly finds
the process waiting for one of them. The kernel's profiling timer ticks only while this process runs.
"""

import dis
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from pooler.main import main

_RESUME = dis.opmap["RESUME"]
ENTERED = " [on entry]"
"""Marks a sample at a function's first instruction: Python was entered only then, the time went by before, in C."""


class Sampler:
    """Counts stacks, outermost function first, from SIGPROF."""

    def __init__(self) -> None:
        self.stacks: Counter[str] = Counter()

    def start(self, interval: float) -> None:
        """Take a sample every `interval` seconds of CPU, or every tick of the kernel if that is longer."""
        signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, interval, interval)

    def stop(self) -> None:
        """Take no more samples."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def lines(self) -> str:
        """Give the stacks in the collapsed form that flame graph tools read: `outer;...;inner count`."""
        return "".join(f"{stack} {count}\n" for stack, count in self.stacks.items())

    def _tick(self, _signal: int, frame: FrameType | None) -> None:
        entered = frame is not None and frame.f_code.co_code[frame.f_lasti] == _RESUME
        stack: list[str] = []
        while frame is not None:
            code = frame.f_code
            stack.append(f"{code.co_qualname} ({'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno})")
            frame = frame.f_back
        self.stacks[";".join(reversed(stack)) + (ENTERED if entered else "")] += 1


if __name__ == "__main__":
    path = Path(sys.argv.pop(1))
    sampler = Sampler()
    sampler.start(0.001)
    try:
        main()
    finally:
        sampler.stop()
        path.write_text(sampler.lines())
