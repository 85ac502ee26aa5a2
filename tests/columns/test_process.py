"""SHOW LISTS, STATE, MEM, DNS_HOSTS, DNS_ZONES and VERSION show the process as a whole."""

from importlib.metadata import version
from pathlib import Path

from tests.columns.conftest import StartShop
from tests.support.console import Console
from tests.support.dns import DnsServer
from tests.support.pgfunnel import eventually
from tests.support.wire import parse, query, startup, sync


def test_lists_shows_how_many_items_there_are(shop: StartShop) -> None:
    pooler = shop("pool_size = 1", "[peers.2]\nhost = '127.0.0.2'\n", peer_id=1)
    with Console(pooler) as console, pooler.login("alice", "shop") as wire, pooler.connect():
        wire.query("SELECT 1")
        expected = {
            "databases": 2,  # and the console's own
            "users": 3,
            "peers": 1,
            "pools": 2,
            "peer_pools": 1,
            "free_clients": 0,
            "used_clients": 3,
            "login_clients": 1,
            "free_servers": 0,
            "used_servers": 1,
            "dns_names": 0,
            "dns_zones": 0,
            "dns_queries": 0,
            "dns_pending": 0,
        }
        eventually(lambda: {row["list"]: row["items"] for row in console.show("LISTS")} == expected)


def test_state_shows_by_key_whether_all_is_paused(shop: StartShop) -> None:
    with Console(shop()) as console:
        for command, active, paused in (("PAUSE", "no", "yes"), ("RESUME", "yes", "no")):
            console.do(command)
            assert console.one("STATE", key="active")["value"] == active
            assert console.one("STATE", key="paused")["value"] == paused
            assert console.one("STATE", key="suspended")["value"] == "no"


def test_mem_shows_how_many_there_are_and_what_they_take(shop: StartShop) -> None:
    asked = query("SELECT 'much'")
    pooler = shop("pool_size = 1")
    with Console(pooler) as console, pooler.login("alice", "shop") as holder, pooler.login("alice", "shop") as other:
        holder.send(parse("SELECT 1", "one"), sync())
        holder.read_until()
        holder.query("BEGIN")
        other.send(asked)
        eventually(lambda: console.one("MEM", name="iobuf_cache")["used"] == 1)
        buffers = {"name": "iobuf_cache", "size": len(asked), "used": 1, "free": 0, "memtotal": len(asked)}
        assert console.one("MEM", name="iobuf_cache") == buffers
        for name, used in (
            ("client_cache", 2),
            ("server_cache", 1),
            ("pool_cache", 1),
            ("prepared_statement_cache", 1),
        ):
            row = console.one("MEM", name=name)
            assert (row["used"], row["free"]) == (used, 0)
            assert row["memtotal"] == row["size"] * used > 0


def test_dns_hosts_shows_addresses_and_for_how_long_they_are_good(shop: StartShop, tmp_path: Path) -> None:
    with DnsServer(db_test=["127.0.0.1", "127.0.0.2"]) as dns:
        pooler = shop(host="db.test", port=1, resolv_conf=str(dns.resolv_conf(tmp_path)), dns_max_ttl=100)
        with Console(pooler) as console, pooler.connect() as wire:
            wire.send(startup({"user": "alice", "database": "shop"}))
            eventually(lambda: bool(console.show("DNS_HOSTS")) and bool(console.one("DNS_HOSTS")["addrs"]))
            row = console.one("DNS_HOSTS", hostname="db.test")
            assert 0 < row["ttl"] <= 100
            assert sorted(row["addrs"].split(",")) == ["127.0.0.1", "127.0.0.2"]


def test_dns_zones_shows_the_serial_number_of_a_zone_and_how_many_names_it_has(shop: StartShop, tmp_path: Path) -> None:
    with DnsServer(db_test=["127.0.0.1"]) as dns:
        dns.serial = 7
        resolv_conf = str(dns.resolv_conf(tmp_path))
        pooler = shop(host="db.test", port=1, resolv_conf=resolv_conf, dns_zone_check_period=0.5)
        with Console(pooler) as console, pooler.connect() as wire:
            assert console.show("DNS_ZONES") == []
            wire.send(startup({"user": "alice", "database": "shop"}))
            eventually(lambda: console.show("DNS_ZONES") == [{"zonename": "test", "serial": 7, "count": 1}])
            assert console.one("LISTS", list="dns_zones")["items"] == 1


def test_version_is_that_of_pgbouncer_and_of_pgfunnel(shop: StartShop) -> None:
    with Console(shop()) as console:
        assert console.one("VERSION")["version"] == f"PgBouncer 1.26.0 (pgfunnel {version('pgfunnel')})"
