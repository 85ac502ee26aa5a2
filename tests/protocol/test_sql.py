"""What the pooler relies on when it looks at texts: plain queries, single statements, fingerprints."""

import pytest

from protocol.functions import FUNCTIONS, NEEDLES, SEQUENCE_FUNCTIONS
from protocol.sql import TEXT_LIMIT, State, classify, clauses, fingerprint, is_plain_query, words
from tests.protocol.model import message
from tests.protocol.test_sql_texts import TEXTS


def query(text: str) -> bytes:
    return message("Q", text.encode() + b"\0")


# --- plain queries

PLAIN = [
    "SELECT 1",
    "select\t1",
    "Select abalance FROM pgbench_accounts WHERE aid = 12345;",
    "SELECT asset_id, offset_x, reset_at, listen FROM templates WHERE (a = 1) AND deallocated IN (1, 2)",
    "SELECT set_byte(a, 1, 2), setweight(b, 'A'), jsonb_set(c, '{d}', '1') FROM t",
    "SELECT nextval('s')",
    r"SELECT 'C:\temp\', a & b FROM t",
    "INSERT INTO t (a, b) VALUES (1, 'x into y')",
    "insert\ninto t values (1);",
    "UPDATE t SET a = 1 WHERE b = 2",
    "DELETE FROM t WHERE a = 1",
    "BEGIN",
    "begin;",
    "COMMIT",
    "commit;",
    "END",
    "ROLLBACK",
    "ROLLBACK TO SAVEPOINT a",
    "START TRANSACTION READ ONLY",
    "SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "SET LOCAL app.tenant = '42'",
    'set local "a" = 1;',
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_frequent_text_is_plain_at_first_sight(text: str) -> None:
    assert is_plain_query(query(text))
    assert not classify(text.encode()).leaves & ~State.SEQUENCE


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1; SET search_path = a",
        "SELECT 1 INTO TEMP t",
        "SELECT SET_CONFIG('a', 'b', false)",
        "SELECT \"set_config\" ('a', 'b', false)",
        r"""SELECT U&"set\005fconfig"('a', 'b', false)""",
        "UPDATE pg_settings SET setting = 1",
        "SET LOCAL.x = 1",
        "SET LOCAL .x = 1",
        "SET LOCAL x = 1; SET y = 2",
        "SET search_path = a",
        "SELECTION",
        "LISTEN x",
        "BEGIN; LISTEN x",
        "WITH x AS (SELECT 1) SELECT * FROM x",
    ],
)
def test_a_text_that_needs_a_closer_look_is_not_plain(text: str) -> None:
    assert not is_plain_query(query(text))


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_that_leaves_something_is_plain(text: str) -> None:
    sql, verdict = TEXTS[text]
    sequences_only = verdict.leaves == State.SEQUENCE and not verdict.undoes
    assert sequences_only or not is_plain_query(query(sql))


def test_a_function_that_leaves_something_is_found_by_its_needle() -> None:
    for name in map(bytes.decode, FUNCTIONS):
        assert name in SEQUENCE_FUNCTIONS or any(needle in name for needle in NEEDLES)
        for text in (
            f"SELECT {name}(1)",
            f'insert into t select "{name}" (1)',
            f"DELETE FROM t WHERE {name.upper()}(1)",
        ):
            assert is_plain_query(query(text)) == (name in SEQUENCE_FUNCTIONS)
            assert any(classify(text.encode()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Q",
        b"Q\0\0\0",
        query("SELECT 1")[:-1],
        query("SELECT 1") * 2,
        query("SELECT 1") + b"X",
        query("SELECT 1") + message("X"),
        message("P", b"SELECT 1\0"),
        message("X"),
    ],
)
def test_nothing_but_one_whole_query_is_plain(data: bytes) -> None:
    assert not is_plain_query(data)


def test_a_long_query_is_left_to_a_closer_look() -> None:
    text = f"SELECT '{'x' * 10_000}'"
    assert not is_plain_query(query(text))
    assert not any(classify(text.encode()))


# --- texts too long to be looked at closely


def test_a_long_text_of_a_harmless_kind_is_harmless() -> None:
    assert not any(classify(b"INSERT INTO t VALUES " + b", ".join([b"(1, 'a')"] * TEXT_LIMIT)))


@pytest.mark.parametrize("size", [10_000, TEXT_LIMIT])
def test_a_sequence_function_is_found_behind_very_much_else(size: int) -> None:
    text = b"INSERT INTO t VALUES " + b"(1, 'a'), " * size + b"(nextval('s'), 'a')"
    assert classify(text).leaves == State.SEQUENCE


@pytest.mark.parametrize("text", [b"SELECT 1 INTO t -- " + b"x" * TEXT_LIMIT, b"SELECT 1;" * 20_000 + b"LISTEN x"])
def test_what_is_not_read_to_its_end_is_unknown(text: bytes) -> None:
    assert State.UNKNOWN in classify(text).leaves
    assert classify(text).asks


# --- names of classes


