"""SHOW CLIENTS, SERVERS, SOCKETS, ACTIVE_SOCKETS and FDS show single connections, and what stands in their buffers."""

import os
import tempfile
import time

import psutil
import psycopg

from pooler.demo.postgres import EmbeddedPostgres
from tests.columns.conftest import StartShop, taken
from tests.support.certificates import Certificates
from tests.support.console import Console
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import Wire, parse, query, sync

COLUMNS = (
    "type",
    "user",
    "database",
    "replication",
    "state",
    "addr",
    "port",
    "local_addr",
    "local_port",
    "connect_time",
    "request_time",
    "wait",
    "wait_us",
    "close_needed",
    "ptr",
    "link",
    "remote_pid",
    "tls",
    "application_name",
    "prepared_statements",
    "id",
)
"""Of SHOW CLIENTS and SHOW SERVERS; the others have those of NOTHING_KEPT as well."""
NOTHING_KEPT = {
    "recv_pos": 0,
    "pkt_pos": 0,
    "pkt_remain": 0,
    "send_pos": 0,
    "send_remain": 0,
    "pkt_avail": 0,
    "send_avail": 0,
}


def cart(pooler: Pgfunnel, name: str = "cart") -> Wire:
    return pooler.connect().login("alice", "shop", application_name=name)


def test_a_client_and_its_server_are_shown_with_each_other(small: Pgfunnel, postgres: EmbeddedPostgres) -> None:
    with Console(small) as console, cart(small) as wire:
        wire.send(parse("SELECT 1", "one"), sync())
        wire.read_until()
        time.sleep(2.1)
        wire.query("BEGIN")
        pid = int(wire.value("SELECT pg_backend_pid()") or 0)
        console.do("RECONNECT shop")
        client, server = console.one("CLIENTS", user="alice"), console.one("SERVERS")
        for row in (client, server):
            assert 2 <= taken(row, "connect_time") < 20
            assert taken(row, "request_time") < 2
        assert client == {
            "type": "C",
            "user": "alice",
            "database": "shop",
            "replication": "none",
            "state": "active",
            "addr": "127.0.0.1",
            "port": wire.socket.getsockname()[1],
            "local_addr": "127.0.0.1",
            "local_port": small.port,
            "wait": 0,
            "wait_us": 0,
            "close_needed": 0,
            "ptr": server["link"],
            "link": server["ptr"],
            "remote_pid": 0,
            "tls": "",
            "application_name": "cart",
            "prepared_statements": 1,
            "id": int(client["ptr"], 16),
        }
        assert server == client | {
            "type": "S",
            "port": postgres.port,
            "local_port": local_port(small, postgres.port),
            "close_needed": 1,
            "ptr": client["link"],
            "link": client["ptr"],
            "remote_pid": pid,
            "id": int(server["ptr"], 16),
        }


def local_port(pooler: Pgfunnel, port: int) -> int:
    """Return the pooler's own port of its one connection to another."""
    connections = psutil.Process(pooler.process.pid).net_connections("tcp")
    (found,) = (each.laddr.port for each in connections if each.raddr and each.raddr.port == port)
    return int(found)


def test_a_client_that_waits_is_shown_with_how_long(small: Pgfunnel) -> None:
    with Console(small) as console, cart(small) as holder, cart(small, "late") as late:
        holder.query("BEGIN")
        late.send(query("SELECT 1"))
        eventually(lambda: console.one("CLIENTS", application_name="late")["state"] == "waiting")
        time.sleep(1.1)
        row = console.one("CLIENTS", application_name="late")
        assert row["wait"] == 1
        assert 0 < row["wait_us"] < 1_000_000
        assert (row["link"], console.one("SERVERS")["link"]) == (
            "",
            console.one("CLIENTS", application_name="cart")["ptr"],
        )


