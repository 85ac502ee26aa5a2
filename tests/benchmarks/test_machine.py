"""What is said about the machine."""

import os
import subprocess
import sys

import pytest

from benchmarks.machine import OthersMeter, cpu_model, label

BURN = "import time\nwhile time.process_time() < 0.5: pass"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Intel(R) Xeon(R) Processor", "intel-xeon-2-cores"),
        ("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", "intel-core-i7-8650u-2-cores"),
        ("aarch64", "aarch64-2-cores"),
    ],
)
def test_a_machine_is_named_shortly(model: str, expected: str) -> None:
    assert label({"cpu": model, "cores": "2"}) == expected


def test_the_processor_is_read_from_cpuinfo() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: Example 9000\nflags\t: fpu\n") == "Example 9000"
    assert cpu_model("processor\t: 0\nBogoMIPS\t: 50.00\n") == os.uname().machine


def test_cpu_of_a_process_that_is_not_ours_is_noticed() -> None:
    with subprocess.Popen([sys.executable, "-c", BURN]) as process:
        meter = OthersMeter()
        # Waited for, but not reaped: its CPU is in nobody's account but the machine's.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        before = meter.share()
    assert before > meter.share()
    assert before > 0.1 / (os.cpu_count() or 1)
