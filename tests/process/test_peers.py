"""With peers a cancel request finds the process that it is for, whichever of them it comes to."""

import asyncio
import socket
import struct
from collections.abc import Iterator

import psycopg
import pytest

from config.databases import Directory, Peer
from config.settings import Settings
from pooler.demo.postgres import EmbeddedPostgres
from pooler.peers import MOST_WAITING, Peers, as_given_out, key_for_peers
from tests.conftest import StartPgfunnel
from tests.support.configuration import current
from tests.support.pgfunnel import Pgfunnel, eventually, two_free_ports
from tests.support.wire import PROTOCOL_3_2, Wire, cancel_request, query, startup

SLEEP = "SELECT pg_sleep(600)"
Pair = tuple[Pgfunnel, Pgfunnel]


@pytest.fixture(scope="module")
def pair(postgres: EmbeddedPostgres) -> Iterator[Pair]:
    """Start two that know of each other."""
    ports = {peer_id: two_free_ports()[0] for peer_id in (1, 300)}
    peers = "".join(f"[peers.{peer_id}]\nhost = '127.0.0.1'\nport = {port}\n" for peer_id, port in ports.items())
    first, second = (
        Pgfunnel(postgres.url(), toml=peers, peer_id=peer_id, listen_port=port) for peer_id, port in ports.items()
    )
    first.port, second.port = ports.values()
    with first, second:
        yield first, second


def cancel(by: Pgfunnel, wire: Wire, key: bytes = b"") -> None:
    """Send a request by way of this process, and wait until it is done with."""
    with by.connect() as courier:
        courier.send(cancel_request(wire.backend_pid, key or wire.cancel_key))
        assert courier.read_to_end() == []


def begin_to_sleep(wire: Wire, admin: psycopg.Connection) -> None:
    wire.send(query(SLEEP))
    running = f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{SLEEP}'"
    eventually(lambda: admin.execute(running).fetchone() == (1,))


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("protocol", ["3.0", "3.2"])
def test_a_cancel_finds_its_process(pair: Pair, admin: psycopg.Connection, own: int, protocol: str) -> None:
    home, stranger = pair[own], pair[1 - own]
    with home.connect() as wire:
        version = {"protocol": PROTOCOL_3_2} if protocol == "3.2" else {}
        wire.send(startup({"user": "postgres", "database": "postgres"}, **version))
        wire.authenticate("postgres", "")
        assert len(wire.cancel_key) == (32 if protocol == "3.2" else 4)
        for by in (stranger, home):
            begin_to_sleep(wire, admin)
            cancel(by, wire)
            assert wire.error().sqlstate == "57014"
            wire.read_until()


def test_drivers_cancel_by_way_of_the_other_process(pair: Pair, admin: psycopg.Connection) -> None:
    with psycopg.connect(pair[1].url(), autocommit=True) as connection:
        key = connection.pgconn.backend_pid
        assert struct.pack("!I", key)[1:3] == (300).to_bytes(2, "little")
        assert 0 < key < 1 << 31


def test_a_cancel_without_lives_is_not_passed_on(pair: Pair, admin: psycopg.Connection) -> None:
    with pair[0].login() as wire:
        begin_to_sleep(wire, admin)
        dead = wire.cancel_key[:3] + bytes((wire.cancel_key[3] & ~3,)) + wire.cancel_key[4:]
        cancel(pair[1], wire, dead)
        wire.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            wire.read()
        wire.socket.settimeout(20)
        cancel(pair[0], wire, dead)  # arrived with its last life
        assert wire.error().sqlstate == "57014"


def test_a_peer_that_is_not_there_is_told_in_the_log(pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres) -> None:
    pooler = pgfunnel(postgres.url(), toml="[peers.2]\nhost = '127.0.0.1'\nport = 1\n", peer_id=1)
    key = key_for_peers(2, 8)
    with pooler.connect() as courier:
        courier.send(cancel_request(int.from_bytes(key[:4], "big"), key[4:]))
        assert courier.read_to_end() == []
    pooler.wait_for_log("event=cancel_not_forwarded peer=2 error=\"can't connect to 127.0.0.1:1: .*refused")


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """Listen, and take what comes, and never say anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


async def test_no_more_than_pool_size_are_on_their_way_to_a_peer(deaf: socket.socket) -> None:
    complaints: list[str] = []
    peer = Peer(host="127.0.0.1", port=deaf.getsockname()[1], pool_size=2)
    settings = Settings(peer_id=1, cancel_wait_timeout=0.3)
    peers = Peers(current(settings, Directory(peers={2: peer})), lambda _, why: complaints.append(why))
    keys = [key_for_peers(2, 8) for _ in range(5)]
    tasks = [peers.forward(key) for key in (*keys, keys[0])]
    pool = peers.pools[2]
    for _ in range(1000):
        if pool.sent == 2:
            break
        await asyncio.sleep(0.001)
    assert (pool.waiting, pool.connecting, pool.sent) == (3, 0, 2)
    assert tasks[0] is tasks[-1], "asked again, it is still one"
    await asyncio.gather(*(task for task in tasks if task is not None))
    assert (pool.waiting, pool.connecting, pool.sent) == (0, 0, 0)
    assert complaints == ["not confirmed within 0.3 s"] * 5


async def test_a_flood_of_cancels_for_a_peer_is_bounded(deaf: socket.socket) -> None:
    peer = Peer(host="127.0.0.1", port=deaf.getsockname()[1], pool_size=1)
    peers = Peers(current(Settings(peer_id=1), Directory(peers={2: peer})), lambda *_: None)
    tasks = [peers.forward(key_for_peers(2, 8)) for _ in range(MOST_WAITING + 1)]
    assert [task is None for task in tasks] == [False] * MOST_WAITING + [True]
    await peers.close()


async def test_nothing_is_passed_on_to_who_is_no_peer(deaf: socket.socket) -> None:
    peer = Peer(host="127.0.0.1", port=deaf.getsockname()[1])
    peers = Peers(current(Settings(peer_id=1), Directory(peers={1: peer, 2: peer})), lambda *_: None)
    assert peers.forward(key_for_peers(3, 8)) is None
    assert peers.forward(key_for_peers(1, 8)) is None, "it is one of ours that has gone"


def test_keys_lie_where_pgbouncer_has_it() -> None:
    for _ in range(50):
        key = key_for_peers(0x1234, 8)
        assert key[0] < 0x80
        assert key[1:3] == b"\x34\x12"
        assert key[7] & 3 == 3
        assert as_given_out(key[:7] + bytes((key[7] - 2,))) == key
