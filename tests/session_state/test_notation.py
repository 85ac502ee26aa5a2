"""Programs are read as README.md says, and what can't be read is told with its place."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.session_state.notation import (
    Administer,
    Hear,
    Leave,
    Login,
    NotationError,
    Program,
    Say,
    Step,
    read_programs,
)
from tests.support import wire

Read = Callable[[str], list[Program]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str) -> list[Program]:
        path = tmp_path / "some.txt"
        path.write_text(text)
        return read_programs(path)

    return read


@pytest.fixture
def pipeline(read: Read) -> Callable[[str], Say]:
    def pipeline(ops: str) -> Say:
        ((step,),) = (program.steps for program in read(f"# title\nA> {ops}"))
        assert isinstance(step.does, Say)
        return step.does

    return pipeline


def test_a_program_is_a_title_what_it_needs_and_steps(read: Read) -> None:
    first, second = read(
        "-- what this file is about\n\n"
        "# the first\nsetup: create table t (a int);\n  create table u (a int)\nuser: alice\nonly: strict\nsince: 17\n"
        "differs: because\nA: select 1\n\n# the second\nadmin: drop table t\n"
    )
    assert (first.title, first.place) == ("the first", "some.txt:3")
    assert first.setup == "create table t (a int);\ncreate table u (a int)"
    assert (first.user, first.only, first.since, first.differs) == ("alice", frozenset({"strict"}), 17, "because")
    assert first.steps == [Step("A", Say(wire.query("select 1"), 1, 0), "A: select 1")]
    assert second.steps == [Step("admin", Administer("drop table t"), "admin: drop table t")]


def test_single_steps_may_be_excepted(read: Read) -> None:
    whole, partly = read("# one\ndiffers: x\nA: select 1\n# two\ndiffers: y\n? A: select 1\nA: select 1")
    assert whole.all_compared
    assert not partly.all_compared
    assert [step.compared for step in partly.steps] == [False, True]


def test_clients_come_hear_and_go(read: Read) -> None:
    (program,) = read(
        "# title\nA login application_name='a b' options='-c app.x=a\\ b'\nA hears 2\nA leaves\nA vanishes\n"
    )
    assert [step.does for step in program.steps] == [
        Login({"application_name": "a b", "options": "-c app.x=a\\ b"}),
        Hear(2),
        Leave(politely=True),
        Leave(politely=False),
    ]


def test_a_pipeline_is_sent_in_one_piece(pipeline: Callable[[str], Say]) -> None:
    ops = "parse s(int4,?) select $1 || '|' | bind s [\"x y\", null] binary into p | execute p max 2 | close s | sync"
    assert pipeline(ops).data == b"".join(
        (
            wire.parse("select $1 || '|'", "s", [23, 0]),
            wire.bind("x y", None, statement="s", portal="p", binary_results=True),
            wire.execute("p", 2),
            wire.close_statement("s"),
            wire.sync(),
        )
    )
    assert pipeline('extended select $1 <- [7] | run "" [] | flush').data == b"".join(
        (wire.extended("select $1", "7"), wire.bind(), wire.describe_portal(), wire.execute(), wire.flush())
    )


@pytest.mark.parametrize(
    ("ops", "readies", "replies"),
    [
        ("parse s select 1 | sync", 1, 0),
        ("sync | query select 1 | skipped select 2 | sync", 3, 0),
        ("parse s select 1 | describe s | flush", 0, 2),
        ("sync | run s [] | flush", 1, 3),
        ("extended select 1 | flush", 0, 4),
        ("parse s select 1", 0, 0),
    ],
)
def test_an_answer_ends_with_the_last_sync_or_what_a_flush_brings(
    pipeline: Callable[[str], Say], ops: str, readies: int, replies: int
) -> None:
    assert pipeline(ops)[1:] == (readies, replies)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("select 1", "not a step: select 1"),
        ("A> pars s select 1", "no such message: pars s select 1"),
        ("A> bind s 1", "NAME [VALUES]: s 1"),
        ("A login application_name", "not a startup parameter: application_name"),
        ("A sleeps", "nobody can 'sleeps'"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(read: Read, line: str, said: str) -> None:
    with pytest.raises(NotationError) as refused:
        read(f"# title\n{line}")
    assert str(refused.value) == f"some.txt:2: {said}"
    with pytest.raises(NotationError, match=r"some\.txt:1: a program begins"):
        read("A: select 1")
