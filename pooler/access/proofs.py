"""How clients prove that they know a password: one object per login that asks, and judges the answers.

A failure takes the same work whether the user exists or not.
"""

import asyncio
import contextlib
import hmac
import os
from typing import Final

from pooler.access.candidate import Candidate, Judge, Learnt
from pooler.access.secrets import Secrets
from pooler.credentials.credential import Md5Hash
from protocol.messages import (
    AUTHENTICATION_CLEARTEXT,
    authentication_md5,
    authentication_sasl,
    authentication_sasl_continue,
    authentication_sasl_final,
)
from protocol.scram import (
    MECHANISM,
    MECHANISM_PLUS,
    AuthenticationFailedError,
    ScramSecret,
    ScramServer,
    is_md5_secret,
    is_scram_secret,
    md5_response,
    md5_secret,
)

_UNKNOWN: Final = "no such user, or one without a password"
_WRONG: Final = "wrong password"

_SCRAM: Final = MECHANISM.encode()
_SCRAM_PLUS: Final = MECHANISM_PLUS.encode()
_OFFER: Final = authentication_sasl([MECHANISM])
_OFFER_PLUS: Final = authentication_sasl([MECHANISM_PLUS, MECHANISM])


class PlainProof:
    """The password itself."""

    __slots__ = ("_candidate", "_judge", "_secret", "_secrets")

    request = AUTHENTICATION_CLEARTEXT

    def __init__(self, judge: Judge, candidate: Candidate, secret: str | None, secrets: Secrets) -> None:
        self._judge = judge
        self._candidate = candidate
        self._secret = secret
        self._secrets = secrets

    def answer(self, payload: bytes) -> None:
        """See Proof."""
        user = self._candidate.startup.user
        given = password_in(payload)
        secret = self._secret
        if secret and is_scram_secret(secret):
            self._derive(given, self._secrets.scram(user, secret))
        elif secret and _equals(given, secret, user):
            self._conclude(given, matches=True)
        elif self._secrets.any_scram:
            self._derive(given, self._secrets.stored_mock(user))
        else:
            self._conclude(given, matches=False)

    def _derive(self, given: str, known: ScramSecret) -> None:
        """Derive from the password what would be stored of it, in a thread: it takes 1 ms of CPU, or many."""
        derived = asyncio.get_running_loop().run_in_executor(
            None, ScramSecret.of_password, given, known.salt, known.iterations
        )
        derived.add_done_callback(
            lambda done: self._conclude(given, matches=hmac.compare_digest(done.result().stored_key, known.stored_key))
        )

    def _conclude(self, given: str, *, matches: bool) -> None:
        secret = self._secret
        if not matches:
            self._judge.reject(self._candidate, _WRONG if secret else _UNKNOWN)
        else:
            self._judge.accept(self._candidate, learnt=given)


def password_in(payload: bytes) -> str:
    """Return the text of a PasswordMessage. Raises AuthenticationFailedError for what is none."""
    if payload[-1:] != b"\0" or b"\0" in payload[:-1]:
        raise AuthenticationFailedError("malformed password message")
    if len(payload) == 1:
        raise AuthenticationFailedError("an empty password")
    return payload[:-1].decode("utf-8", "surrogateescape")


def _equals(given: str, secret: str, user: str) -> bool:
    if is_md5_secret(secret):
        # A password that looks like the hash is hashed too: to know the hash is not to know the password.
        return hmac.compare_digest(md5_secret(user, given), secret) and not is_md5_secret(given)
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode("utf-8", "surrogateescape"))


class Md5Proof:
    """A hash of the password's md5 hash and a salt."""

    __slots__ = ("_candidate", "_judge", "_salt", "_secret", "request")

    def __init__(self, judge: Judge, candidate: Candidate, secret: str | None) -> None:
        self._judge = judge
        self._candidate = candidate
        self._secret = secret
        self._salt = os.urandom(4)
        self.request = authentication_md5(self._salt)

    def answer(self, payload: bytes) -> None:
        """See Proof."""
        hashed = md5_secret(self._candidate.startup.user, self._secret or "")
        matches = hmac.compare_digest(payload, md5_response(hashed, self._salt) + b"\0")
        if not matches or not self._secret:
            raise AuthenticationFailedError(_WRONG if self._secret else _UNKNOWN)
        self._judge.accept(self._candidate, learnt=Md5Hash(hashed))


class ScramProof:
    """SCRAM-SHA-256, over TLS SCRAM-SHA-256-PLUS too."""

    __slots__ = ("_candidate", "_judge", "_offers_plus", "_secret", "_secrets", "_server", "_started", "request")

    def __init__(self, judge: Judge, candidate: Candidate, secret: str | None, secrets: Secrets) -> None:
        self._judge = judge
        self._candidate = candidate
        self._secret = secret
        self._secrets = secrets
        tls = candidate.tls
        bound_to = tls.end_point if tls is not None else b""
        self._offers_plus = bool(bound_to)
        self.request = _OFFER_PLUS if bound_to else _OFFER
        self._server = ScramServer(secrets.challenge(candidate.startup.user, secret), os.urandom, bound_to)
        self._started = False

    def answer(self, payload: bytes) -> bytes | None:
        """See Proof."""
        if not self._started:
            self._started = True
            mechanism, data = _initial_response(payload)
            plus = mechanism == _SCRAM_PLUS
            if not (self._offers_plus if plus else mechanism == _SCRAM):
                raise AuthenticationFailedError("a SASL mechanism that was not offered")
            return authentication_sasl_continue(self._server.first(data, plus=plus))
        secret = self._secret
        if not secret or is_md5_secret(secret):
            with contextlib.suppress(AuthenticationFailedError):
                self._server.final(payload)  # it never matches a mock, and takes as long
            raise AuthenticationFailedError("only an md5 hash is known, and SCRAM takes more" if secret else _UNKNOWN)
        self._server.secret = self._secrets.scram(self._candidate.startup.user, secret)
        final = self._server.final(payload)
        learnt: Learnt = self._server.keys if is_scram_secret(secret) else secret
        self._judge.accept(self._candidate, authentication_sasl_final(final), learnt)
        return None


def _initial_response(payload: bytes) -> tuple[bytes, bytes]:
    """Read a SASLInitialResponse: the mechanism, NUL, an int32 length, and that many bytes."""
    mechanism, _, rest = payload.partition(b"\0")
    if len(rest) < 4 or int.from_bytes(rest[:4], "big") != len(rest) - 4:
        raise AuthenticationFailedError("malformed SASLInitialResponse")
    return mechanism, rest[4:]
