"""Whatever a text is: it gets a verdict, in no time, and the verdict does not depend on how it is written."""

from time import process_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.lexer import TOKEN_LIMIT
from protocol.sql import HARMLESS, TEXT_LIMIT, State, Verdict, classify, clauses, fingerprint, is_plain_query
from protocol.statements import SHAPE, SHAPE_LIMIT
from tests.protocol.model import message
from tests.protocol.test_sql_texts import HARMLESS_TEXTS, TEXTS

EXAMPLES = settings(max_examples=500, deadline=None)

# Texts that are read to their end, and in one way only.
whole = st.sampled_from(
    [
        (text, verdict)
        for name, (text, verdict) in {
            **{name: (text, HARMLESS) for name, text in HARMLESS_TEXTS.items()},
            **TEXTS,
        }.items()
        if "never ends" not in name and "\\" not in text
    ]
)

# Pieces that make it likely that something is hidden in something else.
pieces = st.sampled_from(
    [
        *(
            "select ",
            "SELECT\n",
            "insert into t ",
            "update t set a = 1 ",
            "delete from t ",
            "with x as ",
            "begin",
            "set ",
        ),
        *("set local ", "local", ".", "app.x", "=", " ", "\n", ";", "; ", "(", ")", ",", "'", "''", "'a'", '"', '"a"'),
        *("$$", "$a$", "$1", "E'", "U&'", 'U&"', "u&", "\\", "\\'", "--", "-- \n", "/*", "*/", "/**/", "1", "a", "b$c"),
        *("into ", " INTO temp t ", "pg_settings ", "set_config", "Set_Config(", "'a.b', 'c', false)", "asset_config"),
        *(
            "pg_advisory_lock(1)",
            "pg_advisory_xact_lock(1)",
            "nextval('s')",
            "listen x",
            "explain analyze ",
            "execute p",
        ),
        *(
            "create temp table t (a int) ",
            "on commit drop",
            "prepare p as ",
            "do ",
            "commit",
            "declare c cursor with hold",
        ),
        *("\0", "\x83", "ü", "\t", "e", "atomic ", "begin atomic ", "case ", "end", "create function f() "),
    ]
)
texts = st.lists(pieces, max_size=25).map("".join)


def query(text: bytes) -> bytes:
    return message("Q", text + b"\0")


def either_case(text: str) -> st.SearchStrategy[str]:
    """Return `text` with any of its letters in the other case."""
    return st.lists(st.booleans(), min_size=len(text), max_size=len(text)).map(
        lambda flips: "".join(c.swapcase() if flip and c.isascii() else c for c, flip in zip(text, flips, strict=True))
    )


@given(texts)
@EXAMPLES
@example("select \"nextval('s')")
@example("select nextval('it\\'s')")
@example('set local U&"a" = 1')
@example('set local ü"')
@example("select U&\"set\\005fconfig\"('a', 'b', false)")
def test_a_plain_query_leaves_nothing(text: str) -> None:
    # The last character, which is not looked at, is a semicolon here: what it is else, the server refuses.
    if is_plain_query(query(text.encode() + b";")):
        verdict = classify(text.encode())
        assert verdict._replace(leaves=verdict.leaves & ~State.SEQUENCE) == HARMLESS


@given(texts, st.sampled_from("123456789"))
@EXAMPLES
def test_whether_a_query_is_plain_hangs_on_no_digit(text: str, digit: str) -> None:
    data = query(text.replace("0", digit).encode())
    if len(data) <= SHAPE_LIMIT:
        shape = data[:5] + data[5:].translate(SHAPE)
        assert is_plain_query(data) == is_plain_query(shape)


@given(st.one_of(st.binary(max_size=200), texts.map(str.encode)))
@EXAMPLES
def test_any_bytes_get_a_verdict_and_a_fingerprint(text: bytes) -> None:
    assert isinstance(classify(text), Verdict)
    assert len(fingerprint(text)) <= 200
    assert fingerprint(text).isprintable()
    is_plain_query(text)
    is_plain_query(query(text))
    last = 0
    for clause in clauses(text):
        last = text.index(clause.text, last) + len(clause.text)
        assert clause.line <= text.count(b"\n") + 1


@given(whole, whole)
@EXAMPLES
def test_the_verdict_on_two_statements_is_the_union_of_theirs(
    one: tuple[str, Verdict], two: tuple[str, Verdict]
) -> None:
    verdict = classify(f"{one[0]}\n;{two[0]}".encode())
    assert verdict.leaves == one[1].leaves | two[1].leaves
    assert verdict.undoes == one[1].undoes | two[1].undoes
    for field in ("asks", "executes", "drops_statements", "ddl", "dynamic"):
        assert getattr(verdict, field) == (getattr(one[1], field) or getattr(two[1], field))
    assert set(verdict.custom) == {*one[1].custom, *two[1].custom}


