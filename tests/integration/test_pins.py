"""Pins as the clients of a small pool meet them."""

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel

UNDONE_AT_ONCE = {
    "a cursor WITH HOLD": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "FETCH 1 FROM c", "CLOSE c"),
    "LISTEN": ("LISTEN jobs", "UNLISTEN jobs"),
}


@pytest.mark.parametrize("texts", UNDONE_AT_ONCE.values(), ids=UNDONE_AT_ONCE)
def test_clients_that_undo_what_pins_them_are_not_in_each_others_way(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, texts: tuple[str, ...]
) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=3)  # so that one at a time may be pinned
    clients = [pooler.login() for _ in range(4)]
    for turn in range(60):
        for text in texts:
            answer = clients[turn % 4].query(text)
            assert answer[-2].kind == "C", answer
    for client in clients:
        client.terminate()
