"""What a client is told where its requests are not passed on as they are; however the bytes are cut, the same."""

import random
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.alter import MAX_HELD, alter_replies
from protocol.backend import scan_replies
from protocol.edits import Edit, Op
from protocol.errors import ServerViolation
from protocol.exchange import SKIPPING, Exchange
from protocol.frontend import scan_requests
from tests.protocol.model import message

READY = message("Z", b"I")
PARSED, BOUND, CLOSED = message("1"), message("2"), message("3")
ROW_TYPE = message("T", b"\0\1" + b"x" * 20)
ROW = message("D", b"\0\1\0\0\0\5hello")
DONE = message("C", b"SELECT 1\0")
STOOD_IN = message("C", b"UNLISTEN\0")
ERROR = message("E", b"C22012\0\0")
NOTICE = message("N", b"SNOTICE\0\0")
NOTIFICATION = message("A", b"\0\0\0\1jobs\0\0")
REPORT = message("S", b"application_name\0x\0")
INSTEAD = b"<instead>"
LIMIT = 1 << 30


def send(exchange: Exchange, kinds: str) -> None:
    scan_requests(exchange, b"".join(message(kind, b"\0") for kind in kinds), LIMIT)


def swallowed_parse(exchange: Exchange) -> None:
    exchange.edit(Op.SWALLOW)
    send(exchange, "PBES")


def parsed_already(exchange: Exchange) -> None:
    exchange.edit(Op.INSERT, INSTEAD)
    send(exchange, "BES")


def parsed_already_behind_a_describe(exchange: Exchange) -> None:
    send(exchange, "PD")
    exchange.edit(Op.INSERT, INSTEAD)
    send(exchange, "S")


def parsed_already_and_nothing_else(exchange: Exchange) -> None:
    exchange.edit(Op.INSERT, INSTEAD)
    exchange.edit(Op.INSERT, INSTEAD)
    send(exchange, "SQ")


def parsed_already_ahead_of_a_query(exchange: Exchange) -> None:
    exchange.edit(Op.INSERT, INSTEAD)
    send(exchange, "Q")


def room_made(exchange: Exchange) -> None:
    exchange.edit(Op.SWALLOW)
    send(exchange, "C")
    exchange.edit(Op.WATCH)
    send(exchange, "PCS")


def refused_parse(exchange: Exchange) -> None:
    send(exchange, "P")
    exchange.edit(Op.ERROR, INSTEAD)
    send(exchange, "PBES")


def refused_query(exchange: Exchange) -> None:
    exchange.owe_edited_query(Edit(Op.ERROR, INSTEAD))


def refused_query_behind_an_unclosed_run(exchange: Exchange) -> None:
    send(exchange, "PBE")
    exchange.owe_edited_query(Edit(Op.ERROR, INSTEAD))


def deallocated(exchange: Exchange) -> None:
    exchange.owe_edited_query(Edit(Op.STAND_IN, INSTEAD))


def deallocated_behind_an_unclosed_run(exchange: Exchange) -> None:
    exchange.edit(Op.SWALLOW)
    send(exchange, "PBE")
    exchange.edit(Op.INSERT, INSTEAD)
    exchange.owe_edited_query(Edit(Op.STAND_IN, INSTEAD))


def deallocated_by_a_bound_statement(exchange: Exchange) -> None:
    send(exchange, "P")
    exchange.edit(Op.STAND_IN, INSTEAD)
    send(exchange, "BES")


def dressed(exchange: Exchange) -> None:
    exchange.owe_hidden_query()
    send(exchange, "Q")


def dressed_ahead_of_what_was_parsed_already(exchange: Exchange) -> None:
    exchange.owe_hidden_query()
    exchange.edit(Op.INSERT, INSTEAD)


def behind_another_run(exchange: Exchange) -> None:
    send(exchange, "PBES")
    exchange.edit(Op.SWALLOW)
    send(exchange, "P")
    exchange.edit(Op.INSERT, INSTEAD)
    send(exchange, "BES")


