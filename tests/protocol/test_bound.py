"""Whether what is bound runs next."""

import pytest

from protocol.bound import runs_next
from tests.protocol.model import message

BIND = message("B", b"p\0s\0" + b"\0" * 6)
DESCRIBE = message("D", b"Pp\0")
EXECUTE = message("E", b"p\0\0\0\0\0")


@pytest.mark.parametrize("behind", [EXECUTE, DESCRIBE + EXECUTE])
def test_a_statement_that_is_bound_runs_when_its_execute_follows(behind: bytes) -> None:
    assert runs_next(BIND + behind + message("S"), len(BIND), b"p")


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        message("S"),
        message("H"),
        EXECUTE[:6],
        DESCRIBE,
        message("E", b"\0\0\0\0\0"),
        message("D", b"Sp\0") + EXECUTE,
    ],
)
def test_else_it_may_never_run(behind: bytes) -> None:
    assert not runs_next(BIND + behind, len(BIND), b"p")
