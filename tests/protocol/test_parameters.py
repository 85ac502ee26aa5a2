"""Settings that follow their client: how one set is turned into another, and what a startup message asks for."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ClientViolation
from protocol.parameters import (
    ONLY_AT_START,
    ROLE,
    SESSION_USER,
    InvalidOptionError,
    Profile,
    Profiles,
    change,
    fit,
    session_parameters,
)


def steps(query: bytes) -> list[str]:
    """The statements of a Query, but for the block around them."""
    assert query[:1] == b"Q"
    first, *found, last = query[5:-1].decode().split(";")
    assert (first, last) == ("BEGIN", "COMMIT")
    return found


def sets(name: str, value: str) -> str:
    return f"SELECT pg_catalog.set_config('{name}','{value}',false)"


def test_equal_settings_are_one_profile() -> None:
    profiles = Profiles()
    one = profiles.of({"a": b"1", "b": b"2"})
    assert profiles.of({"b": b"2", "a": b"1"}) is one
    assert profiles.of({"a": b"1"}) is not one
    assert profiles.of({}) is None


def test_settings_that_nobody_has_any_more_are_forgotten() -> None:
    profiles = Profiles()
    for number in range(100):
        profiles.of({"app.x": b"%d" % number})
    kept = profiles.of({"app.x": b"kept"})
    gc.collect()
    assert len(profiles) == 1
    assert profiles.of({"app.x": b"kept"}) is kept


def test_only_what_differs_is_changed() -> None:
    present, wanted = Profile({"a": b"1", "b": b"2", "c": b"3"}), Profile({"a": b"1", "b": b"20", "d": b"4"})
    assert steps(change(present, wanted)) == ['RESET "c"', sets("b", "20"), sets("d", "4")]
    assert steps(change(present, None)) == ['RESET "a"', 'RESET "b"', 'RESET "c"']
    assert steps(change(None, None)) == []


def test_the_identity_is_put_on_last_and_taken_off_first() -> None:
    bob = Profile({ROLE: b"bob", SESSION_USER: b"robert", "a": b"1"})
    assert steps(change(None, bob)) == [sets("a", "1"), sets(SESSION_USER, "robert"), sets(ROLE, "bob")]
    assert steps(change(bob, None)) == ["SET SESSION AUTHORIZATION DEFAULT", 'RESET "a"']
    carol = Profile({ROLE: b"carol", "b": b"2"})
    assert steps(change(carol, None)) == ["RESET ROLE", 'RESET "b"']
    assert steps(change(carol, bob)) == [
        "RESET ROLE", 'RESET "b"', sets("a", "1"), sets(SESSION_USER, "robert"), sets(ROLE, "bob")
    ]  # fmt: skip


def test_a_role_that_stays_is_put_on_again_once_all_else_is_done() -> None:
    one, other = Profile({ROLE: b"bob", "a": b"1"}), Profile({ROLE: b"bob", "a": b"2"})
    assert steps(change(one, other)) == ["RESET ROLE", sets("a", "2"), sets(ROLE, "bob")]


@pytest.mark.parametrize("value", [b"it's", b"back\\slash", "é".encode(), b"\xff\xfe", b"a;b\n", b"\0x"[1:] + b"\x01"])
def test_a_value_can_break_out_of_nothing(value: bytes) -> None:
    made = change(None, Profile({"app.x": value}))
    assert value not in made
    assert value.hex().encode() in made


@given(st.binary(max_size=30).filter(lambda value: 0 not in value))
def test_whatever_the_value_its_quotes_are_closed(value: bytes) -> None:
    text = change(None, Profile({"app.x": value}))[5:-1]
    assert text.count(b"'") % 2 == 0
    assert b"\\" not in text
    assert text.isascii()


def test_a_name_can_break_out_of_nothing_either() -> None:
    assert steps(change(Profile({'app.a"b': b""}), None)) == ['RESET "app"."a""b"']
    assert b"it's" not in fit(None, {"it's": "x"})


def test_startup_parameters_are_set_as_their_client_wrote_them() -> None:
    assert steps(fit(Profile({"TimeZone": b"UTC", "a": b"1"}), {"timezone": "CET"})) == [
        'RESET "a"',
        sets("timezone", "CET"),
    ]


@pytest.mark.parametrize(
    ("startup", "found"),
    [
        ({"application_name": "x", "DateStyle": "ISO"}, {"application_name": "x", "DateStyle": "ISO"}),
        ({"options": "-c a.b=1 -cx=2 --y-z=3"}, {"a.b": "1", "x": "2", "y_z": "3"}),
        ({"options": r"-c a.b=two\ words -c c.d=back\\slash"}, {"a.b": "two words", "c.d": r"back\slash"}),
        ({"options": "-c work_mem=1", "work_mem": "2"}, {"work_mem": "2"}),
        ({"options": "  ", "replication": "false"}, {}),
        ({"options": "-c a.b=x=y"}, {"a.b": "x=y"}),
        ({"options": "-c a.b="}, {"a.b": ""}),
        (dict.fromkeys(sorted(ONLY_AT_START), "1"), {}),
    ],
)
def test_what_a_startup_message_asks_for(startup: dict[str, str], found: dict[str, str]) -> None:
    assert session_parameters(startup) == found


@pytest.mark.parametrize("options", ["-c", "-c=", "-c x", "--x", "--=", "-B 10", "x=1", "-c =1", "-f x"])
def test_options_that_are_no_settings_are_refused(options: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        session_parameters({"options": options})
    assert caught.value.sqlstate == "42601"


@given(st.text(max_size=60))
def test_random_options_are_read_or_refused(options: str) -> None:
    try:
        found = session_parameters({"options": options})
    except ClientViolation:
        return
    assert all(found)
