"""What is said by drivers that are not Python's: PDO, Rails, pgjdbc and Npgsql, message by message.

Eight clients say it on one pool in transaction mode, with the same statement names for different texts.
"""

from pooler.demo.postgres import EmbeddedPostgres
from tests.integration.conftest import Door
from tests.integration.people import DATABASE, SESSION, Person, Play, Program
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import (
    Message,
    Wire,
    bind,
    close_statement,
    describe_portal,
    describe_statement,
    execute,
    flush,
    kinds,
    parse,
    query,
    sync,
)

ROUNDS = 4


def enter(door: Door, **parameters: str) -> Wire:
    return Wire(door.host, door.port).login("postgres", DATABASE, **parameters)


def ask(wire: Wire, *messages: bytes) -> str:
    """Send, read up to ReadyForQuery, and say what came: kinds of messages, values of rows, SQLSTATEs of errors."""
    wire.send(*messages)
    return said(wire.read_until())


def said(answer: list[Message]) -> str:
    words = []
    for message in answer:
        if message.kind == "D":
            words.append(f"D({', '.join(map(str, message.columns))})")
        elif message.kind == "E":
            words.append(f"E({message.fields['C']})")
        elif message.kind not in "TS":
            words.append(message.kind)
    return " ".join(words)


def session_of(person: Person) -> str:
    return f"D({', '.join(map(str, person.session))})"


def run(*values: str, statement: str) -> tuple[bytes, ...]:
    return bind(*values, statement=statement), describe_portal(), execute(), sync()


def test_pdo_deallocates_by_sql_what_it_prepared_by_protocol(door: Door, everybody: Play) -> None:
    def program(person: Person) -> Program:
        name = "pdo_stmt_00000001"
        with enter(door, options=person.options, application_name=person.application) as wire:
            yield
            assert ask(wire, query(f"SET app.tenant = $${person.tenant}$$")) == "C Z"
            for turn in range(ROUNDS):
                yield
                assert ask(wire, parse(person.own_text("$1", turn), name), sync()) == "1 Z"
                yield
                for value in range(2):
                    own = person.own_answer(value, turn)
                    assert ask(wire, *run(str(value), statement=name)) == f"2 D({own}) C Z"
                    yield
                assert ask(wire, query(f"DEALLOCATE {name}")) == "C Z"
                yield
                assert ask(wire, *run("1", statement=name)) == "E(26000) Z"
                yield
                assert ask(wire, query(f"DEALLOCATE {name}")) == "E(26000) Z"
                yield
                assert ask(wire, query(SESSION)) == f"{session_of(person)} C Z"
            wire.terminate()

    everybody(program)


def test_rails_sets_up_its_connection_and_keeps_a_pool_of_statements(door: Door, everybody: Play) -> None:
    def program(person: Person) -> Program:
        with enter(door) as wire:
            for setting in (
                "client_min_messages TO 'warning'",
                "standard_conforming_strings = on",
                "SESSION intervalstyle TO 'iso_8601'",
                f"SESSION timezone TO '{person.timezone}'",
                f"search_path TO {person.schema}",
                f"application_name TO '{person.application}'",
                f"app.tenant TO $${person.tenant}$$",
            ):
                assert ask(wire, query(f"SET {setting}")) == "C Z"
                yield
            for turn in range(ROUNDS):
                assert ask(wire, parse(person.own_text("$1", turn), "a1"), sync()) == "1 Z"
                yield
                assert ask(wire, parse(SESSION, "a2"), sync()) == "1 Z"
                yield
                assert ask(wire, parse("SELECT 'a name taken'", "a1"), sync()) == "E(42P05) Z"
                yield
                assert ask(wire, *run(statement="a2")) == f"2 {session_of(person)} C Z"
                yield
                assert ask(wire, query("BEGIN")) == "C Z"
                assert ask(wire, *run("7", statement="a1")) == f"2 D({person.own_answer(7, turn)}) C Z"
                assert ask(wire, query("SET timezone TO 'Asia/Pyongyang'")) == "C Z"
                assert ask(wire, parse("SELECT interval '90 minutes'", "a3"), sync()) == "1 Z"
                assert ask(wire, query("ROLLBACK")) == "C Z"
                yield
                assert ask(wire, *run(statement="a3")) == "2 D(PT1H30M) C Z", "statements outlive a rollback"
                yield
                assert ask(wire, query("DEALLOCATE a3")) == "C Z"
                assert ask(wire, query("DEALLOCATE ALL")) == "C Z"
                yield
                assert ask(wire, *run(statement="a1")) == "E(26000) Z"
                yield
            assert ask(wire, query("DISCARD ALL")) == "C Z"
            yield
            assert ask(wire, query("SHOW intervalstyle")) == "D(postgres) C Z"
            wire.terminate()

    everybody(program)


