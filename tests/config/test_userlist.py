"""Reading userlist.txt as PgBouncer does, with a message for each line that it would cut short or stumble over."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import userlist

MD5 = "md5" + "0123456789abcdef" * 2
SCRAM = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"


def users(text: str) -> dict[str, str]:
    parsed = userlist.parse(text)
    assert parsed.mistakes == []
    return {name: secret.get_secret_value() for name, secret in parsed.users.items()}


def test_each_line_is_a_user_and_a_password() -> None:
    assert users('"alice" "wonder land"\n"bob" "builder"\n') == {"alice": "wonder land", "bob": "builder"}


def test_hashed_secrets_are_kept_as_given() -> None:
    assert users(f'"alice" "{MD5}"\n"bob" "{SCRAM}"') == {"alice": MD5, "bob": SCRAM}


def test_a_quote_is_written_twice() -> None:
    assert users('"al""ice" """"\n"bob" "a""""b"') == {'al"ice': '"', "bob": 'a""b'}


def test_comments_empty_lines_indentation_and_windows_line_ends_are_passed_over() -> None:
    assert users('; made by hand\r\n\r\n# "no" "body"\r\n \t"alice"\t "x"\r\n') == {"alice": "x"}


def test_what_follows_the_password_is_left_alone() -> None:
    assert users('"alice" "x" "valid until" 2030 ; retired') == {"alice": "x"}


def test_the_later_of_two_lines_for_a_user_counts() -> None:
    assert users('"alice" "old"\n"alice" "new"') == {"alice": "new"}


def test_an_empty_password_is_one() -> None:
    assert users('"alice" ""') == {"alice": ""}


@pytest.mark.parametrize(
    "line",
    [
        'alice "secret"',
        '"alice" secret',
        '"alice"',
        '"alice" "secret',
        '"alice""secret"',
        '"alice" "sec"ret"',
        "alice:secret",
        '"alice" "sec\0ret"',
    ],
)
def test_a_malformed_line_is_named_by_its_number_and_not_quoted(line: str) -> None:
    parsed = userlist.parse(f'"bob" "builder"\n\n{line}\n"carol" "x"\n{line}')
    form = 'is not in the form "user" "password" (a " inside is written "")'
    assert parsed.mistakes == [f"line 3 {form}", f"line 5 {form}"]
    assert list(parsed.users) == ["bob", "carol"]


def test_an_empty_user_name_is_a_mistake() -> None:
    assert userlist.parse('"" "secret"').mistakes == ["line 1 has an empty user name"]


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "userlist.txt"
    file.write_text('"alice" "ë"\n', encoding="utf-8-sig")
    read = userlist.read(file)
    assert (read.users["alice"].get_secret_value(), read.mistakes) == ("ë", [])


def test_a_file_that_is_not_utf_8_is_a_mistake_in_its_line(tmp_path: Path) -> None:
    file = tmp_path / "userlist.txt"
    file.write_bytes(b'"alice" "x"\n"bob" "\xff"\n')
    assert userlist.read(file).mistakes == ["line 2 is not UTF-8"]


def test_a_file_that_is_missing_is_a_mistake(tmp_path: Path) -> None:
    assert userlist.read(tmp_path / "none.txt").mistakes == ["cannot be read: No such file or directory"]
    assert userlist.read(tmp_path).mistakes == ["cannot be read: Is a directory"]


fields = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"))


def quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"'


@given(st.dictionaries(fields.filter(bool), fields))
def test_whatever_is_written_into_a_userlist_is_read_from_it(entries: dict[str, str]) -> None:
    text = "\n".join(f"{quoted(name)} {quoted(secret)}" for name, secret in entries.items())
    assert users(text) == entries


@given(st.text() | st.lists(st.sampled_from(['"', '""', " ", "\n", ";", "a", "\r", "\t", "\0"])).map("".join))
def test_any_text_gives_users_or_mistakes_with_line_numbers(text: str) -> None:
    lines = text.split("\n")
    parsed = userlist.parse(text)
    for mistake in parsed.mistakes:
        assert 1 <= int(mistake.split()[1]) <= len(lines)
    assert len(parsed.users) + len(parsed.mistakes) <= len(lines)