@given(whole, st.sampled_from(["/* a */", "-- LISTEN x\n", "\n\t ", "/* /* ; */ 'a */\n", "--\r", "\f\v"]), st.data())
@EXAMPLES
def test_the_verdict_does_not_depend_on_comments(each: tuple[str, Verdict], comment: str, data: st.DataObject) -> None:
    text, verdict = each
    assert classify(f"{comment}{text}\n{comment}".encode()) == verdict
    words = text.split(" ")
    if not any(quote in text for quote in ("'", '"', "$", "--", "/*")):
        at = data.draw(st.integers(0, len(words)))
        assert classify(f" {comment} ".join([" ".join(words[:at]), " ".join(words[at:])]).encode()) == verdict


@given(st.sampled_from([t for t, v in TEXTS.values() if not any(c in t for c in "'\"$\\") and not v.custom]), st.data())
@EXAMPLES
def test_the_verdict_does_not_depend_on_the_case_of_words(text: str, data: st.DataObject) -> None:
    assert classify(data.draw(either_case(text)).encode()) == classify(text.encode())


@given(texts, st.sampled_from(["LISTEN x", "SET a = 1", "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "LOAD 'a'"]))
@EXAMPLES
def test_a_statement_behind_any_other_text_is_found_or_asked_for(before: str, statement: str) -> None:
    # Unless it is inside of a string, a comment or the body of a function, which can't be told without reading them as
    # the lexer does: so the texts have nothing that could open one.
    if not any(opening in before for opening in ("'", '"', "$", "--", "/*", "atomic", "(")):
        verdict = classify(f"{before};{statement}".encode())
        assert verdict.leaves & classify(statement.encode()).leaves or verdict.asks


LONG = TEXT_LIMIT - 100
HOSTILE = {
    "semicolons": ";" * LONG,
    "words": "a " * (LONG // 2),
    "one word": "a" * LONG,
    "quotes": "'" * LONG,
    "double quotes": '"' * LONG,
    "an odd number of quotes": "'" * (LONG // 2 * 2 + 1),
    "strings": "'a'\n" * (LONG // 4),
    "strings with escapes that go on": "E'a'\n" + "'a'\n" * (LONG // 4),
    "a string with escapes, behind which is nothing": "E'a'" + "\n" * LONG,
    "backslashes": "E'" + "\\" * LONG,
    "dollars": "$" * LONG,
    "dollar quotes that never end": "".join(f"$a{number}$ " for number in range(LONG // 10)),
    "dollar quotes": "$$ $$" * (LONG // 5),
    "a comment that never ends": "/*" * (LONG // 2),
    "comments that have one in them": "/*/**/*/" * (LONG // 8),
    "comments": "/**/" * (LONG // 4),
    "a comment of stars": "/*" + "*" * LONG,
    "comments to the end of the line": "--\n" * (LONG // 3),
    "white space": " " * LONG,
    "digits and dots": "1." * (LONG // 2),
    "parentheses": "(" * LONG,
    "calls in calls": "set_config(" * (LONG // 11),
    "calls": "SELECT " + "set_config('a.b', 'c', false), " * (LONG // 32),
    "settings": "".join(f"SET a.b{number} = 1;" for number in range(TOKEN_LIMIT)),
    "statements in statements": "EXPLAIN PREPARE a AS " * (LONG // 21),
    "functions": "CREATE FUNCTION BEGIN ATOMIC " * (LONG // 29),
    "SELECT INTO": "SELECT INTO " * (LONG // 12),
    "ON COMMIT": "CREATE TEMP TABLE a " + "ON COMMIT " * (LONG // 10),
    "dots": "SET a" + ".a" * (LONG // 2),
    "strings to be run": "ts_stat(" + "$a$ts_stat($b$" * (LONG // 14),
    "strings in a DO": "DO " + "'set a.b = 1' " * (LONG // 14),
    "NULs": "\0" * LONG,
    "bytes beyond ASCII": "\x83" * (LONG // 2),
    "plain": "SELECT (" + "a" * LONG,
    "a list": "SELECT * FROM t WHERE a IN (1" + ", 1" * (LONG // 3),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_is_judged_in_a_moment(text: str) -> None:
    data = text.encode("utf-8")
    took = process_time()
    classify(data)
    fingerprint(data)
    is_plain_query(query(data))
    took = process_time() - took
    assert took < 0.5  # seconds; it is a tenth of that on an ordinary machine
