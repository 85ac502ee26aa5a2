"""Thousands of random steps through one pool: no foreign byte, no lost server, no place in the queue overtaken.

PGFUNNEL_SIMULATION_SECONDS makes it run longer; PGFUNNEL_SIMULATION_SEED repeats one seed that has failed.
"""

import os
import random
import time

import pytest

from tests.simulation.watched import WatchedWorld
from tests.simulation.world import World

SECONDS = float(os.environ.get("PGFUNNEL_SIMULATION_SECONDS", "8"))
STEPS = 2000


def play(seed: int) -> None:
    world = WatchedWorld(seed) if seed % 2 else World(seed)
    step = -1
    try:
        for step in range(STEPS):  # noqa: B007 - told if it fails
            world.step()
        world.settle()
        world.check_end()
    except Exception as error:
        error.add_note(f"PGFUNNEL_SIMULATION_SEED={seed}, step {step} of {STEPS}")
        raise


@pytest.mark.timeout(SECONDS + 110)
def test_nothing_that_happens_in_any_order_breaks_an_invariant() -> None:
    given = os.environ.get("PGFUNNEL_SIMULATION_SEED")
    if given:
        play(int(given))
        return
    deadline = time.monotonic() + SECONDS
    seeds = random.Random(20_26)
    if os.environ.get("PGFUNNEL_SIMULATION_SECONDS"):
        seeds = random.Random()
    played = 0
    while time.monotonic() < deadline:
        play(seeds.randrange(1 << 32))
        played += 1
    assert played > 1
