"""Runs measures: all poolers on the same Postgres, in turns, after a warm-up that is thrown away."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from benchmarks.measure import Measure
from benchmarks.results import Sample, turns
from benchmarks.servers import BareLoop, PgBouncer, PgFunnel, Pooler
from benchmarks.workload import DATABASE, PASSWORD, USER, Workload, users_of

Report = Callable[[str], None]
_START_SECONDS = 0.7  # a guess of what a pooler takes until it listens
AnyPooler = TypeVar("AnyPooler", bound=Pooler)


@dataclass(slots=True)
class Progress:
    """Prints one line per sample, with a guess of how long the rest takes."""

    planned: float
    say: Report
    done: float = 0.0
    began: float = 0.0

    def warmed_up(self, expected: float) -> None:
        """Note what was done and gave no sample."""
        self.done += expected

    def sampled(self, sample: Sample, expected: float) -> None:
        """Report a sample and correct the guess by how long the earlier ones really took."""
        self.done += expected
        left = (time.monotonic() - self.began) / self.done * (self.planned - self.done)
        figures = "  ".join(f"{name} {value:,.5g}" for name, value in sample.figures.items())
        whose = f"{sample.measure:<22} round {sample.round}  {sample.pooler:<9}"
        self.say(f"{whose}  {figures}  (about {clock(left)} left)")


def clock(seconds: float) -> str:
    """Write minutes and seconds as 1:05."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


def contenders() -> tuple[type[Pooler], ...]:
    """Name the poolers that are installed. PgBouncer is in the middle: next to whom it is compared with."""
    return (PgFunnel, PgBouncer, BareLoop) if PgBouncer.version() else (PgFunnel, BareLoop)


def settings_of(measure: Measure) -> Mapping[str, str]:
    """Give the settings of all poolers; all else is at its default."""
    return {
        "pool_mode": "transaction",
        "default_pool_size": str(measure.pool_size),
        "max_client_conn": "10000",
        "auth_type": measure.auth_type,
        "log_connections": "0",
        "log_disconnections": "0",
    }


def prepare(contender: type[AnyPooler], measure: Measure, workload: Workload) -> AnyPooler:
    """Make a pooler for a measure, not started yet."""
    postgres = workload.postgres
    users = {USER: PASSWORD} if measure.plain_passwords else users_of(postgres)
    return contender(settings_of(measure), postgres.port, DATABASE, users, tls=measure.tls)


def expected_seconds(measures: Sequence[Measure], workload: Workload, rounds: int) -> float:
    """Guess how long a run takes, warm-ups included."""
    return sum(
        len(_names(measure))
        * (_warm_up_seconds(measure, workload) + measure.expected_seconds(workload) * _rounds(measure, rounds))
        for measure in measures
    )


def run_all(measures: Sequence[Measure], workload: Workload, rounds: int, say: Report) -> list[Sample]:
    """Run every measure and return all samples. One that fails is left out, and the others go on."""
    progress = Progress(expected_seconds(measures, workload, rounds), say, began=time.monotonic())
    samples: list[Sample] = []
    for measure in measures:
        try:
            samples += _run(measure, workload, rounds, progress)
        except (OSError, RuntimeError, ValueError) as error:
            say(f"{measure.name} failed: {error}")
    return samples


def _run(measure: Measure, workload: Workload, rounds: int, progress: Progress) -> list[Sample]:
    samples = []
    warm_up = _warm_up(workload)
    with ExitStack() as stack:
        poolers = {
            contender.name: stack.enter_context(prepare(contender, measure, workload))
            for contender in contenders()
            if contender.name in _names(measure)
        }
        for pooler in poolers.values():
            measure.sample(pooler, warm_up)
            progress.warmed_up(_warm_up_seconds(measure, workload))
        for number, name in turns([*poolers], _rounds(measure, rounds)):
            sample = Sample(measure.name, number, name, measure.sample(poolers[name], workload))
            samples.append(sample)
            progress.sampled(sample, measure.expected_seconds(workload))
    return samples


def _warm_up(workload: Workload) -> Workload:
    return replace(workload, seconds=min(workload.seconds, 1), scale=workload.scale / 10)


def _warm_up_seconds(measure: Measure, workload: Workload) -> float:
    return _START_SECONDS + measure.expected_seconds(_warm_up(workload))


def _names(measure: Measure) -> list[str]:
    return [
        contender.name
        for contender in contenders()
        if contender is PgFunnel or (measure.beside_others and contender.serves(measure.auth_type, tls=measure.tls))
    ]


def _rounds(measure: Measure, rounds: int) -> int:
    return min(rounds, measure.most_rounds) if measure.most_rounds else rounds
