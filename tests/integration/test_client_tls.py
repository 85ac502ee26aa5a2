"""TLS towards clients, byte by byte: who gets it, who must have it, what may come before it, and when files change."""

import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.certificates import Certificates, Pair
from tests.support.pgfunnel import Pgfunnel, Setting, eventually
from tests.support.wire import ServerError, Wire, cancel_request, query, startup

SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)
GSSENC_REQUEST: Final = struct.pack("!II", 8, 80877104)
HELLO: Final = startup({"user": "postgres", "database": "postgres"})


@pytest.fixture
def tls_pgfunnel(pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres, certificates: Certificates) -> StartPgfunnel:
    """Let the test start a pgfunnel with a certificate and sslmode prefer, unless it says otherwise."""

    def start(pair: Pair | None = None, **settings: Setting) -> Pgfunnel:
        return pgfunnel(postgres.url(), **(tls_settings(pair or certificates.ec) | settings))

    return start


def tls_settings(pair: Pair) -> dict[str, Setting]:
    return {
        "client_tls_sslmode": "prefer",
        "client_tls_cert_file": str(pair.certificate),
        "client_tls_key_file": str(pair.key),
    }


def trusting(certificates: Certificates, show: Pair | None = None, alpn: str = "postgresql") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.ca)
    if alpn:
        context.set_alpn_protocols([alpn])
    if show is not None:
        context.load_cert_chain(*show)
    return context


def encrypt(wire: Wire, context: ssl.SSLContext, *, direct: bool = False) -> Wire:
    """Begin TLS on a connection that has said nothing yet."""
    if not direct:
        wire.send(SSL_REQUEST)
        assert wire.receive() == b"S"
    wire.socket = context.wrap_socket(wire.socket, server_hostname="localhost")
    return wire


@contextmanager
def in_tls(pooler: Pgfunnel, context: ssl.SSLContext, *, direct: bool = False) -> Iterator[Wire]:
    """Log in over TLS."""
    with encrypt(pooler.connect(), context, direct=direct).login("postgres", "postgres") as wire:
        yield wire


def ends(wire: Wire) -> bool:
    """It has been closed, whatever was said before."""
    try:
        while wire.receive():
            pass
    except OSError:
        pass
    return True


# --- who gets TLS, and who must have it


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require"])
def test_the_mode_says_who_gets_tls_and_who_must_have_it(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates, mode: str
) -> None:
    pooler = tls_pgfunnel(client_tls_sslmode=mode)
    with pooler.connect() as wire:
        wire.send(GSSENC_REQUEST)
        assert wire.receive() == b"N"
        wire.send(SSL_REQUEST)
        assert wire.receive() == (b"N" if mode == "disable" else b"S")
    with pooler.connect() as wire:
        wire.send(HELLO)
        answer = wire.read()
        assert answer.kind == ("E" if mode == "require" else "R")
        if mode == "require":
            assert answer.fields["C"] == "28000"
            assert "requires TLS" in answer.fields["M"]
            assert wire.read_to_end() == []
            pooler.wait_for_log("event=login_failed .*reason=tls_required")
    if mode != "disable":
        with in_tls(pooler, trusting(certificates)) as wire:
            assert wire.value("select 1") == "1"
            pooler.wait_for_log("event=client_login .*tls=TLSv1.3 cipher=TLS_AES_256_GCM_SHA384")
            assert pooler.metric("pgfunnel_tls_clients") == 1
            assert pooler.metric("pgfunnel_tls_certificate_expiry_timestamp_seconds", side="client") > time.time()


def test_on_a_unix_socket_there_is_no_tls_and_none_is_asked_for(tls_pgfunnel: StartPgfunnel, tmp_path: Path) -> None:
    pooler = tls_pgfunnel(client_tls_sslmode="require", unix_socket_dir=str(tmp_path))
    with Wire(str(tmp_path), pooler.port) as wire:
        wire.send(SSL_REQUEST)
        assert wire.receive() == b"N"
        assert wire.login("postgres", "postgres").value("select 1") == "1"


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_who_must_show_a_certificate_gets_in_with_a_good_one_only(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates, mode: str
) -> None:
    pooler = tls_pgfunnel(client_tls_sslmode=mode, client_tls_ca_file=str(certificates.ca))
    with in_tls(pooler, trusting(certificates, certificates.client("postgres"))) as wire:
        assert wire.value("select 1") == "1"
    for shown in (None, certificates.other_authority.client(f"stranger-{mode}")):
        with pooler.connect() as wire, pytest.raises((OSError, EOFError)):
            encrypt(wire, trusting(certificates, shown)).login("postgres", "postgres")
    eventually(lambda: pooler.metric("pgfunnel_tls_handshakes_failed_total", cause="client_certificate") == 2)
    pooler.wait_for_log("event=login_failed .*reason=tls_handshake_failed .*certificate")


