"""Names and their addresses: what is remembered, for how long, and what happens while the DNS is away."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import pycares
import pytest

from config.settings import Settings
from pooler.log import make_log
from pooler.upstream.dns import Answer, LookupFailedError, look_up, read_resolv_conf, serial_of
from pooler.upstream.resolver import KEPT_S, Known, Resolver, UnresolvedError, Zone
from tests.support.configuration import current
from tests.support.dns import DnsServer


class Dns:
    """A DNS that answers at once, or when it is let, and a clock."""

    def __init__(self, *addresses: str, ttl: float = 300) -> None:
        self.addresses = addresses
        self.ttl = ttl
        self.failure: LookupFailedError | None = None
        self.asked = 0
        self.time = 1000.0
        self.answering = asyncio.Event()
        self.answering.set()
        self.written = io.StringIO()
        self.serial: int | None = None
        self.zones: list[str] = []
        """Those that were asked for their serial number."""

    async def look_up(self, name: str, resolv_conf: Path | None) -> Answer:
        self.asked += 1
        await self.answering.wait()
        if self.failure is not None:
            raise self.failure
        return Answer(self.addresses, self.ttl)

    async def serial_of(self, zone: str, resolv_conf: Path | None) -> int:
        self.zones.append(zone)
        if self.serial is None:
            raise LookupFailedError("no such zone", gone=True)
        return self.serial

    def resolver(self, **settings: float) -> Resolver:
        in_force = current(Settings.model_validate({"upstream": "postgresql://db.test", **settings}))
        return Resolver(
            in_force, lambda: self.time, make_log("text", "info", self.written), self.look_up, self.serial_of
        )

    @property
    def log(self) -> str:
        return self.written.getvalue()


async def test_an_answer_is_good_for_its_ttl() -> None:
    dns = Dns("10.0.0.1", "10.0.0.2", ttl=4)
    resolver = dns.resolver(dns_max_ttl=15)
    assert await resolver.addresses("db.test") == ("10.0.0.1", "10.0.0.2")
    dns.time += 3.9
    await resolver.addresses("db.test")
    assert dns.asked == 1
    dns.time += 0.1
    await resolver.addresses("db.test")
    assert dns.asked == 2


async def test_an_answer_is_good_for_dns_max_ttl_at_most() -> None:
    dns = Dns("10.0.0.1", ttl=300)
    resolver = dns.resolver(dns_max_ttl=15)
    await resolver.addresses("db.test")
    assert list(resolver.known()) == [Known("db.test", 15, ("10.0.0.1",))]
    dns.time += 15
    dns.addresses = ("10.0.0.9",)
    assert await resolver.addresses("db.test") == ("10.0.0.9",)


async def test_a_ttl_of_0_is_no_question_for_each_login() -> None:
    dns = Dns("10.0.0.1", ttl=0)
    resolver = dns.resolver()
    for _ in range(3):
        await resolver.addresses("db.test")
    assert dns.asked == 1


async def test_who_asks_at_the_same_time_asks_once() -> None:
    dns = Dns("10.0.0.1")
    resolver = dns.resolver()
    dns.answering.clear()
    waiting = [asyncio.create_task(resolver.addresses("db.test")) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (dns.asked, resolver.questions) == (1, 1)
    waiting[0].cancel()  # which is no reason for the others to go without
    dns.answering.set()
    assert await asyncio.gather(*waiting[1:]) == [("10.0.0.1",)] * 49
    assert resolver.questions == 0


@pytest.mark.parametrize("host", ["10.1.2.3", "::1", "/tmp", "@pg"])
async def test_what_is_no_name_is_not_asked_for(host: str) -> None:
    dns = Dns()
    assert await dns.resolver().addresses(host) == (host,)
    assert not dns.asked


async def test_a_name_that_is_not_found_is_asked_for_again_after_dns_nxdomain_ttl() -> None:
    dns = Dns("10.0.0.1")
    dns.failure = LookupFailedError("Domain name not found", gone=True)
    resolver = dns.resolver(dns_nxdomain_ttl=7)
    for _ in range(2):
        with pytest.raises(UnresolvedError, match=r"can't resolve db\.test: Domain name not found"):
            await resolver.addresses("db.test")
    assert dns.asked == 1
    dns.failure = None
    dns.time += 7
    assert await resolver.addresses("db.test") == ("10.0.0.1",)
    assert dns.log.count("dns_failed") == 1
    assert "event=dns_recovered" in dns.log


async def test_old_addresses_serve_while_the_dns_is_away() -> None:
    dns = Dns("10.0.0.1")
    resolver = dns.resolver(dns_max_ttl=5, dns_nxdomain_ttl=5)
    await resolver.addresses("db.test")
    dns.failure = LookupFailedError("Could not contact DNS servers", gone=False)
    for _ in range(3):
        dns.time += 5
        assert await resolver.addresses("db.test") == ("10.0.0.1",)
    assert dns.log.count("dns_failed") == 1
    assert "still_used=10.0.0.1" in dns.log


async def test_old_addresses_serve_while_the_dns_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    dns = Dns("10.0.0.1")
    resolver = dns.resolver()
    await resolver.addresses("db.test")
    dns.time += 1000
    dns.answering.clear()
    monkeypatch.setattr("pooler.upstream.resolver.PATIENCE_S", 0.01)
    assert await resolver.addresses("db.test") == ("10.0.0.1",)
    await resolver.close()


async def test_a_question_that_is_never_answered_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    dns = Dns()
    dns.answering.clear()
    monkeypatch.setattr("pooler.upstream.resolver.QUESTION_S", 0.01)
    with pytest.raises(UnresolvedError, match="no answer within"):
        await dns.resolver().addresses("db.test")


async def test_a_name_that_is_gone_is_not_replaced_by_what_it_was() -> None:
    dns = Dns("10.0.0.1")
    resolver = dns.resolver(dns_max_ttl=5)
    await resolver.addresses("db.test")
    dns.time += 5
    dns.failure = LookupFailedError("Domain name not found", gone=True)
    with pytest.raises(UnresolvedError):
        await resolver.addresses("db.test")
    assert resolver.has("db.test", "10.0.0.1"), "connections that there are stay"


async def test_names_in_use_are_asked_for_again_and_what_they_have_lost_is_told() -> None:
    dns = Dns("10.0.0.1", "10.0.0.2")
    resolver = dns.resolver(dns_max_ttl=5)
    await resolver.addresses("db.test")
    dns.addresses = ("10.0.0.2", "10.0.0.3")
    resolver.sweep(lambda host: host == "db.test")
    await asyncio.sleep(0.01)
    assert dns.asked == 1, "too early"
    dns.time += 5
    resolver.sweep(lambda host: host == "db.test")
    await asyncio.sleep(0.01)
    assert not resolver.has("db.test", "10.0.0.1")
    assert resolver.has("db.test", "10.0.0.2")
    assert "event=dns_changed host=db.test addresses=10.0.0.2,10.0.0.3 lost=10.0.0.1" in dns.log


async def test_names_that_nobody_uses_are_left_alone_and_forgotten() -> None:
    dns = Dns("10.0.0.1")
    resolver = dns.resolver()
    await resolver.addresses("db.test")
    dns.time += KEPT_S
    resolver.sweep(lambda _: False)
    assert list(resolver.known())
    dns.time += 1
    resolver.sweep(lambda _: False)
    assert not list(resolver.known())
    assert dns.asked == 1


async def sweep(resolver: Resolver) -> None:
    resolver.sweep(lambda _: True)
    await asyncio.sleep(0.01)


async def test_names_are_looked_up_again_when_their_zone_has_changed() -> None:
    dns = Dns("10.0.0.1")
    dns.serial = 7
    resolver = dns.resolver(dns_max_ttl=3600, dns_zone_check_period=10)
    await resolver.addresses("a.db.test")
    await resolver.addresses("b.db.test")
    await sweep(resolver)
    assert (dns.zones, resolver.zones()) == ([], [Zone("db.test", 0, 2)]), "not yet"
    for serial, asked in ((7, 2), (7, 2), (8, 4), (8, 4)):
        dns.time += 10
        dns.serial = serial
        await sweep(resolver)  # which asks for the serial number
        await sweep(resolver)  # and this for the names
        assert (dns.asked, resolver.zones()) == (asked, [Zone("db.test", serial, 2)])
    assert dns.zones == ["db.test"] * 4
    assert "event=dns_zone_changed zone=db.test serial=8 before=7" in dns.log


async def test_zones_are_not_asked_unless_the_period_says_so_and_may_be_none() -> None:
    dns = Dns("10.0.0.1")
    for period, asked in ((0, []), (10, ["test", "test"])):
        resolver = dns.resolver(dns_zone_check_period=period)
        await resolver.addresses("db.test")
        await resolver.addresses("localhost")
        for _ in range(2):
            dns.time += 10
            await sweep(resolver)
        assert dns.zones == asked
    assert resolver.zones() == [Zone("test", 0, 1)]


# --- the questions themselves


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(db_test=["127.0.0.1", "127.0.0.2"]) as server:
        yield server


async def test_a_question_goes_to_the_servers_of_resolv_conf(server: DnsServer, tmp_path: Path) -> None:
    answer = await look_up("db.test", server.resolv_conf(tmp_path))
    assert (sorted(answer.addresses), answer.ttl) == (["127.0.0.1", "127.0.0.2"], 300)


async def test_another_resolv_conf_counts_after_a_reload(server: DnsServer, tmp_path: Path) -> None:
    in_force = current(Settings(upstream="postgresql://db.test", resolv_conf=tmp_path / "none"))
    resolver = Resolver(in_force, lambda: 1000.0, make_log("text", "info", io.StringIO()))
    with pytest.raises(UnresolvedError, match="can't read resolv_conf"):
        await resolver.addresses("db.test")
    in_force.settings = Settings(upstream="postgresql://db.test", resolv_conf=server.resolv_conf(tmp_path))
    resolver.expire()
    assert sorted(await resolver.addresses("db.test")) == ["127.0.0.1", "127.0.0.2"]


async def test_each_question_is_asked_anew_whatever_the_ttl(server: DnsServer, tmp_path: Path) -> None:
    for _ in range(20):
        await look_up("db.test", server.resolv_conf(tmp_path))
    assert server.asked == ["db.test"] * 20


@pytest.mark.parametrize("name", ["gone.test", "a..b", "x" * 70 + ".test"])
async def test_a_name_that_does_not_exist_is_told_from_a_server_that_fails(
    server: DnsServer, tmp_path: Path, name: str
) -> None:
    with pytest.raises(LookupFailedError) as failed:
        await look_up(name, server.resolv_conf(tmp_path))
    assert failed.value.gone
    server.broken = True
    with pytest.raises(LookupFailedError) as failed:
        await look_up("db.test", server.resolv_conf(tmp_path))
    assert not failed.value.gone


async def test_a_system_without_inotify_watches_will_do(
    server: DnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Watchless(pycares.Channel):
        def __init__(self, **options: object) -> None:
            if "sock_state_cb" not in options:
                self._channel = None
                raise pycares.AresError("Failed to initialize c-ares channel")
            super().__init__(**options)  # type: ignore[arg-type]

    monkeypatch.setattr("pycares.Channel", Watchless)
    assert (await look_up("db.test", server.resolv_conf(tmp_path))).addresses
    assert not caplog.records


async def test_a_zone_tells_its_serial_number(server: DnsServer, tmp_path: Path) -> None:
    resolv_conf = server.resolv_conf(tmp_path)
    with pytest.raises(LookupFailedError):
        await serial_of("test", resolv_conf)
    server.serial = 2026112100
    assert await serial_of("test", resolv_conf) == 2026112100


async def test_what_hosts_files_know_is_not_asked_for(server: DnsServer, tmp_path: Path) -> None:
    answer = await look_up("localhost", server.resolv_conf(tmp_path))
    assert "127.0.0.1" in answer.addresses
    assert not server.asked


async def test_resolv_conf_is_read_as_its_manual_says(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# comment\n; another\n\nnameserver 10.0.0.1 # first\nnameserver ::1\ndomain a.test\nsearch b.test c.test\n"
        "options ndots:2 timeout:3 attempts:4 rotate edns0 ndots:x\nsortlist 10.0.0.0\n"
    )
    assert read_resolv_conf(path) == {
        "nameservers": ["10.0.0.1", "::1"],
        "domains": ["b.test", "c.test"],
        "ndots": 2,
        "timeout": 3,
        "tries": 4,
        "rotate": True,
    }
    path.write_text("")
    assert read_resolv_conf(path)["nameservers"] == ["127.0.0.1"]
    with pytest.raises(LookupFailedError, match="can't read resolv_conf"):
        read_resolv_conf(tmp_path / "none")
