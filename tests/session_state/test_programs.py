"""Session state through pgfunnel is what it is on a connection of one's own: the programs are in programs/.

Each is run straight at Postgres, then through a pgfunnel with two server connections and a crowd that pushes its
clients from one to the other. All that its clients see has to be equal, and the crowd must not see anything of it.
README.md says how to add one.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.session_state.crowd import LeakError
from tests.session_state.notation import Program, read_programs
from tests.session_state.runner import Stage, difference, set_up, transcript
from tests.support.pgfunnel import Pgfunnel

OLDEST, NEWEST = EmbeddedPostgres.available_versions()[0], EmbeddedPostgres.available_versions()[-1]
# The last one is unknown to Postgres, which is to say so.
USERS: Final = dict.fromkeys(("postgres", "alice", "bob", "nobody_at_all"), "")
pooler: Final = partial(Pgfunnel, default_pool_size=2, max_pinned=2, userlist=USERS)
VARIANTS: Final = {
    "default": (NEWEST, pooler),
    # Every transaction is asked about, and statements are evicted all the time.
    "strict": (NEWEST, partial(pooler, pin_audit=1.0, max_prepared_statements=2)),
    "old": (OLDEST, pooler),
}


class DifferenceError(AssertionError):
    """The clients see something else through pgfunnel."""


def cases() -> list[object]:
    """Return every variant with the programs that hold for it, together, for they share its Postgres and pgfunnel.

    A third of them has to do for the old Postgres.
    """
    paths = sorted(Path(__file__).parent.glob("programs/*.txt"))
    programs = [program for path in paths for program in read_programs(path)]
    return [
        pytest.param(variant, program, marks=marks(program), id=f"{program.title}-{variant}")
        for variant, (version, _) in VARIANTS.items()
        for number, program in enumerate(programs)
        if version >= program.since and variant in (program.only or VARIANTS)
        if variant != "old" or number % 3 == 0
    ]


def marks(program: Program) -> list[pytest.MarkDecorator]:
    deviates = partial(pytest.mark.xfail, raises=(DifferenceError, LeakError))
    if program.todo:
        return [deviates(reason=program.todo, strict=False)]
    if program.differs and program.all_compared:
        return [deviates(reason=program.differs, strict=True)]
    return []


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    version, start = VARIANTS[request.param]
    with set_up(version, start) as stage:
        yield stage


@pytest.mark.parametrize(("stage", "program"), cases(), indirect=["stage"], scope="module")
def test_clients_see_what_they_would_see_on_connections_of_their_own(stage: Stage, program: Program) -> None:
    direct = stage.direct(program)
    print(transcript(direct))
    pooled = stage.pooled(program)
    if unlike := difference(direct, pooled):
        raise DifferenceError(f"{program.place} {program.title}\n{unlike}")
