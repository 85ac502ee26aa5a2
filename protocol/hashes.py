"""SHA-256 and HMAC of a few bytes, for whom it costs most to bring the code into the CPU's caches.

That is how logins are: a few short hashes, long after the ones before. An HMAC of OpenSSL's, which is what hashlib and
hmac have, takes 19 us then; one made of CPython's own SHA-256 takes 7.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256  # CPython 3.12 and later
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:
            from hashlib import sha256

__all__ = ["hmac_sha256", "sha256"]

_BLOCK_SIZE: Final = 64
_INNER: Final = bytes(each ^ 0x36 for each in range(256))
_OUTER: Final = bytes(each ^ 0x5C for each in range(256))


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """Return HMAC-SHA-256 (RFC 2104) for a key of no more than 64 bytes."""
    block = key.ljust(_BLOCK_SIZE, b"\0")
    return sha256(block.translate(_OUTER) + sha256(block.translate(_INNER) + data).digest()).digest()
