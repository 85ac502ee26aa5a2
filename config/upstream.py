"""The upstream URL: which Postgres stands behind the pooler, and who logs in there by default.

Parsing is stricter than libpq's where a lenient reading would turn part of a password into a host, a database or
an option, and so into a log line. https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from pathlib import PurePosixPath
from typing import Self, cast, get_args
from urllib.parse import quote, unquote

from pydantic import SecretStr

from config.hosts import LoadBalanceHosts, TargetSessionAttrs

DEFAULT_PORT = 5432
SCHEMES = ("postgresql", "postgres")

# What to do instead, for the libpq options that people most often have in their URL.
_INSTEAD = {
    "application_name": "it can't be set here",
    "connect_timeout": "use the setting server_connect_timeout",
    "dbname": "write it as postgresql://host/dbname",
    "keepalives": "use the setting tcp_keepalive",
    "keepalives_count": "use the setting tcp_keepcnt",
    "keepalives_idle": "use the setting tcp_keepidle",
    "keepalives_interval": "use the setting tcp_keepintvl",
    "options": "set it for the role or the database in Postgres",
    "password": "write it as postgresql://user:password@host",
    "require_auth": "leave it out",
    "sslcertmode": "leave it out",
    "sslcompression": "leave it out",
    "ssl_max_protocol_version": "use the setting server_tls_protocols",
    "ssl_min_protocol_version": "use the setting server_tls_protocols",
    "tcp_user_timeout": "use the setting tcp_user_timeout",
    "user": "write it as postgresql://user:password@host",
}
# The settings that libpq's options stand for, and the values of those that are not files.
_TLS_SETTINGS = {
    "sslmode": "server_tls_sslmode",
    "sslrootcert": "server_tls_ca_file",
    "sslcert": "server_tls_cert_file",
    "sslkey": "server_tls_key_file",
    "sslnegotiation": "server_tls_sslnegotiation",
}
_BALANCE: Mapping[str, LoadBalanceHosts] = {"disable": "disable", "random": "round-robin", "round-robin": "round-robin"}
_WORDS = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "channel_binding": ("disable", "prefer", "require"),
    "load_balance_hosts": tuple(_BALANCE),
    "target_session_attrs": get_args(TargetSessionAttrs),
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """A parsed upstream URL."""

    host: str
    """A name, an address, or the directory of a Unix socket (begins with /); the first, if there are several."""
    port: int = DEFAULT_PORT
    user: str | None = None
    password: SecretStr | None = None
    dbname: str | None = None
    tls: tuple[tuple[str, str], ...] = ()
    """Settings that its options stand for, with their values."""
    channel_binding: str = "prefer"
    """Whether a proof of the password has to be bound to the TLS connection, as in libpq: disable, prefer, require."""
    others: tuple[tuple[str, int], ...] = ()
    """Further hosts with their ports, in the order in which they are to be tried."""
    load_balance_hosts: LoadBalanceHosts = "disable"
    """disable or round-robin. As in libpq, the first host comes first unless said otherwise."""
    target_session_attrs: TargetSessionAttrs = "any"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse postgresql://user:password@host:port,host:port/dbname?host=/socket/dir&port=N&sslmode=MODE and so on.

        Raises ValueError, whose message quotes no part of the URL that could be a password.
        """
        scheme, separator, rest = url.strip().partition("://")
        if not separator or scheme.lower() not in SCHEMES:
            raise ValueError("does not begin with postgresql://")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        if "#" in authority + path + query or "@" in path + query:
            raise ValueError("has a / ? # or @ where it must be percent-encoded (as %2F %3F %23 %40)")
        if "/" in path:
            raise ValueError("has a / in its database name (percent-encode it as %2F)")

        userinfo, _, location = authority.rpartition("@")
        user, _, password = userinfo.partition(":")
        options = _options(query)
        (host, port), *others = _hosts(location, options)
        secret = _decode(password)
        return cls(
            host=host,
            port=port,
            user=_decode(user) or None,
            password=SecretStr(secret) if secret else None,
            dbname=_decode(path) or None,
            tls=tuple(_tls_settings(options).items()),
            channel_binding=options.get("channel_binding", "prefer"),
            others=tuple(others),
            load_balance_hosts="disable"
            if options.get("load_balance_hosts", "disable") == "disable"
            else "round-robin",
            target_session_attrs=cast("TargetSessionAttrs", options.get("target_session_attrs", "any")),
        )

    @property
    def hosts(self) -> tuple[str, ...]:
        """All hosts, as an entry of a database has them: with their port where it is not the first one's."""
        return (self.host, *(host if port == self.port else _written(host, port) for host, port in self.others))

    @property
    def socket_path(self) -> PurePosixPath | None:
        """The Unix socket to connect to, or None where the host is reached over TCP."""
        return PurePosixPath(self.host, f".s.PGSQL.{self.port}") if self.host.startswith("/") else None

    def __str__(self) -> str:
        """Return the URL as logs may show it: *** stands for the password."""
        user = quote(self.user or "", safe="")
        credentials = f"{user}:***@" if self.password else f"{user}@" if user else ""
        hosts = ",".join(_written(host, port) for host, port in ((self.host, self.port), *self.others))
        return f"postgresql://{credentials}{hosts}/{quote(self.dbname or '', safe='')}"


