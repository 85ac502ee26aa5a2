"""What a client sees through pgfunnel is, byte for byte, what it sees straight at Postgres.

Each script below is one conversation. It is held with Postgres itself, then through pgfunnel, as whole messages and
cut at random bytes, with the server's answers cut into single bytes too; the transcripts must be equal. The one pool
has one server connection: a script that did not leave it clean, or not release it, spoils the next.
"""

import random
import struct
from collections.abc import Callable, Iterator

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.pgfunnel import Pgfunnel
from tests.support.proxy import FaultProxy
from tests.support.wire import (
    Message,
    Wire,
    bind,
    close_portal,
    close_statement,
    copy_data,
    copy_done,
    copy_fail,
    describe_portal,
    describe_statement,
    execute,
    extended,
    flush,
    function_call,
    kinds,
    parse,
    query,
    startup,
    sync,
)


class Talk:
    """Says a script's lines to one peer and writes down the answers."""

    def __init__(self, wire: Wire, cuts: random.Random | None) -> None:
        self._wire = wire
        self._cuts = cuts
        self.transcript: list[Message] = []

    def say(self, *messages: bytes, until: str = "Z", times: int = 1) -> None:
        """Send, and read until the `times`th message of the kinds `until`; "" reads nothing."""
        for piece in pieces(b"".join(messages), self._cuts):
            self._wire.send(piece)
        for _ in range(times if until else 0):
            self.transcript += self._wire.read_until(until)


def pieces(data: bytes, cuts: random.Random | None) -> Iterator[bytes]:
    while data:
        size = len(data) if cuts is None else cuts.choice((1, 2, 3, 4, 5, 7, 11, 60, 500))
        yield data[:size]
        data = data[size:]


Script = Callable[[Talk], None]
SCRIPTS: list[Script] = []


def script(conversation: Script) -> Script:
    SCRIPTS.append(conversation)
    return conversation


# --- simple queries


@script
def one_row(talk: Talk) -> None:
    talk.say(query("SELECT 1 AS one, NULL AS nothing, '' AS empty"))


@script
def several_statements_in_one_query(talk: Talk) -> None:
    talk.say(query("SELECT 1; SELECT 2 WHERE false; CREATE TEMP TABLE t (a int) ON COMMIT DROP; SELECT 'x'"))


@script
def error_in_the_middle_of_several_statements(talk: Talk) -> None:
    talk.say(query("SELECT 1; SELECT 1/0; SELECT 2"))


@script
def syntax_error(talk: Talk) -> None:
    talk.say(query("SELEC 1"))


@script
def error_after_the_first_rows(talk: Talk) -> None:
    talk.say(query("SELECT 1000 / (5 - i) FROM generate_series(1, 9) i"))


@script
def empty_queries(talk: Talk) -> None:
    talk.say(query(""))
    talk.say(query(";;"))
    talk.say(query("-- only a comment"))


@script
def several_queries_at_once(talk: Talk) -> None:
    talk.say(query("SELECT 1"), query("SELECT 1/0"), query(""), query("SELECT 2; SELECT 3"), times=4)


@script
def transaction_that_commits(talk: Talk) -> None:
    for sql in ("BEGIN", "SELECT 1", "SAVEPOINT a", "SELECT 2", "RELEASE a", "COMMIT"):
        talk.say(query(sql))


@script
def transaction_that_fails_and_rolls_back(talk: Talk) -> None:
    for sql in ("BEGIN", "SELECT 1/0", "SELECT 1", "ROLLBACK"):
        talk.say(query(sql))


@script
def failed_transaction_that_is_committed(talk: Talk) -> None:
    for sql in ("BEGIN", "SELECT nope", "COMMIT"):
        talk.say(query(sql))


@script
def failed_transaction_saved_by_its_savepoint(talk: Talk) -> None:
    for sql in ("BEGIN", "SAVEPOINT a", "SELECT nope", "ROLLBACK TO a", "SELECT 1", "COMMIT AND CHAIN", "ROLLBACK"):
        talk.say(query(sql))


@script
def transaction_within_one_query(talk: Talk) -> None:
    talk.say(query("BEGIN; SELECT 1; COMMIT; SELECT 2; BEGIN; SELECT 3; ROLLBACK"))


