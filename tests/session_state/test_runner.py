"""The programs' runner finds what it is there for: state that is lost to its client, and found by another."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.session_state.crowd import LeakError
from tests.session_state.notation import Program, read_programs
from tests.session_state.runner import Stage, difference, set_up
from tests.support.pgfunnel import Pgfunnel


@pytest.fixture(scope="module")
def careless() -> Iterator[Stage]:
    """Set up a pgfunnel that leaves some things to its users, as PgBouncer does."""
    start = partial(Pgfunnel, default_pool_size=2, session_state="temporary=ignore, sequence=ignore")
    with set_up(EmbeddedPostgres.available_versions()[-1], start) as stage:
        yield stage


@pytest.fixture
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    path = tmp_path / "some.txt"
    path.write_text(f"# title\n{request.param}\n")
    (program,) = read_programs(path)
    return program


@pytest.mark.parametrize("program", ["A: select 1\nB: select 2\nA: select 3"], indirect=True)
def test_a_program_is_seen_to_agree(careless: Stage, program: Program) -> None:
    assert difference(careless.direct(program), careless.pooled(program)) == ""


@pytest.mark.parametrize(
    "program", ["setup: create sequence q\nA: select nextval('q')\nA: select currval('q')"], indirect=True
)
def test_what_a_client_loses_is_told(careless: Stage, program: Program) -> None:
    assert difference(careless.direct(program), careless.pooled(program)) == (
        "  A: select currval('q')\n"
        "    direct   columns ['currval:20 8/-1/0']\n"
        "    direct   row ['1']\n"
        "    direct   complete SELECT 1\n"
        "    direct   ready I\n"
        "    pgfunnel columns ['currval:20 8/-1/0']\n"
        '    pgfunnel error V=ERROR C=55000 M=currval of sequence "q" is not yet defined in this session\n'
        "    pgfunnel ready I"
    )


@pytest.mark.parametrize("program", ["A: create temp table t (a int)"], indirect=True)
def test_what_a_client_leaves_behind_is_found(careless: Stage, program: Program) -> None:
    with pytest.raises(LeakError, match="sees what is not its own"):
        careless.pooled(program)
