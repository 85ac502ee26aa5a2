"""Logging in at Postgres: what is answered, what may be tried again, and what can't succeed."""

import asyncio
import hashlib
import io
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from config.settings import Settings
from pooler.credentials.credential import Credential, Md5Hash, Password
from pooler.log import make_log
from pooler.reasons import Reason
from pooler.tls.watched import watch_server_context
from pooler.upstream.connect import LoginRefusedError, Target, log_in
from pooler.upstream.dial import ConnectFailedError, ServerTls
from protocol.messages import (
    AUTHENTICATION_CLEARTEXT,
    AUTHENTICATION_OK,
    READY_IDLE,
    authentication_md5,
    authentication_sasl,
    authentication_sasl_continue,
    authentication_sasl_final,
    fatal,
    message,
    parameter_status,
)
from protocol.scram import (
    END_POINT,
    MECHANISM,
    MECHANISM_PLUS,
    UNBOUND,
    UNOFFERED,
    AuthenticationFailedError,
    ScramKeys,
    ScramSecret,
    ScramServer,
    md5_response,
    md5_secret,
)
from tests.support.certificates import Certificates, Pair
from tests.support.scripted_upstream import GREETING, Peer, scripted_upstream, tls_context


def require_tls(certificates: Certificates) -> ServerTls:
    settings = Settings.model_validate(
        {"upstream": "postgresql://localhost", "server_tls_sslmode": "require", "server_tls_ca_file": certificates.ca}
    )
    return ServerTls("require", watch_server_context(settings, make_log("text", "info", io.StringIO())))


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


@asynccontextmanager
async def postgres(*says: bytes) -> AsyncIterator[tuple[Target, list[bytes]]]:
    """Say one thing after each message of the client, the startup packet first; yield where, and what it heard."""
    heard: list[bytes] = []
    gone = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            for number, each in enumerate(says):
                head = await reader.readexactly(4 if number == 0 else 5)
                heard.append(await reader.readexactly(int.from_bytes(head[-4:], "big") - 4))
                writer.write(each)
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        try:
            yield Target("127.0.0.1", port, "alice", "shop", Password("hush")), heard
        finally:
            await gone.wait()


async def enter(target: Target, most_s: float = 5) -> bytes:
    login = await log_in(target, {}, most_s)
    login.transport.abort()
    assert login.key == b"\0\0\0\1key!"
    return login.welcome


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("127.0.0.1", r"127\.0\.0\.1:1: "),
        ("::1", r"\[::1\]:1: "),
        ("/nowhere", r"/nowhere/\.s\.PGSQL\.1: No such file or directory"),
    ],
)
async def test_who_cant_connect_says_where(host: str, where: str) -> None:
    with pytest.raises(ConnectFailedError, match=f"^can't connect to {where}"):
        await enter(Target(host, 1, "alice", "shop", None))


async def test_a_login_without_a_password() -> None:
    async with postgres(GREETING) as (target, heard):
        assert await enter(target) == parameter_status("server_version", "18.0")
    assert b"user\0alice\0database\0shop\0" in heard[0]


async def test_a_login_with_a_plain_password() -> None:
    async with postgres(AUTHENTICATION_CLEARTEXT, GREETING) as (target, heard):
        await enter(target)
    assert heard[1] == b"hush\0"


async def test_a_login_with_md5() -> None:
    async with postgres(authentication_md5(b"salt"), GREETING) as (target, heard):
        await enter(target)
    assert heard[1].startswith(b"md5")
    assert b"hush" not in heard[1]


KEYS = ScramKeys.of_password("hush", b"salt", 4096)
SECRET = ScramSecret.of_password("hush", b"salt", 4096)


async def scram(peer: Peer, mechanisms: list[str], secret: ScramSecret = SECRET, end_point: bytes = b"") -> bytes:
    """Let the peer in if it knows the password; return the header that its first message had."""
    await peer.packet()
    peer.say(authentication_sasl(mechanisms))
    mechanism, _, first = (await peer.message()).partition(b"\0")
    server = ScramServer(secret, os.urandom, end_point)
    peer.say(authentication_sasl_continue(server.first(first[4:], plus=mechanism == MECHANISM_PLUS.encode())))
    peer.say(authentication_sasl_final(server.final(await peer.message())), GREETING)
    await peer.until_gone()
    return first[4:].partition(b"n=")[0]


@pytest.mark.parametrize("credential", [Password("hush"), KEYS])
async def test_a_login_with_scram(credential: Credential) -> None:
    """With the password; or with the keys that a client's proof has brought."""
    headers = []

    async def script(peer: Peer) -> None:
        headers.append(await scram(peer, [MECHANISM]))

    async with scripted_upstream(script) as upstream:
        await enter(Target(upstream.host, upstream.port, "alice", "shop", credential))
    assert headers == [UNBOUND]


