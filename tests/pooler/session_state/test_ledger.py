"""What an operator can read about pins: who holds what since when, by which statement, and what to change."""

import io
import json
from typing import Any, Final

import pytest
from prometheus_client.core import Metric

from pooler.log import make_log
from pooler.session_state.advice import ADVICE
from pooler.session_state.ledger import MOST_LINES, MOST_TOTALS, QUIET_S, Ledger, Pin
from pooler.session_state.metrics import state_metrics
from protocol.sql import State

APP: Final = ("app", "orders", "jobs")
"""User, database and application of most clients here."""


class Desk:
    """A ledger with a clock and a log that the test reads."""

    def __init__(self, *, log_pins: bool = True) -> None:
        self.now = 1000.0
        self._stream = io.StringIO()
        self.ledger = Ledger(lambda: self.now, make_log("json", "debug", self._stream), log_pins=log_pins)

    def lines(self) -> list[dict[str, Any]]:
        """Return what has been logged since the last call."""
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        self._stream.seek(0)
        self._stream.truncate()
        for line in lines:
            del line["timestamp"]
        return lines


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_pin_says_who_holds_what_since_when_by_which_statement(desk: Desk) -> None:
    desk.ledger.pinned(7, *APP, State.LISTEN, b"listen jobs")
    assert desk.ledger.pins == [Pin(7, *APP, State.LISTEN, 1000.0, "listen jobs")]


def test_a_pin_is_logged_in_words_that_say_what_to_change(desk: Desk) -> None:
    desk.ledger.pinned(7, *APP, State.LISTEN, b"listen jobs")
    assert desk.lines() == [
        {
            "level": "info",
            "event": "pinned",
            "client": 7,
            "user": "app",
            "database": "orders",
            "application": "jobs",
            "states": "listen",
            "statement": "listen jobs",
            "advice": ADVICE[State.LISTEN],
        }
    ]


def test_no_value_that_a_client_has_sent_is_logged_or_kept(desk: Desk) -> None:
    text = b"select pg_advisory_lock(4711), 'secret'"
    desk.ledger.pinned(7, *APP, State.ADVISORY_LOCK, text)
    desk.ledger.refused(*APP, State.ADVISORY_LOCK, text, "reject")
    desk.ledger.hidden(7, *APP, State.ADVISORY_LOCK, text)
    desk.ledger.unpinned(7, "undone")
    told = f"{desk.lines()} {desk.ledger.pins} {desk.ledger.totals} {desk.ledger.refusals.by_statement}"
    assert "pg_advisory_lock" in told
    assert "4711" not in told
    assert "secret" not in told


def test_the_end_of_a_pin_says_how_long_it_lasted_and_why_it_ended(desk: Desk) -> None:
    desk.ledger.pinned(7, *APP, State.LISTEN, b"listen jobs")
    desk.lines()
    desk.now += 2.5
    desk.ledger.unpinned(7, "undone")
    (line,) = desk.lines()
    assert (line["event"], line["client"], line["states"]) == ("unpinned", 7, "listen")
    assert (line["held_s"], line["why"]) == (2.5, "undone")
    assert desk.ledger.pins == []


def test_a_client_that_was_never_pinned_may_be_unpinned(desk: Desk) -> None:
    desk.ledger.unpinned(7, "client_gone")
    desk.ledger.remaining(7, State.LISTEN)
    assert (desk.lines(), desk.ledger.pins) == ([], [])


def test_further_classes_join_a_pin_and_are_counted_once(desk: Desk) -> None:
    desk.ledger.pinned(7, *APP, State.LISTEN, b"listen jobs")
    desk.now += 1
    desk.ledger.pinned(7, *APP, State.LISTEN | State.TEMPORARY, b"create temp table t ()")
    desk.ledger.pinned(7, *APP, State.TEMPORARY, b"create temp table t2 ()")
    assert desk.ledger.pins == [Pin(7, *APP, State.LISTEN | State.TEMPORARY, 1000.0, "listen jobs")]
    assert [line["states"] for line in desk.lines()] == ["listen", "temporary"]
    assert desk.ledger.totals == {
        ("listen", "listen jobs", "jobs"): 1,
        ("temporary", "create temp table t ()", "jobs"): 1,
    }


