"""Whether what is bound is the last that runs."""

import pytest

from protocol.bound import runs_last
from tests.protocol.model import message

BIND = message("B", b"p\0s\0" + b"\0" * 6)
DESCRIBE = message("D", b"Pp\0")
EXECUTE = message("E", b"p\0\0\0\0\0")


@pytest.mark.parametrize("behind", [EXECUTE, DESCRIBE + EXECUTE])
def test_only_what_is_bound_runs_when_its_execute_and_a_sync_follow(behind: bytes) -> None:
    assert runs_last(BIND + behind + message("S"), len(BIND), b"p")


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        message("S"),
        message("H"),
        EXECUTE[:6],
        EXECUTE,
        EXECUTE + message("P"),
        DESCRIBE,
        message("E", b"\0\0\0\0\0"),
        message("D", b"Sp\0") + EXECUTE,
    ],
)
def test_else_it_may_never_run_or_be_undone(behind: bytes) -> None:
    assert not runs_last(BIND + behind, len(BIND), b"p")