@script
def transaction_begun_in_one_query_and_ended_in_another(talk: Talk) -> None:
    talk.say(query("SELECT 1; BEGIN; SELECT 2"), query("SELECT 3; COMMIT; SELECT 4"), times=2)


@script
def warnings(talk: Talk) -> None:
    talk.say(query("COMMIT"))
    talk.say(query("BEGIN; BEGIN"), query("ROLLBACK"), times=2)


@script
def notices(talk: Talk) -> None:
    talk.say(query("DO $$ BEGIN FOR i IN 1..20 LOOP RAISE NOTICE 'number %', i; END LOOP; END $$"))


@script
def all_fields_of_an_error(talk: Talk) -> None:
    talk.say(
        query(
            "DO $$ BEGIN RAISE EXCEPTION 'no' USING DETAIL = 'd', HINT = 'h', ERRCODE = 'U0001', "
            "COLUMN = 'c', CONSTRAINT = 'k', DATATYPE = 't', TABLE = 'r', SCHEMA = 's'; END $$"
        )
    )


@script
def parameter_that_changes(talk: Talk) -> None:
    talk.say(query("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'SQL, DMY'"))
    talk.say(query("SELECT '2026-01-02'::date"))
    talk.say(query("RESET TimeZone; RESET DateStyle"))


@script
def parameter_that_changes_back_with_its_transaction(talk: Talk) -> None:
    for sql in ("BEGIN", "SET LOCAL TimeZone = 'Asia/Tokyo'", "COMMIT"):
        talk.say(query(sql))
    for sql in ("BEGIN", "SET TimeZone = 'Asia/Tokyo'", "SELECT 1/0", "ROLLBACK"):
        talk.say(query(sql))


@script
def notification_of_ones_own(talk: Talk) -> None:
    talk.say(query("LISTEN chan; NOTIFY chan, 'hello'"))
    talk.say(query("UNLISTEN chan"))


@script
def notifications_amid_a_pipeline(talk: Talk) -> None:
    talk.say(query("LISTEN chan"), query("NOTIFY chan, '1'"), query("NOTIFY chan, '2'"), times=3)
    talk.say(extended("SELECT pg_notify('chan', '3')"), sync(), query("UNLISTEN *"), times=2)


@script
def statements_prepared_in_sql(talk: Talk) -> None:
    talk.say(query("PREPARE p (int) AS SELECT $1 + 1; EXECUTE p(1); DEALLOCATE p; EXECUTE p(2)"))


@script
def cursor_in_a_transaction(talk: Talk) -> None:
    for sql in ("BEGIN; DECLARE c CURSOR FOR SELECT generate_series(1, 5)", "FETCH 2 FROM c", "MOVE 1 IN c"):
        talk.say(query(sql))
    for sql in ("FETCH ALL FROM c", "CLOSE c", "FETCH 1 FROM c", "ROLLBACK"):
        talk.say(query(sql))


@script
def one_row_larger_than_any_buffer(talk: Talk) -> None:
    talk.say(query("SELECT repeat('0123456789', 20000)"))


@script
def many_rows_of_equal_and_of_random_length(talk: Talk) -> None:
    talk.say(query("SELECT lpad(i::text, 6, '0') FROM generate_series(1, 2000) i"))
    talk.say(query("SELECT i, repeat('y', i * 7919 % 97) FROM generate_series(1, 1000) i"))


@script
def rows_whose_content_looks_like_messages(talk: Talk) -> None:
    talk.say(query("SELECT E'Z\\x01\\x01\\x01\\x05I' || repeat(E'Z\\x01\\x01\\x01\\x05IE', 300)"))


@script
def query_larger_than_any_buffer(talk: Talk) -> None:
    talk.say(query("SELECT length('" + "x" * 100_000 + "')"))


@script
def rows_of_no_columns(talk: Talk) -> None:
    talk.say(query("SELECT FROM generate_series(1, 300)"))


# --- extended queries


@script
def extended_query(talk: Talk) -> None:
    talk.say(extended("SELECT $1::int + 1, $2::text", "41", None), sync())


@script
def extended_query_with_binary_results(talk: Talk) -> None:
    talk.say(parse("SELECT 7, 1.5::float8"), bind(binary_results=True), describe_portal(), execute(), sync())


