"""Certificates for tests: an authority, what it has signed, and what can be wrong with a certificate.

Made anew for each run of the tests, when first asked for: none is ever expired but the one that is meant to be.
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_DAY: Final = dt.timedelta(days=1)


class Pair(NamedTuple):
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates. `certificate` is the file by which it is trusted."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self._key = ec_key()
        self._name = _named(f"pgfunnel tests: {name}")
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        signed = (
            _certificate(self._name, self._name, self._key, days=30)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = self.directory / "ca.crt"
        self.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def server(
        self,
        file: str,
        names: Iterable[str] = LOCAL_NAMES,
        *,
        key: PrivateKey | None = None,
        digest: Hash | None = None,
        days: int = 30,
    ) -> Pair:
        """Issue a certificate for DNS names and IP addresses, valid until `days` from now."""
        key = key or ec_key()
        certificate = _certificate(_named("pgfunnel tests"), self._name, key, days)
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._issue(file, certificate.add_extension(alternatives, critical=False), key, digest)

    def client(self, common_name: str, *, file: str = "", days: int = 30) -> Pair:
        """Issue the certificate of a database user."""
        key = ec_key()
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = _certificate(_named(common_name), self._name, key, days).add_extension(usage, critical=False)
        return self._issue(file or f"client-{common_name}", certificate, key)

    def _issue(
        self, file: str, certificate: x509.CertificateBuilder, key: PrivateKey, digest: Hash | None = None
    ) -> Pair:
        """Sign and write both files, the key for its owner alone: libpq and Postgres insist on that."""
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = certificate.add_extension(issuer, critical=False).sign(self._key, digest or hashes.SHA256())
        pair = Pair(self.directory / f"{file}.crt", self.directory / f"{file}.key")
        pair.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        pair.key.touch(mode=0o600)
        form, nothing = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, nothing))
        return pair


class Certificates:
    """What tests share. Certificates that only one test needs it gets from the authority itself."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._clients: dict[str, Pair] = {}
        self._strangers: dict[str, Pair] = {}

    @cached_property
    def authority(self) -> Authority:
        """The one that is trusted."""
        return Authority(self._directory, "authority")

    @cached_property
    def other_authority(self) -> Authority:
        """One that nobody has been told to trust."""
        return Authority(self._directory, "other")

    @property
    def ca(self) -> Path:
        """The file to trust `authority` by."""
        return self.authority.certificate

    @cached_property
    def ec(self) -> Pair:
        """For localhost, 127.0.0.1 and ::1, with an EC key: what most tests use."""
        return self.authority.server("server-ec")

    @cached_property
    def rsa(self) -> Pair:
        """As `ec`, with an RSA key."""
        return self.authority.server("server-rsa", key=rsa.generate_private_key(public_exponent=65537, key_size=2048))

    @cached_property
    def sha384(self) -> Pair:
        """As `ec`, signed with SHA-384: channel binding uses the same hash."""
        return self.authority.server("server-sha384", digest=hashes.SHA384())

    @cached_property
    def expired(self) -> Pair:
        """As `ec`, until yesterday."""
        return self.authority.server("expired", days=-1)

    @cached_property
    def wrong_name(self) -> Pair:
        """As `ec`, for another host."""
        return self.authority.server("wrong-name", ("db.example.com",))

    @cached_property
    def dns_only(self) -> Pair:
        """For localhost by name, not by address."""
        return self.authority.server("dns-only", ("localhost",))

    @cached_property
    def ip_only(self) -> Pair:
        """For 127.0.0.1 by address, not by name."""
        return self.authority.server("ip-only", ("127.0.0.1",))

    @cached_property
    def untrusted(self) -> Pair:
        """As `ec`, from the other authority."""
        return self.other_authority.server("untrusted")

    def client(self, user: str) -> Pair:
        """Return the certificate of a database user."""
        if user not in self._clients:
            self._clients[user] = self.authority.client(user, file=f"client-{len(self._clients)}")
        return self._clients[user]

    def stranger(self, user: str) -> Pair:
        """Return a certificate for a database user from the other authority."""
        if user not in self._strangers:
            self._strangers[user] = self.other_authority.client(user, file=f"client-{len(self._strangers)}")
        return self._strangers[user]


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


_SIGNS: Final = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def _certificate(subject: x509.Name, issuer: x509.Name, key: PrivateKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * _DAY)
        .not_valid_after(now + days * _DAY)
    )


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
