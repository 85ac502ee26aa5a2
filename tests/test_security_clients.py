"""Never again, from the side of clients: what hostile ones have done to poolers and servers, tried on a whole pgfunnel.

Each test names the published hole that it stands for. After each, pgfunnel serves its other clients as before.
"""

import base64
import hashlib
import hmac
import re
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import psutil
import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD
from tests.support.certificates import Certificates
from tests.support.pgfunnel import Pgfunnel
from tests.support.wire import (
    GSSENC_REQUEST,
    SSL_REQUEST,
    ServerError,
    Wire,
    cancel_request,
    kinds,
    message,
    password_message,
    query,
    sasl_initial_response,
    startup,
)

USER: Final = "scram"
STARTUP: Final = startup({"user": USER, "database": "postgres"})
NONCE: Final = "abcdefghijklmnopqrstuvwx"


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres, certificates: Certificates) -> Iterator[Pgfunnel]:
    certificate, key = certificates.ec
    with Pgfunnel(
        postgres.url(user=USER, password=PASSWORD),
        auth_type="scram-sha-256",
        userlist={"alice": "of no use"},
        login_failure_delay=0,
        client_tls_sslmode="allow",
        client_tls_cert_file=str(certificate),
        client_tls_key_file=str(key),
    ) as pooler:
        yield pooler


@pytest.fixture
def pooler(shared: Pgfunnel) -> Iterator[Pgfunnel]:
    """The one that all tests share: it must be as good as new after each of them."""
    with shared.login(USER, password=PASSWORD) as bystander:
        yield shared
        assert bystander.value("SELECT 1") == "1"
        with shared.login(USER, password=PASSWORD) as newcomer:
            assert newcomer.value("SELECT 1") == "1"


def is_refused(wire: Wire) -> None:
    """Nothing but an error comes, and then the end."""
    assert kinds(wire.read_to_end()) in ("", "E")


# --- before TLS: CVE-2021-23214 (Postgres), CVE-2021-3935 (PgBouncer)


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
@pytest.mark.parametrize("injected", [STARTUP, query("SELECT 'injected'"), b"\x16"])
def test_cve_2021_3935_what_is_slipped_in_behind_a_request_for_encryption_ends_the_connection(
    pooler: Pgfunnel, request_: bytes, injected: bytes
) -> None:
    with pooler.connect() as wire:
        wire.send(request_ + injected)
        is_refused(wire)


def test_cve_2021_3935_what_is_slipped_in_before_the_handshake_never_counts_as_encrypted(pooler: Pgfunnel) -> None:
    with pooler.connect() as wire:
        wire.send(SSL_REQUEST)
        assert wire.read_bytes(1) == b"S"
        wire.send(STARTUP)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with pytest.raises(OSError, match=r"(?i)ssl|reset|pipe"):
            context.wrap_socket(wire.socket)


# --- first packets


def test_cve_2015_4054_a_password_before_the_startup_packet_ends_the_connection(pooler: Pgfunnel) -> None:
    with pooler.connect() as wire:
        wire.send(password_message("early"))
        is_refused(wire)


@pytest.mark.parametrize("length", [64, 1000, 9000])
def test_cve_2012_4575_a_long_name_of_a_database_is_a_name_that_postgres_does_not_know(
    pooler: Pgfunnel, length: int
) -> None:
    with pooler.connect() as wire, pytest.raises(ServerError) as refused:
        wire.login(USER, "d" * length, PASSWORD)
    assert refused.value.sqlstate in ("3D000", "08P01")


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 0x7FFFFFFF, 0x80000000, 0x80000004, 0xFFFFFFFF])
def test_cve_2026_107348_an_impossible_length_of_a_first_packet_ends_the_connection(
    pooler: Pgfunnel, length: int
) -> None:
    with pooler.connect() as wire:
        wire.send(struct.pack("!I", length) + STARTUP[4:])
        is_refused(wire)