@script
def extended_query_without_rows(talk: Talk) -> None:
    talk.say(extended("SELECT 1 WHERE false"), sync())
    talk.say(parse(""), bind(), describe_statement(), describe_portal(), execute(), sync())


@script
def sync_alone(talk: Talk) -> None:
    talk.say(sync())
    talk.say(sync(), sync(), sync(), times=3)


@script
def flush_without_sync(talk: Talk) -> None:
    talk.say(parse("SELECT $1::int"), describe_statement(), flush(), until="T")
    talk.say(bind("5"), execute(), flush(), until="C")
    talk.say(bind("6"), execute(), flush(), until="C")
    talk.say(sync())


@script
def flush_alone(talk: Talk) -> None:
    talk.say(flush(), flush(), until="")
    talk.say(query("SELECT 1"))


@script
def error_that_a_flush_brings_before_the_sync(talk: Talk) -> None:
    talk.say(parse("SELECT 1/$1::int"), bind("0"), execute(), flush(), until="E")
    talk.say(bind("1"), execute(), flush(), until="")
    talk.say(sync())


@script
def pipeline_of_many_syncs(talk: Talk) -> None:
    talk.say(*(extended("SELECT $1::text", str(number)) + sync() for number in range(50)), times=50)


@script
def pipeline_with_one_sync(talk: Talk) -> None:
    talk.say(*(extended("SELECT $1::text", str(number)) for number in range(50)), sync())


@script
def errors_that_skip_to_the_next_sync(talk: Talk) -> None:
    wrong = extended("SELECT 1/$1::int", "0")
    right = extended("SELECT 1/$1::int", "1")
    talk.say(right, wrong, right, right, sync(), right, sync(), wrong, wrong, sync(), times=3)


@script
def error_in_each_kind_of_message(talk: Talk) -> None:
    talk.say(parse("SELEC"), bind(), execute(), sync())
    talk.say(bind(statement="nowhere"), execute(), sync())
    talk.say(describe_statement("nowhere"), sync())
    talk.say(describe_portal("nowhere"), sync())
    talk.say(execute("nowhere"), sync())
    talk.say(parse("SELECT $1::int"), bind("not a number"), execute(), sync())
    talk.say(parse("SELECT $1::int"), bind(), execute(), sync())


@script
def query_inside_a_skipped_run_is_never_answered(talk: Talk) -> None:
    talk.say(parse("SELEC"), query("SELECT 'skipped'"), bind(), sync(), query("SELECT 'answered'"), times=2)


@script
def simple_query_that_ends_an_extended_run(talk: Talk) -> None:
    talk.say(extended("SELECT 1"), query("SELECT 2"), extended("SELECT 3"), sync(), times=2)


@script
def portal_with_a_row_limit(talk: Talk) -> None:
    rows = parse("SELECT generate_series(1, 7)")
    talk.say(rows, bind(), execute(max_rows=3), execute(max_rows=3), execute(max_rows=3), execute(), sync())


@script
def portal_that_outlives_syncs_in_a_transaction(talk: Talk) -> None:
    talk.say(query("BEGIN"))
    talk.say(parse("SELECT generate_series(1, 5)"), bind(portal="p"), execute("p", max_rows=2), sync())
    talk.say(execute("p", max_rows=2), sync())
    talk.say(execute("p"), close_portal("p"), execute("p"), sync())
    talk.say(query("ROLLBACK"))


@script
def named_statements(talk: Talk) -> None:
    talk.say(parse("SELECT $1::int", "s"), describe_statement("s"), sync())
    talk.say(*(bind(str(number), statement="s") + execute() for number in range(3)), sync())
    talk.say(parse("SELECT 'again'", "s"), sync())
    talk.say(close_statement("s"), close_statement("never there"), close_portal("never there"), sync())
    talk.say(bind("1", statement="s"), execute(), sync())


@script
def transaction_in_one_pipeline(talk: Talk) -> None:
    talk.say(extended("BEGIN"), extended("SELECT 1"), extended("COMMIT"), sync())
    talk.say(extended("BEGIN"), sync(), extended("SELECT 1"), sync(), extended("COMMIT"), sync(), times=3)


