"""Several hosts: which one a connection is opened to when some are away, not ready, or not what is wanted."""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from config.settings import Settings
from config.terms import Endpoint
from pooler.log import make_log
from pooler.reasons import Reason
from pooler.upstream.address import Address
from pooler.upstream.connect import Login, LoginRefusedError
from pooler.upstream.dial import ConnectFailedError
from pooler.upstream.dns import Answer
from pooler.upstream.hosts import Hosts
from pooler.upstream.resolver import Resolver
from protocol.messages import AUTHENTICATION_OK, READY_IDLE, backend_key_data, fatal, message, parameter_status
from tests.support.configuration import current
from tests.support.scripted_upstream import KEY, Peer, ScriptedUpstream, scripted_upstream

RETRY_S = 15.0


@dataclass
class Postgres:
    """What a scripted Postgres is at the moment."""

    standby: str | None = "off"
    """in_hot_standby; None for one older than 14, which has to be asked."""
    read_only: str = "off"
    refuses: tuple[str, str] | None = None
    silent: bool = False
    came: int = 0

    async def play(self, peer: Peer) -> None:
        self.came += 1
        await peer.packet()
        if self.silent:
            pass
        elif self.refuses is not None:
            peer.say(fatal(*self.refuses))
        else:
            told = b""
            if self.standby is not None:
                told = parameter_status("in_hot_standby", self.standby)
                told += parameter_status("default_transaction_read_only", self.read_only)
            peer.say(AUTHENTICATION_OK, told, backend_key_data(KEY), READY_IDLE)
            if self.standby is None and (await peer.some_bytes())[:1] == b"Q":
                value = self.read_only.encode()
                row = message(b"D", b"\0\1" + len(value).to_bytes(4, "big") + value)
                peer.say(row, message(b"C", b"SELECT 1\0"), READY_IDLE)
        await peer.until_gone()


@dataclass
class Scene:
    """Scripted servers under the names a, b, c of a DNS of our own, and a clock."""

    stack: AsyncExitStack
    time: float = 100.0
    ports: dict[str, int] = field(default_factory=dict)
    servers: dict[str, Postgres] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    log: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        in_force = current(Settings(upstream="postgresql://localhost", server_login_retry=RETRY_S))
        log = make_log("text", "info", self.log)
        self.resolver = Resolver(in_force, lambda: self.time, log, self._look_up)
        self.hosts = Hosts(in_force, self.resolver, lambda: self.time, log)

    async def _look_up(self, name: str, _: Path | None) -> Answer:
        return Answer(self.names.get(name, ("127.0.0.1",)), 300)

    async def add(self, name: str, server: Postgres) -> Postgres:
        upstream: ScriptedUpstream = await self.stack.enter_async_context(scripted_upstream(server.play))
        self.ports[name], self.servers[name] = upstream.port, server
        return server

    async def add_dead(self, name: str) -> None:
        """Take a port on which nobody listens."""
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        self.ports[name] = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()

    def endpoint(self, attrs: str = "any", *, balance: bool = False) -> Endpoint:
        return Endpoint(
            hosts=tuple(f"{name}:{port}" for name, port in self.ports.items()),
            port=1,
            dbname="shop",
            user="alice",
            target_session_attrs=attrs,
            load_balance_hosts="round-robin" if balance else "disable",
        )

    async def open(self, endpoint: Endpoint) -> Login:
        login = await self.hosts.log_in(endpoint, None, None, {})
        login.transport.abort()
        return login

    async def log_in(self, attrs: str = "any", *, balance: bool = False) -> str:
        """Return where a login has led to."""
        return (await self.open(self.endpoint(attrs, balance=balance))).peer.host


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(stack)


async def test_a_login_says_which_address_it_has_reached(scene: Scene) -> None:
    await scene.add("a", Postgres())
    assert (await scene.open(scene.endpoint())).peer == Address("a", scene.ports["a"], "127.0.0.1")


async def test_connections_are_spread_over_the_hosts(scene: Scene) -> None:
    for name in "abc":
        await scene.add(name, Postgres())
    assert [await scene.log_in(balance=True) for _ in range(6)] == list("abcabc")


async def test_connections_are_spread_over_the_addresses_of_a_name(scene: Scene) -> None:
    await scene.add("a", Postgres())
    scene.names["a"] = ("127.0.0.1", "localhost")
    logins = [await scene.open(scene.endpoint(balance=True)) for _ in range(4)]
    assert [login.peer.ip for login in logins] == ["127.0.0.1", "localhost"] * 2