def test_classes_have_the_words_of_settings_and_logs() -> None:
    assert words(State.SETTING | State.ADVISORY_LOCK) == ["setting", "advisory_lock"]
    assert words(State(0)) == []


# --- custom settings


def test_a_text_that_sets_very_many_custom_settings_is_dynamic() -> None:
    verdict = classify(b"".join(b"SET app.x%d = 1;" % number for number in range(1000)))
    assert len(verdict.custom) == 100
    assert verdict.dynamic


# --- single statements


def test_each_statement_is_told_with_its_line() -> None:
    text = b"-- first\nSELECT 1;\n\n/* two\n lines */ LISTEN x ;; CREATE RULE r AS ON INSERT TO t DO (\nSELECT 1;);\n"
    assert [(clause.text, clause.line) for clause in clauses(text)] == [
        (b"SELECT 1", 2),
        (b"LISTEN x", 5),
        (b"CREATE RULE r AS ON INSERT TO t DO (\nSELECT 1;)", 5),
    ]


def test_the_body_of_a_function_is_part_of_its_statement() -> None:
    create = b"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END"
    assert [clause.text for clause in clauses(create + b"; LISTEN x")] == [create, b"LISTEN x"]


def test_each_statement_has_its_own_verdict() -> None:
    found = [clause.verdict.leaves for clause in clauses(b"SELECT 1; LISTEN x; DEALLOCATE a; SET x = 1")]
    assert found == [State(0), State.LISTEN, State(0), State.SETTING]


@pytest.mark.parametrize("rest", ["SELECT 'a; ", 'SELECT "a; ', "SELECT $a$; ", "SELECT /* ; ", r"SELECT E'a\'; "])
def test_a_statement_without_an_end_goes_to_the_end(rest: str) -> None:
    *_, last = clauses(b"SELECT 1; " + rest.encode())
    assert last.text == rest.encode()
    assert last.verdict.asks


def test_a_long_script_is_judged_to_its_end() -> None:
    *_, last = clauses(b"SELECT 1;\n" * 100_000 + b"LISTEN x")
    assert last.line == 100_001
    assert last.verdict.leaves == State.LISTEN


# --- fingerprints


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", "SELECT ?"),
        ("  select\n\t*  from t ;\n", "select * from t"),
        ("SELECT 'a' , 1.5e-3, .5, 0x1F, 1_000, $1, true", "SELECT ? , ?, ?, ?, ?, $1, true"),
        ("SELECT E'it\\'s', $$a$$, $x$b$x$, U&'c', N'd', B'01', x'ff'", "SELECT ?, ?, ?, ?, ?, ?, ?"),
        ('SELECT a1, "B 2" /* 3 */ FROM t--4\nWHERE c=-5', 'SELECT a1, "B 2" FROM t WHERE c=-?'),
        ("SELECT * FROM t WHERE a IN (1, 2, 3) AND b IN(4,5)", "SELECT * FROM t WHERE a IN (...) AND b IN(...)"),
        ("SELECT a IN ($1, $2) AND b = ANY(ARRAY[1, -2])", "SELECT a IN (...) AND b = ANY(ARRAY[...])"),
        ("INSERT INTO t (a, b) VALUES (1, NULL), (2, 'x'),(3, DEFAULT)", "INSERT INTO t (a, b) VALUES (...)"),
        ("SELECT set_config('a.b', 'secret', false)", "SELECT set_config(?, ?, false)"),
        ("SELECT pg_advisory_lock(1, 2)", "SELECT pg_advisory_lock(?, ?)"),
        ("SET app.user TO 'secret'; LISTEN x", "SET app.user TO ?; LISTEN x"),
        ("SELECT 'never ends secret", "SELECT ?"),
        (r"SELECT 'a\', secret, '", "SELECT ?"),
        ("SELECT größe", "SELECT größe"),
        ('SELECT "a\nb\x1b[31m"', 'SELECT "a b [31m"'),
        ("", ""),
    ],
)  # fmt: skip
def test_the_fingerprint_of(text: str, expected: str) -> None:
    assert fingerprint(text.encode()) == expected


def test_a_fingerprint_is_short() -> None:
    assert fingerprint(b"SELECT " + b"abc, " * 1000) == "SELECT " + ("abc, " * 1000)[:190] + "..."


def test_a_list_that_is_too_long_to_be_read_has_the_fingerprint_of_a_short_one() -> None:
    texts = [f"SELECT * FROM t WHERE a IN ({', '.join(map(str, range(count)))})" for count in (2, 100, 10_000, 10_001)]
    rows = [f"INSERT INTO t VALUES {', '.join(['(1, 22)'] * count)}" for count in (1, 100, 10_000, 10_001)]
    assert {fingerprint(text.encode()) for text in texts} == {"SELECT * FROM t WHERE a IN (...)"}
    assert {fingerprint(text.encode()) for text in rows} == {"INSERT INTO t VALUES (...)"}


def test_a_fingerprint_in_another_encoding_is_readable() -> None:
    assert fingerprint("SELECT größe".encode("latin-1")) == "SELECT gr\ufffd\ufffde"
