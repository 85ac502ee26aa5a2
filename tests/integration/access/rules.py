"""Who has to be let in, by the rules of auth_type and of both sides' sslmode: what the table of logins expects.

Written from the documentation of PgBouncer's settings and of libpq's, not from what pgfunnel does.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.integration.access.drivers import Attempt

AUTH_TYPES: Final = ("plain", "md5", "scram-sha-256", "passthrough", "trust", "any", "cert", "hba")
USER: Final = "scram"
"""The one user that pgfunnel knows, in every way: as upstream's, in the user list, and as Postgres's."""

REFUSED: Final = "28000"
WRONG: Final = "28P01"
GAVE_UP: Final = ""
"""The client itself: it was told nothing with a SQLSTATE."""

HBA: Final = f"""
hostssl   all {USER} 127.0.0.1/32 scram-sha-256
hostnossl all {USER} 127.0.0.1/32 md5
"""


class Pooler(NamedTuple):
    """How pgfunnel is set up."""

    auth_type: str
    sslmode: str

    @property
    def offers_tls(self) -> bool:
        return self.sslmode != "disable"

    @property
    def requires_tls(self) -> bool:
        return self.sslmode in ("require", "verify-ca", "verify-full")

    @property
    def requires_certificate(self) -> bool:
        return self.sslmode in ("verify-ca", "verify-full")

    @property
    def takes_certificates(self) -> bool:
        """Whether a certificate is asked for, and verified if it is shown."""
        return self.requires_certificate or (self.offers_tls and self.auth_type in ("cert", "hba"))

    def method(self, *, tls: bool) -> str:
        """Return how a client has to prove itself, in the words of libpq's require_auth."""
        if self.auth_type == "hba":
            return "scram-sha-256" if tls else "md5"
        same = {"trust": "none", "any": "none", "cert": "none", "plain": "password", "passthrough": "password"}
        return same.get(self.auth_type, self.auth_type)


class Client(NamedTuple):
    """An attempt, and what is true of it."""

    attempt: Attempt
    right_password: bool = True
    trusted_certificate: bool = False
    """It has one that pgfunnel's authority has signed."""
    certificate_name: str = ""


class Expected(NamedTuple):
    user: str = ""
    """Whom it is served as; empty: it is not let in."""
    tls: bool = False
    sqlstates: frozenset[str] = frozenset()
    """What it may be told if it is not."""


def expected(pooler: Pooler, client: Client) -> Expected:
    sqlstates = set()
    for tls in _tries(client.attempt.sslmode):
        refusal = _refusal(pooler, client, tls=tls)
        if refusal is None:
            return Expected(USER, tls)
        sqlstates.add(refusal)
        if tls and pooler.offers_tls and refusal == GAVE_UP and client.attempt.certificate is not None:
            # In TLS 1.3 a certificate is refused after the handshake: libpq does not try again without TLS.
            break
    return Expected(sqlstates=frozenset(sqlstates))


def _tries(sslmode: str) -> Iterator[bool]:
    """Yield with or without TLS, as the client tries it; the next one if it is not let in."""
    yield from {"disable": (False,), "allow": (False, True), "prefer": (True, False)}.get(sslmode, (True,))


def _refusal(pooler: Pooler, client: Client, *, tls: bool) -> str | None:
    """Return the SQLSTATE that this try ends with; None if it gets in."""
    if not tls and pooler.requires_tls:
        return REFUSED
    if tls and not pooler.offers_tls:
        return GAVE_UP
    shown = client.attempt.certificate is not None
    if tls and pooler.requires_certificate and not shown:
        return GAVE_UP  # TLS has no SQLSTATEs
    if tls and pooler.takes_certificates and shown and not client.trusted_certificate:
        return GAVE_UP
    method = pooler.method(tls=tls)
    verdict = _verdict(pooler, client, tls=tls)
    refused_unasked = verdict is not None and (method == "none" or verdict == REFUSED)
    return verdict if refused_unasked or _puts_up_with(client, method, tls=tls) else GAVE_UP


def _puts_up_with(client: Client, method: str, *, tls: bool) -> bool:
    """Tell whether the client takes this method."""
    options = dict(client.attempt.options)
    if options.get("channel_binding") == "require" and not (tls and method == "scram-sha-256"):
        return False
    return method in options.get("require_auth", method).split(",")


def _verdict(pooler: Pooler, client: Client, *, tls: bool) -> str | None:
    user = client.attempt.user
    if pooler.auth_type == "any":
        return None
    if pooler.auth_type == "trust":
        return None if user == USER else WRONG
    if pooler.auth_type == "cert":
        proven = tls and pooler.takes_certificates and client.certificate_name == user
        return None if proven and user == USER else REFUSED
    if pooler.auth_type == "hba" and user != USER:
        return REFUSED  # no rule is for anybody else
    return None if user == USER and client.right_password else WRONG
