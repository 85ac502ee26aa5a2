"""Who may log in as whom by the maps of an auth_ident_file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ident
from config.records import Record, split


def maps_of(text: str, tmp_path: Path) -> ident.Maps:
    file = tmp_path / "ident"
    file.write_text(text)
    return ident.read(file)


@pytest.mark.parametrize(
    ("lines", "outside", "user", "may"),
    [
        ("m alice alice", "alice", "alice", True),
        ("m alice bob", "alice", "alice", False),
        ("m alice bob", "alice", "bob", True),
        ("m alice bob\nm alice carol", "alice", "carol", True),
        ("other alice bob", "alice", "bob", False),
        (r"m /^(.*)@shop\.example$ \1", "alice@shop.example", "alice", True),
        (r"m /^(.*)@shop\.example$ \1", "alice@shop.example.evil", "alice", False),
        (r"m /^(.*)@shop\.example$ \1", "alice@shop.example", "bob", False),
        (r"m /^(.*)@x$ u_\1", "alice@x", "u_alice", True),
        (r'm "/^(.*), shop$" \1', "alice, shop", "alice", True),
        (r"m /^(.*)$ \1", "all", "bob", False),  # the name is all, not the word
        (r"m /^(.*)$ \1", "/.*", "bob", False),
        (r"m /^(a)?b$ x\1", "b", "x", True),
        ("m alice all", "alice", "anybody", True),
        ('m alice "all"', "alice", "anybody", False),
        ('m alice "all"', "alice", "all", True),
        ("m alice /^shop_", "alice", "shop_admin", True),
        ("m alice /^shop_", "alice", "admin", False),
        ("m /^al /^shop_", "alice", "shop_admin", True),
    ],
)
def test_a_map_says_who_may_be_whom(tmp_path: Path, lines: str, outside: str, user: str, may: bool) -> None:
    found = maps_of(lines, tmp_path)
    assert not found.mistakes
    assert ident.allows(found.maps, "m", outside, user) is may


def test_without_a_map_everybody_is_who_they_are() -> None:
    assert ident.allows({}, "", "alice", "alice")
    assert not ident.allows({}, "", "alice", "bob")
    assert not ident.allows({}, "unknown", "alice", "alice")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("m alice", "is not in the form MAP NAME USER"),
        ("m alice bob carol", "is not in the form MAP NAME USER"),
        ("m alice,bob carol", "is not in the form MAP NAME USER"),
        ("m alice +staff", "has +staff, but who is a member of what"),
        ("m /( bob", "has a pattern that is none"),
        ("m alice /(", "has a pattern that is none"),
        (r"m alice \1", r"has \1 for a user, but no /pattern before it"),
        (r"m /alice \1", r"has \1 for a user, but no parentheses"),
    ],
)
def test_a_line_that_is_wrong_is_refused_with_what_to_do(tmp_path: Path, line: str, complaint: str) -> None:
    (mistake,) = maps_of(f"# first\n{line}\n", tmp_path).mistakes
    assert mistake.startswith(f"'{tmp_path / 'ident'}' line 2 {complaint}")


@given(
    st.lists(st.sampled_from(["m", " ", "/", "(", ")", "\\1", "*", '"', "+", "a", "#", ",", "[[", "\0"])).map("".join)
    | st.text()
)
def test_any_line_is_an_entry_or_a_mistake(line: str) -> None:
    try:
        fields = split(line)
        if fields:
            _, entry = ident.parse(Record("here", fields))
            entry.allows("alice", "alice")
    except ValueError as error:
        assert str(error)  # noqa: PT017
