"""TLS towards Postgres: when it is used, what a server must not do, and what is said of one that fails."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from config.settings import Settings
from pooler.credentials.credential import Password
from pooler.log import make_log
from pooler.reasons import Reason
from pooler.tls.connection import TlsConnection
from pooler.tls.watched import watch_server_context
from pooler.upstream.connect import Login, LoginRefusedError, Target, log_in
from pooler.upstream.dial import ConnectFailedError, ServerTls
from protocol.messages import AUTHENTICATION_CLEARTEXT, fatal
from tests.support.certificates import Certificates, Pair
from tests.support.scripted_upstream import GREETING, Peer, ScriptedUpstream, scripted_upstream, tls_context

NO_ENTRY = ("28000", 'no pg_hba.conf entry for host "127.0.0.1", user "alice", database "shop"')


@dataclass
class Client:
    """What pgfunnel is as a client of the scripted server."""

    certificates: Certificates
    mode: str = "prefer"
    negotiation: str = "postgres"
    ca: Path | None = None
    pair: Pair | None = None
    host: str = "127.0.0.1"
    tls: ServerTls | None = None

    def with_tls(self) -> ServerTls | None:
        if self.tls is None and self.mode != "disable":
            settings = Settings.model_validate(
                {
                    "upstream": "postgresql://localhost",
                    "server_tls_sslmode": self.mode,
                    "server_tls_ca_file": self.ca or self.certificates.ca,
                    "server_tls_cert_file": self.pair.certificate if self.pair else None,
                    "server_tls_key_file": self.pair.key if self.pair else None,
                    "server_tls_sslnegotiation": self.negotiation,
                }
            )
            identity = watch_server_context(settings, make_log("text", "info", io.StringIO()))
            self.tls = ServerTls(settings.server_tls_sslmode, identity, direct=self.negotiation == "direct")
        return self.tls

    async def log_in(self, upstream: ScriptedUpstream) -> Login:
        target = Target(self.host, upstream.port, "alice", "shop", Password("hush"), self.with_tls())
        login = await log_in(target, {}, 5)
        login.transport.close()
        return login


@pytest.fixture
def client(certificates: Certificates) -> Client:
    return Client(certificates)


def offering_tls(certificates: Certificates, pair: Pair | None = None) -> Callable[[Peer], Awaitable[None]]:
    async def script(peer: Peer) -> None:
        await (await peer.accept_tls(tls_context(pair or certificates.ec))).let_in()

    return script


async def without_tls(peer: Peer) -> None:
    await (await peer.refuse_tls()).let_in()


async def plain_only(peer: Peer) -> None:
    await peer.let_in()


# --- when it is used


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca", "verify-full"])
async def test_a_server_that_has_tls_is_spoken_to_over_tls(client: Client, mode: str) -> None:
    client.mode = mode
    async with scripted_upstream(offering_tls(client.certificates)) as upstream:
        login = await client.log_in(upstream)
    assert isinstance(login.transport, TlsConnection)
    assert [peer.encrypted for peer in upstream.peers] == [True]


@pytest.mark.parametrize("mode", ["disable", "allow"])
async def test_a_server_is_spoken_to_in_clear_where_that_is_what_is_wanted(client: Client, mode: str) -> None:
    client.mode = mode
    async with scripted_upstream(plain_only) as upstream:
        login = await client.log_in(upstream)
    assert not isinstance(login.transport, TlsConnection)
    assert len(upstream.peers) == 1


async def test_prefer_does_without_where_there_is_none(client: Client) -> None:
    async with scripted_upstream(without_tls) as upstream:
        await client.log_in(upstream)
    assert len(upstream.peers) == 1, "on the same connection"


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_tls_is_not_spoken_to_where_tls_is_required(client: Client, mode: str) -> None:
    client.mode = mode
    async with scripted_upstream(without_tls) as upstream:
        with pytest.raises(
            ConnectFailedError, match=f"127.0.0.1 has no TLS, and server_tls_sslmode is {mode}"
        ) as failed:
            await client.log_in(upstream)
    assert failed.value.reason is Reason.SERVER_TLS_FAILED


async def test_prefer_does_without_where_tls_does_not_work(client: Client) -> None:
    async def script(peer: Peer) -> None:
        if peer.number == 1:
            await peer.packet()
            peer.say(b"S")
            await peer.some_bytes()
            peer.say(b"no TLS at all")
            await peer.until_gone()
        else:
            await peer.let_in()

    async with scripted_upstream(script) as upstream:
        assert not isinstance((await client.log_in(upstream)).transport, TlsConnection)
    assert len(upstream.peers) == 2


@pytest.mark.parametrize(("mode", "encrypted"), [("allow", [False, True]), ("prefer", [True, False])])
async def test_whom_pg_hba_conf_has_no_line_for_comes_back_in_the_other_way(
    client: Client, mode: str, encrypted: list[bool]
) -> None:
    client.mode = mode

    async def script(peer: Peer) -> None:
        if (mode == "prefer" and peer.number == 1) or (mode == "allow" and peer.number == 2):
            await peer.accept_tls(tls_context(client.certificates.ec))
        await (peer.turn_away(*NO_ENTRY) if peer.number == 1 else peer.let_in())

    async with scripted_upstream(script) as upstream:
        await client.log_in(upstream)
    assert [peer.encrypted for peer in upstream.peers] == encrypted


@pytest.mark.parametrize("mode", ["allow", "prefer"])
async def test_who_is_refused_either_way_is_told_the_first_refusal(client: Client, mode: str) -> None:
    client.mode = mode

    async def script(peer: Peer) -> None:
        if (mode == "prefer" and peer.number == 1) or (mode == "allow" and peer.number == 2):
            await peer.accept_tls(tls_context(client.certificates.ec))
        await peer.turn_away("28000", f"refusal {peer.number}")

    async with scripted_upstream(script) as upstream:
        with pytest.raises(LoginRefusedError, match="refusal 1"):
            await client.log_in(upstream)


@pytest.mark.parametrize("sqlstate", ["28P01", "28000"])
async def test_a_wrong_password_is_not_sent_again_in_clear(client: Client, sqlstate: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept_tls(tls_context(client.certificates.ec))
        await peer.packet()
        peer.say(AUTHENTICATION_CLEARTEXT)
        await peer.message()
        peer.say(fatal(sqlstate, "wrong"))
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(LoginRefusedError, match="wrong"):
            await client.log_in(upstream)
    assert len(upstream.peers) == 1


# --- what a server must not do


@pytest.mark.parametrize("mode", ["prefer", "verify-full"])
async def test_what_comes_in_clear_behind_the_yes_to_tls_ends_the_attempt(client: Client, mode: str) -> None:
    client.mode = mode

    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(b"S" + GREETING)
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(ConnectFailedError, match="data in clear where TLS should begin") as failed:
            await client.log_in(upstream)
    assert failed.value.reason is Reason.SERVER_VIOLATION
    assert len(upstream.peers) == 1, "no attempt without TLS follows"


async def test_an_error_in_clear_is_not_told(client: Client) -> None:
    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(fatal("28P01", "send your password to mallory"))
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(ConnectFailedError, match="answers with an error when asked for TLS") as failed:
            await client.log_in(upstream)
    assert "mallory" not in str(failed.value)


@pytest.mark.parametrize("says", [b"H", b"\0", b"X"])
async def test_any_other_answer_is_not_postgres(client: Client, says: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(says)
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(ConnectFailedError, match="does not speak the protocol"):
            await client.log_in(upstream)


async def test_a_server_that_hangs_up_or_says_nothing_is_one_to_try_again(client: Client) -> None:
    async def script(peer: Peer) -> None:
        await peer.packet()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(ConnectFailedError, match="closed the connection"):
            await client.log_in(upstream)


@pytest.mark.parametrize("says", [b"", b"S"])
async def test_a_server_that_falls_silent_times_out(client: Client, says: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(says)
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        target = Target("127.0.0.1", upstream.port, "alice", "shop", None, client.with_tls())
        with pytest.raises(ConnectFailedError) as failed:
            await log_in(target, {}, 0.1)
    assert failed.value.reason is Reason.SERVER_CONNECT_TIMEOUT


async def test_tls_that_breaks_once_it_has_begun_is_not_done_without(client: Client) -> None:
    """Whoever stands in between can break it at any time: after the password has been asked for, for example."""

    async def script(peer: Peer) -> None:
        await peer.accept_tls(tls_context(client.certificates.ec))
        await peer.packet()
        peer.say_in_clear(b"\x17\x03\x03\x00\x20" + bytes(32))
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(ConnectFailedError, match="the server has ended TLS: ") as failed:
            await client.log_in(upstream)
    assert failed.value.reason is Reason.SERVER_TLS_FAILED
    assert len(upstream.peers) == 1


# --- certificates


@pytest.mark.parametrize(
    ("mode", "pair", "host", "why"),
    [
        ("verify-full", "ec", "127.0.0.1", ""),
        ("verify-full", "ec", "localhost", ""),
        ("verify-full", "rsa", "localhost", ""),
        ("verify-full", "ip_only", "127.0.0.1", ""),
        ("verify-full", "dns_only", "localhost", ""),
        ("verify-full", "dns_only", "127.0.0.1", "IP address mismatch"),
        ("verify-full", "ip_only", "localhost", "Hostname mismatch"),
        ("verify-full", "wrong_name", "localhost", "Hostname mismatch"),
        ("verify-full", "expired", "localhost", "certificate has expired"),
        ("verify-full", "untrusted", "localhost", "unable to get local issuer certificate"),
        ("verify-ca", "wrong_name", "localhost", ""),
        ("verify-ca", "untrusted", "localhost", "unable to get local issuer certificate"),
        ("verify-ca", "expired", "localhost", "certificate has expired"),
        ("require", "untrusted", "localhost", ""),
        ("require", "expired", "localhost", ""),
    ],
)
async def test_a_servers_certificate_is_held_to_what_the_mode_says(
    client: Client, mode: str, pair: str, host: str, why: str
) -> None:
    client = replace(client, mode=mode, host=host)
    async with scripted_upstream(offering_tls(client.certificates, getattr(client.certificates, pair))) as upstream:
        if not why:
            await client.log_in(upstream)
            return
        with pytest.raises(ConnectFailedError, match=why) as failed:
            await client.log_in(upstream)
    assert failed.value.reason is Reason.SERVER_TLS_FAILED
    assert str(failed.value).startswith(f"TLS with {host}: ")


async def test_a_server_that_wants_a_certificate_is_shown_ours(client: Client) -> None:
    certificates = client.certificates
    context = tls_context(certificates.ec, client_ca=certificates.ca)

    async def script(peer: Peer) -> None:
        await (await peer.accept_tls(context)).let_in()

    async with scripted_upstream(script) as upstream:
        await replace(client, mode="verify-full", pair=certificates.client("alice")).log_in(upstream)
        with pytest.raises(ConnectFailedError):
            await replace(client, mode="verify-full").log_in(upstream)


# --- direct TLS


async def test_direct_tls_begins_at_once(client: Client) -> None:
    async def script(peer: Peer) -> None:
        await (await peer.encrypt(tls_context(client.certificates.ec))).let_in()

    async with scripted_upstream(script) as upstream:
        login = await replace(client, mode="verify-full", negotiation="direct").log_in(upstream)
    assert isinstance(login.transport, TlsConnection)


async def test_direct_tls_with_something_else_than_postgres_is_noticed(client: Client) -> None:
    async def script(peer: Peer) -> None:
        await (await peer.encrypt(tls_context(client.certificates.ec, alpn=""))).let_in()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(ConnectFailedError, match="not Postgres directly within it") as failed:
            await replace(client, mode="require", negotiation="direct").log_in(upstream)
    assert failed.value.reason is Reason.SERVER_TLS_FAILED


# --- sessions


async def test_a_session_is_resumed_where_the_server_lets_us(client: Client) -> None:
    context = tls_context(client.certificates.ec)

    async def script(peer: Peer) -> None:
        await (await peer.accept_tls(context)).let_in()

    async with scripted_upstream(script) as upstream:
        logins = [await client.log_in(upstream) for _ in range(3)]
    reused = [login.transport.ssl.session_reused for login in logins if isinstance(login.transport, TlsConnection)]
    assert reused == [False, True, True]


async def test_new_certificates_begin_a_new_session(client: Client) -> None:
    context = tls_context(client.certificates.ec)

    async def script(peer: Peer) -> None:
        await (await peer.accept_tls(context)).let_in()

    async with scripted_upstream(script) as upstream:
        await client.log_in(upstream)
        tls = client.with_tls()
        assert tls is not None
        tls.identity.reload()
        login = await client.log_in(upstream)
    assert isinstance(login.transport, TlsConnection)
    assert login.transport.ssl.session_reused is False


async def test_a_unix_socket_is_never_encrypted(client: Client, tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Peer(reader, writer, 1).let_in()
        writer.close()
        await writer.wait_closed()
        gone.set()

    async with await asyncio.start_unix_server(play, tmp_path / ".s.PGSQL.5432"):
        target = Target(str(tmp_path), 5432, "alice", "shop", None, replace(client, mode="require").with_tls())
        login = await log_in(target, {}, 5)
        login.transport.close()
        await gone.wait()
    assert not isinstance(login.transport, TlsConnection)
