"""Hosts as they are written in lists: a name, an IP address or a Unix socket, and maybe a port of its own."""

import re
from typing import Literal

LoadBalanceHosts = Literal["round-robin", "disable"]
TargetSessionAttrs = Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]


def is_local(host: str) -> bool:
    """Tell whether it is a Unix socket: its directory, or @ and the name of an abstract one."""
    return host.startswith(("/", "@"))


def host_and_port(text: str, port: int) -> tuple[str, int]:
    """Return host and port of name, name:port, an IP address, [address]:port or a socket; `port` if none is given.

    Raises ValueError.
    """
    if is_local(text):
        return text, port
    host, own = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("has an IPv6 address that is not closed by ] and, if need be, :port")
        own = rest[1:]
    elif text.count(":") == 1:
        host, _, own = text.partition(":")
    if own and not (re.fullmatch(r"[0-9]{1,5}", own) and 1 <= int(own) <= 65535):
        raise ValueError("has a port that is not a number from 1 to 65535")
    return host, int(own) if own else port