RAN = ROW_TYPE + ROW + ROW + DONE + READY
APPLIED = DONE + NOTICE + ROW_TYPE + ROW + DONE + REPORT + NOTIFICATION + READY


@pytest.mark.parametrize(
    ("ask", "replies", "told"),
    [
        (swallowed_parse, PARSED + BOUND + ROW + DONE + READY, BOUND + ROW + DONE + READY),
        (swallowed_parse, NOTICE + PARSED + NOTICE + ERROR + READY, NOTICE + NOTICE + ERROR + READY),
        (parsed_already, BOUND + ROW + DONE + READY, INSTEAD + BOUND + ROW + DONE + READY),
        (parsed_already, NOTICE + ERROR + READY, INSTEAD + NOTICE + ERROR + READY),
        (parsed_already_behind_a_describe, PARSED + ROW_TYPE + READY, PARSED + ROW_TYPE + INSTEAD + READY),
        (parsed_already_behind_a_describe, PARSED + ERROR + READY, PARSED + ERROR + READY),
        (parsed_already_and_nothing_else, READY + RAN, INSTEAD + INSTEAD + READY + RAN),
        (parsed_already_ahead_of_a_query, RAN, INSTEAD + RAN),
        (room_made, CLOSED + PARSED + CLOSED + READY, PARSED + CLOSED + READY),
        (refused_parse, PARSED + ERROR + READY, PARSED + INSTEAD + READY),
        (refused_parse, ERROR + READY, ERROR + READY),
        (refused_query, ERROR + READY, INSTEAD + READY),
        (refused_query_behind_an_unclosed_run, PARSED + BOUND + DONE + ERROR + READY,
         PARSED + BOUND + DONE + INSTEAD + READY),
        (deallocated, STOOD_IN + READY, INSTEAD + READY),
        (deallocated, NOTICE + STOOD_IN + NOTICE + READY, NOTICE + INSTEAD + NOTICE + READY),
        (deallocated_behind_an_unclosed_run, PARSED + BOUND + DONE + STOOD_IN + READY,
         BOUND + DONE + INSTEAD * 2 + READY),
        (deallocated_by_a_bound_statement, PARSED + BOUND + STOOD_IN + READY, PARSED + BOUND + INSTEAD + READY),
        (dressed, APPLIED + RAN, NOTIFICATION + RAN),
        (dressed_ahead_of_what_was_parsed_already, APPLIED, NOTIFICATION + INSTEAD),
        (behind_another_run, PARSED + BOUND + DONE + READY + PARSED + BOUND + DONE + READY,
         PARSED + BOUND + DONE + READY + INSTEAD + BOUND + DONE + READY),
    ],
)  # fmt: skip
def test_a_client_is_told_as_if_it_had_a_server_of_its_own(
    ask: Callable[[Exchange], None], replies: bytes, told: bytes
) -> None:
    cuts = [[replies[:at], replies[at:]] for at in range(len(replies))]
    cuts.append([replies[at : at + 1] for at in range(len(replies))])
    for pieces in cuts:
        exchange = Exchange()
        ask(exchange)
        assert exchange.edited
        out = [alter_replies(exchange, piece) for piece in pieces]
        assert b"".join(data for data, _ in out) == told
        assert (exchange.edited, exchange.edits, exchange.held) == (0, [], b"")
        assert out[-1][1]
        assert exchange.settled


class Log(list[str]):
    """What was done, and what was undone."""

    def note(self, exchange: Exchange, op: Op, what: str) -> None:
        exchange.edit(op, b"", lambda: self.append(f"un{what}"), lambda: self.append(what))


@pytest.mark.parametrize(
    ("replies", "log"),
    [
        (PARSED + CLOSED + PARSED + READY, ["done-1", "done-2", "done-3"]),
        (PARSED + ERROR + READY, ["done-1", "undone-3", "undone-2"]),
        (ERROR + READY, ["undone-3", "undone-2", "undone-1"]),
    ],
)
def test_what_a_failed_run_was_to_bring_about_is_undone_from_its_end(replies: bytes, log: list[str]) -> None:
    exchange = Exchange()
    found = Log()
    for number, (op, kind) in enumerate([(Op.WATCH, "P"), (Op.SWALLOW, "C"), (Op.WATCH, "P")], 1):
        found.note(exchange, op, f"done-{number}")
        send(exchange, kind)
    send(exchange, "S")
    alter_replies(exchange, replies)
    assert found == log
    assert not exchange.edited