# --- how it begins


def test_tls_may_begin_at_once(tls_pgfunnel: StartPgfunnel, certificates: Certificates) -> None:
    pooler = tls_pgfunnel()
    with in_tls(pooler, trusting(certificates), direct=True) as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        assert wire.socket.selected_alpn_protocol() == "postgresql"
        assert wire.value("select 1") == "1"


@pytest.mark.parametrize("alpn", ["", "http/1.1"])
def test_tls_at_once_has_to_say_that_it_is_for_postgres(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates, alpn: str
) -> None:
    """Else a browser could be made to talk to us (PostgreSQL documentation, "SSL Session Encryption")."""
    pooler = tls_pgfunnel()
    with pooler.connect() as wire:
        encrypt(wire, trusting(certificates, alpn=alpn), direct=True).send(HELLO)
        assert wire.read_to_end() == []
    eventually(lambda: pooler.metric("pgfunnel_tls_handshakes_failed_total", cause="alpn") == 1)


def test_tls_at_once_is_refused_where_there_is_none(
    pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres, certificates: Certificates
) -> None:
    with pgfunnel(postgres.url()).connect() as wire, pytest.raises(ssl.SSLError):
        encrypt(wire, trusting(certificates), direct=True)


@pytest.mark.parametrize("early", [HELLO, b"\x16\x03\x01\x02\x00\x01", b"p"])
def test_bytes_between_request_and_handshake_end_the_connection(tls_pgfunnel: StartPgfunnel, early: bytes) -> None:
    """CVE-2021-23214: what was sent in clear would be taken for what came over TLS."""
    pooler = tls_pgfunnel()
    with pooler.connect() as wire:
        wire.send(SSL_REQUEST + early)
        assert wire.error().sqlstate == "08P01"
        assert wire.read_to_end() == []


def test_what_comes_in_clear_after_the_answer_is_no_tls(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates
) -> None:
    pooler = tls_pgfunnel()
    with pooler.connect() as wire:
        wire.send(SSL_REQUEST)
        assert wire.receive() == b"S"
        wire.send(HELLO)
        assert ends(wire)
    eventually(lambda: pooler.metric("pgfunnel_tls_handshakes_failed_total", cause="no_tls") == 1)
    with in_tls(pooler, trusting(certificates)) as wire:
        assert wire.value("select 1") == "1"


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
def test_within_tls_no_encryption_can_be_asked_for(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates, request_: bytes
) -> None:
    with encrypt(tls_pgfunnel().connect(), trusting(certificates)) as wire:
        wire.send(request_)
        assert wire.error().sqlstate == "08P01"
        assert wire.read_to_end() == []


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_cancel_request_comes_over_tls_or_without(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates, encrypted: bool
) -> None:
    """Without, even where TLS is required: libpq before 17 knows no other way."""
    pooler = tls_pgfunnel(client_tls_sslmode="require")
    with in_tls(pooler, trusting(certificates)) as wire:
        wire.send(query("select pg_sleep(60)"))
        while not int(pooler.metric("pgfunnel_pool_servers", state="active")):
            pass
        with pooler.connect() as messenger:
            if encrypted:
                encrypt(messenger, trusting(certificates))
            messenger.send(cancel_request(wire.backend_pid, wire.cancel_key))
            assert messenger.read_to_end() == []
        assert wire.error().sqlstate == "57014"


# --- how it ends


