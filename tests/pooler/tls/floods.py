"""A TLS 1.3 client that says what the standard library can't make it say: key updates (RFC 8446, section 4.6.3)."""

import hmac
from pathlib import Path
from struct import pack

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_HANDSHAKE = b"\x16"
_APPLICATION_DATA = b"\x17\x03\x03"
_KEY_UPDATE = b"\x18\0\0\x01\x01"
"""update_requested: the peer has to answer with one of its own."""


class Sealer:
    """Continues where a client of TLS_AES_256_GCM_SHA384 has logged its keys, and has sent nothing since."""

    def __init__(self, log: Path) -> None:
        found = [line.split()[2] for line in log.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0")]
        self._secret = bytes.fromhex(found[-1])
        self._sent = 0

    def key_update(self) -> bytes:
        sealed = self._seal(_KEY_UPDATE + _HANDSHAKE)
        self._secret = self._expand(b"traffic upd", 48)
        self._sent = 0
        return sealed

    def _seal(self, inner: bytes) -> bytes:
        header = _APPLICATION_DATA + pack("!H", len(inner) + 16)
        nonce = int.from_bytes(self._expand(b"iv", 12)) ^ self._sent
        self._sent += 1
        return header + AESGCM(self._expand(b"key", 32)).encrypt(nonce.to_bytes(12), inner, header)

    def _expand(self, label: bytes, length: int) -> bytes:
        """HKDF-Expand-Label, of up to one block (section 7.1)."""
        info = pack("!HB", length, 6 + len(label)) + b"tls13 " + label + b"\0\x01"
        return hmac.digest(self._secret, info, "sha384")[:length]
