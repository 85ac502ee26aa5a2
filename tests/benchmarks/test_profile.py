"""Where CPU time is said to go."""

import signal
import time
from collections.abc import Iterator

import pytest

from benchmarks.profile import Profile
from benchmarks.sampler import Sampler


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    before = signal.getsignal(signal.SIGPROF)
    sampler = Sampler()
    sampler.start(0.001)
    yield sampler
    sampler.stop()
    signal.signal(signal.SIGPROF, before)


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_profile_counts_a_function_itself_and_what_it_called() -> None:
    profile = Profile.of(
        ["main (a.py:1);read (b.c:7) 3", "main (a.py:2);read (b.c:8);hop (c.py:1) 5", "main (a.py:2) 1"]
    )
    assert profile.own == {"read (b.c)": 3, "hop (c.py)": 5, "main (a.py)": 1}
    assert profile.total == {"main (a.py)": 9, "read (b.c)": 8, "hop (c.py)": 5}
    assert profile.lines == {"read (b.c:7)": 3, "hop (c.py:1)": 5, "main (a.py:2)": 1}


def test_a_function_that_calls_itself_is_counted_once() -> None:
    assert Profile.of(["walk (a.py:1);walk (a.py:1) 4"]).total == {"walk (a.py)": 4}


def test_cpu_is_seen_in_the_function_that_uses_it(sampler: Sampler) -> None:
    burn(0.3)
    profile = Profile.of(sampler.lines().splitlines())
    assert profile.own["burn (benchmarks/test_profile.py)"] > 0.8 * profile.own.total() > 0


def test_waiting_is_not_seen(sampler: Sampler) -> None:
    time.sleep(0.1)
    assert sampler.stacks.total() <= 2