def test_an_error_arrives_whatever_was_on_its_way(tls_pgfunnel: StartPgfunnel, certificates: Certificates) -> None:
    with encrypt(tls_pgfunnel().connect(), trusting(certificates)) as wire:
        wire.send(startup({"user": "postgres", "database": "postgres", "work_mem": "much"}), b"x" * 100_000)
        assert wire.error().sqlstate == "22023"
        assert wire.read_to_end() == []


def test_a_shutdown_is_told_within_tls(tls_pgfunnel: StartPgfunnel, certificates: Certificates) -> None:
    pooler = tls_pgfunnel()
    with in_tls(pooler, trusting(certificates)) as wire:
        pooler.signal(signal.SIGTERM)
        assert wire.error().sqlstate == "57P01"


@pytest.mark.parametrize("sent", [0, 1, 60])
def test_a_handshake_that_stops_ends_with_client_login_timeout(tls_pgfunnel: StartPgfunnel, sent: int) -> None:
    pooler = tls_pgfunnel(client_login_timeout=1)
    with pooler.connect() as wire:
        wire.send(SSL_REQUEST)
        assert wire.receive() == b"S"
        wire.send((b"\x16\x03\x01\x00\xff\x01" + bytes(100))[:sent])
        assert ends(wire)
        pooler.wait_for_log("event=login_failed .*reason=client_login_timeout")
    eventually(lambda: pooler.metric("pgfunnel_tls_handshakes_failed_total", cause="client_login_timeout") == 1)
    assert pooler.metric("pgfunnel_logins", state="tls") == 0


def test_who_dawdles_makes_room_for_others(tls_pgfunnel: StartPgfunnel, certificates: Certificates) -> None:
    pooler = tls_pgfunnel(client_tls_handshakes=2)
    with ExitStack() as open_:
        for _ in range(2):
            silent = open_.enter_context(pooler.connect())
            silent.send(SSL_REQUEST)
            assert silent.receive() == b"S"
            silent.send(b"\x16\x03\x01")
        with in_tls(pooler, trusting(certificates)) as wire:
            assert wire.value("select 1") == "1"
        assert pooler.metric("pgfunnel_tls_handshakes_failed_total") >= 1


def test_who_is_silent_takes_nobodys_place(tls_pgfunnel: StartPgfunnel, certificates: Certificates) -> None:
    pooler = tls_pgfunnel(client_tls_handshakes=1)
    with ExitStack() as open_:
        for _ in range(20):  # each of which would be waited for, for seconds
            silent = open_.enter_context(pooler.connect())
            silent.send(SSL_REQUEST)
            assert silent.receive() == b"S"
        with in_tls(pooler, trusting(certificates)) as wire:
            assert wire.value("select 1") == "1"
        assert pooler.metric("pgfunnel_logins", state="tls") == 0
        assert not pooler.metric("pgfunnel_tls_handshakes_failed_total", cause="tls_handshake_failed")