def test_what_is_skipped_before_its_sync_is_undone_at_once() -> None:
    exchange = Exchange()
    found = Log()
    send(exchange, "P")
    found.note(exchange, Op.WATCH, "done")
    send(exchange, "P")
    assert alter_replies(exchange, ERROR) == (ERROR, False)
    assert found == ["undone"]
    assert exchange.mode == SKIPPING
    send(exchange, "S")
    assert scan_replies(exchange, READY)


def test_a_query_that_is_skipped_does_not_deallocate() -> None:
    exchange = Exchange()
    found = Log()
    send(exchange, "P")
    exchange.owe_edited_query(Edit(Op.STAND_IN, INSTEAD, lambda: found.append("undone")))
    send(exchange, "S")
    assert alter_replies(exchange, ERROR + READY) == (ERROR + READY, True)
    assert found == ["undone"]


@pytest.mark.parametrize(
    ("replies", "log"),
    [
        (message("C", b"DISCARD ALL\0") + READY, ["dropped"]),
        (message("C", b"SELECT 1\0") + message("C", b"DEALLOCATE ALL\0") + READY, ["dropped"]),
        (message("C", b"SELECT 1\0") + ERROR + READY, ["kept"]),
        (ERROR + READY, ["kept"]),
    ],
)
def test_statements_are_dropped_when_the_server_says_so(replies: bytes, log: list[str]) -> None:
    for cut in range(len(replies)):
        exchange = Exchange()
        found = Log()
        exchange.owe_edited_query(Edit(Op.DROP, b"", partial(found.append, "kept"), partial(found.append, "dropped")))
        told = alter_replies(exchange, replies[:cut])[0] + alter_replies(exchange, replies[cut:])[0]
        assert (told, found, exchange.edited) == (replies, log, 0)


@pytest.mark.parametrize("cut", range(1, len(NOTICE)))
def test_nothing_is_inserted_into_a_reply_that_has_begun(cut: int) -> None:
    exchange = Exchange()
    send(exchange, "P")
    scan_replies(exchange, PARSED + NOTICE[:cut])
    exchange.edit(Op.INSERT, INSTEAD)
    assert exchange.take_inserts() == b""
    assert alter_replies(exchange, NOTICE[cut:]) == (NOTICE[cut:] + INSTEAD, False)


def test_what_is_due_already_is_told_without_a_word_from_the_server() -> None:
    exchange = Exchange()
    exchange.edit(Op.INSERT, INSTEAD)
    assert exchange.take_inserts() == INSTEAD
    assert exchange.take_inserts() == b""
    assert not exchange.edited
    assert exchange.settled


def test_settings_that_were_not_applied_are_told_of_in_whole() -> None:
    for cut in range(1, len(ERROR)):
        exchange = Exchange()
        exchange.owe_hidden_query()
        send(exchange, "Q")
        told = alter_replies(exchange, ERROR[:cut])[0], exchange.hidden_error
        assert told == (b"", None)
        told = alter_replies(exchange, ERROR[cut:] + READY + ERROR + READY)[0], exchange.hidden_error
        assert told == (ERROR + READY, ERROR[5:])


@pytest.mark.parametrize("kind", "EZCS")
def test_a_reply_too_long_to_be_looked_at_is_a_violation(kind: str) -> None:
    exchange = Exchange()
    exchange.owe_edited_query(Edit(Op.STAND_IN, INSTEAD))
    with pytest.raises(ServerViolation):
        alter_replies(exchange, message(kind, b"x" * (MAX_HELD + 1))[:100])


def test_a_row_for_the_pooler_that_is_too_long_is_a_violation_too() -> None:
    exchange = Exchange()
    exchange.owe_hidden_query()
    with pytest.raises(ServerViolation):
        alter_replies(exchange, message("D", b"x" * (MAX_HELD + 1))[:100])


