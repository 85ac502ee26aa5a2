"""What OpenSSL is told: the contexts for TLS towards clients and towards Postgres, out of the settings.

Whether TLS is used at all, and where, is decided where connections begin.
"""

import ssl
import warnings
from pathlib import Path
from typing import Final

from config.settings import Settings
from config.tls import oldest_and_newest
from pooler.tls.binding import server_end_point
from pooler.tls.certificate import first_certificate
from pooler.tls.connection import TlsContext

ALPN: Final = "postgresql"
"""What TLS without an SSLRequest before it says it is for (PostgreSQL documentation, "SSL Session Encryption")."""

_VERSIONS: Final = {
    "tlsv1.0": ssl.TLSVersion.MINIMUM_SUPPORTED,
    "tlsv1.1": 0x0302,
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}
_CIPHERS: Final = {
    **dict.fromkeys(("default", "secure", "fast", "normal"), ""),
    **dict.fromkeys(("compat", "legacy"), "HIGH:MEDIUM:!aNULL"),
    **dict.fromkeys(("insecure", "all"), "ALL:!aNULL:!eNULL"),
}
"""PgBouncer's words; empty for what Python sets, which has forward secrecy and authenticated encryption first."""


class TlsSettingsError(ValueError):
    """A setting of TLS does not work; the message names it."""


def client_context(settings: Settings) -> TlsContext:
    """Return what TLS towards clients uses. Raises TlsSettingsError."""
    context = TlsContext(ssl.PROTOCOL_TLS_SERVER)
    _choose(context, "client_tls", settings.client_tls_protocols, settings.client_tls_ciphers)
    _show(context, "client_tls", settings.client_tls_cert_file, settings.client_tls_key_file)
    context.end_point = server_end_point(context.shown) if context.shown else b""
    _agree_on_keys(context, settings)
    context.set_alpn_protocols([ALPN])
    context.num_tickets = settings.client_tls_tickets
    if not settings.client_tls_tickets:
        context.options |= ssl.OP_NO_TICKET
    if settings.client_tls_sslmode.startswith("verify"):
        _trust(context, "client_tls", settings.client_tls_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    elif settings.auth_type in ("cert", "hba") and settings.client_tls_ca_file is not None:
        # Who needs one is said by auth_type, or rule by rule.
        _trust(context, "client_tls", settings.client_tls_ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def server_context(settings: Settings) -> TlsContext:
    """Return what TLS towards Postgres uses. Raises TlsSettingsError."""
    mode = settings.server_tls_sslmode
    context = TlsContext(ssl.PROTOCOL_TLS_CLIENT)
    _choose(context, "server_tls", settings.server_tls_protocols, settings.server_tls_ciphers)
    context.set_alpn_protocols([ALPN])
    context.check_hostname = mode == "verify-full"
    if not mode.startswith("verify"):
        context.verify_mode = ssl.CERT_NONE
    elif settings.server_tls_ca_file is not None:
        _trust(context, "server_tls", settings.server_tls_ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if settings.server_tls_cert_file is not None:
        _show(context, "server_tls", settings.server_tls_cert_file, settings.server_tls_key_file)
    return context


def _choose(context: TlsContext, side: str, protocols: str, ciphers: str) -> None:
    oldest, newest = oldest_and_newest(protocols)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # whoever asks for TLS 1.0 or 1.1 knows
        context.minimum_version = ssl.TLSVersion(_VERSIONS[oldest])
        context.maximum_version = ssl.TLSVersion(_VERSIONS[newest])
    # A renegotiation costs us more than the peer, and Postgres refuses it as well.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    wanted = _CIPHERS.get(ciphers.lower(), ciphers)
    if wanted:
        try:
            context.set_ciphers(wanted)
        except ssl.SSLError:
            raise TlsSettingsError(f"{side}_ciphers: OpenSSL knows no cipher of {ciphers!r}") from None


def _show(context: TlsContext, side: str, certificate: Path | None, key: Path | None) -> None:
    if certificate is None:
        raise TlsSettingsError(f"{side}_cert_file: it is missing")

    def refuse() -> str:
        raise TlsSettingsError(f"{side}_key_file: {key} has a passphrase, and nobody is there to type it")

    _readable(f"{side}_cert_file", certificate)
    _readable(f"{side}_key_file", key or certificate)
    try:
        context.load_cert_chain(certificate, key, refuse)
    except ssl.SSLError as error:
        reason = "is not the key of the certificate" if error.reason == "KEY_VALUES_MISMATCH" else "can't be used"
        raise TlsSettingsError(
            f"{side}_cert_file, {side}_key_file: {key} {reason} for {certificate} ({error.reason or error})"
        ) from None
    context.shown = first_certificate(certificate)


def _trust(context: TlsContext, side: str, authorities: Path | None) -> None:
    if authorities is None:
        raise TlsSettingsError(f"{side}_ca_file: it is missing")
    _readable(f"{side}_ca_file", authorities)
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise TlsSettingsError(
            f"{side}_ca_file: {authorities} has no certificates in it ({error.reason or error})"
        ) from None


def _readable(name: str, file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise TlsSettingsError(f"{name}: {file} can't be read: {error.strerror or error}") from None


def _agree_on_keys(context: TlsContext, settings: Settings) -> None:
    curve, parameters = settings.client_tls_ecdhcurve, settings.client_tls_dheparams
    if curve.lower() not in ("auto", "none"):  # OpenSSL no longer leaves them out
        try:
            context.set_ecdh_curve(curve)
        except ValueError:
            raise TlsSettingsError(f"client_tls_ecdhcurve: OpenSSL knows no curve {curve!r}") from None
    if parameters.lower() not in ("auto", "none", "legacy"):
        _readable("client_tls_dheparams", Path(parameters))
        try:
            context.load_dh_params(parameters)
        except ssl.SSLError as error:
            raise TlsSettingsError(
                f"client_tls_dheparams: {parameters} has no parameters in it ({error.reason or error})"
            ) from None
