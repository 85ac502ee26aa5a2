"""Eight clients who share a pool, each with settings and rows of its own, and the orders in which they take turns.

A program is what one of them does: a generator that yields outside transactions, where somebody else may come in.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Final, Literal

DATABASE: Final = "people"
PATIENCE: Final = 30.0
"""Seconds until nobody can be expected to finish any more."""
SHIFTS: Final = {
    "UTC": 0,
    "Asia/Kolkata": 330,
    "America/Caracas": -240,
    "Asia/Tokyo": 540,
    "Africa/Lagos": 60,
    "Asia/Kathmandu": 345,
    "Pacific/Honolulu": -600,
    "Asia/Dubai": 240,
}
"""Minutes that time zones without summer time are ahead of UTC."""

Order = Literal["in turns", "at once"]
Program = Generator[None]
AsyncProgram = AsyncGenerator[None]


@dataclass(frozen=True)
class Person:
    """One client. What it finds in its session must be its own; the texts that it sends may be everybody's."""

    number: int

    @property
    def timezone(self) -> str:
        return [*SHIFTS][self.number]

    @property
    def shift(self) -> int:
        return SHIFTS[self.timezone]

    @property
    def application(self) -> str:
        return f"application {self.number}"

    @property
    def tenant(self) -> str:
        return f"it's tenant {self.number}"

    @property
    def schema(self) -> str:
        return f"schema_{self.number}"

    @property
    def options(self) -> str:
        return f"-c search_path={self.schema} -c timezone={self.timezone}"

    @property
    def session(self) -> list[object]:
        """What SESSION must return once timezone, application_name, search_path and app.tenant are set."""
        return [self.number, self.shift, self.application, self.tenant]

    def own_text(self, parameter: str, turn: int = 0) -> str:
        """A statement that nobody else sends: its parameter plus what `own_answer` adds."""
        return f"SELECT CAST({parameter} AS int) + {self.own_answer(0, turn)}"

    def own_answer(self, parameter: int, turn: int = 0) -> int:
        return parameter + 1000 * (self.number + 1) + 10 * turn


PEOPLE: Final = [Person(number) for number in range(len(SHIFTS))]

SESSION: Final = """
    SELECT
        (SELECT number FROM me),
        extract(timezone FROM timestamptz '2026-01-01 00:00+00')::int / 60,
        current_setting('application_name'),
        current_setting('app.tenant', true)
"""

ENTRANCE: Final = [
    "CREATE TYPE mood AS ENUM ('calm', 'keen')",
    *(
        f"""
        CREATE SCHEMA {person.schema};
        CREATE TABLE {person.schema}.me (number int);
        INSERT INTO {person.schema}.me VALUES ({person.number});
        CREATE TABLE {person.schema}.mine (value {"int" if person.number % 2 else "text"});
        INSERT INTO {person.schema}.mine VALUES ({person.number});
        """
        for person in PEOPLE
    ),
]
"""Everybody's table `me` has the same columns; the column of `mine` is of one type here, of another there."""


def play(order: Order, program: Callable[[Person], Program]) -> None:
    """Run the program for everybody: one step after the other by turns, or in a thread for each of them.

    By turns it is a thread's work, too: a driver that waits for ever can't be interrupted, but left alone.
    """
    programs = [program(person) for person in PEOPLE]
    groups = [programs] if order == "in turns" else [[each] for each in programs]
    outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
    for group in groups:
        Thread(target=_take_turns, args=(group, outcomes), daemon=True).start()
    for _ in groups:
        error = outcomes.get(timeout=PATIENCE)
        if error is not None:
            raise error


def _take_turns(programs: Sequence[Program], outcomes: "SimpleQueue[BaseException | None]") -> None:
    """Let everybody do a step, and again, in another order each time."""
    dice = random.Random(1)
    running = programs
    try:
        while running:
            running = [each for each in dice.sample(running, len(running)) if next(each, "done") is None]
    except BaseException as error:  # noqa: BLE001 - raised again by play()
        outcomes.put(error)
    else:
        outcomes.put(None)
    finally:
        for each in programs:
            each.close()


async def play_async(order: Order, program: Callable[[Person], AsyncProgram]) -> None:
    """Do the same with coroutines: one step after the other by turns, or a task for each person."""
    programs = [program(person) for person in PEOPLE]
    groups = [programs] if order == "in turns" else [[each] for each in programs]
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        for group in groups:
            tasks.create_task(_take_turns_async(group))


async def _take_turns_async(programs: Sequence[AsyncProgram]) -> None:
    dice = random.Random(1)
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(aclosing(each)) for each in programs]
        while running:
            running = [each for each in dice.sample(running, len(running)) if await anext(each, "done") is None]


Play = Callable[[Callable[[Person], Program]], None]
PlayAsync = Callable[[Callable[[Person], AsyncProgram]], Awaitable[None]]