def test_a_row_for_the_client_may_be_of_any_length() -> None:
    exchange = Exchange()
    swallowed_parse(exchange)
    row = message("D", b"x" * (MAX_HELD + 100))
    assert alter_replies(exchange, PARSED + BOUND + row[:100])[0] == BOUND + row[:100]
    assert not exchange.held
    assert alter_replies(exchange, row[100:] + DONE + READY) == (row[100:] + DONE + READY, True)


def test_a_copy_ahead_of_edited_requests_is_a_violation() -> None:
    exchange = Exchange()
    send(exchange, "Q")
    exchange.owe_edited_query(Edit(Op.STAND_IN, INSTEAD))
    with pytest.raises(ServerViolation):
        alter_replies(exchange, message("G", b"\0\0\0"))


# --- random ones


def converse(exchange: Exchange, rng: random.Random) -> bytes:
    """Send random runs with random edits; return what a server says to them."""
    replies = b""
    for _ in range(1 + rng.randrange(4)):
        if rng.randrange(6) == 0 and not exchange.owed:
            exchange.owe_hidden_query()
            replies += rng.choice((DONE, NOTICE, ROW)) + REPORT * rng.randrange(2) + READY
        failed = False
        for _ in range(rng.randrange(6)):
            op = rng.choice((None, None, Op.WATCH, Op.SWALLOW, Op.INSERT, Op.ERROR))
            kind = "P" if op in (Op.SWALLOW, Op.ERROR) else rng.choice("PBDEC")
            if op is not None:
                exchange.edit(op, INSTEAD)
            if op is Op.INSERT:
                continue
            send(exchange, kind)
            if not failed:
                failed = op is Op.ERROR or rng.randrange(10) == 0
                answers = {"P": PARSED, "B": BOUND, "D": ROW_TYPE, "E": ROW * rng.randrange(3) + DONE, "C": CLOSED}
                replies += rng.choice((b"", b"", NOTICE)) + (ERROR if failed else answers[kind])
        if rng.randrange(4):
            send(exchange, "S")
            replies += READY
        elif rng.randrange(2):
            exchange.owe_edited_query(Edit(Op.STAND_IN, INSTEAD))
            replies += b"" if failed else STOOD_IN + READY
            send(exchange, "S")
            replies += READY
        else:
            send(exchange, "QS")
            replies += b"" if failed else RAN
            replies += READY
    return replies


@given(st.integers(0, 2**62))
@settings(max_examples=400, deadline=None)
def test_any_cut_of_the_same_replies_tells_the_same(seed: int) -> None:
    whole, cut = Exchange(), Exchange()
    replies = converse(whole, random.Random(seed))
    assert converse(cut, random.Random(seed)) == replies
    told, free = alter_replies(whole, replies)
    rng = random.Random(seed)
    seen, at = b"", 0
    while at < len(replies):
        size = rng.choice((1, 2, 5, 7, 30))
        piece = replies[at : at + size]
        at += size
        if cut.edited:
            data, free_cut = alter_replies(cut, piece)
        else:
            data, free_cut = piece, scan_replies(cut, piece)
        seen += data
        assert free_cut <= (at >= len(replies))
    assert seen == told
    assert (whole.edited, cut.edited, cut.held) == (0, 0, b"")
    assert free
    assert whole.settled
    assert cut.settled
    assert (cut.queries, cut.errors, cut.answered) == (whole.queries, whole.errors, whole.answered)


@given(st.lists(st.binary(max_size=100), max_size=20), st.integers(0, 2**62))
@settings(max_examples=400, deadline=None)
def test_random_bytes_are_a_violation_or_pass(chunks: list[bytes], seed: int) -> None:
    exchange = Exchange()
    converse(exchange, random.Random(seed))
    try:
        for chunk in chunks:
            alter_replies(exchange, chunk)
            assert len(exchange.held) <= MAX_HELD + 5
            assert exchange.edited >= 0
    except ServerViolation:
        pass