def mask(text: str) -> str:
    """Return a URL, well formed or not, with everything that could be a password replaced by ***.

    For error messages: it errs on hiding too much, as a mistyped URL may have its password anywhere.
    """
    if not text:
        return ""
    scheme, separator, rest = text.strip().partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z0-9+.-]*", scheme):
        return "***"
    credentials, at, rest = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        shown_user = user if re.fullmatch(r"[\w.%+~-]*", user) else "***"
        credentials = f"{shown_user}:***" if colon else shown_user
    rest, mark, query = rest.partition("?")
    location, slash, path = rest.partition("/")
    for each in location.split(","):
        host, colon, port = each.rpartition(":")
        if colon and not each.endswith("]") and not re.fullmatch(r"[0-9]{0,5}", port):
            return f"{scheme}://{credentials}{at}{location[: location.index(each)]}{host}:***"
    shown_query = "&".join(_mask_option(option) for option in query.split("&")) if mark else ""
    return f"{scheme}://{credentials}{at}{location}{slash}{path.partition('#')[0]}{mark}{shown_query}"


def _mask_option(option: str) -> str:
    name, equals, _ = option.partition("=")
    if name in ("host", "port", *_WORDS):
        return option
    return f"{name}=***" if equals and name.replace("_", "").isalpha() else "***"


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{quote(host, safe='@')}:{port}"


def _hosts(location: str, options: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return hosts and ports, at least one; options of these names go before the URL's authority, as in libpq."""
    pairs = [_host_and_port(part) for part in location.split(",")]
    hosts = options["host"].split(",") if options.get("host") else [host for host, _ in pairs]
    ports = options["port"].split(",") if options.get("port") else [port for _, port in pairs]
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise ValueError(f"has {len(ports)} ports for {len(hosts)} hosts")
    if not all(hosts):
        raise ValueError("names no host (for a Unix socket: postgresql:///dbname?host=/directory)")
    found = [(host, _port_number(port) if port else DEFAULT_PORT) for host, port in zip(hosts, ports, strict=True)]
    for host, port in found:
        _check_host(host)
        if host.startswith("/") and port != found[0][1]:
            raise ValueError("has a Unix socket with another port than the first host's")
    return found


def _host_and_port(location: str) -> tuple[str, str]:
    if location.startswith("["):
        address, bracket, port = location[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("has an IPv6 address that is not closed by ] and, if need be, :port")
        address = _decode(address)
        try:
            IPv6Address(address)
        except AddressValueError:
            raise ValueError("has something other than an IPv6 address in its brackets") from None
        return address, port[1:]
    if location.count(":") > 1:
        raise ValueError("has an IPv6 address without brackets (write postgresql://[::1]:5432/dbname)")
    host, _, port = location.partition(":")
    return _decode(host), port


def _check_host(host: str) -> None:
    if host.startswith("/"):
        return
    try:
        host.encode("idna")  # as it is looked up
        possible = not re.search(r"[\s/,\x00-\x1f]", host)
    except UnicodeError:
        possible = False
    if not possible:
        raise ValueError("has a host that is neither a name, nor an address, nor a directory beginning with /")


def _port_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("has a port that is not a number from 1 to 65535")
    return int(text)


def _options(query: str) -> dict[str, str]:
    """Return the options that are taken; refuse by name what would be ignored in silence."""
    options: dict[str, str] = {}
    for option in filter(None, query.split("&")):
        name, equals, value = (_decode(part) for part in option.partition("="))
        if name in _WORDS and value not in _WORDS[name]:
            raise ValueError(f"has something as its {name} that is not one of {', '.join(_WORDS[name])}")
        if equals and name in ("host", "port", *_TLS_SETTINGS, *_WORDS):
            options[name] = value
        elif not equals or not name.replace("_", "").isalpha():
            raise ValueError("has something after its ? that is not in the form name=value")
        else:
            raise ValueError(f"has the option {name}, which is not taken: {_INSTEAD.get(name, 'leave it out')}")
    return options


def _tls_settings(options: Mapping[str, str]) -> dict[str, str]:
    """Return what libpq would make of the options, as settings.

    https://www.postgresql.org/docs/current/libpq-ssl.html
    """
    settings = {_TLS_SETTINGS[name]: value for name, value in options.items() if name in _TLS_SETTINGS}
    mode, authorities = options.get("sslmode"), options.get("sslrootcert")
    if authorities == "system":
        if mode not in (None, "verify-full"):
            raise ValueError("has sslrootcert=system, which takes sslmode=verify-full")
        settings |= {"server_tls_sslmode": "verify-full", "server_tls_ca_file": ""}
    elif mode == "require" and authorities:
        settings["server_tls_sslmode"] = "verify-ca"
    return settings


def _decode(text: str) -> str:
    """Undo the percent-encoding."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("has a % without two hexadecimal digits after it (write a plain % as %25)")
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()  # a variable that is not UTF-8 reaches us with surrogates in it
    except UnicodeError:
        raise ValueError("is not UTF-8 throughout") from None
    if "\0" in decoded:
        raise ValueError("has a zero byte in it")
    return decoded
