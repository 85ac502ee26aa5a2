"""SCRAM-SHA-256, both sides, and the forms in which PostgreSQL stores passwords.

Source: RFC 5802 and RFC 7677; PostgreSQL documentation, "SASL Authentication" and pg_authid.rolpassword. The user
name inside SCRAM messages is ignored, as there: the one in the StartupMessage counts. Why not a library:
docs/decisions/0002-scram.md.
"""

import hmac
import re
import stringprep
import unicodedata
from base64 import b64decode
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from hashlib import md5, pbkdf2_hmac, sha256
from typing import Final, NamedTuple

MECHANISM: Final = "SCRAM-SHA-256"
MECHANISM_PLUS: Final = "SCRAM-SHA-256-PLUS"
MAX_ITERATIONS: Final = 1_000_000
"""More rounds than this a server may not ask for: at some 3 million a second it would be a way to stop the pooler."""

# gs2-header (RFC 5802, section 7), all that there may be of it here.
UNBOUND: Final = b"n,,"
"""The client can't bind the channel."""
UNOFFERED: Final = b"y,,"
"""It could, and has not been offered a mechanism that does. A server that did offer one sees that somebody has been
in between."""
END_POINT: Final = b"p=tls-server-end-point,,"
"""It binds the proof to the server's certificate (RFC 5929, section 4)."""

_KEY_SIZE: Final = 32
_NONCE_SIZE: Final = 18

# gs2-header, then the user name, a nonce of printable characters, and extensions, which are optional and ignored. An
# authorization identity ("a=") in the header, or an extension that may not be ignored ("m="), does not match.
_CLIENT_FIRST: Final = re.compile(
    rb"(%b|%b|%b)(n=[^,\0]*,r=([!-+\--~]+)(?:,[^\0]*)?)" % (UNBOUND, UNOFFERED, END_POINT)
).fullmatch


class AuthenticationFailedError(Exception):
    """The peer did not prove what it had to; the message is for the log, not for the peer."""


