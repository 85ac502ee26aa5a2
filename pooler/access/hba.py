"""Which rule of the auth_hba_file is a candidate's: the first that matches decides, and no other is looked at."""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from config.hba import Rule
from pooler.access.candidate import Candidate
from pooler.reasons import Ending, Reason
from protocol.startup import Replication

_OVER_TCP: Final = {True: ("host", "hostssl"), False: ("host", "hostnossl")}
"""The types of connection that match, by whether there is TLS."""
_LONGEST_NAME: Final = 63
"""Bytes; NAMEDATALEN in PostgreSQL, less one."""


def find_rule(rules: Sequence[Rule], candidate: Candidate) -> Rule | None:
    """Return the candidate's rule, None if there is none for it."""
    user, database = candidate.startup.user, candidate.startup.database
    address = address_of(candidate)
    if (address is None and not is_local(candidate)) or any(_is_cut(name) for name in (user, database)):
        return None
    physical = candidate.startup.replication is Replication.PHYSICAL
    connections = ("local",) if address is None else _OVER_TCP[candidate.tls is not None]
    for rule in rules:
        if (
            rule.connection in connections
            and (rule.databases.replication if physical else rule.databases.include(database, user))
            and rule.users.include(user, user)
            and (rule.network is None or address in rule.network)
        ):
            return rule
    return None


def _is_cut(name: str) -> bool:
    """Tell whether Postgres cuts a name to one that rules may be for."""
    return len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME


def is_local(candidate: Candidate) -> bool:
    """Tell whether a candidate has come by a Unix socket.

    To have no address is not enough: so does who has reset a TCP connection before it was accepted, and what was sent
    ahead of that can still be read.
    """
    sock = candidate.transport.get_extra_info("socket")
    return sock is not None and sock.family == socket.AF_UNIX


def address_of(candidate: Candidate) -> IPv4Address | IPv6Address | None:
    """Return where a candidate comes from, if that has an address and it is known."""
    peer = candidate.transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return None
    address = ip_address(peer[0].partition("%")[0])  # fe80::1%eth0
    # What comes over IPv4 to a socket that listens on both.
    return getattr(address, "ipv4_mapped", None) or address


def refusal(candidate: Candidate, rule: Rule | None) -> Ending:
    """Return what is told to whom no rule, or a rule that rejects, is for: in Postgres's words."""
    address = address_of(candidate)
    where = f'host "{address}"' if address is not None else "a Unix socket" if is_local(candidate) else "a host"
    encryption = "SSL encryption" if candidate.tls is not None else "no encryption"
    startup = candidate.startup
    if startup.replication is Replication.PHYSICAL:
        what = "no pg_hba.conf entry for replication connection from"
        rejected, database = "replication connection", ""
    else:
        what = "no pg_hba.conf entry for"
        rejected, database = "connection", f'database "{startup.database}", '
    if rule is not None:
        what = f"pg_hba.conf rejects {rejected} for"
    return Ending(
        Reason.LOGIN_REFUSED,
        "28000",
        f'{what} {where}, user "{startup.user}", {database}{encryption}',
        why="no rule matches" if rule is None else "a rule rejects it",
    )
