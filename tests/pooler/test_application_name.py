"""Where a client comes from, in its application_name."""

import pytest

from pooler.entrance.application_name import add_host, origin_of, with_host
from pooler.session_state.sharing import Fitted
from protocol.messages import messages_in, parameter_status
from protocol.parameters import Profiles
from tests.support.transport import MockTransport


@pytest.mark.parametrize(
    ("peer", "origin"),
    [
        (("10.0.0.7", 53124), "10.0.0.7:53124"),
        (("fe80::1%eth0", 5, 0, 2), "[fe80::1%eth0]:5"),
        (None, "unknown"),
    ],
)
def test_an_origin_is_an_address_and_a_port(peer: tuple[object, ...] | None, origin: str) -> None:
    assert origin_of(MockTransport(extra={"peername": peer, "socket": None}), 6432) == origin


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("shop", "shop - 10.0.0.7:53124"),
        ("", "app - 10.0.0.7:53124"),
        ("x" * 70, "x" * 46 + " - 10.0.0.7:53124"),
        ("é" * 40, "é" * 23 + " - 10.0.0.7:53124"),
        ("x" + "é" * 40, "x" + "é" * 22 + " - 10.0.0.7:53124"),
    ],
)
def test_what_postgres_would_cut_off_is_cut_off_the_name(name: str, shown: str) -> None:
    assert with_host(name, "10.0.0.7:53124") == shown
    assert len(shown.encode()) <= 63


def test_the_client_is_told_its_whole_name_and_all_else_as_before() -> None:
    profiles = Profiles()
    told = parameter_status("application_name", "shop") + parameter_status("TimeZone", "UTC")
    fitted = Fitted(profiles.of({"application_name": b"shop", "work_mem": b"9MB"}), told)
    found = add_host(fitted, "10.0.0.7:5", profiles)
    assert found.profile is profiles.of({"application_name": b"shop - 10.0.0.7:5", "work_mem": b"9MB"})
    assert [payload for _, payload in messages_in(found.welcome)] == [
        b"TimeZone\0UTC\0",
        b"application_name\0shop - 10.0.0.7:5\0",
    ]