class ScramSecret(NamedTuple):
    """What a server keeps of a password: enough to check a proof, not enough to make one."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return "ScramSecret(***)"

    @classmethod
    def of_password(cls, password: str, salt: bytes, iterations: int) -> "ScramSecret":
        """Derive the secret of a plain password. Takes about 1 ms of CPU for 4096 iterations."""
        salted = salted_password(password, salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        return cls(iterations, salt, sha256(client_key).digest(), _hmac(salted, b"Server Key"))

    @classmethod
    def parse(cls, text: str) -> "ScramSecret":
        """Read SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>. Raises ValueError, without the secret."""
        try:
            mechanism, parameters, keys = text.split("$")
            iterations, salt = parameters.split(":")
            stored_key, server_key = (b64decode(key, validate=True) for key in keys.split(":"))
            secret = cls(int(iterations), b64decode(salt, validate=True), stored_key, server_key)
        except (ValueError, Base64Error):
            raise ValueError("malformed SCRAM secret") from None
        if mechanism != MECHANISM or len(stored_key) != _KEY_SIZE or len(server_key) != _KEY_SIZE or not secret.salt:
            raise ValueError("malformed SCRAM secret")
        if not 1 <= secret.iterations <= MAX_ITERATIONS:
            raise ValueError("SCRAM secret with an impossible number of iterations")
        return secret


class ScramKeys(NamedTuple):
    """What a client makes its proofs with: as good as the password, for the salt and the iterations that it is of."""

    client_key: bytes
    server_key: bytes
    salt: bytes
    iterations: int

    def __repr__(self) -> str:
        return "ScramKeys(***)"

    @classmethod
    def of_password(cls, password: str, salt: bytes, iterations: int) -> "ScramKeys":
        """Derive the keys of a plain password, at about 0.3 us of CPU an iteration (the GIL is released)."""
        salted = salted_password(password, salt, iterations)
        return cls(_hmac(salted, b"Client Key"), _hmac(salted, b"Server Key"), salt, iterations)


class ScramServer:
    """The server's side of one login. Give it the client's two messages in turn."""

    __slots__ = ("_bound_to", "_channel", "_client_first_bare", "_client_key", "_nonce", "_server_first", "secret")

    def __init__(self, secret: ScramSecret, random_bytes: Callable[[int], bytes], bound_to: bytes = b"") -> None:
        """`bound_to` is the channel's tls-server-end-point data, if SCRAM-SHA-256-PLUS has been offered."""
        self.secret = secret
        """Its keys are not looked at before the final message: they may be derived until then."""
        self._bound_to = bound_to
        self._nonce = _encode(random_bytes(_NONCE_SIZE))

    def first(self, client_first: bytes, *, plus: bool = False) -> bytes:
        """Answer client-first-message with server-first-message. Raises AuthenticationFailedError.

        `plus` if the client has chosen SCRAM-SHA-256-PLUS, which has to have been offered.
        """
        found = _CLIENT_FIRST(client_first)
        if found is None:
            raise AuthenticationFailedError("malformed client-first-message")
        header, bare, client_nonce = found.groups()
        if plus is not (header == END_POINT):
            raise AuthenticationFailedError("the channel binding does not fit the mechanism, or is not one we know")
        if header == UNOFFERED and self._bound_to:
            # It could have bound the channel, and has not seen that we offered to: somebody has taken that away.
            raise AuthenticationFailedError("the offer of channel binding did not reach the client")
        self._channel = _encode(header + self._bound_to if plus else header)
        self._client_first_bare = bare
        self._nonce = client_nonce + self._nonce
        secret = self.secret
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, _encode(secret.salt), secret.iterations)
        return self._server_first

    def final(self, client_final: bytes) -> bytes:
        """Check client-final-message and return server-final-message. Raises AuthenticationFailedError."""
        without_proof, separator, encoded_proof = client_final.rpartition(b",p=")
        channel, _, rest = without_proof.partition(b",")
        nonce = rest.partition(b",")[0]  # what follows the nonce is optional and ignored
        if not separator or channel[:2] != b"c=" or nonce[:2] != b"r=":
            raise AuthenticationFailedError("malformed client-final-message")
        if channel[2:] != self._channel:
            raise AuthenticationFailedError("channel binding does not match")
        if nonce[2:] != self._nonce:
            raise AuthenticationFailedError("nonce does not match")
        proof = _decode(encoded_proof)
        if len(proof) != _KEY_SIZE:
            raise AuthenticationFailedError("malformed proof")
        secret = self.secret
        auth_message = b"%b,%b,%b" % (self._client_first_bare, self._server_first, without_proof)
        client_key = _xor(proof, _hmac(secret.stored_key, auth_message))
        if not hmac.compare_digest(sha256(client_key).digest(), secret.stored_key):
            raise AuthenticationFailedError("proof does not match")
        self._client_key = client_key
        return b"v=" + _encode(_hmac(secret.server_key, auth_message))

    @property
    def keys(self) -> ScramKeys:
        """What the client's proof has shown, once it has: enough to log in elsewhere where the secret is the same."""
        secret = self.secret
        return ScramKeys(self._client_key, secret.server_key, secret.salt, secret.iterations)