@script
def implicit_transaction_of_a_pipeline_rolls_back(talk: Talk) -> None:
    insert = extended("INSERT INTO copied VALUES (1, 'rolled back') RETURNING *")
    talk.say(insert, extended("SELECT 1/0"), sync())
    talk.say(query("SELECT count(*) FROM copied"))


@script
def large_parameter(talk: Talk) -> None:
    talk.say(extended("SELECT length($1::text), $1::text", "v" * 70_000), sync())


@script
def notices_amid_an_extended_query(talk: Talk) -> None:
    talk.say(extended("SELECT noisy(5)"), sync())


# --- COPY


@script
def copy_out(talk: Talk) -> None:
    talk.say(query("COPY (SELECT i, 'row ' || i FROM generate_series(1, 500) i) TO STDOUT"))


@script
def copy_out_that_fails_midway(talk: Talk) -> None:
    talk.say(query("COPY (SELECT 1000 / (500 - i) FROM generate_series(1, 999) i) TO STDOUT"))


@script
def copy_out_extended(talk: Talk) -> None:
    talk.say(extended("COPY (SELECT generate_series(1, 50)) TO STDOUT WITH (FORMAT binary)"), sync())


@script
def copy_out_between_other_statements(talk: Talk) -> None:
    talk.say(query("SELECT 1; COPY (SELECT 2) TO STDOUT; SELECT 3"), query("SELECT 4"), times=2)


@script
def copy_in(talk: Talk) -> None:
    talk.say(query("COPY copied FROM STDIN"), until="G")
    talk.say(copy_data(b"1\tone\n2\tt"), copy_data(b"wo\n"), copy_done())
    talk.say(query("DELETE FROM copied RETURNING *"))


@script
def copy_in_sent_without_waiting(talk: Talk) -> None:
    talk.say(query("COPY copied FROM STDIN"), copy_data(b"1\tone\n"), copy_done(), query("TABLE copied"), times=2)
    talk.say(query("DELETE FROM copied"))


@script
def two_copies_in_one_query(talk: Talk) -> None:
    talk.say(query("COPY copied FROM STDIN; COPY copied FROM STDIN; DELETE FROM copied RETURNING *"), until="G")
    talk.say(copy_data(b"1\tone\n"), copy_done(), until="G")
    talk.say(copy_data(b"2\ttwo\n"), copy_done())


@script
def copy_in_and_out_in_one_query(talk: Talk) -> None:
    talk.say(query("COPY copied FROM STDIN; COPY copied TO STDOUT; DELETE FROM copied"), until="G")
    talk.say(copy_data(b"1\tone\n"), copy_done())


@script
def copy_in_that_the_client_fails(talk: Talk) -> None:
    talk.say(query("COPY copied FROM STDIN"), until="G")
    talk.say(copy_data(b"1\tone\n"), copy_fail("changed my mind"))
    talk.say(query("SELECT 'next'"))


@script
def copy_in_that_the_server_fails(talk: Talk) -> None:
    talk.say(query("COPY copied FROM STDIN"), until="G")
    talk.say(copy_data(b"not a number\tx\n"), until="E")
    talk.say(copy_data(b"2\ttwo\n"), copy_data(b"3\tthree\n"), copy_done(), query("SELECT 'next'"), times=2)


@script
def copy_in_refused_but_sent_anyway(talk: Talk) -> None:
    talk.say(query("COPY nowhere FROM STDIN"), copy_data(b"1\tone\n"), copy_done(), query("SELECT 'next'"), times=2)


@script
def flush_and_sync_within_copy_in(talk: Talk) -> None:
    talk.say(query("COPY copied FROM STDIN"), until="G")
    talk.say(flush(), copy_data(b"1\tone\n"), sync(), copy_data(b"2\ttwo\n"), flush(), copy_done())
    talk.say(query("DELETE FROM copied RETURNING *"))


@script
def copy_in_extended(talk: Talk) -> None:
    talk.say(parse("COPY copied FROM STDIN"), bind(), execute(), flush(), until="G")
    talk.say(copy_data(b"1\tone\n"), copy_done(), sync())
    talk.say(query("DELETE FROM copied RETURNING *"))


@script
def sync_sent_ahead_of_copy_in_extended(talk: Talk) -> None:
    talk.say(extended("COPY copied FROM STDIN"), sync(), until="G")
    talk.say(copy_data(b"1\tone\n"), copy_done(), sync())
    talk.say(query("DELETE FROM copied RETURNING *"))