@pytest.mark.parametrize("pair", ["ec", "sha384"])
@pytest.mark.parametrize(("offered", "header"), [([MECHANISM_PLUS, MECHANISM], END_POINT), ([MECHANISM], UNOFFERED)])
async def test_over_tls_the_proof_is_bound_to_the_certificate_wherever_that_is_offered(
    certificates: Certificates, pair: str, offered: list[str], header: bytes
) -> None:
    shown: Pair = getattr(certificates, pair)
    bound_to = hashlib.new("sha384" if pair == "sha384" else "sha256", der(shown)).digest()
    headers = []

    async def script(peer: Peer) -> None:
        await peer.accept_tls(tls_context(shown))
        headers.append(await scram(peer, offered, end_point=bound_to if MECHANISM_PLUS in offered else b""))

    async with scripted_upstream(script) as upstream:
        await enter(Target(upstream.host, upstream.port, "alice", "shop", Password("hush"), require_tls(certificates)))
    assert headers == [header]


async def test_a_proof_for_another_certificate_is_of_no_use_to_who_stands_in_between(
    certificates: Certificates,
) -> None:
    """He passes the messages on to the real server, which is bound to its own certificate."""
    failures = []

    async def script(peer: Peer) -> None:
        await peer.accept_tls(tls_context(certificates.untrusted))
        try:
            await scram(peer, [MECHANISM_PLUS, MECHANISM], end_point=hashlib.sha256(der(certificates.ec)).digest())
        except AuthenticationFailedError as failure:
            failures.append(str(failure))

    async with scripted_upstream(script) as upstream:
        with pytest.raises(ConnectFailedError):
            await enter(
                Target(upstream.host, upstream.port, "alice", "shop", Password("hush"), require_tls(certificates))
            )
    assert failures == ["channel binding does not match"]


@pytest.mark.parametrize("asks", [AUTHENTICATION_OK, AUTHENTICATION_CLEARTEXT, authentication_sasl([MECHANISM])])
async def test_where_channel_binding_is_required_nothing_else_will_do(asks: bytes, certificates: Certificates) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept_tls(tls_context(certificates.ec))
        await peer.packet()
        peer.say(asks)
        assert await peer.some_bytes() == b""

    async with scripted_upstream(script) as upstream:
        tls = require_tls(certificates)
        target = Target(upstream.host, upstream.port, "alice", "shop", Password("hush"), tls, "require")
        with pytest.raises(LoginRefusedError, match="no channel binding, and it is required"):
            await enter(target)


async def test_channel_binding_may_be_left_alone(certificates: Certificates) -> None:
    headers = []

    async def script(peer: Peer) -> None:
        await peer.accept_tls(tls_context(certificates.ec))
        headers.append(await scram(peer, [MECHANISM_PLUS, MECHANISM], end_point=b""))

    async with scripted_upstream(script) as upstream:
        tls = require_tls(certificates)
        await enter(Target(upstream.host, upstream.port, "alice", "shop", Password("hush"), tls, "disable"))
    assert headers == [UNBOUND]