class ScramClient:
    """The client's side of one login. The costly derivation of the keys is the caller's, to be put on a thread."""

    __slots__ = (
        "_client_first_bare",
        "_gs2_header",
        "_nonce",
        "_server_first",
        "_server_signature",
        "iterations",
        "salt",
    )

    def __init__(self, random_bytes: Callable[[int], bytes], gs2_header: bytes = UNBOUND) -> None:
        self._gs2_header = gs2_header
        self._nonce = _encode(random_bytes(_NONCE_SIZE))
        self._client_first_bare = b"n=,r=" + self._nonce

    def first(self) -> bytes:
        """Return client-first-message."""
        return self._gs2_header + self._client_first_bare

    def challenge(self, server_first: bytes) -> None:
        """Take server-first-message; `salt` and `iterations` then say what to derive. Raises on what is wrong."""
        try:
            nonce, salt, iterations = server_first.split(b",")[:3]
            if salt[:2] != b"s=" or iterations[:2] != b"i=":
                raise AuthenticationFailedError("malformed server-first-message")
            self.salt, self.iterations = _decode(salt[2:]), int(iterations[2:])
        except ValueError:
            raise AuthenticationFailedError("malformed server-first-message") from None
        if not nonce.startswith(b"r=" + self._nonce) or len(nonce) == len(self._nonce) + 2:
            raise AuthenticationFailedError("the server's nonce does not continue ours")
        if not self.salt or not 1 <= self.iterations <= MAX_ITERATIONS:
            raise AuthenticationFailedError(f"the server asks for {self.iterations} SCRAM iterations")
        self._nonce = nonce[2:]
        self._server_first = server_first

    def final(self, keys: ScramKeys, binding: bytes = b"") -> bytes:
        """Return client-final-message. `binding` is the channel's, where the header says END_POINT."""
        without_proof = b"c=%b,r=%b" % (_encode(self._gs2_header + binding), self._nonce)
        auth_message = b",".join((self._client_first_bare, self._server_first, without_proof))
        proof = _xor(keys.client_key, _hmac(sha256(keys.client_key).digest(), auth_message))
        self._server_signature = _hmac(keys.server_key, auth_message)
        return without_proof + b",p=" + _encode(proof)

    def verify(self, server_final: bytes) -> None:
        """Check server-final-message: the server, too, has to know the password. Raises AuthenticationFailedError."""
        if not hmac.compare_digest(server_final.split(b",")[0], b"v=" + _encode(self._server_signature)):
            raise AuthenticationFailedError("the server did not prove that it knows the password")


def salted_password(password: str, salt: bytes, iterations: int) -> bytes:
    """Return SaltedPassword of RFC 5802: 32 bytes, at about 0.3 us of CPU an iteration (the GIL is released)."""
    return pbkdf2_hmac("sha256", saslprep(password).encode("utf-8", "surrogateescape"), salt, iterations)


def md5_secret(user: str, password: str) -> str:
    """Return "md5" and the hex digest that PostgreSQL stores for a password; one that is such a hash is kept."""
    if is_md5_secret(password):
        return password
    return "md5" + md5((password + user).encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()


def md5_response(secret: str, salt: bytes) -> bytes:
    """Return what a client answers to AuthenticationMD5Password with this salt, for a secret of md5_secret()."""
    return b"md5" + md5(secret[3:].encode() + salt, usedforsecurity=False).hexdigest().encode()


def is_md5_secret(text: str) -> bool:
    """Tell an MD5 hash in PostgreSQL's form from a plain password."""
    return len(text) == 35 and text.startswith("md5") and all(char in "0123456789abcdef" for char in text[3:])


def is_scram_secret(text: str) -> bool:
    """Tell a SCRAM secret in PostgreSQL's form from a plain password."""
    return text.startswith(MECHANISM + "$")


def saslprep(text: str) -> str:
    """Normalise a password (RFC 4013); one that it prohibits is used as it is, which is what PostgreSQL does."""
    if text.isascii():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    normal = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    # Each character is looked at once: what is normalised may be 18 times as long, and anybody may send it.
    if not normal or any(map(_prohibited, set(normal))) or not _direction_is_consistent(normal):
        return text
    return normal


def _prohibited(char: str) -> bool:
    return (
        stringprep.in_table_a1(char)
        or stringprep.in_table_c12(char)
        or stringprep.in_table_c21_c22(char)
        or stringprep.in_table_c3(char)
        or stringprep.in_table_c4(char)
        or stringprep.in_table_c5(char)
        or stringprep.in_table_c6(char)
        or stringprep.in_table_c7(char)
        or stringprep.in_table_c8(char)
        or stringprep.in_table_c9(char)
    )


def _direction_is_consistent(text: str) -> bool:
    """RFC 3454, section 6: right-to-left text has no left-to-right character, and is so at both ends."""
    chars = set(text)
    if not any(map(stringprep.in_table_d1, chars)):
        return True
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    return ends and not any(map(stringprep.in_table_d2, chars))


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")


def _encode(data: bytes) -> bytes:
    return b2a_base64(data, newline=False)


def _decode(text: bytes) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except Base64Error:
        raise AuthenticationFailedError("malformed base64 in a SCRAM message") from None
