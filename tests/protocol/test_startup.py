"""First packets: what a client may begin with."""

import contextlib
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ClientViolation
from protocol.messages import cancel_request, startup
from protocol.startup import (
    MAX_CANCEL_SECRET,
    MAX_STARTUP_SIZE,
    Cancel,
    Encryption,
    InvalidReplicationError,
    NoUserError,
    Replication,
    Startup,
    read_first_packet,
)


def read(data: bytes) -> object:
    found = read_first_packet(data)
    assert found is not None
    assert found[1] == len(data)
    return found[0]


def test_a_startup_message() -> None:
    packet = read(startup({"user": "alice", "database": "shop", "application_name": "x"}))
    assert packet == Startup(
        "alice",
        "shop",
        0,
        negotiate=False,
        unknown_options=[],
        parameters={"application_name": "x"},
        settings=(("application_name", "x"),),
    )


def test_the_database_is_named_like_the_user_unless_said_otherwise() -> None:
    packet = read(startup({"user": "alice"}))
    assert isinstance(packet, Startup)
    assert packet.database == "alice"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("database", Replication.LOGICAL),
        ("true", Replication.PHYSICAL),
        ("ON", Replication.PHYSICAL),
        ("1", Replication.PHYSICAL),
        ("yes", Replication.PHYSICAL),
        ("off", Replication.NONE),
        ("0", Replication.NONE),
        ("f", Replication.NONE),
    ],
)
def test_what_a_client_wants_to_replicate(value: str, kind: Replication) -> None:
    packet = read(startup({"user": "alice", "replication": value}))
    assert isinstance(packet, Startup)
    assert packet.replication is kind


@pytest.mark.parametrize("value", ["", "o", "Database", "physical"])
def test_a_replication_that_there_is_not(value: str) -> None:
    with pytest.raises(InvalidReplicationError) as caught:
        read(startup({"user": "alice", "replication": value}))
    assert caught.value.sqlstate == "22023"


@pytest.mark.parametrize(("asked", "spoken", "negotiate"), [(0, 0, False), (1, 1, False), (2, 2, False), (3, 2, True)])
def test_newer_minor_versions_are_negotiated(asked: int, spoken: int, negotiate: bool) -> None:
    packet = read(startup({"user": "alice"}, asked))
    assert isinstance(packet, Startup)
    assert (packet.minor, packet.negotiate) == (spoken, negotiate)


def test_no_user_has_its_own_sqlstate() -> None:
    with pytest.raises(NoUserError) as caught:
        read(startup({"database": "shop"}))
    assert caught.value.sqlstate == "28000"


@pytest.mark.parametrize("secret", [4, 32, MAX_CANCEL_SECRET])
def test_a_cancel_request_with_a_key_of_any_length(secret: int) -> None:
    key = b"\0\0\0\1" + b"k" * secret
    assert read(cancel_request(key)) == Cancel(key)


@pytest.mark.parametrize("secret", [0, 3, MAX_CANCEL_SECRET + 1])
def test_a_cancel_request_with_an_impossible_key(secret: int) -> None:
    with pytest.raises(ClientViolation):
        read(cancel_request(b"\0\0\0\1" + b"k" * secret))


@pytest.mark.parametrize(("code", "kind"), [(80877103, Encryption.SSL), (80877104, Encryption.GSSAPI)])
def test_an_encryption_request(code: int, kind: Encryption) -> None:
    assert read(pack("!II", 8, code)) is kind
    with pytest.raises(ClientViolation):
        read(pack("!III", 12, code, 0))


@pytest.mark.parametrize("size", [0, 7, MAX_STARTUP_SIZE + 1, 0xFFFFFFFF])
def test_an_impossible_length_is_refused_before_the_rest_arrives(size: int) -> None:
    with pytest.raises(ClientViolation):
        read_first_packet(pack("!I", size))


@pytest.mark.parametrize(
    "body", [b"", b"\0\0", b"user", b"user\0", b"user\0alice", b"user\0alice\0", b"user\0a\0x\0\0"]
)
def test_a_broken_layout_is_refused(body: bytes) -> None:
    with pytest.raises(ClientViolation):
        read(pack("!II", 8 + len(body), 3 << 16) + body)


@given(st.binary(max_size=300), st.sampled_from([3 << 16, 80877102, 80877103, 2 << 16]))
def test_random_bodies_are_read_or_refused(body: bytes, code: int) -> None:
    for data in (body, pack("!II", 8 + len(body), code) + body):
        with contextlib.suppress(ClientViolation):
            read_first_packet(data)


@given(st.integers(0, 60))
def test_nothing_is_read_until_it_is_whole(cut: int) -> None:
    data = startup({"user": "alice", "database": "shop", "application_name": "a long name indeed"})
    assert (read_first_packet(data[:cut]) is None) == (cut < len(data))
