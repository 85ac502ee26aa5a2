"""Eight clients who share a pool, each with settings and rows of its own, and the orders in which they take turns.

A program is what one of them does: a generator that yields outside transactions, where somebody else may come in.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from dataclasses import dataclass
from typing import Final, Literal

DATABASE: Final = "people"
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
    """Run the program for everybody: one step after the other by turns, or in a thread for each of them."""
    with ExitStack() as stack:
        programs = [stack.enter_context(closing(program(person))) for person in PEOPLE]
        if order == "in turns":
            take_turns(programs)
            return
        with ThreadPoolExecutor(len(programs)) as threads:
            running = [threads.submit(finish, each) for each in programs]
        for each in running:
            each.result()


def take_turns(programs: Sequence[Program]) -> None:
    """Let everybody do a step, and again, in another order each time."""
    dice = random.Random(1)
    while programs:
        programs = dice.sample(programs, len(programs))
        programs = [each for each in programs if next(each, "done") is None]


def finish(program: Program) -> None:
    for _ in program:
        pass


async def play_async(order: Order, program: Callable[[Person], AsyncProgram]) -> None:
    """Do the same with coroutines: one step after the other by turns, or a task for each person."""
    async with AsyncExitStack() as stack:
        programs = [await stack.enter_async_context(aclosing(program(person))) for person in PEOPLE]
        if order == "in turns":
            await take_turns_async(programs)
        else:
            await asyncio.gather(*map(finish_async, programs))


async def take_turns_async(programs: Sequence[AsyncProgram]) -> None:
    dice = random.Random(1)
    while programs:
        programs = dice.sample(programs, len(programs))
        programs = [each for each in programs if await step(each)]


async def step(program: AsyncProgram) -> bool:
    """Say whether there is more to do."""
    return await anext(program, "done") is None


async def finish_async(program: AsyncProgram) -> None:
    async for _ in program:
        pass


Play = Callable[[Callable[[Person], Program]], None]
PlayAsync = Callable[[Callable[[Person], AsyncProgram]], Awaitable[None]]
