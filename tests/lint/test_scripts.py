"""Scripts as psql reads them: where statements begin and end, and what is none."""

import tracemalloc
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooler.lint import scripts
from pooler.lint.scripts import LONGEST, ScriptError, read
from protocol.sql import clauses, fingerprint


def pieces(script: str | bytes, notes: list[str] | None = None) -> list[tuple[str, int]]:
    """Return the statements of a script and their lines, white space collapsed."""
    text = script.encode() if isinstance(script, str) else script
    read_so_far = read(text.splitlines(keepends=True), [] if notes is None else notes)
    return [(" ".join(piece.text.decode().split()), piece.line) for piece in read_so_far]


def test_statements_are_told_with_the_line_they_begin_on() -> None:
    assert pieces("-- head\nSELECT 1; SELECT\n2;\n\n/* ;\n */ SELECT 3") == [
        ("SELECT 1", 2),
        ("SELECT 2", 2),
        ("SELECT 3", 6),
    ]


@pytest.mark.parametrize("script", ["", "\n\n", ";;\n;", "-- nothing; at all", "/* nothing;\n at all */\n", "-- a\n;"])
def test_a_script_of_nothing_has_no_statements(script: str) -> None:
    assert pieces(script) == []


def test_a_semicolon_in_quotes_ends_nothing() -> None:
    script = """SELECT ';', E'\\';', ";", $$;$$, $a$;$$;$a$ -- ;"""
    assert len(pieces(f"{script}\n; SELECT 1")) == 2


def test_psqls_commands_are_no_statements() -> None:
    script = "\\connect other\nSELECT 1;\n\\if true\nSELECT\n\\echo in between\n2;\n"
    assert pieces(script) == [("SELECT 1", 2), ("SELECT 2", 4)]


@pytest.mark.parametrize("command", [r"\g", r"\gset", r"\gset prefix_", r"\gx", r"\gexec", r"\watch 1"])
def test_a_command_that_sends_a_statement_ends_it(command: str) -> None:
    assert pieces(f"SELECT 1 {command}\nLISTEN a\n{command}\nLISTEN b") == [
        ("SELECT 1", 1),
        ("LISTEN a", 2),
        ("LISTEN b", 4),
    ]


COPIES: Final = [
    "COPY t (a, b) FROM stdin;\n",
    "COPY t\n  FROM STDIN\n  WITH (FORMAT csv)\n;\n",
    "copy t from stdin; -- data follows\n",
]


@pytest.mark.parametrize("copy", COPIES)
def test_the_data_of_a_copy_is_no_sql(copy: str) -> None:
    before, data = "SELECT 1;\n", "LISTEN me\ndon't ; /* $$\n\\N\n\\.\n"
    line = before.count("\n") + 1
    after = line + copy.count("\n") + data.count("\n")
    found = pieces(before + copy + data + "LISTEN b;\n")
    assert [found[0], found[-1]] == [("SELECT 1", 1), ("LISTEN b", after)]
    assert len(found) == 3


def test_a_copy_to_stdout_and_a_text_that_mentions_stdin_have_no_data() -> None:
    assert len(pieces("COPY t TO STDOUT;\nSELECT 'COPY t FROM STDIN;';\nSELECT 1 -- FROM STDIN;\n;LISTEN a")) == 4


def test_data_without_an_end_is_noted() -> None:
    notes: list[str] = []
    assert len(pieces("SELECT 1;\nCOPY t FROM STDIN;\nLISTEN a;\n", notes)) == 2
    assert notes == ["2: all that follows was taken for the data of this COPY"]


def test_a_copy_at_the_very_end_is_nothing_to_note() -> None:
    notes: list[str] = []
    pieces("COPY t FROM STDIN;\n", notes)
    assert notes == []


@pytest.mark.parametrize("quote", ["'", '"', "E'\\'", "$$", "$tag$ $$", "/* /* */"])
def test_a_quote_that_never_ends_is_told_after_all_that_can_be_read(quote: str) -> None:
    script = read([b"SELECT 1;\n", f"SELECT {quote}\n".encode(), b"LISTEN a;\n"], [])
    assert next(script).text == b"SELECT 1"
    with pytest.raises(ScriptError, match=r"^2: a quote or comment begins in this statement and never ends"):
        next(script)


@pytest.mark.parametrize(("begin", "end"), [("'", "'"), ("E'", "'"), ("$$", "$$"), ("$_a1$", "$_a1$")])
@pytest.mark.parametrize("filling", ["x;", "it''s;", "\n;"])
def test_a_literal_of_megabytes_is_passed_over(begin: str, end: str, filling: str) -> None:
    literal = f"{begin}{filling * (3 * 1024 * 1024 // len(filling))}{end}"
    script = f"SELECT 1;INSERT INTO t VALUES ({literal});\nLISTEN a".encode()
    found = list(read(script.splitlines(keepends=True), []))
    assert [piece.text[:6] for piece in found] == [b"SELECT", b"INSERT", b"LISTEN"]
    assert len(found[1].text) > len(literal)


def test_a_statement_of_more_tokens_than_the_lexer_takes_has_its_end() -> None:
    rows = ",".join(["(1)"] * 100_000)
    assert [line for _, line in pieces(f"INSERT INTO t VALUES\n{rows};\nLISTEN a")] == [1, 3]


def test_a_statement_longer_than_memory_is_an_error() -> None:
    megabyte = b"--" + b"x" * (1024 * 1024 - 3) + b"\n"
    lines = (b"SELECT 1\n" if number == 0 else megabyte for number in range((LONGEST >> 20) + 32))
    with pytest.raises(ScriptError, match=r"^1: a statement of more than 64 MiB"):
        list(read(lines, []))


def test_a_long_script_takes_no_more_memory_than_a_short_one() -> None:
    def lines() -> Iterator[bytes]:
        for number in range(40_000):
            yield b"INSERT INTO t VALUES (%d, 'some text that makes this statement a little longer');\n" % number

    tracemalloc.start()
    try:
        assert sum(1 for _ in read(lines(), [])) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


TOKENS: Final = st.sampled_from(
    [
        "select",
        "1",
        ";",
        "'a''b;'",
        "E'\\';'",
        "$$;$$",
        "$a$;$$\n$a$",
        '";"',
        "-- ;\n",
        "/* ; /* ; */ */",
        "\n",
        "x.y",
        "::",
    ]
)


@given(st.lists(TOKENS, max_size=60).map(" ".join), st.sampled_from([1, 4, 16, 64]))
def test_however_a_script_is_cut_up_its_statements_are_the_same(script: str, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "_CHUNK", chunk)
        found = list(read(script.encode().splitlines(keepends=True), []))
    whole = list(clauses(script.encode()))
    assert [fingerprint(piece.text) for piece in found] == [fingerprint(clause.text) for clause in whole]
    assert [piece.line for piece in found] == [clause.line for clause in whole]