async def test_the_next_host_is_taken_at_once_where_one_is_away(scene: Scene) -> None:
    await scene.add_dead("a")
    await scene.add("b", Postgres())
    assert [await scene.log_in() for _ in range(3)] == ["b"] * 3
    assert scene.log.getvalue().count("event=host_passed_over reason=server_connect_failed") == 1


@pytest.mark.parametrize("sqlstate", ["57P03", "53300"])
async def test_a_host_that_starts_or_is_full_is_passed_over(scene: Scene, sqlstate: str) -> None:
    busy = await scene.add("a", Postgres(refuses=(sqlstate, "not now")))
    await scene.add("b", Postgres())
    assert [await scene.log_in(balance=True) for _ in range(5)] == ["b"] * 5
    assert busy.came == 1


async def test_a_host_that_is_back_gets_connections_again(scene: Scene) -> None:
    sick = await scene.add("a", Postgres(refuses=("57P03", "the database system is starting up")))
    await scene.add("b", Postgres())
    await scene.log_in(balance=True)
    sick.refuses = None
    scene.time += RETRY_S
    assert {await scene.log_in(balance=True) for _ in range(4)} == {"a", "b"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooler.upstream.hosts.PATIENCE_S", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_a_host_that_is_silent_holds_up_nobody_for_long(scene: Scene) -> None:
    silent = await scene.add("a", Postgres(silent=True))
    await scene.add("b", Postgres())
    await scene.add_dead("c")
    assert [await scene.log_in(balance=True) for _ in range(4)] == ["b"] * 4
    assert silent.came == 1
    assert scene.log.getvalue().count("event=host_passed_over reason=server_connect_timeout") == 1


@pytest.mark.usefixtures("impatient")
async def test_who_is_only_slow_is_waited_for_where_no_other_lets_us_in(scene: Scene) -> None:
    slow = await scene.add("a", Postgres(silent=True))
    await scene.add_dead("b")
    login = asyncio.create_task(scene.log_in())
    await asyncio.sleep(0.1)
    assert not login.done()
    login.cancel()
    with pytest.raises(asyncio.CancelledError):
        await login
    assert slow.came == 1


@pytest.mark.usefixtures("impatient")
async def test_a_standby_that_is_silent_is_not_preferred(scene: Scene) -> None:
    await scene.add("primary", Postgres())
    await scene.add("standby", Postgres(standby="on", silent=True))
    assert [await scene.log_in("prefer-standby") for _ in range(2)] == ["primary"] * 2


async def test_a_wrong_password_is_not_tried_at_the_other_hosts(scene: Scene) -> None:
    await scene.add("a", Postgres(refuses=("28P01", "password authentication failed")))
    other = await scene.add("b", Postgres())
    with pytest.raises(LoginRefusedError):
        await scene.log_in()
    assert not other.came


async def test_a_name_that_is_not_found_does_not_keep_the_other_hosts_from_serving(scene: Scene) -> None:
    scene.ports["gone"] = 5432
    scene.names["gone"] = ()
    await scene.add("b", Postgres())
    assert await scene.log_in() == "b"


async def test_a_name_that_is_found_again_is_used_again(scene: Scene) -> None:
    await scene.add("a", Postgres())
    await scene.add("b", Postgres())
    scene.names["a"] = ()
    assert [await scene.log_in(balance=True) for _ in range(2)] == ["b"] * 2
    del scene.names["a"]
    scene.time += RETRY_S
    assert [await scene.log_in(balance=True) for _ in range(4)] == ["a", "b"] * 2


async def test_when_all_have_failed_each_of_them_is_named(scene: Scene) -> None:
    await scene.add_dead("a")
    await scene.add("b", Postgres(refuses=("57P03", "the database system is shutting down")))
    with pytest.raises(ConnectFailedError, match=r"can't connect to a:\d+ \(127\.0\.0\.1\).*; .*is shutting down"):
        await scene.log_in()


async def test_when_all_have_failed_all_are_tried_again(scene: Scene) -> None:
    sick = [await scene.add(name, Postgres(refuses=("57P03", "starting up"))) for name in "ab"]
    for _ in range(2):
        with pytest.raises(ConnectFailedError):
            await scene.log_in()
    assert [server.came for server in sick] == [2, 2]
    sick[1].refuses = None
    assert await scene.log_in() == "b"


# --- target_session_attrs

PRIMARY, STANDBY, READ_ONLY = Postgres(), Postgres("on", "on"), Postgres("off", "on")


@pytest.mark.parametrize(
    ("attrs", "fits"),
    [
        ("any", "primary standby frozen"),
        ("primary", "primary frozen"),
        ("standby", "standby"),
        ("read-write", "primary"),
        ("read-only", "standby frozen"),
        ("prefer-standby", "standby"),
    ],
)
async def test_only_hosts_that_fit_are_used(scene: Scene, attrs: str, fits: str) -> None:
    await scene.add("primary", Postgres())
    await scene.add("standby", Postgres(standby="on"))
    await scene.add("frozen", Postgres(read_only="on"))
    assert {await scene.log_in(attrs, balance=True) for _ in range(9)} == set(fits.split())


@pytest.mark.parametrize(
    ("attrs", "answer", "fits"),
    [
        ("primary", "off", True),
        ("primary", "on", False),
        ("standby", "on", True),
        ("standby", "off", False),
        ("read-write", "off", True),
        ("read-write", "on", False),
        ("read-only", "on", True),
        ("read-only", "off", False),
    ],
)
async def test_an_old_postgres_is_asked_what_it_is(scene: Scene, attrs: str, answer: str, fits: bool) -> None:
    await scene.add("a", Postgres(standby=None, read_only=answer))
    if fits:
        assert await scene.log_in(attrs) == "a"
        return
    with pytest.raises(ConnectFailedError, match=f"and target_session_attrs is {attrs}") as failed:
        await scene.log_in(attrs)
    assert failed.value.reason is Reason.MISFIT


async def test_where_no_standby_is_left_one_that_prefers_it_takes_the_primary(scene: Scene) -> None:
    await scene.add("primary", Postgres())
    standby = await scene.add("standby", Postgres(standby="on"))
    assert await scene.log_in("prefer-standby") == "standby"
    standby.refuses = ("57P03", "the database system is shutting down")
    assert [await scene.log_in("prefer-standby") for _ in range(3)] == ["primary"] * 3
    standby.refuses = None
    scene.time += RETRY_S
    assert await scene.log_in("prefer-standby") == "standby"


async def test_a_promoted_standby_is_found_as_soon_as_the_primary_is_gone(scene: Scene) -> None:
    old = await scene.add("a", Postgres())
    new = await scene.add("b", Postgres(standby="on"))
    assert {await scene.log_in("primary", balance=True) for _ in range(4)} == {"a"}
    old.refuses = ("57P03", "the database system is shutting down")
    with pytest.raises(ConnectFailedError, match=r"shutting down.*b:\d+ .* is a standby"):
        await scene.log_in("primary")
    new.standby = "off"
    scene.time += RETRY_S - 1
    assert await scene.log_in("primary") == "b"
    scene.time += 1
    came = old.came
    assert [await scene.log_in("primary") for _ in range(3)] == ["b"] * 3
    assert old.came == came, "it stays with the new one, also when it is time to try the old one again"


async def test_connections_that_do_not_fit_are_closed(scene: Scene) -> None:
    await scene.add("a", Postgres(standby="on"))
    for attrs in ("primary", "read-write"):
        with pytest.raises(ConnectFailedError):
            await scene.log_in(attrs)
    # scripted_upstream waits, at the end, until each has gone.


async def test_each_kind_of_endpoint_has_its_own_view_of_who_fits(scene: Scene) -> None:
    await scene.add("a", Postgres())
    await scene.add("b", Postgres(standby="on"))
    for _ in range(3):
        assert await scene.log_in("primary") == "a"
        assert await scene.log_in("standby") == "b"


async def test_abstract_sockets_are_reached(scene: Scene) -> None:
    server = Postgres()
    socket = Address("@pgfunnel-test", os.getpid() & 0xFFFF | 1)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.play(Peer(reader, writer, 1))
        writer.close()

    async with await asyncio.start_unix_server(play, socket.socket_path):
        endpoint = replace(scene.endpoint(), hosts=(socket.host,), port=socket.port)
        assert (await scene.open(endpoint)).peer == socket
        assert str(socket) == f"@pgfunnel-test/.s.PGSQL.{socket.port}"
