"""TLS with clients and with Postgres, as the settings of its finer points say."""

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from config.errors import ConfigurationError
from config.load import load
from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.certificates import Certificates, Pair
from tests.support.pgfunnel import Pgfunnel, Setting, eventually
from tests.support.scripted_server import ScriptedServer
from tests.support.system_postgres import tls_postgres
from tests.support.wire import SSL_REQUEST, startup


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[EmbeddedPostgres]:
    with tls_postgres(certificates) as server:
        yield server


def shown(pair: Pair) -> dict[str, Setting]:
    return {
        "client_tls_sslmode": "require",
        "client_tls_cert_file": str(pair.certificate),
        "client_tls_key_file": str(pair.key),
    }


def shake(pooler: Pgfunnel, context: ssl.SSLContext) -> ssl.SSLSocket:
    wire = pooler.connect()
    wire.send(SSL_REQUEST)
    assert wire.receive() == b"S"
    try:
        return context.wrap_socket(wire.socket, server_hostname="localhost")
    finally:
        wire.close()


def test_clients_get_the_versions_ciphers_and_curve_that_are_set(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, certificates: Certificates
) -> None:
    pooler = pgfunnel(
        postgres.url(),
        **shown(certificates.ec),
        client_tls_protocols="tlsv1.2",
        client_tls_ciphers="ECDHE-ECDSA-AES128-GCM-SHA256",
        client_tls_ecdhcurve="secp384r1",
    )
    context = ssl.create_default_context(cafile=certificates.ca)
    with shake(pooler, context) as sock:
        assert sock.cipher() == ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2", 128)
    context.set_ecdh_curve("prime256v1")
    with pytest.raises(ssl.SSLError):
        shake(pooler, context)


def dh_parameters() -> bytes:
    """Return the group ffdhe2048 (RFC 7919, appendix A.1), whose prime is made of the digits of e."""
    scale, e, term, k = 1 << 2100, 0, 1 << 2100, 0
    while term:
        e, k = e + term, k + 1
        term //= k
    prime = (1 << 2048) - (1 << 1984) + (((e << 1918) // scale + 560316) << 64) - 1
    numbers = b"\x02\x82\x01\x01\0" + prime.to_bytes(256, "big") + b"\x02\x01\x02"  # in DER, for a generator of 2
    text = base64.encodebytes(b"\x30\x82" + len(numbers).to_bytes(2, "big") + numbers)
    return b"-----BEGIN DH PARAMETERS-----\n" + text + b"-----END DH PARAMETERS-----\n"


@pytest.mark.parametrize("given", [True, False])
def test_clients_agree_on_keys_by_the_parameters_of_client_tls_dheparams(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, certificates: Certificates, tmp_path: Path, *, given: bool
) -> None:
    file = tmp_path / "dh.pem"
    file.write_bytes(dh_parameters())
    pair = certificates.authority.server("dhe", key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    pooler = pgfunnel(
        postgres.url(), **shown(pair), client_tls_ciphers="all", client_tls_dheparams=str(file) if given else "auto"
    )
    context = ssl.create_default_context(cafile=certificates.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DHE-RSA-AES256-GCM-SHA384")
    if not given:
        with pytest.raises(ssl.SSLError):
            shake(pooler, context)
        return
    with shake(pooler, context) as sock:
        assert sock.cipher() == ("DHE-RSA-AES256-GCM-SHA384", "TLSv1.2", 256)


@pytest.mark.parametrize(("negotiation", "first"), [("direct", b"\x16"), ("postgres", b"\0")])
def test_tls_with_postgres_begins_as_server_tls_sslnegotiation_says(
    pgfunnel: StartPgfunnel, negotiation: str, first: bytes
) -> None:
    heard: list[bytes] = []
    with ScriptedServer(lambda peer: heard.append(peer.socket.recv(1))) as server:
        pooler = pgfunnel(server.url(), server_tls_sslmode="require", server_tls_sslnegotiation=negotiation)
        with pooler.connect() as wire:
            wire.send(startup({"user": "postgres", "database": "postgres"}))
            eventually(lambda: bool(heard))
    assert heard[0] == first


def test_postgres_gets_the_versions_and_ciphers_that_are_set(
    tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(
        tls_server.url(),
        server_tls_sslmode="require",
        server_tls_protocols="tlsv1.2",
        server_tls_ciphers="ECDHE-ECDSA-AES128-GCM-SHA256",
    )
    with psycopg.connect(pooler.url()) as connection:
        used = connection.execute("SELECT version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert used == ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256")


@pytest.mark.parametrize("setting", ["client_tls13_ciphers", "server_tls13_ciphers"])
def test_a_list_of_ciphers_for_tls_1_3_has_to_have_all_that_are_on(setting: str) -> None:
    """None of them can be left out by Python's ssl."""
    on = [str(each["name"]) for each in ssl.create_default_context().get_ciphers() if each["protocol"] == "TLSv1.3"]
    option = f"--{setting.replace('_', '-')}"
    upstream = "--upstream=postgresql://postgres:secret@localhost"
    assert load([upstream, f"{option}={':'.join(on)}"], {})
    with pytest.raises(ConfigurationError, match=f"{option}: .* which Python's ssl can't"):
        load([upstream, f"{option}={':'.join(on[1:])}"], {})