@pytest.mark.parametrize("length", [0, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_cve_2026_6668_an_impossible_length_of_a_password_message_ends_the_connection(
    pooler: Pgfunnel, length: int
) -> None:
    with pooler.connect() as wire:
        wire.send(STARTUP)
        assert wire.read().kind == "R"
        wire.send(b"p" + struct.pack("!I", length) + b"SCRAM-SHA-256\0")
        is_refused(wire)


@pytest.mark.parametrize("length", [0, 3, 0x80000000, 0xFFFFFFFF])
def test_cve_2026_107348_an_impossible_length_of_a_request_ends_the_connection(pooler: Pgfunnel, length: int) -> None:
    with pooler.login(USER, password=PASSWORD) as wire:
        wire.send(b"Q" + struct.pack("!I", length) + b"SELECT 1\0")
        is_refused(wire)


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_cve_2026_6664_lengths_within_a_sasl_message_are_held_to_what_there_is(pooler: Pgfunnel, length: int) -> None:
    with pooler.connect() as wire:
        wire.send(STARTUP)
        wire.read()
        wire.send(message("p", b"SCRAM-SHA-256\0" + struct.pack("!I", length) + b"n,,n=,r=x"))
        assert wire.error().sqlstate == "28P01"


@pytest.mark.parametrize(
    "options",
    ["-c=", "-c =", "-c", "-c =x", "--=", "--", "-c=1 -c=2", "-", "\\", "-c a", " ", "-c " * 1000],
)
def test_cve_2026_107349_an_option_without_a_name_harms_nobody(pooler: Pgfunnel, options: str) -> None:
    before = psutil.Process(pooler.process.pid).cpu_times().user
    with pooler.connect() as wire:
        wire.send(startup({"user": USER, "database": "postgres", "options": options}))
        # As Postgres has it: some are nothing, others nonsense.
        with suppress(ServerError):
            wire.authenticate(USER, PASSWORD)
            assert wire.value("SELECT 1") == "1"
    assert psutil.Process(pooler.process.pid).cpu_times().user - before < 2


def test_a_name_that_looks_like_a_line_of_the_log_is_none(postgres: EmbeddedPostgres) -> None:
    """Forged lines (CWE-117), and sequences that a terminal would obey."""
    forged = 'x\nlevel=info event=client_login user=postgres\r\n\x1b[2J\u2028\x9b" user=postgres'
    with Pgfunnel(postgres.url(user=USER, password=PASSWORD), auth_type="plain", login_failure_delay=0) as pooler:
        for user, database, application in ((forged, "postgres", "x"), (USER, forged, "x"), (USER, "postgres", forged)):
            with pooler.connect() as wire, suppress(ServerError):
                wire.login(user, database, PASSWORD, application_name=application)
        pooler.wait_for_log("event=client_closed")
    logins = [line for line in pooler.log if re.match(r"timestamp=\S+ level=info event=client_login ", line)]
    assert len(logins) == 1
    assert all(line.startswith("timestamp=") and line.isprintable() for line in pooler.log)


def test_names_that_strangers_make_up_are_not_in_the_metrics(pooler: Pgfunnel) -> None:
    """Else whoever can connect could make them grow without end."""
    before = pooler.http("/metrics")[1]
    for number in range(50):
        with pooler.connect() as wire, pytest.raises(ServerError):
            wire.login(f"stranger{number}", f"place{number}", "guess")
    after = pooler.http("/metrics")[1]
    assert "stranger" not in after
    assert "place4" not in after
    assert len(after.splitlines()) <= len(before.splitlines()) + 10


# --- in the middle of the proof


@pytest.mark.parametrize("user", [USER, "alice", "nobody"])
@pytest.mark.parametrize("database", ["postgres", "nowhere"])
def test_cve_2026_107350_a_second_startup_packet_during_the_proof_ends_the_connection(
    pooler: Pgfunnel, user: str, database: str
) -> None:
    with pooler.connect() as wire:
        wire.send(startup({"user": user, "database": database}))
        assert wire.read().kind == "R"
        wire.send(sasl_initial_response("SCRAM-SHA-256", f"n,,n=,r={NONCE}".encode()))
        assert wire.read().kind == "R"
        wire.send(startup({"user": "postgres", "database": "postgres"}))
        is_refused(wire)


def test_a_request_for_encryption_or_a_cancel_during_the_proof_ends_the_connection(pooler: Pgfunnel) -> None:
    for packet in (SSL_REQUEST, GSSENC_REQUEST, cancel_request(1, b"1234")):
        with pooler.connect() as wire:
            wire.send(STARTUP)
            assert wire.read().kind == "R"
            wire.send(packet)
            is_refused(wire)


Change = Callable[[str, str], str]
"""Makes a client-final-message without its proof from the channel and the nonce that there have to be."""


def scram(pooler: Pgfunnel, change: Change, *, proof: bool = True) -> str:
    """Log in by SCRAM with a final message of our own making, whose proof is right for what it says."""
    with pooler.connect() as wire:
        wire.send(STARTUP)
        wire.read()
        first = f"n=,r={NONCE}"
        wire.send(sasl_initial_response("SCRAM-SHA-256", f"n,,{first}".encode()))
        challenge = wire.read().payload[4:].decode()
        fields = dict(field.split("=", 1) for field in challenge.split(","))
        without_proof = change("biws", fields["r"])
        said = f"{first},{challenge},{without_proof}".encode()
        salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), said, "sha256")
        proven = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
        wire.send(message("p", (f"{without_proof},p={proven}" if proof else without_proof).encode()))
        return kinds(wire.read_until("ZE"))


