"""The rules of an auth_hba_file: who may log in from where, and by which method. The form is that of pg_hba.conf.

Which rule is whose is decided in pooler.access.hba.
https://www.postgresql.org/docs/current/auth-pg-hba-conf.html
"""

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Literal, cast, get_args

from config.records import Pattern, Record, Records, Word

Connection = Literal["local", "host", "hostssl", "hostnossl"]
Method = Literal["trust", "reject", "plain", "md5", "scram-sha-256", "cert", "peer", "passthrough"]
ClientCertificate = Literal["", "verify-ca", "verify-full"]

_METHODS: Final = ("trust", "reject", "password", "md5", "scram-sha-256", "cert", "peer", "passthrough")
_CONNECTIONS: Final = get_args(Connection)


@dataclass(frozen=True, slots=True)
class Names:
    """Databases or users that a rule is for."""

    everything: bool = False
    same: bool = False
    """sameuser: databases that are called like the user."""
    exact: frozenset[str] = frozenset()
    patterns: tuple[Pattern, ...] = ()
    replication: bool = False
    """Physical replication, which is of no database, and in none of the others."""

    def include(self, name: str, user: str) -> bool:
        """Tell whether `name` is one of them, for this user."""
        return (
            self.everything
            or name in self.exact
            or (self.same and name == user)
            or any(pattern.search(name) for pattern in self.patterns)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One record."""

    place: str
    """FILE line N, for messages."""
    connection: Connection
    databases: Names
    users: Names
    network: IPv4Network | IPv6Network | None
    """None is every address."""
    method: Method
    ident_map: str = ""
    client_certificate: ClientCertificate = ""
    """What the client's certificate has to be like, beside what the method asks for."""


@dataclass(slots=True)
class Rules:
    """The rules in their order, and all mistakes; each says where it is, what it is, and what to do."""

    rules: list[Rule] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


def read(path: Path) -> Rules:
    """Read an auth_hba_file and what it includes."""
    records = Records(path)
    found = Rules(mistakes=records.mistakes)
    for record in records.found:
        try:
            found.rules.append(parse(record))
        except ValueError as error:
            found.mistakes.append(f"{record.place} {error}")
    if not found.rules and not found.mistakes:
        found.mistakes.append(f"{str(path)!r} has no rule, so nobody would be let in")
    return found


def parse(record: Record) -> Rule:
    """Read one record. Raises ValueError, which completes "FILE line N ..."."""
    fields = list(record.fields)
    connection = _single(fields.pop(0), "a type of connection")
    if connection not in _CONNECTIONS:
        raise ValueError(f"begins with {connection!r}, which is not one of {', '.join(_CONNECTIONS)}")
    if len(fields) < (3 if connection == "local" else 4):
        raise ValueError(
            "is too short: it takes TYPE DATABASE USER METHOD"
            if connection == "local"
            else "is too short: it takes TYPE DATABASE USER ADDRESS METHOD"
        )
    databases = _names(fields.pop(0), "sameuser")
    users = _names(fields.pop(0))
    network = None if connection == "local" else _network(fields)
    if not fields:
        raise ValueError("names no method after the address")
    method = _method(_single(fields.pop(0), "a method"), connection)
    options = _options(fields, method, connection)
    return Rule(
        record.place,
        cast("Connection", connection),
        databases,
        users,
        network,
        method,
        options.get("map", ""),
        cast("ClientCertificate", options.get("clientcert", "")),
    )


def _single(words: list[Word], what: str) -> str:
    if len(words) != 1:
        raise ValueError(f"has a list where it takes {what}")
    return words[0].text


def _names(words: list[Word], same: str = "") -> Names:
    exact: set[str] = set()
    patterns: list[Pattern] = []
    for word in words:
        if word.keyword in ("all", same) and word.keyword:
            continue
        if word.keyword in ("samerole", "samegroup") or word.keyword.startswith("+"):
            raise ValueError(f"has {word.text}, but who is a member of what, pgfunnel does not know: name the users")
        if word.keyword == "replication" and same:
            continue
        if word.text.startswith("/"):
            patterns.append(Pattern.parse(word.text[1:]))
        else:
            exact.add(word.text)
    keywords = {word.keyword for word in words}
    return Names(
        "all" in keywords,
        bool(same) and same in keywords,
        frozenset(exact),
        tuple(patterns),
        replication=bool(same) and "replication" in keywords,
    )


def _network(fields: list[list[Word]]) -> IPv4Network | IPv6Network | None:
    """Take the address, and a mask in a field of its own, off the fields."""
    words = fields.pop(0)
    address = _single(words, "an address")
    if words[0].keyword == "all":
        return None
    if words[0].keyword in ("samehost", "samenet"):
        raise ValueError(f"has {address}, which pgfunnel does not know: write the addresses as 10.0.0.0/8")
    if not re.fullmatch(r"[0-9a-fA-F:.]+(/[0-9]+)?", address) or not re.search(r"[.:]", address):
        raise ValueError(f"has {address!r} for an address; names of hosts are not looked up: write it as 10.0.0.0/8")
    if "/" not in address:
        mask = _single(fields.pop(0), "a mask") if fields else ""
        if not re.fullmatch(r"[0-9a-fA-F:.]*[.:][0-9a-fA-F:.]*", mask):
            raise ValueError(f"has the address {address} without a mask: write it as {address}/32, or its like")
        address = f"{address}/{_prefix(address, mask)}"
    try:
        network = ip_network(address, strict=False)
    except ValueError:
        raise ValueError(f"has {address!r}, which is no address with a mask") from None
    if isinstance(network, IPv6Network) and (mapped := network.network_address.ipv4_mapped) and network.prefixlen >= 96:
        return IPv4Network((mapped, network.prefixlen - 96))  # clients are judged by their IPv4 address, too
    return network


def _prefix(address: str, mask: str) -> int:
    """Return how many bits a mask such as 255.255.0.0 has set; IPv6's are written likewise."""
    try:
        size = ip_network(mask).max_prefixlen
        bits = int(ip_network(mask).network_address)
    except ValueError:
        raise ValueError(f"has {mask!r} after its address, which is no mask") from None
    ones = bits.bit_count()
    if bits != ((1 << ones) - 1) << (size - ones) or (":" in address) != (":" in mask):
        raise ValueError(f"has {mask!r} after its address, which is no mask for it")
    return ones


def _method(name: str, connection: str) -> Method:
    if name == "ident" and connection == "local":
        name = "peer"  # as in Postgres
    if name not in _METHODS and name != "plain":
        raise ValueError(f"has the method {name!r}, which is not one of {', '.join(_METHODS)}")
    if name == "peer" and connection != "local":
        raise ValueError("has the method peer, which is for Unix sockets: begin it with local")
    if name == "cert" and connection != "hostssl":
        raise ValueError("has the method cert, which takes TLS: begin it with hostssl")
    return cast("Method", "plain" if name == "password" else name)


def _options(fields: list[list[Word]], method: str, connection: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for words in fields:
        name, equals, value = _single(words, "an option").partition("=")
        if not equals:
            raise ValueError(f"has {name!r} after its method, where it takes options as name=value")
        taken = (name == "map" and method in ("cert", "peer")) or (
            name == "clientcert" and connection == "hostssl" and value in ("verify-ca", "verify-full")
        )
        if taken:
            options[name] = value
        elif (name, value) != ("clientname", "CN"):
            raise ValueError(
                f"has the option {name}={value}, which is not taken with {connection} and {method}: there are map=NAME "
                "(cert, peer) and clientcert=verify-ca or verify-full (hostssl)"
            )
    return options
