"""The leak torture: many clients of mixed habits, each query carrying a token that only its own answer may show.

Clients pipeline, fail, cancel, die, read slowly and send half messages, all from one seed. A token that reaches
another client, an answer out of order, a transaction that someone else left open, a cancel that hits the wrong query
or a client turned away fails it. It knows nothing of pgfunnel: straight at Postgres it finds nothing either.

    python -m tests.support.torture postgresql://user:password@host:port/dbname --seconds 60 --clients 200
"""

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote, urlsplit

from tests.support.torture_client import Client, Report, Target, TortureError
from tests.support.torture_habits import HABITS
from tests.support.wire import ServerError

MOST_FAILURES: Final = 100


async def torture(
    host: str,
    port: int,
    *,
    user: str = "postgres",
    dbname: str = "postgres",
    password: str = "",
    seconds: float = 10.0,
    clients: int = 50,
    seed: int = 0,
) -> Report:
    """Let `clients` at a time practise their habits for `seconds`; give up after MOST_FAILURES."""
    report = Report()
    target = Target(host, port, user, dbname, password)
    numbers = itertools.count(1)
    started = time.monotonic()

    def lives() -> Iterator[Client]:
        while time.monotonic() - started < seconds and len(report.failures) < MOST_FAILURES:
            number = next(numbers)
            yield Client(target, number, random.Random(f"{seed}/{number}"), report)

    async def one_after_another() -> None:
        for client in lives():
            await _live(client)

    await asyncio.gather(*(one_after_another() for _ in range(clients)))
    report.seconds = time.monotonic() - started
    return report


async def _live(client: Client) -> None:
    """Connect, practise some habits, leave; what goes wrong goes to the report."""
    name = "connect"
    try:
        await client.connect(receive_buffer=4096 if client.rng.random() < 0.1 else None)
        for habit in client.rng.choices(list(HABITS), list(HABITS.values()), k=client.rng.randint(1, 10)):
            name = habit.__name__
            await habit(client)
            client.report.habits[name] += 1
            if client.gone:
                break
        await client.leave()
    except (TortureError, ServerError, OSError, EOFError) as error:  # TimeoutError is an OSError
        client.report.failures.append(f"{name}: {type(error).__name__} {error}")
        client.vanish()


def main() -> int:
    """Run it from the command line; status 1 after a failure."""
    arguments = argparse.ArgumentParser(description="Look for answers that reach the wrong client.")
    arguments.add_argument("url", help="postgresql://user:password@host:port/dbname")
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--clients", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = arguments.parse_args()
    url = urlsplit(given.url)
    print(f"seed {given.seed}")
    report = asyncio.run(
        torture(
            url.hostname or "127.0.0.1",
            url.port or 6432,
            user=unquote(url.username or "postgres"),
            dbname=unquote(url.path[1:]) or "postgres",
            password=unquote(url.password or ""),
            seconds=given.seconds,
            clients=given.clients,
            seed=given.seed,
        )
    )
    print(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
