"""Channel binding: what ties a SCRAM proof to the TLS connection that carries it."""

import hashlib


def server_end_point(certificate: bytes) -> bytes:
    """Return tls-server-end-point of the server's `certificate` (DER): its hash, as RFC 5929, section 4.1 says.

    Empty where there is no such thing: the hash is the one its signature uses, and Ed25519 names none.
    """
    # Whoever uses no channel binding need not wait for this at each start.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.x509 import load_der_x509_certificate  # noqa: PLC0415

    try:
        algorithm = load_der_x509_certificate(certificate).signature_hash_algorithm
    except UnsupportedAlgorithm:
        return b""
    if algorithm is None:
        return b""
    name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name
    return hashlib.new(name, certificate).digest()
