"""Hosts as they are written in lists."""

import pytest

from config.hosts import host_and_port


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("db", ("db", 1)),
        ("db:5433", ("db", 5433)),
        ("10.0.0.1:5433", ("10.0.0.1", 5433)),
        ("::1", ("::1", 1)),
        ("fe80::1:5433", ("fe80::1:5433", 1)),
        ("[::1]", ("::1", 1)),
        ("[::1]:5433", ("::1", 5433)),
        ("/run/a:b", ("/run/a:b", 1)),
        ("@a:b", ("@a:b", 1)),
    ],
)
def test_a_host_may_have_a_port_of_its_own(text: str, found: tuple[str, int]) -> None:
    assert host_and_port(text, 1) == found


@pytest.mark.parametrize("text", ["db:0", "db:65536", "db:x", "db:٣", "[::1", "[::1]5433"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"port|IPv6"):
        host_and_port(text, 1)
