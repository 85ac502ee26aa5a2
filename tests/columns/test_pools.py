"""SHOW POOLS, PEER_POOLS and QUEUE show who has a server connection, who waits, and which cancels are under way."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from pooler.peers import key_for_peers
from tests.columns.conftest import StartShop
from tests.support.console import Console
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import Wire, cancel_request, query, startup

IDLE = {
    "database": "shop",
    "user": "alice",
    "cl_active": 0,
    "cl_waiting": 0,
    "cl_active_cancel_req": 0,
    "cl_waiting_cancel_req": 0,
    "sv_active": 0,
    "sv_active_cancel": 0,
    "sv_being_canceled": 0,
    "sv_idle": 0,
    "sv_used": 0,
    "sv_tested": 0,
    "sv_login": 0,
    "maxwait": 0,
    "maxwait_us": 0,
    "pool_mode": "transaction",
    "load_balance_hosts": None,
}


def login(pooler: Pgfunnel, user: str = "alice") -> Wire:
    return pooler.login(user, "shop")


def becomes(console: Console, **expected: object) -> None:
    """The row of the pool comes to this; all else is as it is of an idle one."""
    eventually(lambda: console.one("POOLS", database="shop") == IDLE | expected)


def test_clients_and_servers_are_counted_by_what_they_do(small: Pgfunnel) -> None:
    with Console(small) as console, login(small) as first, login(small) as second:
        becomes(console, cl_active=2, sv_idle=1)
        first.query("BEGIN")
        becomes(console, cl_active=2, sv_active=1)
        second.send(query("SELECT 1"))
        eventually(lambda: console.one("POOLS", user="alice")["cl_waiting"] == 1)
        time.sleep(1.1)
        row = console.one("POOLS", user="alice")
        assert row.pop("maxwait") == 1
        assert 0 < row.pop("maxwait_us") < 1_000_000
        assert row.items() <= (IDLE | {"cl_active": 1, "cl_waiting": 1, "sv_active": 1}).items()
        first.query("COMMIT")
        second.read_until()
        first.close()
        second.close()
        becomes(console, sv_idle=1)


def test_a_server_that_is_to_be_checked_before_it_is_lent_is_used(shop: StartShop) -> None:
    pooler = shop(server_check_delay=0.1)
    with Console(pooler) as console, login(pooler) as client:
        client.query("SELECT 1")
        becomes(console, cl_active=1, sv_used=1)


def test_a_server_that_is_being_checked_is_tested(shop: StartShop) -> None:
    def script(peer: Conversation) -> None:
        peer.accept_login()
        peer.read()
        peer.answer("1")
        peer.wait_until_closed()

    with ScriptedServer(script) as server:
        pooler = shop(port=server.port, server_check_delay=0, server_check_query="SELECT 'alive'")
        with Console(pooler) as console, login(pooler) as client:
            client.query("SELECT 1")
            becomes(console, cl_active=1, sv_tested=1)


def test_a_server_that_logs_in_and_the_client_that_waits_for_it(shop: StartShop) -> None:
    with ScriptedServer(Conversation.wait_until_closed) as server:
        pooler = shop(port=server.port)
        with Console(pooler) as console, pooler.connect() as client:
            client.send(startup({"user": "alice", "database": "shop"}))
            eventually(lambda: console.one("POOLS", user="alice")["sv_login"] == 1)
            assert console.one("POOLS", user="alice")["cl_waiting"] == 1


def deaf(peer: Conversation) -> None:
    """Let clients in, and answer neither queries nor cancel requests."""
    with suppress(EOFError):
        peer.accept_login()
    peer.wait_until_closed()


def test_cancel_requests_are_counted_by_whether_they_were_sent(shop: StartShop) -> None:
    at_once = 32
    with ScriptedServer(deaf) as server, ExitStack() as open_:
        pooler = shop(port=server.port)
        console = open_.enter_context(Console(pooler))
        clients = [open_.enter_context(login(pooler)) for _ in range(at_once + 1)]
        for client in clients:
            client.send(query("SELECT 1"))
        becomes(console, cl_active=at_once + 1, sv_active=at_once + 1)
        for client in clients:
            open_.enter_context(pooler.connect()).send(cancel_request(client.backend_pid, client.cancel_key))
        becomes(
            console,
            cl_active=at_once + 1,
            sv_active=at_once + 1,
            cl_active_cancel_req=at_once,
            cl_waiting_cancel_req=1,
            sv_active_cancel=at_once,
        )


def test_a_server_whose_client_has_gone_is_being_cancelled(shop: StartShop) -> None:
    with ScriptedServer(deaf) as server:
        pooler = shop(port=server.port)
        with Console(pooler) as console:
            client = login(pooler)
            client.send(query("SELECT 1"))
            becomes(console, cl_active=1, sv_active=1)
            client.reset()
            becomes(console, cl_active_cancel_req=1, sv_active_cancel=1, sv_being_canceled=1)


def test_a_pool_has_its_mode_and_how_it_chooses_among_several_hosts(shop: StartShop) -> None:
    pooler = shop("pool_mode = 'session'\nload_balance_hosts = 'disable'", host="127.0.0.1,localhost")
    with Console(pooler) as console, login(pooler):
        becomes(console, cl_active=1, sv_idle=1, pool_mode="session", load_balance_hosts="disable")


# --- PEER_POOLS


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """Listen, and let only one connection be made, of which nothing is read."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        yield listener