def test_what_is_undone_leaves_a_pin_that_holds_the_rest(desk: Desk) -> None:
    desk.ledger.pinned(7, *APP, State.LISTEN | State.TEMPORARY, b"listen jobs; create temp table t ()")
    desk.ledger.remaining(7, State.TEMPORARY)
    (pin,) = desk.ledger.pins
    assert pin.states == State.TEMPORARY


def test_a_pin_of_one_class_becomes_one_of_another(desk: Desk) -> None:
    desk.ledger.pinned(7, *APP, State.LISTEN, b"listen jobs")
    desk.ledger.remaining(7, State.TEMPORARY)
    desk.ledger.pinned(7, *APP, State.TEMPORARY, b"unlisten jobs; create temp table t ()")
    (pin,) = desk.ledger.pins
    assert pin.states == State.TEMPORARY


def test_pins_are_listed_oldest_first(desk: Desk) -> None:
    for client in (3, 1, 2):
        desk.ledger.pinned(client, *APP, State.LISTEN, b"listen jobs")
        desk.now += 1
    desk.ledger.pinned(3, *APP, State.CURSOR, b"declare c cursor with hold for select")
    assert [pin.client for pin in desk.ledger.pins] == [3, 1, 2]


def test_a_busy_application_writes_one_line_a_minute_which_counts_the_others(desk: Desk) -> None:
    for client in range(5):
        desk.ledger.pinned(client, *APP, State.LISTEN, b"listen jobs")
        desk.ledger.unpinned(client, "undone")
    assert [line["event"] for line in desk.lines()] == ["pinned", "unpinned"]
    desk.now += QUIET_S
    desk.ledger.pinned(5, *APP, State.LISTEN, b"listen jobs")
    (line,) = desk.lines()
    assert line["suppressed"] == 4
    desk.now += QUIET_S
    desk.ledger.pinned(6, *APP, State.LISTEN, b"listen jobs")
    (line,) = desk.lines()
    assert "suppressed" not in line


def test_another_statement_or_application_has_lines_of_its_own(desk: Desk) -> None:
    desk.ledger.pinned(1, *APP, State.LISTEN, b"listen jobs")
    desk.ledger.pinned(2, *APP, State.LISTEN, b"listen mail")
    desk.ledger.pinned(3, "app", "orders", "web", State.LISTEN, b"listen jobs")
    assert [line["client"] for line in desk.lines()] == [1, 2, 3]


def test_more_statements_than_anyone_could_read_do_not_flood_the_log_and_are_counted(desk: Desk) -> None:
    for client in range(2 * MOST_LINES):
        desk.ledger.pinned(client, *APP, State.TEMPORARY, f"create temp table t_{client:x}x ()".encode())
    assert len(desk.lines()) == MOST_LINES + 1
    desk.now += QUIET_S
    desk.ledger.pinned(-1, *APP, State.TEMPORARY, b"create temp table another ()")
    (line,) = desk.lines()
    assert line["statement"] == "create temp table another ()"


def test_a_refusal_and_a_find_are_warnings_that_name_the_statement(desk: Desk) -> None:
    desk.ledger.refused(*APP, State.LISTEN, b"listen jobs", "max_pinned")
    desk.ledger.refused(*APP, State.LISTEN, b"listen jobs", "max_pinned")
    desk.ledger.hidden(7, *APP, State.ADVISORY_LOCK, b"select take(1)")
    refused, hidden = desk.lines()
    assert (refused["level"], refused["event"], refused["why"]) == ("warning", "pin_refused", "max_pinned")
    assert (refused["statement"], refused["advice"]) == ("listen jobs", ADVICE[State.LISTEN])
    assert (hidden["level"], hidden["event"], hidden["states"]) == ("warning", "hidden_state", "advisory_lock")
    assert (hidden["client"], hidden["statement"]) == (7, "select take(?)")


def test_pins_may_stay_out_of_the_log_and_are_counted_all_the_same() -> None:
    desk = Desk(log_pins=False)
    desk.ledger.pinned(7, *APP, State.LISTEN, b"listen jobs")
    desk.ledger.unpinned(7, "undone")
    desk.ledger.refused(*APP, State.LISTEN, b"listen jobs", "reject")
    assert [line["event"] for line in desk.lines()] == ["pin_refused"]
    assert desk.ledger.totals == {("listen", "listen jobs", "jobs"): 1}


