"""What there is to know of a certificate of ours, beside what OpenSSL makes of it."""

import ssl
from pathlib import Path


def first_certificate(file: Path) -> bytes:
    """Return the first of the certificates in a PEM file, as DER; empty if there is none."""
    _, header, rest = file.read_text("ascii", "replace").partition(ssl.PEM_HEADER)
    body, footer, _ = rest.partition(ssl.PEM_FOOTER)
    return ssl.PEM_cert_to_DER_cert(header + body + footer) if footer else b""


def expiry(certificate: bytes) -> float:
    """Return when a certificate (DER) expires, in seconds since 1970."""
    # Whoever uses no TLS need not wait for this at each start.
    from cryptography.x509 import load_der_x509_certificate  # noqa: PLC0415

    return load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()
