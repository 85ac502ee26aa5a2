"""The question what a session holds: how it is put, and how its answer is read."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolViolation, ServerViolation
from protocol.messages import messages_in
from protocol.question import NAME, Findings, can_be_asked_for, full_question, question, read_answer
from protocol.sql import State
from tests.protocol.model import message

DONE = message("C", b"SELECT 1\0") + message("Z", b"I")


def row(*columns: str | bytes) -> bytes:
    found = [column.encode() if isinstance(column, str) else column for column in columns]
    return message("D", pack("!H", len(found)) + b"".join(pack("!I", len(each)) + each for each in found))


def told(what: str, name: str = "", value: bytes = b"") -> bytes:
    """A row of the answer: names and values come as hexadecimal digits."""
    return row(what, name.encode().hex(), value.hex())


def kinds(requests: bytes) -> str:
    return "".join(chr(kind) for kind, _ in messages_in(requests))


def test_it_is_parsed_once_and_closed_before_in_case_it_is_there_still() -> None:
    first, later = question(["app.x"], prepare=True), question(["app.x"], prepare=False)
    assert kinds(first) == "CPBES"
    assert kinds(later) == "BES"
    assert first.endswith(later)
    assert first.startswith(message("C", b"S" + NAME + b"\0"))


@pytest.mark.parametrize("name", ["app.x", "App.X_1", "a$b.c"])
def test_custom_settings_are_asked_for_by_name(name: str) -> None:
    assert can_be_asked_for(name)
    assert f'{{"{name}"}}'.encode() in question([name], prepare=False)
    assert f"'{{\"{name}\"}}'".encode() in full_question([name])


@pytest.mark.parametrize("name", ["", "app.é", 'app."x', "app.x y", "app.x'", "app.x,y", "app.{x}", "app.x\\"])
def test_a_name_that_could_be_read_in_two_ways_is_not_asked_for(name: str) -> None:
    assert not can_be_asked_for(name)
    assert question([name], prepare=False) == question([], prepare=False)
    assert full_question([name]) == full_question([])


def test_a_session_like_a_new_one_holds_nothing() -> None:
    assert read_answer(told("user", "session_authorization", b"alice") + DONE, "alice") == Findings({}, State(0))


def test_settings_are_told_in_the_bytes_of_the_database() -> None:
    answer = told("setting", "app.x", "é".encode("latin-1")) + told("setting", "DateStyle", b"SQL, DMY") + DONE
    assert read_answer(answer, "alice").settings == {"app.x": b"\xe9", "DateStyle": b"SQL, DMY"}


@pytest.mark.parametrize("state", [State.LISTEN, State.PREPARED, State.CURSOR, State.ADVISORY_LOCK, State.TEMPORARY])
def test_what_no_other_server_has_is_told_by_its_class(state: State) -> None:
    assert state.name is not None
    assert read_answer(told(state.name.lower()) + DONE, "alice").states == state


def test_another_session_user_is_a_setting_and_the_login_is_none() -> None:
    answer = told("user", "session_authorization", b"bob") + told("setting", "role", b"carol") + DONE
    assert read_answer(answer, "alice").settings == {"session_authorization": b"bob", "role": b"carol"}
    assert read_answer(answer, "bob").settings == {"role": b"carol"}


ASIDE = told("setting", "role", b"none") + told("user", "session_authorization", b"alice")


@pytest.mark.parametrize(
    ("timeout", "default", "found"),
    [(b"5", b"0", {"statement_timeout": b"5"}), (b"0", b"0", {}), (b"30000", b"30000", {})],
)
def test_the_time_limit_is_what_it_was_before_it_was_put_aside(
    timeout: bytes, default: bytes, found: dict[str, bytes]
) -> None:
    answer = ASIDE + told("timeout", "statement_timeout", timeout)
    answer += told("setting", "statement_timeout", b"0") + told("default timeout", "statement_timeout", default)
    assert read_answer(answer + DONE, "alice").settings == found


def test_the_role_is_what_it_was_before_it_was_put_aside() -> None:
    answer = told("setting", "role", b"bob") + told("user", "session_authorization", b"alice")
    assert read_answer(answer + told("user", "session_authorization", b"alice") + DONE, "alice").settings == {
        "role": b"bob"
    }


def test_rows_that_are_no_part_of_the_answer_are_passed_over() -> None:
    answer = row("on") + message("N", b"SNOTICE\0\0") + told("listen") + message("A", b"\0\0\0\1x\0\0") + DONE
    assert read_answer(answer, "alice") == Findings({}, State.LISTEN)


def test_thousands_of_rows_are_read_in_no_time() -> None:
    answer = b"".join(told("setting", f"app.x{number}", b"y" * 100) for number in range(20_000))
    assert len(read_answer(answer + DONE, "alice").settings) == 20_000


@pytest.mark.parametrize(
    "answer",
    [
        row("setting", "0g", ""),
        row("setting", "f", ""),
        message("D", b"\0\3" + b"\0\0\0\1"),
        message("D", b"\0\3" + pack("!I", 7) + b"setting"),
        b"D\0\0\0\1",
    ],
    ids=["no digits", "half a byte", "a row cut short", "columns missing", "no length"],
)
def test_an_answer_that_cant_be_read_is_a_violation(answer: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_answer(answer, "alice")


@given(st.lists(st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(lambda data: row(data, data, data)))))
def test_random_answers_are_read_or_are_a_violation(parts: list[bytes]) -> None:
    try:
        read_answer(b"".join(parts), "alice")
    except ProtocolViolation as violation:
        assert violation.message  # noqa: PT017 - a violation need not come


def test_a_violation_is_the_servers() -> None:
    with pytest.raises(ServerViolation):
        read_answer(row("setting", "0g", ""), "alice")