def test_pgjdbc_asks_for_settings_at_startup_and_sends_begin_with_the_first_statement(
    door: Door, everybody: Play
) -> None:
    def begin() -> tuple[bytes, ...]:
        return parse("BEGIN"), bind(), execute()

    def program(person: Person) -> Program:
        with enter(
            door, client_encoding="UTF8", DateStyle="ISO", TimeZone=person.timezone, extra_float_digits="2"
        ) as wire:
            assert wire.parameters["TimeZone"] == person.timezone
            yield
            for setting in (
                "extra_float_digits = 3",
                f"application_name = '{person.application}'",
                f"search_path = {person.schema}",
                "SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                f"app.tenant = $${person.tenant}$$",
            ):
                messages = parse(f"SET {setting}"), bind(), describe_portal(), execute(max_rows=1), sync()
                assert ask(wire, *messages) == "1 2 n C Z"
                yield
            for turn in range(ROUNDS):
                own = parse(person.own_text("$1", turn), "S_1", [23])
                once = bind("5", statement="S_1"), describe_portal(), execute()
                session = parse(SESSION, "S_2"), bind(statement="S_2"), describe_portal(), execute()
                answer = person.own_answer(5, turn)
                got = ask(wire, *begin(), own, describe_statement("S_1"), *once, *session, sync())
                assert got == f"1 2 C 1 t 2 D({answer}) C 1 2 {session_of(person)} C Z"
                assert ask(wire, parse("COMMIT", "S_3"), *run(statement="S_3")) == "1 2 n C Z"
                yield
                assert ask(wire, *once, sync()) == f"2 D({answer}) C Z"
                yield
                assert ask(wire, *run(statement="S_2")) == f"2 {session_of(person)} C Z"
                yield
                taken = parse("CREATE TABLE never (i int)"), bind(), describe_portal(), execute(), sync()
                assert ask(wire, *taken) == "1 2 n E(25006) Z"
                yield
                closed = close_statement("S_1"), close_statement("S_2"), close_statement("S_3")
                isolation = parse("SHOW extra_float_digits"), *run(statement="")
                assert ask(wire, *closed, *isolation) == "3 3 3 1 2 D(3) C Z"
                yield
            wire.terminate()

    everybody(program)


def test_npgsql_sends_its_reset_ahead_of_the_next_users_statement(door: Door, everybody: Play) -> None:
    """Its own pool lends a connection on: the reset and the next statement arrive together."""
    reset = "SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();"

    def program(person: Person) -> Program:
        with enter(door, options=person.options, application_name=person.application, client_encoding="UTF8") as wire:
            assert ask(wire, parse(person.own_text("$1"), "_p1"), describe_statement("_p1"), sync()) == "1 t Z"
            for turn in range(ROUNDS):
                yield
                assert ask(wire, query(f"SET app.tenant = $${person.tenant}$$; SET timezone = 'Asia/Pyongyang'")) == (
                    "C C Z"
                )
                yield
                assert ask(wire, query("SHOW timezone")) == "D(Asia/Pyongyang) C Z"
                yield
                wire.send(query(f"{reset}DISCARD SEQUENCES;DISCARD TEMP"), *run(str(turn), statement="_p1"))
                assert said(wire.read_until()) == "C C C C D() C C C Z"
                assert said(wire.read_until()) == f"2 D({person.own_answer(turn)}) C Z"
                yield
                expected = session_of(person).replace(person.tenant, "")
                assert ask(wire, query(SESSION)) == f"{expected} C Z"
            yield
            wire.send(query("DISCARD ALL"), *run("1", statement="_p1"))
            assert said(wire.read_until()) == "C Z"
            assert said(wire.read_until()) == "E(26000) Z"
            yield
            assert ask(wire, parse("SELECT 'anew'", "_p1"), *run(statement="_p1")) == "1 2 D(anew) C Z"
            wire.terminate()

    everybody(program)


def test_the_unnamed_statement_is_the_clients_own_across_syncs(door: Door, everybody: Play) -> None:
    def program(person: Person) -> Program:
        with enter(door, options=person.options) as wire:
            for turn in range(ROUNDS):
                yield
                assert ask(wire, parse(person.own_text("$1", turn)), sync()) == "1 Z"
                yield
                assert ask(wire, describe_statement(), sync()) == "t Z"
                yield
                assert ask(wire, *run("1", statement="")) == f"2 D({person.own_answer(1, turn)}) C Z"
                yield
                assert ask(wire, query("SELECT 'a simple query ends it'")) == "D(a simple query ends it) C Z"
                yield
                assert ask(wire, *run("1", statement="")) == "E(26000) Z"
                yield
                wire.send(parse("SELECT value FROM mine", "mine"), describe_statement("mine"), flush())
                assert kinds(wire.read_until("T")) == "1tT"
                assert ask(wire, *run(statement="mine")) == f"2 D({person.number}) C Z"
                yield
                assert ask(wire, *run(statement="mine")) == f"2 D({person.number}) C Z"
                yield
                assert ask(wire, close_statement("mine"), sync()) == "3 Z"
            wire.terminate()

    everybody(program)


def test_a_parse_that_comes_alone_is_answered_to_the_client_that_sent_it(postgres: EmbeddedPostgres) -> None:
    """The server has the statement, so that nothing is sent to it, and serves somebody else before the rest comes."""
    with Pgfunnel(postgres.url(), default_pool_size=1) as pooler:
        first, alone, next_one = (pooler.login() for _ in range(3))
        with first, alone, next_one:
            assert ask(alone, query("SET application_name = 'with settings to follow it'")) == "C Z"
            assert ask(first, parse("SELECT 1", "x"), sync()) == "1 Z"
            assert ask(first, query("BEGIN")) == "C Z"
            alone.send(parse("SELECT 1", "x"))
            eventually(lambda: pooler.waiting() == 1)
            next_one.send(parse("SELECT 'next'", "y"), *run(statement="y"))
            eventually(lambda: pooler.waiting() == 2)
            assert ask(first, query("COMMIT")) == "C Z"
            assert said(next_one.read_until()) == "1 2 D(next) C Z"
            assert ask(alone, *run(statement="x")) == "1 2 D(1) C Z"
