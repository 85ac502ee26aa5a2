"""tls-server-end-point as RFC 5929, section 4.1 has it, the same on both sides of a connection."""

import hashlib
import ssl

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from pooler.tls.binding import server_end_point
from pooler.tls.contexts import client_context, server_context
from tests.pooler.tls.peer import Link, Peer, client_settings, settings
from tests.support.certificates import Certificates, Pair


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


def test_the_hash_is_that_of_the_signature(certificates: Certificates) -> None:
    assert server_end_point(der(certificates.ec)) == hashlib.sha256(der(certificates.ec)).digest()
    assert server_end_point(der(certificates.sha384)) == hashlib.sha384(der(certificates.sha384)).digest()


def test_a_key_of_another_kind_changes_nothing_but_the_signature_does(certificates: Certificates) -> None:
    """It is the authority's signature that counts."""
    pair = certificates.authority.server("ed25519", key=ed25519.Ed25519PrivateKey.generate())
    assert server_end_point(der(pair)) == hashlib.sha256(der(pair)).digest()


@pytest.mark.parametrize("kind", ["ec", "rsa", "sha384"])
def test_both_sides_have_the_same(certificates: Certificates, kind: str) -> None:
    pair: Pair = getattr(certificates, kind)
    ours = client_context(client_settings(pair))
    theirs = server_context(settings(server_tls_sslmode="require"))
    server = Link(ours, Peer(ours, server_side=True))
    client = Link(theirs, Peer(ours, server_side=True), server_side=False).shake_hands()
    assert client.tls.end_point == server.tls.end_point == server_end_point(der(pair))