def test_a_final_message_as_it_has_to_be_is_taken(pooler: Pgfunnel) -> None:
    assert scram(pooler, lambda channel, nonce: f"c={channel},r={nonce}")[-1] == "Z"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda channel, _: f"c={channel}", id="no nonce"),
        pytest.param(lambda channel, _: f"c={channel},r=", id="an empty nonce"),
        pytest.param(lambda channel, _: f"c={channel},r={NONCE}", id="the client's part only"),
        pytest.param(lambda channel, nonce: f"c={channel},r={nonce[:-1]}", id="a part of it"),
        pytest.param(lambda channel, nonce: f"c={channel},r={nonce}x", id="more than it"),
        pytest.param(lambda channel, nonce: f"c={channel},r={nonce[::-1]}", id="another one"),
        pytest.param(lambda channel, nonce: f"r={nonce},c={channel}", id="in another order"),
        pytest.param(lambda _, nonce: f"c=eSws,r={nonce}", id="another channel"),
        pytest.param(lambda _, nonce: f"r={nonce}", id="no channel"),
    ],
)
def test_cve_2026_19888_a_final_message_without_the_right_nonce_is_no_proof(pooler: Pgfunnel, change: Change) -> None:
    assert scram(pooler, change) == "E"


def test_cve_2026_19888_a_final_message_without_a_proof_is_none(pooler: Pgfunnel) -> None:
    assert scram(pooler, lambda channel, nonce: f"c={channel},r={nonce}", proof=False) == "E"


# --- certificates


@pytest.mark.parametrize("name", [f"{USER}\0.example.com", f"{USER}\0", f"\0{USER}", f"{USER} ", USER.upper()])
def test_a_certificate_for_a_name_that_only_begins_like_the_users_is_not_the_users(
    postgres: EmbeddedPostgres, certificates: Certificates, certified: Pgfunnel, name: str
) -> None:
    """Names with a zero byte in them have been cut short elsewhere (CVE-2009-2408 and its kin)."""
    pair = certificates.authority.client(name, file=f"strange-{name.encode().hex()}")
    with pytest.raises(psycopg.OperationalError, match="certificate authentication failed"):
        psycopg.connect(
            certified.url(user=USER), sslmode="require", sslcert=str(pair.certificate), sslkey=str(pair.key)
        )


def test_a_certificate_for_the_users_name_lets_in(certificates: Certificates, certified: Pgfunnel) -> None:
    pair = certificates.client(USER)
    with psycopg.connect(
        certified.url(user=USER), sslmode="require", sslcert=str(pair.certificate), sslkey=str(pair.key)
    ) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.fixture(scope="module")
def certified(postgres: EmbeddedPostgres, certificates: Certificates) -> Iterator[Pgfunnel]:
    certificate, key = certificates.ec
    with Pgfunnel(
        postgres.url(user=USER, password=PASSWORD),
        auth_type="cert",
        login_failure_delay=0,
        client_tls_sslmode="verify-full",
        client_tls_cert_file=str(certificate),
        client_tls_key_file=str(key),
        client_tls_ca_file=str(certificates.ca),
    ) as pooler:
        yield pooler