def test_an_endless_variety_of_statements_keeps_the_frequent_ones_apart_from_the_others(desk: Desk) -> None:
    for client in range(5 * MOST_TOTALS):
        desk.ledger.pinned(client, *APP, State.TEMPORARY, f"create temp table t_{client:x}x ()".encode())
        desk.ledger.pinned(-1 - client, *APP, State.LISTEN, b"listen jobs")
    totals = desk.ledger.totals
    assert len(totals) <= MOST_TOTALS
    assert totals["listen", "listen jobs", "jobs"] == 5 * MOST_TOTALS
    assert totals["temporary", "other", "other"] > 4 * MOST_TOTALS
    assert sum(totals.values()) == 10 * MOST_TOTALS


def test_a_client_cannot_make_the_books_grow_by_a_long_name_of_its_application(desk: Desk) -> None:
    desk.ledger.pinned(7, "app", "orders", "x" * 100_000, State.LISTEN, b"listen jobs")
    ((_, _, application),) = desk.ledger.totals
    assert application == "x" * 63


# Metrics


class Figures:
    count = 3
    bytes = 900
    evicted = 2


def samples(ledger: Ledger, name: str) -> dict[tuple[str, ...], float]:
    families: list[Metric] = list(state_metrics(ledger, Figures(), lambda *pair: pair))
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(sample.labels.values()): sample.value for sample in found}


def test_metrics_count_pins_by_pool_and_class(desk: Desk) -> None:
    ledger = desk.ledger
    ledger.pinned(1, *APP, State.LISTEN | State.TEMPORARY, b"listen jobs; create temp table t ()")
    ledger.pinned(2, *APP, State.LISTEN, b"listen jobs")
    ledger.pinned(3, "bob", "other", "", State.CURSOR, b"declare c cursor with hold for select")
    ledger.unpinned(3, "undone")
    assert samples(ledger, "pgfunnel_pinned_clients") == {
        ("orders", "app", "listen"): 2,
        ("orders", "app", "temporary"): 1,
        ("other", "bob", "cursor"): 0,
    }
    assert samples(ledger, "pgfunnel_pins_total") == {
        ("orders", "app", "listen"): 2,
        ("orders", "app", "temporary"): 1,
        ("other", "bob", "cursor"): 1,
    }


def test_metrics_add_up_how_long_pins_last_while_they_do_and_afterwards(desk: Desk) -> None:
    desk.ledger.pinned(1, *APP, State.LISTEN | State.TEMPORARY, b"listen jobs; create temp table t ()")
    desk.ledger.pinned(2, *APP, State.LISTEN, b"listen jobs")
    desk.now += 10
    assert samples(desk.ledger, "pgfunnel_pinned_seconds_total") == {("orders", "app"): 20}
    desk.ledger.unpinned(1, "undone")
    desk.now += 10
    assert samples(desk.ledger, "pgfunnel_pinned_seconds_total") == {("orders", "app"): 30}


def test_metrics_count_refusals_finds_and_questions(desk: Desk) -> None:
    desk.ledger.refused(*APP, State.LISTEN, b"listen jobs", "reject")
    desk.ledger.hidden(7, *APP, State.ADVISORY_LOCK, b"select take(1)")
    desk.ledger.asked("app", "orders")
    desk.ledger.asked("app", "orders")
    assert samples(desk.ledger, "pgfunnel_pins_refused_total") == {("orders", "app", "listen"): 1}
    assert samples(desk.ledger, "pgfunnel_hidden_state_total") == {("orders", "app", "advisory_lock"): 1}
    assert samples(desk.ledger, "pgfunnel_state_questions_total") == {("orders", "app"): 2}


def test_metrics_tell_how_much_prepared_statements_take(desk: Desk) -> None:
    assert samples(desk.ledger, "pgfunnel_prepared_statements") == {(): 3}
    assert samples(desk.ledger, "pgfunnel_prepared_statement_bytes") == {(): 900}
    assert samples(desk.ledger, "pgfunnel_prepared_statements_evicted_total") == {(): 2}