def test_tls_a_system_user_and_replication_are_shown(
    shop: StartShop, certificates: Certificates, postgres: EmbeddedPostgres
) -> None:
    with tempfile.TemporaryDirectory(prefix="pgf-") as directory:
        pooler = shop(
            unix_socket_dir=directory,
            client_tls_sslmode="prefer",
            client_tls_cert_file=str(certificates.ec.certificate),
            client_tls_key_file=str(certificates.ec.key),
        )
        with (
            Console(pooler) as console,
            psycopg.connect(pooler.url("shop", "alice") + "?sslmode=require"),
            Wire(directory, pooler.port).login("bob", "shop"),
            pooler.connect().login("postgres", "shop", replication="database"),
        ):
            assert console.one("CLIENTS", user="alice")["tls"] == "TLSv1.3/TLS_AES_256_GCM_SHA384"
            local = console.one("CLIENTS", user="bob")
            assert (local["addr"], local["port"], local["remote_pid"]) == ("unix", pooler.port, os.getpid())
            assert console.one("CLIENTS", user="postgres", database="shop")["replication"] == "logical"
            assert console.one("SERVERS", user="postgres")["replication"] == "logical"


def test_sockets_shows_all_and_what_stands_in_their_buffers(small: Pgfunnel) -> None:
    asked = query("SELECT 'much to say'")
    with Console(small) as console, cart(small) as holder, cart(small, "late") as late, small.connect() as stranger:
        holder.query("BEGIN")
        late.send(asked)
        stranger.send(b"\\0")
        eventually(lambda: console.one("CLIENTS", application_name="late")["state"] == "waiting")
        eventually(lambda: len(console.show("SOCKETS", state="cl_login")) == 1)
        assert console.one("SOCKETS", state="cl_login")["user"] == "(nouser)"
        unsent_request = NOTHING_KEPT | {"recv_pos": len(asked), "pkt_avail": len(asked)}
        for table, name, state, kept in (
            ("CLIENTS", "cart", "cl_active", NOTHING_KEPT),
            ("SERVERS", "cart", "sv_active", NOTHING_KEPT),
            ("CLIENTS", "late", "cl_waiting", unsent_request),
        ):
            row = console.one(table, application_name=name)
            shown = console.one("SOCKETS", application_name=name, type=row["type"])
            assert list(shown) == [*COLUMNS, *NOTHING_KEPT]
            for each in (row, shown):
                assert each.pop("wait") < 10
                assert (each.pop("wait_us") > 0) is (name == "late")
            assert f"{state[:3]}{row['state']}" == state
            assert shown == row | {"state": state} | kept


def test_active_sockets_shows_those_that_have_something_in_a_buffer(shop: StartShop) -> None:
    pooler = shop("pool_size = 2")
    with Console(pooler) as console, cart(pooler, "idle") as idle, cart(pooler) as wire:
        assert idle.value("SELECT 1") == "1"
        assert console.show("ACTIVE_SOCKETS") == []
        wire.send(query("SELECT repeat('x', 50000000)"))  # and is not read
        eventually(lambda: len(console.show("ACTIVE_SOCKETS")) == 2)
        eventually(lambda: unsent(console) == unsent(console) > 0)
        for side, filled in (("C", "send_avail"), ("S", "pkt_remain")):
            row = console.one("ACTIVE_SOCKETS", type=side)
            assert list(row) == [*COLUMNS, *NOTHING_KEPT]
            assert row == console.one("SOCKETS", type=side, application_name="cart")
            assert [name for name in NOTHING_KEPT if row[name]] == [filled]
        wire.reset()


def unsent(console: Console) -> int:
    return int(console.one("ACTIVE_SOCKETS", type="C")["send_avail"])


def test_fds_shows_descriptors_and_who_is_linked_with_whom(small: Pgfunnel, postgres: EmbeddedPostgres) -> None:
    with Console(small) as console, cart(small) as wire:
        wire.query("BEGIN")
        sockets = psutil.Process(small.process.pid).net_connections("tcp")
        by_port = {each.raddr.port: each.fd for each in sockets if each.raddr}
        port = wire.socket.getsockname()[1]
        row = {
            "task": "client",
            "fd": by_port[port],
            "link": by_port[postgres.port],
            "user": "alice",
            "database": "shop",
            "addr": "127.0.0.1",
            "port": port,
            "cancel": 0,
            "client_encoding": None,
            "std_strings": None,
            "datestyle": None,
            "timezone": None,
            "password": None,
            "scram_client_key": None,
            "scram_server_key": None,
        }
        assert console.one("FDS", task="client") == row
        own = {"task": "server", "fd": row["link"], "link": row["fd"], "port": postgres.port}
        assert console.one("FDS", task="server") == row | own
