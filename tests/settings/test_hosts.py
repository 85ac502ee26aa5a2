"""Which of several hosts are used, and by which addresses, as the settings say."""

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartPgfunnel
from tests.support.dns import DnsServer
from tests.support.pgfunnel import eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import message, startup

EVERYBODY = {"postgres": ""}


def serve(*, standby: bool) -> Callable[[Conversation], None]:
    """Play a primary or a standby, which answer with "on" or "off" to whatever is asked."""
    role = "on" if standby else "off"

    def script(peer: Conversation) -> None:
        peer.read_startup()
        peer.send(message("R", struct.pack("!I", 0)))
        for name, value in (
            ("in_hot_standby", role),
            ("default_transaction_read_only", role),
            ("server_version", "18"),
        ):
            peer.send(message("S", f"{name}\0{value}\0".encode()))
        peer.send(message("K", struct.pack("!II", peer.number, 1)), peer.ready())
        while (request := peer.read()).kind != "X":
            if request.kind == "Q":
                peer.answer(role)

    return script


@pytest.fixture
def port() -> Iterator[int]:
    """A primary at 127.0.0.1 and a standby at 127.0.0.2, on the same port."""
    with (
        ScriptedServer(serve(standby=False)) as primary,
        ScriptedServer(serve(standby=True), host="127.0.0.2", port=primary.port),
    ):
        yield primary.port


@pytest.mark.parametrize(("load_balance_hosts", "expected"), [("round-robin", ["off", "on"]), ("disable", ["off"] * 2)])
def test_load_balance_hosts_spreads_connections_over_the_hosts(
    pgfunnel: StartPgfunnel, port: int, load_balance_hosts: str, expected: list[str]
) -> None:
    entry = f'host = "127.0.0.1,127.0.0.2"\nport = {port}\nload_balance_hosts = "{load_balance_hosts}"'
    pooler = pgfunnel(toml=f"[databases.shop]\n{entry}", userlist=EVERYBODY, pool_mode="session")
    with ExitStack() as open_:
        clients = [open_.enter_context(pooler.login(dbname="shop")) for _ in range(2)]
        assert sorted(str(client.value("SELECT 1")) for client in clients) == expected


@pytest.mark.parametrize(("target_session_attrs", "expected"), [("read-write", "off"), ("standby", "on")])
def test_target_session_attrs_says_which_hosts_will_do(
    pgfunnel: StartPgfunnel, port: int, target_session_attrs: str, expected: str
) -> None:
    entry = f'host = "127.0.0.1,127.0.0.2"\nport = {port}\ntarget_session_attrs = "{target_session_attrs}"'
    pooler = pgfunnel(toml=f"[databases.shop]\n{entry}", userlist=EVERYBODY, pool_mode="session")
    with ExitStack() as open_:
        clients = [open_.enter_context(pooler.login(dbname="shop")) for _ in range(2)]
        assert [client.value("SELECT 1") for client in clients] == [expected] * 2


# --- names


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer(db_test=["127.0.0.1"]) as server:
        yield server


def test_names_are_looked_up_as_resolv_conf_says_and_again_after_dns_max_ttl(
    pgfunnel: StartPgfunnel, port: int, dns: DnsServer, tmp_path: Path
) -> None:
    pooler = pgfunnel(
        f"postgresql://postgres@db.test:{port}/postgres",
        resolv_conf=str(dns.resolv_conf(tmp_path)),
        dns_max_ttl=1,  # what the DNS says is 300
        server_lifetime=0,
    )
    with pooler.login() as wire:
        assert wire.value("SELECT 1") == "off"
        dns.names["db.test"] = ["127.0.0.2"]
        eventually(lambda: wire.value("SELECT 1") == "on")


def test_a_zone_that_has_changed_has_its_names_looked_up_before_their_time(
    pgfunnel: StartPgfunnel, port: int, dns: DnsServer, tmp_path: Path
) -> None:
    dns.serial = 1
    pooler = pgfunnel(
        f"postgresql://postgres@db.test:{port}/postgres",
        resolv_conf=str(dns.resolv_conf(tmp_path)),
        dns_max_ttl=3600,
        dns_zone_check_period=0.5,
    )
    with pooler.login() as wire:
        assert wire.value("SELECT 1") == "off"
        dns.names["db.test"] = ["127.0.0.2"]
        eventually(lambda: len(dns.zones) > 1)
        assert wire.value("SELECT 1") == "off", "the zone has not changed, as far as it says"
        dns.serial = 2
        eventually(lambda: wire.value("SELECT 1") == "on")


def test_a_name_that_was_not_found_is_looked_up_again_after_dns_nxdomain_ttl(
    pgfunnel: StartPgfunnel, port: int, dns: DnsServer, tmp_path: Path
) -> None:
    known = dns.names.pop("db.test")
    pooler = pgfunnel(
        f"postgresql://postgres@db.test:{port}/postgres",
        resolv_conf=str(dns.resolv_conf(tmp_path)),
        dns_nxdomain_ttl=2,
        server_login_retry=0.1,
    )
    with pooler.connect() as wire:
        wire.socket.settimeout(8)
        wire.send(startup({"user": "postgres", "database": "postgres"}))
        eventually(lambda: bool(dns.asked))
        since = time.monotonic()
        dns.names["db.test"] = known
        wire.authenticate("postgres", "")
        assert time.monotonic() - since > 1.5
