"""Which answers are remembered."""

import pytest

from pooler.session_state.answers import MOST, Answer, Answers, Circumstances, repeatable
from protocol.parameters import Profiles


@pytest.mark.parametrize(
    "text",
    [
        b"SET search_path TO tenant_5",
        b"set work_mem = '8MB';",
        b"SET a = 1; RESET ALL",
        b"DISCARD ALL",
        b"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
        b"SELECT pg_catalog.set_config('app.tenant', '5', false)",
    ],
)
def test_what_only_sets_and_resets_comes_to_the_same_each_time(text: bytes) -> None:
    assert repeatable(text)


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT set_config('app.at', now()::text, false)",
        b"SELECT set_config('app.n', '1', false) FROM t",
        b"SELECT f(); SET a = 1",
        b"SET a FROM CURRENT",
        b"SET a = 1; INSERT INTO t VALUES (1)",
        b"SET a = 'x;y'",
        b"SET a = $$x$$",
        b"DO $$BEGIN END$$",
        b"LISTEN jobs",
        b"SET a = 'b" + b"b" * 1000 + b"'",
        b"",
    ],
)
def test_what_may_come_to_something_else_is_asked_about_each_time(text: bytes) -> None:
    assert not repeatable(text)


def test_an_answer_is_found_under_the_same_circumstances_only() -> None:
    answers, profiles = Answers(), Profiles()
    before, after = profiles.of({"work_mem": b"1"}), profiles.of({"work_mem": b"2"})
    answers.keep(Circumstances(b"SET work_mem = 2", None, None), Answer(after, after))
    assert answers.find(Circumstances(b"SET work_mem = 2", None, None)) == (after, after)
    assert answers.find(Circumstances(b"SET work_mem = 2", before, None)) is None
    assert answers.find(Circumstances(b"SET work_mem = 2", None, before)) is None


def test_there_are_only_so_many() -> None:
    answers = Answers()
    for number in range(MOST + 1):
        answers.keep(Circumstances(b"SET a = %d" % number, None, None), Answer(None, None))
    assert answers.find(Circumstances(b"SET a = 0", None, None)) is None
    assert answers.find(Circumstances(b"SET a = %d" % MOST, None, None)) is not None
