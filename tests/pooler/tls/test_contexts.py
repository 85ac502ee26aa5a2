"""What the settings say, OpenSSL does; what can't work is refused with the setting's name."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

from pooler.tls.contexts import TlsSettingsError, client_context, server_context
from tests.pooler.tls.peer import Link, Peer, client_settings, settings, trusting
from tests.support.certificates import Certificates, Pair, ec_key


@pytest.mark.parametrize(
    ("protocols", "oldest", "newest"),
    [
        ("secure", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
        ("tlsv1.2,tlsv1.3", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
        ("TLSv1.3", ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
        ("tlsv1.2", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
        ("secure:!tlsv1.2", ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
        ("tlsv1.1, tlsv1.2", 0x0302, ssl.TLSVersion.TLSv1_2),
        ("all", ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_3),
        ("legacy", ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_3),
    ],
)
def test_versions_in_pgbouncers_words(certificates: Certificates, protocols: str, oldest: int, newest: int) -> None:
    for context in (
        client_context(client_settings(certificates.ec, client_tls_protocols=protocols)),
        server_context(settings(server_tls_protocols=protocols)),
    ):
        assert (context.minimum_version, context.maximum_version) == (oldest, newest)


@pytest.mark.parametrize("protocols", ["", "tlsv1.4", "ssl3", "secure,!secure", "tlsv1.1,tlsv1.3"])
def test_versions_that_make_no_sense_are_refused(protocols: str) -> None:
    with pytest.raises(ValidationError, match="client_tls_protocols"):
        settings(client_tls_protocols=protocols)


def names(context: ssl.SSLContext) -> set[str]:
    return {str(cipher["name"]) for cipher in context.get_ciphers() if not str(cipher["name"]).startswith("TLS_")}


def test_ciphers_in_pgbouncers_words(certificates: Certificates) -> None:
    found = {
        word: names(client_context(client_settings(certificates.ec, client_tls_ciphers=word)))
        for word in ("default", "secure", "fast", "normal", "compat", "legacy", "insecure", "all", "ECDHE+AESGCM")
    }
    assert found["default"] == found["secure"] == found["fast"] == found["normal"]
    assert found["compat"] == found["legacy"] > found["ECDHE+AESGCM"]
    assert found["insecure"] == found["all"] >= found["compat"]
    assert all("GCM" in name for name in found["ECDHE+AESGCM"])


def test_one_curve_if_it_is_named(certificates: Certificates) -> None:
    theirs = trusting(certificates)
    theirs.set_ecdh_curve("secp384r1")
    for curve, ready in (("auto", True), ("none", True), ("secp384r1", True), ("prime256v1", False)):
        context = client_context(client_settings(certificates.ec, client_tls_ecdhcurve=curve))
        link = Link(context, Peer(theirs))
        link.receive(link.peer.shake())
        assert (link.outcomes == []) is ready, curve


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"client_tls_ciphers": "no such"}, "client_tls_ciphers: OpenSSL knows no cipher of 'no such'"),
        ({"client_tls_ecdhcurve": "round"}, "client_tls_ecdhcurve: OpenSSL knows no curve 'round'"),
        ({"client_tls_dheparams": "/nowhere"}, "client_tls_dheparams: /nowhere can't be read: No such file"),
        ({"client_tls_cert_file": "/nowhere"}, "client_tls_cert_file: /nowhere can't be read: No such file"),
        ({"client_tls_key_file": "/nowhere"}, "client_tls_key_file: /nowhere can't be read: No such file"),
        (
            {"client_tls_sslmode": "verify-ca", "client_tls_ca_file": "/nowhere"},
            "client_tls_ca_file: /nowhere can't be read: No such file",
        ),
    ],
)
def test_what_can_not_work_names_its_setting(
    certificates: Certificates, given: dict[str, object], message: str
) -> None:
    with pytest.raises(TlsSettingsError, match=message):
        client_context(client_settings(certificates.ec, **given))


def test_a_key_must_be_that_of_the_certificate(certificates: Certificates) -> None:
    with pytest.raises(TlsSettingsError, match="is not the key of the certificate"):
        client_context(client_settings(Pair(certificates.ec.certificate, certificates.untrusted.key)))


def test_a_key_with_a_passphrase_is_refused_instead_of_asked_for(certificates: Certificates, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    key = ec_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    locked.write_bytes(key)
    with pytest.raises(TlsSettingsError, match="has a passphrase"):
        client_context(client_settings(Pair(certificates.ec.certificate, locked)))


def test_a_file_without_certificates_vouches_for_nobody(certificates: Certificates, tmp_path: Path) -> None:
    empty = tmp_path / "empty.crt"
    empty.write_text("nothing")
    given = {"client_tls_sslmode": "verify-ca", "client_tls_ca_file": empty}
    with pytest.raises(TlsSettingsError, match=r"client_tls_ca_file: .* has no certificates"):
        client_context(client_settings(certificates.ec, **given))
    with pytest.raises(TlsSettingsError, match="client_tls_cert_file"):
        client_context(client_settings(Pair(empty, certificates.ec.key)))


@pytest.mark.parametrize("name", ["client_tls_cert_file", "client_tls_key_file"])
def test_tls_takes_a_key_and_a_certificate(certificates: Certificates, name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}\n.*is missing, and client_tls_sslmode is prefer"):
        client_settings(certificates.ec, **{name: ""})


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_verifying_takes_authorities(certificates: Certificates, mode: str) -> None:
    with pytest.raises(ValidationError, match=r"client_tls_ca_file\n.*is missing"):
        client_settings(certificates.ec, client_tls_sslmode=mode)
    with pytest.raises(ValidationError, match=r"server_tls_ca_file\n.*is missing, and server_tls_sslmode is verify-ca"):
        settings(server_tls_sslmode="verify-ca")


def test_direct_tls_needs_a_server_that_has_to_have_it() -> None:
    with pytest.raises(ValidationError, match="server_tls_sslnegotiation"):
        settings(server_tls_sslmode="prefer", server_tls_sslnegotiation="direct")
    assert settings(server_tls_sslmode="require", server_tls_sslnegotiation="direct")


@pytest.mark.parametrize(
    ("mode", "verify", "name"),
    [
        ("allow", ssl.CERT_NONE, False),
        ("prefer", ssl.CERT_NONE, False),
        ("require", ssl.CERT_NONE, False),
        ("verify-ca", ssl.CERT_REQUIRED, False),
        ("verify-full", ssl.CERT_REQUIRED, True),
    ],
)
def test_what_a_servers_certificate_has_to_be(
    certificates: Certificates, mode: str, verify: ssl.VerifyMode, name: bool
) -> None:
    context = server_context(settings(server_tls_sslmode=mode, server_tls_ca_file=certificates.ca))
    assert (context.verify_mode, context.check_hostname) == (verify, name)


@pytest.mark.parametrize(
    ("mode", "verify"),
    [
        ("allow", ssl.CERT_NONE),
        ("prefer", ssl.CERT_NONE),
        ("require", ssl.CERT_NONE),
        ("verify-ca", ssl.CERT_REQUIRED),
        ("verify-full", ssl.CERT_REQUIRED),
    ],
)
def test_which_clients_have_to_show_a_certificate(
    certificates: Certificates, mode: str, verify: ssl.VerifyMode
) -> None:
    given = {"client_tls_sslmode": mode, "client_tls_ca_file": certificates.ca}
    assert client_context(client_settings(certificates.ec, **given)).verify_mode == verify


def test_peers_can_not_renegotiate(certificates: Certificates) -> None:
    assert client_context(client_settings(certificates.ec)).options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize(
    ("auth_type", "sslmode", "mode"),
    [
        ("scram-sha-256", "require", ssl.CERT_NONE),
        ("hba", "require", ssl.CERT_OPTIONAL),
        ("cert", "prefer", ssl.CERT_OPTIONAL),
        ("hba", "verify-ca", ssl.CERT_REQUIRED),
    ],
)
def test_clients_may_show_a_certificate_where_a_rule_may_ask_for_it(
    certificates: Certificates, auth_type: str, sslmode: str, mode: ssl.VerifyMode
) -> None:
    given = {"auth_type": auth_type, "auth_hba_file": "/rules", "client_tls_sslmode": sslmode}
    context = client_context(client_settings(certificates.ec, client_tls_ca_file=certificates.ca, **given))
    assert context.verify_mode is mode
