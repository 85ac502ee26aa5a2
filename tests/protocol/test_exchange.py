"""Whatever is sent and whatever comes back: a server counts as free exactly when it is."""

import random
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.backend import scan_replies
from protocol.edits import Op
from protocol.exchange import Exchange
from protocol.frontend import scan_requests
from tests.protocol.model import ModelServer, message

REQUESTS = "QQPBDECHSSSFdcf"
LIMIT = 1 << 30


def converse(seed: int, length: int) -> None:
    """One random conversation: requests and replies travel with random delays, in random pieces."""
    rng = random.Random(seed)
    exchange = Exchange()
    server = ModelServer(rng.randrange)
    to_server: list[str] = []  # sent by us, not yet read by the server
    to_us = b""  # sent by the server, not yet read by us

    def truly_free() -> bool:
        # What an idle server ignores may still be on its way.
        return server.idle and not to_us and all(kind in "Hdcf" for kind in to_server)

    script = [rng.choice(REQUESTS) for _ in range(length)]
    while script or to_server or to_us:
        step = rng.randrange(3)
        if step == 0 and script:
            count = min(len(script), 1 + rng.randrange(4))
            batch, script = script[:count], script[count:]
            data = b"".join(message(kind, b"x\0") for kind in batch)
            assert scan_requests(exchange, data, LIMIT) == len(data)
            to_server += batch
        elif step == 1 and to_server:
            to_us += server.answer(to_server.pop(0))
        elif step == 2 and to_us:
            cut = 1 + rng.randrange(len(to_us)) if rng.randrange(2) else len(to_us)
            chunk, to_us = to_us[:cut], to_us[cut:]
            free = scan_replies(exchange, chunk)
            assert free <= truly_free(), (seed, "released while busy")
        assert exchange.settled <= truly_free(), (seed, "settled while busy")
    assert exchange.settled == server.idle, (
        seed,
        "the end",
        list(exchange.owed),
        exchange.run,
        exchange.mode,
    )


@given(st.integers(0, 2**62), st.integers(1, 40))
@settings(max_examples=1500, deadline=None)
def test_a_server_counts_as_free_exactly_when_it_has_answered_everything(seed: int, length: int) -> None:
    converse(seed, length)


def test_what_was_not_answered_when_the_connection_is_lost_has_not_happened() -> None:
    exchange = Exchange()
    undone: list[str] = []
    for name in ("one", "two"):
        exchange.edit(Op.WATCH, b"", partial(undone.append, name))
        scan_requests(exchange, message("P", b"\0") + message("S") * (name == "one"), LIMIT)
    exchange.give_up()
    assert undone == ["two", "one"]
    assert not exchange.owed
