"""The settings of TLS, towards clients and towards Postgres: PgBouncer's names and words.

What they mean to OpenSSL, and whether the files are any good, is pooler.tls's affair.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator

from config.fields import Count, File, PositiveCount, Takes, Text

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
SslNegotiation = Literal["postgres", "direct"]

VERSIONS: Final = ("tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3")
_SECURE: Final = frozenset(("tlsv1.2", "tlsv1.3"))
_WORDS: Final = {
    **{version: frozenset((version,)) for version in VERSIONS},
    **dict.fromkeys(("all", "legacy", "tlsv1"), frozenset(VERSIONS)),
    **dict.fromkeys(("secure", "default"), _SECURE),
}


def oldest_and_newest(protocols: str) -> tuple[str, str]:
    """Return the oldest and the newest of the TLS versions that a setting names. Raises ValueError."""
    named = _versions(protocols)
    found = [version for version in VERSIONS if version in named]
    if not found:
        raise ValueError("names no version of TLS")
    oldest, newest = found[0], found[-1]
    left_out = VERSIONS[VERSIONS.index(oldest) : VERSIONS.index(newest) + 1][len(found) :]
    if left_out:
        raise ValueError("leaves out a version between two others")
    return oldest, newest


def _versions(protocols: str) -> frozenset[str]:
    named: frozenset[str] = frozenset()
    for word in _split(protocols):
        versions = _WORDS.get(word.removeprefix("!"))
        if versions is None:
            raise ValueError(f"has {word!r} in it, which is not one of {', '.join(_WORDS)}")
        named = named - versions if word.startswith("!") else named | versions
    return named


def _split(protocols: str) -> Iterator[str]:
    for word in protocols.replace(":", ",").split(","):
        if word.strip():
            yield word.strip().lower()


def _protocols(value: str) -> str:
    oldest_and_newest(value)
    return value


Protocols = Annotated[
    str, AfterValidator(_protocols), Takes("VERSION,...", "secure, all, or a comma-separated list of TLS versions")
]
"""TLS versions in PgBouncer's words, such as secure or tlsv1.2,tlsv1.3."""

_ALWAYS_ON: Final = frozenset(("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"))
"""OpenSSL's ciphers for TLS 1.3, of which Python's ssl lets nobody leave one out."""


def _tls13_ciphers(value: str) -> str:
    named = {word.strip().upper() for word in value.replace(":", ",").split(",") if word.strip()}
    if named and not named >= _ALWAYS_ON:
        raise ValueError(
            f"leaves out one of {', '.join(sorted(_ALWAYS_ON))}, which Python's ssl can't: leave it empty, or take "
            "TLS 1.3 out of the protocols"
        )
    return value


Tls13Ciphers = Annotated[str, AfterValidator(_tls13_ciphers), Takes("CIPHER:...", "a list of TLS 1.3's ciphers")]
_TLS13_CIPHERS: Final = (
    "Ciphers of TLS 1.3. All that OpenSSL has on are used, as Python's ssl can't leave one out: a list without one of "
    "them is refused."
)

_CIPHERS: Final = (
    "in OpenSSL's syntax, or a word of PgBouncer's: default, secure, fast or normal for Python's own choice, compat or "
    "legacy, insecure or all. TLS 1.3 has its own, which this does not change."
)
_PROTOCOLS: Final = (
    "TLS versions that may be used: tlsv1.0 to tlsv1.3, secure (1.2 and 1.3), all or legacy; an exclamation mark "
    "leaves one out."
)