@script
def copy_in_extended_that_the_client_fails(talk: Talk) -> None:
    talk.say(extended("COPY copied FROM STDIN"), sync(), until="G")
    talk.say(copy_data(b"1\tone\n"), copy_fail("changed my mind"), extended("SELECT 'skipped'"), sync())
    talk.say(query("SELECT 'next'"))


@script
def copy_in_extended_that_the_server_fails(talk: Talk) -> None:
    talk.say(extended("COPY copied FROM STDIN"), flush(), until="G")
    talk.say(copy_data(b"x\tx\n"), copy_data(b"1\tone\n"), copy_done(), extended("SELECT 'skipped'"), sync())
    talk.say(query("SELECT 'next'"))


@script
def stray_copy_messages(talk: Talk) -> None:
    talk.say(copy_data(b"stray"), copy_done(), copy_fail("stray"), query("SELECT 1"))


# --- function calls


@script
def function_calls(talk: Talk) -> None:
    int4pl, no_such_function = 177, 1
    talk.say(function_call(int4pl, struct.pack("!i", 2), struct.pack("!i", 3)))
    talk.say(function_call(no_such_function))
    talk.say(query("BEGIN"), function_call(int4pl, b"too long for it", b""), query("ROLLBACK"), times=3)


SETUP = """
    CREATE TABLE copied (id int, name text);
    CREATE FUNCTION noisy(n int) RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN FOR i IN 1..n LOOP RAISE NOTICE 'noise %', i; END LOOP; RETURN n; END $$
"""


@pytest.fixture(scope="module")
def database(any_postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    any_postgres.psql("CREATE DATABASE differential")
    any_postgres.psql(SETUP, "differential")
    yield any_postgres
    any_postgres.psql("DROP DATABASE differential WITH (FORCE)")


@pytest.fixture(scope="module")
def whole(database: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(database.url(), default_pool_size=1) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def cut(database: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    """Start a pgfunnel that gets every byte of the server's answers by itself."""
    with (
        FaultProxy(database.host, database.port, chunk_size=1) as proxy,
        Pgfunnel(proxy.url(), default_pool_size=1) as pooler,
    ):
        yield pooler


def transcript(peer: EmbeddedPostgres | Pgfunnel, script: Script, cuts: random.Random | None) -> list[Message]:
    with Wire(peer.host, peer.port) as wire:
        wire.login("postgres", "differential")
        talk = Talk(wire, cuts)
        script(talk)
        wire.terminate()
    return [comparable(message) for message in talk.transcript]


def comparable(message: Message) -> Message:
    """Leave out the process id, and the place in Postgres's source: an error of the pooler's own has none."""
    if message.kind == "A":
        return Message("A", message.payload[4:])
    if message.kind == "E":
        return Message(
            "E", b"\0".join(field for field in message.payload.split(b"\0") if field[:1] not in (b"F", b"L", b"R"))
        )
    return message


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.__name__))
def test_client_sees_what_postgres_says(script: Script, database: EmbeddedPostgres, whole: Pgfunnel) -> None:
    expected = transcript(database, script, None)
    assert transcript(whole, script, None) == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.__name__))
def test_client_sees_the_same_however_the_bytes_are_cut(
    script: Script, database: EmbeddedPostgres, whole: Pgfunnel, cut: Pgfunnel
) -> None:
    expected = transcript(database, script, None)
    for seed in range(3):
        assert transcript(whole, script, random.Random(seed)) == expected
    if sum(len(message.raw) for message in expected) < 20_000:  # one system call for each byte of it
        assert transcript(cut, script, random.Random(script.__name__)) == expected


def test_login_tells_what_postgres_tells(database: EmbeddedPostgres, whole: Pgfunnel) -> None:
    def login(peer: EmbeddedPostgres | Pgfunnel) -> list[Message]:
        with Wire(peer.host, peer.port) as wire:
            wire.send(startup({"user": "postgres", "database": "differential"}))
            seen = wire.authenticate("postgres", "")
            wire.terminate()
        assert kinds(seen) == "R" + "S" * (len(seen) - 3) + "KZ"
        return sorted(message for message in seen if message.kind != "K")

    assert login(whole) == login(database)
