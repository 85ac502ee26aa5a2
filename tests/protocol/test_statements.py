"""Prepared statements: each text once, no more of them than there is room for, and which of them a server has."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterable
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.session_state import DEFAULTS
from pooler.session_state.policy import Policy
from protocol.exchange import OWED_QUERY, Exchange
from protocol.frontend import scan_requests
from protocol.parameters import Dialect
from protocol.sql import State
from protocol.statements import (
    NAME_OVERHEAD,
    OVERHEAD,
    PLAIN,
    SHAPE,
    Library,
    LibraryFullError,
    ServerStatements,
    Statement,
    close_statement,
)
from tests.protocol.model import message

IGNORED = Policy.of(DEFAULTS).ignored
GERMAN: Dialect = frozenset({("DateStyle", b"German")})


class Client:
    unnamed: Statement | None = None


def body(sql: str) -> bytes:
    return sql.encode() + b"\0\0\0"


def new_library(limit: int = 1 << 20) -> Library:
    return Library(limit, IGNORED)


def check_books(library: Library, named: Iterable[Statement]) -> None:
    """What is counted is what is there; `named` are the statements that clients have names for, once per name."""
    users = Counter(map(id, named))
    users.update(id(library._known[each.body]) for each in library._dialects.values())
    known = [*library._known.values(), *library._dialects.values()]
    assert {id(each): each.users for each in known if each.users} == dict(users)
    assert set(library._unused) == {each for each in known if not each.users}
    assert library._unused_bytes == sum(each.size for each in library._unused)
    assert library.bytes == sum(each.size for each in known) + NAME_OVERHEAD * sum(users.values())
    assert library.count == len(known)
    assert set(library.plain) <= set(library._known)


# --- the library


def test_a_text_is_kept_once() -> None:
    library = new_library()
    one = library.find(body("select 1"))
    assert library.find(body("select 1")) is one
    assert library.find_named(body("select 1"), PLAIN) is one
    assert library.bytes == len(body("select 1")) + OVERHEAD + NAME_OVERHEAD
    check_books(library, [one])


def test_parameter_types_make_another_statement() -> None:
    library = new_library()
    assert library.find(b"select $1\0\0\1\0\0\0\x17") is not library.find(b"select $1\0\0\1\0\0\0\x14")


def test_settings_that_change_what_a_text_means_make_another_statement_with_the_same_text() -> None:
    library = new_library()
    plain, german = library.find_named(body("select now()"), PLAIN), library.find_named(body("select now()"), GERMAN)
    assert plain is not german
    assert plain.body is german.body
    assert library.find_named(body("select now()"), GERMAN) is german
    check_books(library, [plain, german, german])


def test_only_texts_that_leave_nothing_are_plain() -> None:
    library = new_library()
    for sql in ("select 1", "set a to b", "listen x", "select nextval('s')", "deallocate a"):
        library.find(body(sql))
    assert set(library.plain) == {body("select 1"), body("select nextval('s')")}


def test_nothing_is_plain_to_a_library_that_watches_all() -> None:
    library = Library(1 << 20, IGNORED, watch_all=True)
    assert not library.find(body("select 1")).plain
    assert not library.plain
    assert not library.is_plain_query(message("Q", b"select 1\0"))


def test_sequences_are_looked_for_where_they_are_not_ignored() -> None:
    library = Library(1 << 20, IGNORED & ~State.SEQUENCE)
    assert library.is_plain_query(message("Q", b"select 1\0"))
    assert not library.is_plain_query(message("Q", b"select nextval('s')\0"))


def test_queries_are_recognised_whatever_their_numbers_are_and_only_as_one_whole_message() -> None:
    library = new_library()
    seen, other = message("Q", b"select 1234\0"), message("Q", b"select 9876\0")
    assert library.is_plain_query(seen)
    assert other.translate(SHAPE) in library.shapes
    exchange, client = Exchange(), Client()
    assert scan_requests(exchange, other, 1 << 30, client, library) == len(other)
    for length in (14, 32):  # it lies about its length: to be looked at more closely
        forged = other[:4] + bytes([length]) + other[5:]
        assert scan_requests(exchange, forged, 1 << 30, client, library) == ~0
    assert list(exchange.owed) == [OWED_QUERY]


def test_shapes_of_queries_are_not_remembered_without_end() -> None:
    library = new_library()
    for number in range(5000):
        library.is_plain_query(message("Q", b"select '" + b"x" * (number % 200) + b"y" * (number // 200) + b"'\0"))
    assert 0 < len(library.shapes) <= 1000


def test_of_what_nobody_uses_the_oldest_is_forgotten() -> None:
    library = new_library(40_000)
    for number in range(1000):
        library.find(body(f"select {number}"))
    assert 8_000 < library.bytes <= 10_000
    assert body("select 999") in library.plain
    assert body("select 0") not in library.plain
    assert library.evicted == 1000 - library.count
    check_books(library, [])


def test_what_is_in_use_is_never_forgotten() -> None:
    library = new_library(40_000)
    used = library.find_named(body("select 'used'"), PLAIN)
    spoken = library.find_named(body("select 'spoken'"), GERMAN)
    for number in range(1000):
        library.find(body(f"select {number}"))
    assert library.find(body("select 'used'")) is used
    assert library.find_named(body("select 'spoken'"), GERMAN) is spoken
    library.release(used)
    check_books(library, [spoken, spoken])


def test_what_is_not_used_any_more_gives_way() -> None:
    library = new_library(40_000)
    named = [library.find_named(body(f"select {number}"), GERMAN) for number in range(20)]
    for statement in named:
        library.release(statement)
    for number in range(1000):
        library.find(body(f"select -{number}"))
    assert not library._dialects
    assert body("select 0") not in library.plain
    check_books(library, [])


def fill(library: Library, bodies: Iterable[bytes], dialect: Dialect) -> list[Statement]:
    """Have clients name statements until there is no room."""
    named = []
    for each in bodies:
        try:
            named.append(library.find_named(each, dialect))
        except LibraryFullError:
            break
    return named


def test_a_full_library_takes_no_further_name() -> None:
    library = new_library(10_000)
    named = fill(library, (body(f"select {number}") for number in range(1000)), PLAIN)
    assert 9_000 < library.bytes <= 10_000
    check_books(library, named)
    assert library.find(body("select 'unnamed'")).plain, "it is only not remembered"
    library.release(named.pop())
    named.append(library.find_named(body("select 'next'"), PLAIN))
    check_books(library, named)


def test_names_take_room_too() -> None:
    library = new_library(10_000)
    named = fill(library, repeat(body("select 1")), GERMAN)
    assert 10 < len(named) < 50
    check_books(library, named)


def test_a_text_as_large_as_the_library_is_not_kept() -> None:
    library = new_library(10_000)
    small = library.find(body("select 1"))
    large = library.find(body("select '" + "x" * 10_000 + "'"))
    assert library.find(large.body) is not large
    with pytest.raises(LibraryFullError):
        library.find_named(large.body, PLAIN)
    assert small.plain
    check_books(library, [])


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_the_books_are_right_whatever_comes(seed: int) -> None:
    rng = random.Random(seed)
    library = new_library(rng.choice((3_000, 20_000)))
    named: list[Statement] = []
    for _ in range(300):
        text = body("select '" + "x" * rng.choice((0, 100, 3_000)) + f"{rng.randrange(30)}'")
        if rng.randrange(3) == 0:
            library.find(text)
        elif named and rng.randrange(2):
            library.release(named.pop(rng.randrange(len(named))))
        else:
            with contextlib.suppress(LibraryFullError):
                named.append(library.find_named(text, rng.choice((PLAIN, GERMAN))))
        assert library.bytes <= library.limit
        check_books(library, named)


def test_texts_without_end_are_forgotten_one_by_one() -> None:
    library = new_library(1 << 20)
    kept = [library.find_named(body(f"select 'kept {number}'"), PLAIN) for number in range(1000)]
    for number in range(50_000):
        library.find(body(f"select {number}"))
    assert library.evicted > 49_000
    check_books(library, kept)


def test_verdicts_are_remembered_but_not_for_ever() -> None:
    library = new_library()
    verdict = library.verdict(b"listen x")
    assert library.verdict(b"listen x") is verdict
    for number in range(10_000):
        library.verdict(b"listen c%d" % number)
    assert len(library._verdicts) <= 2000
    library.verdict(b"listen " + b"x" * 2000)
    assert b"listen " + b"x" * 2000 not in library._verdicts


# --- what a server has


def server(most: int = 2) -> tuple[Library, ServerStatements, list[Statement]]:
    library = new_library()
    return library, ServerStatements(library, most), [library.find(body(f"select {number}")) for number in range(4)]


RUN, NEXT_RUN = object(), object()


def test_each_statement_has_a_name_of_its_own() -> None:
    _, known, [one, two, *_] = server()
    assert (known.add(one, RUN).name, known.add(two, RUN).name) == (b"pgfunnel_1", b"pgfunnel_2")
    assert known.use(one, RUN) == b"pgfunnel_1"
    assert known.surplus() == []


def test_the_one_used_least_recently_gives_way() -> None:
    _, known, [one, two, three, _] = server()
    for statement in (one, two):
        known.add(statement, RUN)
    known.use(one, RUN)
    known.add(three, RUN)
    assert known.surplus() == [b"pgfunnel_2"]
    assert known.surplus() == []
    assert (known.use(one, RUN), known.use(two, RUN), len(known)) == (b"pgfunnel_1", b"", 2)


def test_what_was_not_closed_is_closed_the_next_time() -> None:
    _, known, _ = server()
    known.return_surplus(b"pgfunnel_7")
    assert known.surplus() == [b"pgfunnel_7"]


def test_only_the_run_that_parses_it_can_count_on_it_before_it_is_there() -> None:
    _, known, [one, *_] = server()
    copy = known.add(one, RUN)
    assert known.use(one, RUN)
    assert not known.use(one, NEXT_RUN)
    assert not known.has_current(one, NEXT_RUN)
    copy.confirm()
    assert known.use(one, NEXT_RUN)
    assert known.has_current(one, NEXT_RUN)


def test_what_failed_to_parse_is_not_there_but_what_was_parsed_since_is() -> None:
    _, known, [one, *_] = server()
    failed = known.add(one, RUN)
    known.forget(one, failed)
    assert not known.use(one, RUN)
    again = known.add(one, RUN)
    known.forget(one, failed)
    assert known.use(one, RUN) == again.name


def test_what_others_return_after_ddl_is_not_told_without_asking() -> None:
    library, known, [one, *_] = server()
    known.add(one, RUN).confirm()
    library.schema_epoch += 1
    assert known.use(one, RUN)
    assert not known.has_current(one, RUN)


def test_stale_plans_are_not_used() -> None:
    library, known, [one, *_] = server()
    known.add(one, RUN).confirm()
    library.plans_are_stale()
    assert not known.use(one, RUN)
    known.add(one, RUN)
    assert known.surplus() == [b"pgfunnel_1"]


def test_statements_that_were_not_dropped_are_there_again() -> None:
    _, known, [one, two, three, _] = server(most=3)
    for statement in (one, two):
        known.add(statement, RUN).confirm()
    known.add(three, RUN)
    copies = known.take_all()
    assert len(known) == 0
    known.add(two, NEXT_RUN).confirm()
    known.put_back(copies)
    assert known.use(one, NEXT_RUN) == b"pgfunnel_1"
    assert known.use(two, NEXT_RUN) == b"pgfunnel_4"
    assert not known.use(three, NEXT_RUN), "it was not there yet"
    assert known.surplus() == [b"pgfunnel_2"]


def test_what_was_not_dropped_after_all_gives_way_to_what_was_prepared_meanwhile() -> None:
    library = Library(1 << 20, State(0))
    one, two, three = (library.find(body(f"select {n}")) for n in (1, 2, 3))
    known = ServerStatements(library, 2)
    for statement in (one, two):
        known.add(statement, RUN).confirm()
    copies = known.take_all()
    known.add(three, RUN).confirm()
    known.put_back(copies)
    assert len(known) == 2
    assert known.surplus() == [b"pgfunnel_1"]


def test_statements_in_doubt_are_closed_and_statements_dropped_are_not() -> None:
    _, known, [one, two, *_] = server()
    known.add(one, RUN)
    known.doubt()
    assert known.surplus() == [b"pgfunnel_1"]
    known.add(two, RUN)
    known.clear()
    assert known.surplus() == []
    assert len(known) == 0


def test_messages() -> None:
    statement = Statement(body("select 1"), new_library().verdict(b"select 1"))
    assert statement.parse(b"a") == message("P", b"a\0select 1\0\0\0")
    assert statement.text == b"select 1"
    assert close_statement(b"a") == message("C", b"Sa\0")
