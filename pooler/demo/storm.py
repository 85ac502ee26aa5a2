"""A storm of function-like clients at one address, and what they went through.

The clients are the same wherever they connect to: nothing here knows whether that is Postgres or a pooler. They
are asyncpg's, on uvloop: pgfunnel depends on it anyway, and it takes the least of the CPU that all here share.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import asyncpg

from pooler.demo.logistics import USER, OrderApi, WrongAnswerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

_TIMEOUT: Final = 30.0
_WATCH_INTERVAL: Final = 0.02
_COUNT_SERVER_CONNECTIONS: Final = "select count(*) from pg_stat_activity where usename = $1"
# What the server refuses, what breaks the protocol, a driver out of step, a wrong answer, a lost connection.
_FAILURES: Final = (
    asyncpg.PostgresError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
    WrongAnswerError,
    OSError,
)


class Failure(NamedTuple):
    """Why a client gave up: an SQLSTATE, or "-" where no server said anything, and its meaning in words."""

    sqlstate: str
    meaning: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Name an error: asyncpg's class names are the SQLSTATEs' condition names."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()
        return cls(getattr(error, "sqlstate", None) or "-", words)


@dataclass(slots=True)
class Outcome:
    """What a storm measured; times in seconds, of what succeeded."""

    clients: int
    connect_times: list[float] = field(default_factory=list)
    request_times: list[float] = field(default_factory=list)
    failures: Counter[Failure] = field(default_factory=Counter)
    most_server_connections: int = 0

    @property
    def requests(self) -> int:
        """How many requests there were to serve: those of clients that never got a connection count."""
        return self.clients * OrderApi.REQUESTS

    @property
    def served(self) -> int:
        """How many requests got their answer."""
        return len(self.request_times)


@dataclass(frozen=True, slots=True)
class Storm:
    """`clients` functions that start evenly spread over `start_within` seconds.

    Each connects, serves its requests with about `own_work` seconds of other work after each, and closes: for
    most of the time all of them are alive at once. A function's first error is its end; it does not try again.
    """

    clients: int
    own_work: float
    start_within: float = 1.0

    async def run(self, url: str, watch_url: str, on_end: Callable[[Outcome], object]) -> Outcome:
        """Send the storm to `url`; `on_end` hears of each client that ends.

        Meanwhile the server connections in use are counted over a superuser's connection to `watch_url`.
        """
        outcome = Outcome(self.clients)
        async with _watching(watch_url, outcome), asyncio.TaskGroup() as clients:
            for number in range(self.clients):
                clients.create_task(self._client(number, url, outcome, on_end))
        return outcome

    async def _client(self, number: int, url: str, outcome: Outcome, on_end: Callable[[Outcome], object]) -> None:
        await asyncio.sleep(self.start_within * number / self.clients)
        try:
            await self._function(Random(number), url, outcome)
        except _FAILURES as error:
            outcome.failures[Failure.of(error)] += 1
        on_end(outcome)

    async def _function(self, random: Random, url: str, outcome: Outcome) -> None:
        with _timed(outcome.connect_times):
            # Without a statement cache: in transaction mode the next statement may meet another server connection.
            connection = await asyncpg.connect(
                url, ssl=False, statement_cache_size=0, timeout=_TIMEOUT, command_timeout=_TIMEOUT
            )
        try:
            for request in OrderApi(connection, random).requests():
                with _timed(outcome.request_times):
                    await request()
                await asyncio.sleep(random.uniform(0.5, 1.5) * self.own_work)
        finally:
            await connection.close(timeout=_TIMEOUT)


@contextlib.contextmanager
def _timed(times: list[float]) -> Iterator[None]:
    """Note how long the block took, unless it failed."""
    start = time.perf_counter()
    yield
    times.append(time.perf_counter() - start)


@contextlib.asynccontextmanager
async def _watching(url: str, outcome: Outcome) -> AsyncIterator[None]:
    connection = await asyncpg.connect(url)
    watcher = asyncio.create_task(_watch(connection, outcome))
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        await connection.close()


async def _watch(connection: asyncpg.Connection, outcome: Outcome) -> None:
    while True:
        in_use = await connection.fetchval(_COUNT_SERVER_CONNECTIONS, USER)
        outcome.most_server_connections = max(outcome.most_server_connections, in_use)
        await asyncio.sleep(_WATCH_INTERVAL)


def percentile(values: Sequence[float], rank: float) -> float | None:
    """Return the smallest value that `rank` per cent of the values do not exceed; None if there are none."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(len(values) * rank / 100) - 1, 0)]