def forward(pooler: Pgfunnel) -> Wire:
    """Send a cancel request for one of the peer's clients."""
    wire = pooler.connect()
    key = key_for_peers(2, 8)
    wire.send(cancel_request(int.from_bytes(key[:4], "big"), key[4:]))
    return wire


def test_cancel_requests_for_a_peer_are_counted_by_how_far_they_are(shop: StartShop, peer: socket.socket) -> None:
    pooler = shop(tables=peers(peer, 2), peer_id=1)
    with Console(pooler) as console, forward(pooler):
        sent = {
            "peer_id": 2,
            "cl_active_cancel_req": 1,
            "cl_waiting_cancel_req": 0,
            "sv_active_cancel": 1,
            "sv_login": 0,
        }
        eventually(lambda: console.show("PEER_POOLS") == [sent])
        with forward(pooler), forward(pooler):  # one that can't connect, and one for which there is no place
            eventually(lambda: console.show("PEER_POOLS") == [sent | {"cl_waiting_cancel_req": 2, "sv_login": 1}])


def peers(peer: socket.socket, size: int) -> str:
    return f"[peers.2]\nhost = '127.0.0.1'\nport = {peer.getsockname()[1]}\npool_size = {size}\n"


# --- QUEUE


def is_waiting(console: Console, clients: int) -> bool:
    return len(console.show("QUEUE")) == clients


def test_the_queue_tells_who_waits_for_what_how_long_behind_how_many(small: Pgfunnel) -> None:
    with Console(small) as console, login(small) as holder, ExitStack() as open_:
        clients = [open_.enter_context(small.connect()) for _ in range(2)]
        for ahead, client in enumerate(clients):
            client.login("alice", "shop", application_name=f"cart {ahead}")
        holder.query("BEGIN")
        expected = []
        for ahead, client in enumerate(clients):
            client.send(query("SELECT 1"))
            eventually(partial(is_waiting, console, ahead + 1))
            expected.append(
                {
                    "database": "shop",
                    "user": "alice",
                    "waits_for": "server",
                    "ahead": ahead,
                    "client": console.one("CLIENTS", application_name=f"cart {ahead}")["id"],
                    "addr": "{}:{}".format(*client.socket.getsockname()),
                    "application_name": f"cart {ahead}",
                    "servers": 1,
                    "pool_size": 1,
                }
            )
        time.sleep(1.1)
        rows = console.show("QUEUE")
        assert [row.pop("wait") for row in rows] == [1, 1]
        assert 1_000_000 > rows[0].pop("wait_us") > rows[1].pop("wait_us") > 0
        assert rows == expected


def test_the_queue_tells_who_waits_for_a_place_and_who_for_the_end_of_a_pause(shop: StartShop) -> None:
    pooler = shop(max_user_client_connections=1)
    with Console(pooler) as console, login(pooler) as client, pooler.connect() as late:
        late.send(startup({"user": "alice", "database": "shop"}))
        eventually(lambda: [row["waits_for"] for row in console.show("QUEUE")] == ["max_user_client_connections"])
        console.do("PAUSE shop")
        client.send(query("SELECT 1"))
        eventually(lambda: len(console.show("QUEUE", waits_for="RESUME")) == 1)
        console.do("RESUME shop")