class ClientTls(BaseModel):
    """TLS towards clients."""

    client_tls_sslmode: SslMode = Field(
        default="disable",
        description="Whether clients use TLS: they can't, whatever else is set (disable), they may "
        "(allow, prefer), they must (require), or they must and show a certificate that client_tls_ca_file vouches for "
        "(verify-ca, verify-full). On a Unix socket it is neither offered nor asked for.",
    )
    client_tls_key_file: File = Field(
        default=None, validate_default=True, description="Private key for client_tls_cert_file (PEM)."
    )
    client_tls_cert_file: File = Field(
        default=None,
        validate_default=True,
        description="Certificate that clients are shown (PEM), followed by those between it and its root.",
    )
    client_tls_ca_file: File = Field(
        default=None,
        validate_default=True,  # together with client_tls_sslmode
        description="Root certificates that clients' certificates lead to (PEM). With auth_type cert or hba, clients "
        "may show one in every client_tls_sslmode but disable.",
    )
    client_tls_protocols: Protocols = Field(default="secure", description=_PROTOCOLS)
    client_tls_ciphers: Text = Field(default="default", description=f"Ciphers up to TLS 1.2, {_CIPHERS}")
    client_tls13_ciphers: Tls13Ciphers = Field(default="", description=_TLS13_CIPHERS)
    client_tls_ecdhcurve: Text = Field(
        default="auto",
        description="Name of the one elliptic curve for key exchange; auto for OpenSSL's choice of them.",
    )
    client_tls_dheparams: Text = Field(
        default="auto",
        description="File of parameters for key exchange by DHE (PEM), which only clients want that know neither "
        "TLS 1.3 nor elliptic curves; auto, none and legacy, which PgBouncer knows, for no DHE.",
    )
    client_tls_handshakes: PositiveCount = Field(
        default=256,
        description="How many TLS handshakes may be under way at once; further clients wait their turn.",
    )
    client_tls_tickets: Count = Field(
        default=1,
        description="Tickets that a client is sent at each full handshake to resume its session with (TLS 1.3), 0 for "
        "none. Each costs some 35 µs. Drivers built on libpq never use any.",
    )

    @field_validator("client_tls_key_file", "client_tls_cert_file")
    @classmethod
    def _client_identity_with_tls(cls, value: File, info: ValidationInfo) -> File:
        if value is None and info.data.get("client_tls_sslmode", "disable") != "disable":
            raise ValueError(f"is missing, and client_tls_sslmode is {info.data['client_tls_sslmode']}")
        return value

    @field_validator("client_tls_ca_file")
    @classmethod
    def _client_ca_to_verify(cls, value: File, info: ValidationInfo) -> File:
        if value is None and info.data.get("client_tls_sslmode", "disable").startswith("verify"):
            raise ValueError(f"is missing, and client_tls_sslmode is {info.data['client_tls_sslmode']}")
        return value


class ServerTls(BaseModel):
    """TLS towards Postgres."""

    server_tls_sslmode: SslMode = Field(
        default="prefer",
        description="Whether connections to Postgres use TLS: never (disable), only where Postgres refuses them "
        "without (allow), unless it has no TLS (prefer), always (require); and if always, whether its certificate has "
        "to come from server_tls_ca_file (verify-ca), and to be for the host as well (verify-full).",
    )
    server_tls_key_file: File = Field(
        default=None, validate_default=True, description="Private key for server_tls_cert_file (PEM)."
    )
    server_tls_cert_file: File = Field(
        default=None, validate_default=True, description="Certificate that Postgres is shown (PEM)."
    )
    server_tls_ca_file: File = Field(
        default=None,
        validate_default=True,
        description="Root certificates that Postgres's certificate leads to (PEM); with verify-full, empty for the "
        "system's.",
    )
    server_tls_protocols: Protocols = Field(default="secure", description=_PROTOCOLS)
    server_tls_ciphers: Text = Field(default="default", description=f"Ciphers up to TLS 1.2, {_CIPHERS}")
    server_tls13_ciphers: Tls13Ciphers = Field(default="", description=_TLS13_CIPHERS)
    server_tls_sslnegotiation: SslNegotiation = Field(
        default="postgres",
        description="How TLS begins: Postgres is asked first (postgres), or not (direct: one round trip less; takes "
        "Postgres 17, and require or more).",
    )

    @field_validator("server_tls_cert_file")
    @classmethod
    def _server_key_with_certificate(cls, value: File, info: ValidationInfo) -> File:
        if (value is None) != (info.data.get("server_tls_key_file") is None):
            raise ValueError("and server_tls_key_file go together: one of them is missing")
        return value

    @field_validator("server_tls_ca_file")
    @classmethod
    def _server_ca_to_verify(cls, value: File, info: ValidationInfo) -> File:
        if value is None and info.data.get("server_tls_sslmode") == "verify-ca":
            raise ValueError("is missing, and server_tls_sslmode is verify-ca")
        return value

    @field_validator("server_tls_sslnegotiation")
    @classmethod
    def _direct_takes_server_tls(cls, value: SslNegotiation, info: ValidationInfo) -> SslNegotiation:
        mode = info.data.get("server_tls_sslmode", "require")
        if value == "direct" and mode in ("disable", "allow", "prefer"):
            raise ValueError(f"is direct, and server_tls_sslmode is {mode}: Postgres can't answer that it has no TLS")
        return value
