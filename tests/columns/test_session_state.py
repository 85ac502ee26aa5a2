"""SHOW PINS and STATEMENTS show who keeps a server connection and why, and what is prepared."""

import time

from tests.columns.conftest import StartShop, taken
from tests.support.console import Console
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import bind, execute, parse, sync


def test_pins_shows_who_keeps_which_server_since_when_and_why(small: Pgfunnel) -> None:
    with Console(small) as console, small.connect().login("alice", "shop", application_name="cart") as wire:
        wire.query("LISTEN jobs")
        wire.query("SELECT pg_advisory_lock(4711)")
        pid = int(str(wire.value("SELECT pg_backend_pid()")))
        eventually(lambda: console.one("PINS")["classes"] == "listen,advisory_lock")
        time.sleep(1.1)
        row = console.one("PINS")
        assert 1 <= taken(row, "since") < 20
        assert 1 <= row.pop("seconds") < 20
        assert "LISTEN" in row.pop("advice").upper()
        client = console.one("CLIENTS", user="alice")
        assert row == {
            "database": "shop",
            "user": "alice",
            "client": client["id"],
            "server": console.one("SERVERS")["id"],
            "remote_pid": pid,
            "application_name": "cart",
            "classes": "listen,advisory_lock",
            "statement": "LISTEN jobs",
        }


def test_statements_shows_who_has_which_prepared_and_what_they_take(shop: StartShop) -> None:
    pooler = shop("pool_size = 1")
    text = "SELECT 4711 AS number"
    with Console(pooler) as console, pooler.login("alice", "shop") as one, pooler.login("alice", "shop") as other:
        for wire in (one, other):
            wire.send(parse(text, "mine"), bind(statement="mine"), execute(), sync())
            wire.read_until()
        row = console.one("STATEMENTS")
        assert len(text) <= row.pop("bytes") < len(text) + 1000
        assert row == {"clients": 2, "servers": 1, "settings": None, "statement": "SELECT ? AS number"}