@pytest.mark.parametrize(
    ("challenge", "why"),
    [
        (b"r=%b,s=c2FsdA==,i=4096", "nonce does not continue ours"),
        (b"r=another,s=c2FsdA==,i=4096", "nonce does not continue ours"),
        (b"r=%bx,s=c2FsdA==,i=1000001", "asks for 1000001 SCRAM iterations"),
        (b"r=%bx,s=c2FsdA==,i=99999999999999999999", "asks for 99999999999999999999 SCRAM iterations"),
        (b"r=%bx,s=c2FsdA==,i=0", "asks for 0 SCRAM iterations"),
        (b"r=%bx,s=,i=4096", "SCRAM iterations"),
        (b"r=%bx", "malformed server-first-message"),
    ],
)
async def test_a_challenge_that_is_wrong_ends_the_login(challenge: bytes, why: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(authentication_sasl([MECHANISM]))
        nonce = (await peer.message()).rpartition(b"r=")[2]
        peer.say(authentication_sasl_continue(challenge.replace(b"%b", nonce)))
        assert await peer.some_bytes() == b"", "no proof for such a server"

    async with scripted_upstream(script) as upstream:
        with pytest.raises(LoginRefusedError, match=why):
            await enter(Target(upstream.host, upstream.port, "alice", "shop", Password("hush")))


@pytest.mark.parametrize("ends", [authentication_sasl_final(b"v=AAAA") + GREETING, GREETING])
async def test_a_server_that_does_not_prove_to_know_the_password_is_not_used(ends: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(authentication_sasl([MECHANISM]))
        nonce = (await peer.message()).rpartition(b"r=")[2]
        peer.say(authentication_sasl_continue(b"r=%bx,s=c2FsdA==,i=4096" % nonce))
        await peer.message()
        peer.say(ends)
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        with pytest.raises((LoginRefusedError, ConnectFailedError)):
            await enter(Target(upstream.host, upstream.port, "alice", "shop", Password("hush")))


MD5 = Md5Hash(md5_secret("alice", "hush"))
SASL = authentication_sasl([MECHANISM])


@pytest.mark.parametrize(
    ("credential", "asks", "why"),
    [
        (None, AUTHENTICATION_CLEARTEXT, 'asks for a password, and none is known for user "alice"'),
        (None, authentication_md5(b"salt"), 'asks for a password, and none is known for user "alice"'),
        (None, SASL, 'asks for a password, and none is known for user "alice"'),
        (MD5, AUTHENTICATION_CLEARTEXT, "only an md5 hash is known .* the server asks for the password itself"),
        (MD5, SASL, "only an md5 hash is known .* the server asks for the password itself"),
        (KEYS, AUTHENTICATION_CLEARTEXT, "only SCRAM keys are known .* the server asks for the password itself"),
        (KEYS, authentication_md5(b"salt"), "only SCRAM keys are known .* the server asks for the password itself"),
        (SECRET, SASL, "only a SCRAM secret is known .* or a client that has logged in with scram-sha-256"),
        (Password("hush"), authentication_sasl(["SCRAM-SHA-512"]), "the server offers only SCRAM-SHA-512"),
        (Password("hush"), authentication_sasl([MECHANISM_PLUS]), "the server offers only SCRAM-SHA-256-PLUS"),
    ],
)
async def test_what_is_asked_for_and_not_known_is_said(credential: Credential | None, asks: bytes, why: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.packet()
        peer.say(asks)
        if asks == SASL:
            nonce = (await peer.message()).rpartition(b"r=")[2]
            peer.say(authentication_sasl_continue(b"r=%bx,s=c2FsdA==,i=4096" % nonce))
        await peer.until_gone()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(LoginRefusedError, match=f"pgfunnel can't log in: .*{why}") as refused:
            await enter(Target(upstream.host, upstream.port, "alice", "shop", credential))
    assert refused.value.error.sqlstate == "28000"


async def test_keys_of_a_password_that_postgres_no_longer_has_are_not_tried() -> None:
    async def script(peer: Peer) -> None:
        await scram(peer, [MECHANISM], ScramSecret.of_password("new", b"pepper", 4096))

    async with scripted_upstream(script) as upstream:
        with pytest.raises(
            LoginRefusedError, match='secret that is known for user "alice" is not the one that Postgres'
        ):
            await enter(Target(upstream.host, upstream.port, "alice", "shop", KEYS))


async def test_an_md5_hash_answers_md5() -> None:
    async with postgres(authentication_md5(b"salt"), GREETING) as (target, heard):
        await enter(target._replace(credential=MD5))
    assert heard[1] == md5_response(MD5.text, b"salt") + b"\0"


@pytest.mark.parametrize("sqlstate", ["53300", "57P03", "08006", "58000"])
async def test_a_refusal_that_may_pass_is_for_another_attempt(sqlstate: str) -> None:
    async with postgres(fatal(sqlstate, "not now")) as (target, _):
        with pytest.raises(ConnectFailedError, match="not now"):
            await enter(target)


@pytest.mark.parametrize("sqlstate", ["28P01", "3D000", "28000", "42501"])
async def test_a_refusal_for_good_is_in_postgres_words(sqlstate: str) -> None:
    async with postgres(fatal(sqlstate, "never", hint="do this")) as (target, _):
        with pytest.raises(LoginRefusedError) as caught:
            await enter(target)
    assert (caught.value.error.sqlstate, caught.value.error.hint) == (sqlstate, "do this")


@pytest.mark.parametrize(
    "says",
    [
        b"\xff" * 100,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        message(b"R", b""),
        AUTHENTICATION_OK + message(b"S", b"no terminator") + READY_IDLE,
        AUTHENTICATION_OK + message(b"S", b"") + READY_IDLE,
        AUTHENTICATION_OK + message(b"K", b"\0\0\0\1key!") + message(b"Z", b""),
        AUTHENTICATION_OK + READY_IDLE + b"and more",
        message(b"R", b"\0\0\0\5") * 2,
        message(b"R", b"\0\0\0\x0a"),
        message(b"R", b"\0\0\0\x63"),
    ],
)
async def test_whatever_else_a_server_says_is_one_of_two_failures(says: bytes) -> None:
    async with postgres(says) as (target, _):
        with pytest.raises((ConnectFailedError, LoginRefusedError)):
            await enter(target, 0.3)


async def test_a_server_that_says_nothing_times_out() -> None:
    async with postgres(b"") as (target, _):
        with pytest.raises(ConnectFailedError) as caught:
            await enter(target, 0.1)
    assert caught.value.reason is Reason.SERVER_CONNECT_TIMEOUT


def test_a_target_does_not_show_its_password() -> None:
    assert "hush" not in repr(Target("h", 1, "alice", "shop", Password("hush")))
