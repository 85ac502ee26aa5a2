"""Whatever clients send, in whatever pieces and however far ahead: counters are what they were told, and never fall."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pooler.figures.statistics import Totals
from tests.pooler.playhouse import Playhouse, messages_in
from tests.pooler.test_requests_any_order import MAX_PREPARED, queries, runs

turns = st.lists(st.tuples(st.integers(0, 1), st.one_of(runs, queries), st.integers(0, 30)), max_size=12)


def check_that_nothing_fell(before: Totals, now: Totals) -> None:
    assert all(new >= old for old, new in zip(before, now, strict=True)), (before, now)


@given(turns, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_counters_are_what_clients_were_told(script: list[tuple[int, bytes, int]], seed: int) -> None:
    play = Playhouse(random.Random(seed), clients=2, size=2, max_prepared=MAX_PREPARED)
    stats = play.house.pool.stats
    totals = stats.totals
    for turn, requests, steps in script:
        play.fronts[turn].ask(requests)
        for _ in range(steps):
            play.step()
            check_that_nothing_fell(totals, stats.totals)
            totals = stats.totals
    play.settle()
    assert all(front.served for front in play.fronts)
    asked = b"".join(requests for _, requests, _ in script)
    told = [reply for front in play.fronts for reply in messages_in(front.seen)[0]]
    ready = [payload for kind, payload in told if kind == "Z"]
    totals = stats.totals
    assert totals.query_count == len(ready)
    assert totals.xact_count == ready.count(b"I")
    assert totals.received == len(asked)
    assert totals.sent == sum(len(front.seen) for front in play.fronts)
    assert totals.server_assignment_count >= bool(ready)
    assert stats.queries.count <= totals.query_count
    assert stats.transactions.count <= totals.xact_count
