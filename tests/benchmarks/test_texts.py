"""What looking at texts costs."""

from typing import cast

from benchmarks.servers import Pooler
from benchmarks.texts import TEXTS, Texts
from benchmarks.workload import Workload
from protocol.sql import State, classify


def test_texts_are_measured_as_what_they_are() -> None:
    sample = Texts().sample(cast("Pooler", None), cast("Workload", None))
    assert all(sample[figure.name] > 0 for figure in Texts.figures)


def test_texts_are_such_as_leave_nothing_but_settings() -> None:
    assert {classify(text).leaves for text in TEXTS} == {State(0), State.SETTING}
