"""How clients prove who they are: one object per login that asks, and judges the answers.

What a client learns from a failure is the same whether the user exists or not; what the log says is not.
"""

import hmac
import os
from collections.abc import Mapping
from typing import Final, Protocol

from pydantic import SecretStr

from protocol.messages import (
    AUTHENTICATION_CLEARTEXT,
    authentication_md5,
    authentication_sasl,
    authentication_sasl_continue,
    authentication_sasl_final,
)
from protocol.scram import (
    MECHANISM,
    AuthenticationFailedError,
    ScramSecret,
    ScramServer,
    is_md5_secret,
    is_scram_secret,
    md5_response,
    md5_secret,
)

_SALT_SIZE: Final = 16


class Proof(Protocol):
    """One login's conversation about the password."""

    request: bytes
    """What to send first; empty if nothing is asked for."""

    def answer(self, payload: bytes) -> tuple[bytes, bool]:
        """Take the payload of a password message; return what to send, and whether the proof is complete.

        Raises AuthenticationFailedError.
        """


class Authenticator:
    """Knows the users, and how they log in."""

    def __init__(self, auth_type: str, credentials: Mapping[str, SecretStr], scram_iterations: int) -> None:
        """Raises ValueError for a malformed SCRAM secret, naming its user."""
        self._auth_type = auth_type
        self._credentials = credentials
        self._iterations = scram_iterations
        self._scram_secrets: dict[str, ScramSecret] = {}
        # What an unknown user is asked must be the same each time, and not to be foreseen.
        self._mock_key = os.urandom(32)
        for user, secret in credentials.items():
            if is_scram_secret(secret.get_secret_value()):
                try:
                    self._scram_secrets[user] = ScramSecret.parse(secret.get_secret_value())
                except ValueError as error:
                    raise ValueError(f'the secret of user "{user}" is a {error}') from None

    def begin(self, user: str) -> Proof:
        """Start a login. Raises AuthenticationFailedError where nothing is asked for and the user does not exist."""
        found = self._credentials.get(user)
        secret = found.get_secret_value() if found is not None else None
        if self._auth_type == "trust":
            if secret is None:
                raise AuthenticationFailedError("no such user")
            return _NoProof()
        if self._auth_type == "plain":
            return _PlainProof(user, secret)
        if self._auth_type == "md5" and not (secret and is_scram_secret(secret)):
            return _Md5Proof(md5_secret(user, secret) if secret else None)
        return _ScramProof(self._scram_secret(user, secret), known=bool(secret))

    def _scram_secret(self, user: str, secret: str | None) -> ScramSecret:
        if not secret or is_md5_secret(secret):
            mock = hmac.digest(self._mock_key, user.encode("utf-8", "surrogateescape"), "sha256")
            return ScramSecret(self._iterations, mock[:_SALT_SIZE], mock, mock)
        derived = self._scram_secrets.get(user)
        if derived is None:
            derived = ScramSecret.of_password(secret, os.urandom(_SALT_SIZE), self._iterations)
            self._scram_secrets[user] = derived
        return derived


class _NoProof:
    request = b""

    def answer(self, payload: bytes) -> tuple[bytes, bool]:
        raise AuthenticationFailedError("a password that was not asked for")


class _PlainProof:
    request = AUTHENTICATION_CLEARTEXT

    def __init__(self, user: str, secret: str | None) -> None:
        self._user = user
        self._secret = secret

    def answer(self, payload: bytes) -> tuple[bytes, bool]:
        given = payload.removesuffix(b"\0").decode("utf-8", "surrogateescape")
        secret = self._secret
        if not secret:
            raise AuthenticationFailedError("no such user, or one without a password")
        if is_md5_secret(secret):
            # A password that looks like the hash is hashed too: to know the hash is not to know the password.
            matches = hmac.compare_digest(md5_secret(self._user, given), secret) and not is_md5_secret(given)
        elif is_scram_secret(secret):
            known = ScramSecret.parse(secret)
            matches = hmac.compare_digest(
                ScramSecret.of_password(given, known.salt, known.iterations).stored_key, known.stored_key
            )
        else:
            matches = hmac.compare_digest(
                given.encode("utf-8", "surrogateescape"), secret.encode("utf-8", "surrogateescape")
            )
        if not matches:
            raise AuthenticationFailedError("wrong password")
        return b"", True


class _Md5Proof:
    def __init__(self, secret: str | None) -> None:
        self._secret = secret
        self._salt = os.urandom(4)
        self.request = authentication_md5(self._salt)

    def answer(self, payload: bytes) -> tuple[bytes, bool]:
        if not self._secret:
            raise AuthenticationFailedError("no such user, or one without a password")
        if not hmac.compare_digest(payload.removesuffix(b"\0"), md5_response(self._secret, self._salt)):
            raise AuthenticationFailedError("wrong password")
        return b"", True


class _ScramProof:
    request = authentication_sasl([MECHANISM])

    def __init__(self, secret: ScramSecret, *, known: bool) -> None:
        self._server = ScramServer(secret, os.urandom)
        self._known = known
        self._started = False

    def answer(self, payload: bytes) -> tuple[bytes, bool]:
        if not self._started:
            self._started = True
            return authentication_sasl_continue(self._server.first(_initial_response(payload))), False
        final = self._server.final(payload)
        if not self._known:
            raise AuthenticationFailedError("no such user, or one without a password")
        return authentication_sasl_final(final), True


def _initial_response(payload: bytes) -> bytes:
    """Read a SASLInitialResponse: the mechanism, NUL, an int32 length, and that many bytes."""
    mechanism, _, rest = payload.partition(b"\0")
    if mechanism != MECHANISM.encode():
        raise AuthenticationFailedError("a SASL mechanism that was not offered")
    if len(rest) < 4 or int.from_bytes(rest[:4], "big") != len(rest) - 4:
        raise AuthenticationFailedError("malformed SASLInitialResponse")
    return rest[4:]