def test_a_burst_of_handshakes_gets_in_and_keeps_nobody_waiting_long(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates
) -> None:
    pooler = tls_pgfunnel(client_tls_handshakes=4)
    context = trusting(certificates)
    got_in = []

    def come() -> None:
        with in_tls(pooler, context) as wire:
            got_in.append(wire.value("select 1"))

    threads = [threading.Thread(target=come) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got_in == ["1"] * 40


# --- much, and in odd ways


def test_large_messages_pass_either_way(tls_pgfunnel: StartPgfunnel, certificates: Certificates) -> None:
    text = "x" * 3_000_000
    with psycopg.connect(
        tls_pgfunnel().url(), sslmode="verify-full", sslrootcert=str(certificates.ca), host="localhost"
    ) as connection:
        assert connection.execute("select %s::text", (text,)).fetchone() == (text,)


def test_keys_may_be_renewed(tls_pgfunnel: StartPgfunnel) -> None:
    """What openssl s_client sends at a line that is K is a KeyUpdate that asks for ours."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl")
    pooler = tls_pgfunnel()
    client = subprocess.Popen(
        [openssl, "s_client", "-connect", f"127.0.0.1:{pooler.port}", "-alpn", "postgresql", "-tls1_3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with client:
        assert client.stdin is not None
        assert client.stdout is not None
        seen = b""
        while b"---\nread R BLOCK" not in seen and b"Verify return code" not in seen:
            seen += os.read(client.stdout.fileno(), 65536)
        client.stdin.write(b"K\n")
        client.stdin.flush()
        while b"KEYUPDATE" not in seen:
            seen += os.read(client.stdout.fileno(), 65536)
        client.stdin.write(HELLO)
        client.stdin.flush()
        while b"Z\0\0\0\x05I" not in seen:
            seen += os.read(client.stdout.fileno(), 65536)
        client.kill()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_keeps_its_session_resumes_it(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    pooler = tls_pgfunnel()
    context = trusting(certificates)
    context.maximum_version = version
    with in_tls(pooler, context) as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        session = wire.socket.session
    with pooler.connect() as wire:
        wire.send(SSL_REQUEST)
        assert wire.receive() == b"S"
        wire.socket = context.wrap_socket(wire.socket, server_hostname="localhost", session=session)
        assert wire.socket.session_reused
        assert wire.login("postgres", "postgres").value("select 1") == "1"


# --- files


def serial_number(pooler: Pgfunnel) -> str:
    """Return that of the certificate which new clients are shown."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with encrypt(pooler.connect(), context) as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        shown = wire.socket.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown)


@pytest.fixture
def own_pair(certificates: Certificates, tmp_path: Path) -> Pair:
    """Copy a certificate and its key to where the test may change them."""
    return copy(certificates.ec, Pair(tmp_path / "own.crt", tmp_path / "own.key"))


def copy(pair: Pair, to: Pair) -> Pair:
    shutil.copy(pair.certificate, to.certificate)
    shutil.copy(pair.key, to.key)
    return to


@pytest.mark.parametrize("told", [True, False])
def test_renewed_certificates_are_used_and_nobody_is_dropped(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates, own_pair: Pair, told: bool
) -> None:
    pooler = tls_pgfunnel(own_pair)
    with in_tls(pooler, trusting(certificates)) as wire:
        copy(certificates.rsa, own_pair)
        if told:
            pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=tls_reloaded side=client")
        assert serial_number(pooler) == certificates.rsa.certificate.read_text()
        assert wire.value("select 1") == "1"


def test_a_broken_file_changes_nothing(tls_pgfunnel: StartPgfunnel, certificates: Certificates, own_pair: Pair) -> None:
    pooler = tls_pgfunnel(own_pair)
    own_pair.key.write_text("garbage")
    pooler.signal(signal.SIGHUP)
    pooler.wait_for_log("event=tls_reload_failed side=client .*client_tls_key_file")
    assert serial_number(pooler) == certificates.ec.certificate.read_text()


def test_it_does_not_start_with_a_broken_file(
    postgres: EmbeddedPostgres, certificates: Certificates, own_pair: Pair
) -> None:
    own_pair.certificate.write_text("garbage")
    pooler = Pgfunnel(
        postgres.url(),
        client_tls_sslmode="prefer",
        client_tls_cert_file=str(own_pair.certificate),
        client_tls_key_file=str(own_pair.key),
    )
    assert pooler.refuses_to_start() == 1
    assert any("client_tls_cert_file" in line for line in pooler.log)


def test_a_reset_in_the_middle_of_anything_leaves_nothing(
    tls_pgfunnel: StartPgfunnel, certificates: Certificates
) -> None:
    pooler = tls_pgfunnel()
    for say in (b"", SSL_REQUEST, SSL_REQUEST + b"\x16\x03\x01\x00\xff\x01"):
        wire = pooler.connect()
        wire.send(say[:8])
        if say:
            assert wire.receive() == b"S"
            wire.send(say[8:])
        wire.reset()
    with in_tls(pooler, trusting(certificates)) as wire:
        wire.send(query("select pg_sleep(60)"))
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: pooler.metric("pgfunnel_clients") == 0)
    eventually(lambda: pooler.metric("pgfunnel_logins", state="tls") == 0)
    eventually(lambda: pooler.metric("pgfunnel_logins", state="first_packet") == 0)


def test_errors_of_the_server_pass(tls_pgfunnel: StartPgfunnel, certificates: Certificates) -> None:
    with in_tls(tls_pgfunnel(), trusting(certificates)) as wire, pytest.raises(ServerError, match="division by zero"):
        wire.value("select 1/0")
