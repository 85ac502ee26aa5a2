"""A pgbouncer.ini, read as PgBouncer reads it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import ini
from config.ini import Ini


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pgbouncer.ini"


def read(path: Path, content: str | bytes) -> Ini:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return ini.read(path)


def values(result: Ini, section: str = "pgbouncer") -> dict[str, str]:
    assert result.mistakes == []
    return {name: item.value for name, item in result.sections[section].items()}


def test_a_value_goes_to_the_end_of_its_line(path: Path) -> None:
    result = read(path, "[pgbouncer]\nuser=app ; no comment # neither\n\tlogfile\t=  /var/log/a b.log \t\r\n")
    assert values(result) == {"user": "app ; no comment # neither", "logfile": "/var/log/a b.log"}


def test_a_comment_begins_a_line(path: Path) -> None:
    result = read(path, "; one = 1\n# two = 2\n[pgbouncer] ; three = 3\n \t; four = 4\nfive = 5")
    assert values(result) == {"five": "5"}


def test_an_empty_value_does_not_take_the_next_line(path: Path) -> None:
    assert values(read(path, "[pgbouncer]\nlisten_addr =\nauth_user = \n\nverbose = 0\n")) == {
        "listen_addr": "",
        "auth_user": "",
        "verbose": "0",
    }


def test_an_item_may_stand_behind_its_section(path: Path) -> None:
    assert values(read(path, "[pgbouncer]listen_port=1")) == {"listen_port": "1"}


def test_the_last_of_two_items_counts_over_all_sections_of_a_name(path: Path) -> None:
    result = read(path, "[databases]\na = host=1\na = host=2\nb = host=1\n[pgbouncer]\n[databases]\nb = host=2\nc =\n")
    assert values(result, "databases") == {"a": "host=2", "b": "host=2", "c": ""}
    assert result.notes == []


def test_a_second_section_pgbouncer_begins_anew_and_is_noted(path: Path) -> None:
    result = read(path, "[pgbouncer]\nverbose = 1\nuser = a\n[users]\n[pgbouncer]\nverbose = 2\n")
    assert values(result) == {"verbose": "2"}
    assert " ".join(result.notes) == (
        f"[pgbouncer] begins anew: as in PgBouncer, what '{path}' line 1 and the lines below it say is forgotten "
        f"('{path}' line 5)"
    )


def test_an_item_knows_its_file_and_its_line(path: Path) -> None:
    item = read(path, "\n\n[pgbouncer]\n\n  ; comment\n\n  user = app\n").sections["pgbouncer"]["user"]
    assert str(item.place) == f"'{path}' line 7"


def test_a_name_in_quotes_may_have_any_character(path: Path) -> None:
    result = read(path, '[databases]\n"a ""b"" = é" = host=x\n* = host=y\na.b-c = host=z\n')
    assert values(result, "databases") == {'a "b" = é': "host=x", "*": "host=y", "a.b-c": "host=z"}


def test_an_included_file_is_relative_to_the_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.ini").write_text("verbose = 1\n[users]\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = read(path, "[pgbouncer]\nuser = a\n  %include\tmore.ini \nbob = pool_mode=session\n")
    assert values(result) == {"user": "a", "verbose": "1"}
    # The section goes on where the included file has ended.
    assert values(result, "users") == {"bob": "pool_mode=session"}
    assert str(result.sections["pgbouncer"]["verbose"].place) == "'more.ini' line 1"


def test_an_included_file_that_is_missing_is_a_mistake_of_the_line_that_names_it(path: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.ini"
    assert read(path, f"[pgbouncer]\n%include {missing}\n").mistakes == [
        f"'{missing}' cannot be read: No such file or directory (%include, '{path}' line 2)"
    ]
    assert ini.read(missing).mistakes == [f"'{missing}' cannot be read: No such file or directory"]


def test_a_file_may_be_included_twice_but_not_in_itself(path: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.ini"
    more.write_text("a = host=x\n")
    assert values(read(path, f"[databases]\n%include {more}\n%include {more}\n"), "databases") == {"a": "host=x"}
    more.write_text(f"%include {path}\n")
    assert read(path, f"%include {more}\n").mistakes == [
        f"'{path}' includes itself (%include, '{more}' line 1)",
    ]


@pytest.mark.parametrize(
    "line", ["verbose", "pool mode = session", "%includes x", "= 1", "[pgbouncer", '"a = b', "é = 1"]
)
def test_what_is_no_item_is_a_mistake_with_its_line_and_the_rest_is_read(path: Path, line: str) -> None:
    result = read(path, f"[pgbouncer]\n{line}\nuser = a\n")
    assert result.mistakes == [
        f"it is not of the form name = value, [section], %include file or ; comment ('{path}' line 2)"
    ]
    assert list(result.sections["pgbouncer"]) == ["user"]


def test_an_unknown_section_is_a_mistake_with_the_nearest_right_name(path: Path) -> None:
    assert read(path, "[database]\na = host=x\n[ pgbouncer ]\n[peers]\n").mistakes == [
        f"there is no section [database]; did you mean databases? ('{path}' line 1)",
        f"there is no section [something]; did you mean pgbouncer? ('{path}' line 3)",
    ]


def test_an_item_before_all_sections_is_a_mistake(path: Path) -> None:
    assert read(path, "user = a\n[pgbouncer]").mistakes == [f"user stands in no section ('{path}' line 1)"]


def test_comments_may_be_in_any_encoding_and_items_only_in_utf_8(path: Path) -> None:
    assert values(read(path, b"; caf\xe9\n[pgbouncer]\nuser = caf\xc3\xa9\n")) == {"user": "café"}
    for content in (b"user = caf\xe9", b"user = a\0b"):
        assert read(path, b"[pgbouncer]\n" + content).mistakes == [
            f"user is not UTF-8, or has a zero byte in it ('{path}' line 2)"
        ]


def test_no_value_is_shown(path: Path) -> None:
    result = read(path, "[databases]\na = password=hunter2\nhunter2\n")
    assert "hunter2" not in repr(result)


NAMES = st.from_regex(r"[A-Za-z0-9_.*-]{1,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=20).map(
    lambda text: text.strip(" \t\n\v\f\r")
)
BLANKS = st.text(" \t", max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, VALUES, max_size=5), st.lists(st.sampled_from(["", "; a = b", "#[users]", "  "])), BLANKS)
def test_what_is_written_is_read(path: Path, items: dict[str, str], noise: list[str], blank: str) -> None:
    between = "".join(f"\n{line}" for line in noise)
    lines = [f"{blank}{name}{blank}={blank}{value}{blank}{between}\n" for name, value in items.items()]
    assert values(read(path, f"{between}\n[databases]\n" + "".join(lines)), "databases") == items


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=60), st.text('[]%="; \n\tab', max_size=60).map(str.encode)))
def test_nothing_breaks_the_reader_and_every_line_counts(path: Path, content: bytes) -> None:
    result = read(path, content)
    ends = content.count(b"\n") + 1
    assert all(1 <= item.place.line <= ends for items in result.sections.values() for item in items.values())


# Pairs.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", {}),
        ("   ", {}),
        ("host=db port=5432", {"host": "db", "port": "5432"}),
        ("  host =  db   port= 1 ", {"host": "db", "port": "1"}),
        ("password='it''s a ''secret' user=a", {"password": "it's a 'secret", "user": "a"}),
        ("password='a\\' user=b", {"password": "a\\", "user": "b"}),
        ("password=a=b'c user=d", {"password": "a=b'c", "user": "d"}),
        ("host=a host=b", {"host": "b"}),
        ("host=a\tport=1", {"host": "a\tport=1"}),
        ("connect_query='SET a = ''1''; SELECT 1'", {"connect_query": "SET a = '1'; SELECT 1"}),
    ],
)
def test_pairs(value: str, expected: dict[str, str]) -> None:
    assert ini.pairs(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("host", "has something that is not key=value"),
        ("host=db =secret", "has something after host that is not key=value"),
        ("password='secret", "has something that is not key=value"),
        ("password='secret'port=1", "has something that is not key=value"),
        ("user=a password='sec'ret' port=1", "has something after user that is not key=value"),
        ("password=a 's3cret=1 x", "has something after something that is not key=value"),
        ("host=", "has host without a value: leave it out"),
        ("password='' user=a", "has password without a value: leave it out"),
    ],
)
def test_what_is_not_pairs_is_refused_without_being_shown(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        ini.pairs(value)
    assert "secret" not in str(raised.value).replace("s3", "se")


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(min_size=1, max_size=10)))
def test_quoted_pairs_are_read_as_they_were_written(expected: dict[str, str]) -> None:
    quoted = (f"{key}='{value.replace(chr(39), chr(39) * 2)}'" for key, value in expected.items())
    assert ini.pairs(" ".join(quoted)) == expected
