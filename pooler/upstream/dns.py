"""Questions to the DNS, over aiodns: to the servers that the system names, or those that a file of ours does."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from socket import SOCK_STREAM
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypedDict, TypeVar

if TYPE_CHECKING:
    import aiodns

_T = TypeVar("_T")

_NUMBERS: Final[Mapping[str, Literal["ndots", "timeout", "tries"]]] = {
    "ndots": "ndots",
    "timeout": "timeout",
    "attempts": "tries",
}


class LookupFailedError(Exception):
    """A question has not been answered; `gone` if it has, and there is no such name or it has no address."""

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


class Answer(NamedTuple):
    """What is known of a name."""

    addresses: tuple[str, ...]
    ttl: float
    """Seconds."""


Lookup = Callable[[str, Path | None], Awaitable[Answer]]
"""Looks a name up, by the servers in a file like resolv.conf or the system's. Raises LookupFailedError."""
SerialOf = Callable[[str, Path | None], Awaitable[int]]
"""Returns the serial number of a zone, found in the same way. Raises LookupFailedError."""


class _Arguments(TypedDict, total=False):
    """What aiodns and pycares take."""

    nameservers: list[str]
    domains: list[str]
    flags: int
    ndots: int
    timeout: int
    tries: int
    rotate: bool


async def look_up(name: str, resolv_conf: Path | None) -> Answer:
    """See Lookup. What /etc/hosts knows is not asked for."""
    found = await _ask(resolv_conf, lambda resolver: resolver.getaddrinfo(name, type=SOCK_STREAM))
    addresses = dict.fromkeys(_text(node.addr[0]) for node in found.nodes)
    return Answer(tuple(addresses), min((node.ttl for node in found.nodes), default=0))


async def serial_of(zone: str, resolv_conf: Path | None) -> int:
    """See SerialOf."""
    found = await _ask(resolv_conf, lambda resolver: resolver.query_dns(zone, "SOA"))
    serials = [serial for record in found.answer if (serial := getattr(record.data, "serial", None)) is not None]
    if not serials:
        raise LookupFailedError(f"{zone} is no zone", gone=True)
    return int(serials[0])


async def _ask(resolv_conf: Path | None, question: "Callable[[aiodns.DNSResolver], Awaitable[_T]]") -> _T:
    import aiodns  # noqa: PLC0415 - a pooler of hosts that are given by address has no use for it

    # Where the system has no inotify watches left, it warns past our log that it does without, which does as well.
    logging.getLogger("aiodns").setLevel(logging.ERROR)
    # A resolver for each question, which costs a third of a millisecond. One that stays keeps answers for as long as
    # their TTL says, whatever dns_max_ttl does, and may hang once its servers were away (c-ares issue 1000).
    resolver = aiodns.DNSResolver(**(read_resolv_conf(resolv_conf) if resolv_conf is not None else _Arguments()))
    try:
        return await question(resolver)
    except UnicodeError as error:
        raise LookupFailedError(f"it is no name: {error}", gone=True) from None
    except aiodns.error.DNSError as error:
        number, text = error.args
        gone = number in (aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA, aiodns.error.ARES_EBADNAME)
        raise LookupFailedError(str(text), gone=gone) from None
    finally:
        await resolver.close()


def _text(address: object) -> str:
    return address.decode() if isinstance(address, bytes) else str(address)


def read_resolv_conf(path: Path) -> _Arguments:
    """Return the arguments for a resolver that does as a file says. Raises LookupFailedError.

    By hand, as pycares 5 lets go of the path that it is given before c-ares reads it.
    https://man7.org/linux/man-pages/man5/resolv.conf.5.html
    """
    from pycares import ARES_FLAG_EDNS, ARES_FLAG_NOSEARCH  # noqa: PLC0415 - as above

    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise LookupFailedError(f"can't read resolv_conf {path}: {error.strerror}", gone=False) from None
    servers: list[str] = []
    domains: list[str] = []
    arguments: _Arguments = {}
    for word, *rest in filter(None, map(str.split, lines)):
        if word == "nameserver":
            servers += rest[:1]
        elif word in ("search", "domain"):
            domains = rest
        elif word == "options":
            arguments |= _options(rest)
    # What the file leaves out is not to come from the system's.
    arguments["nameservers"] = servers or ["127.0.0.1"]
    if domains:
        arguments["domains"] = domains
    else:
        arguments["flags"] = ARES_FLAG_EDNS | ARES_FLAG_NOSEARCH
    return arguments


def _options(options: Iterable[str]) -> _Arguments:
    found: _Arguments = {}
    for option in options:
        name, _, value = option.partition(":")
        if name == "rotate":
            found["rotate"] = True
        elif name in _NUMBERS and value.isdecimal():
            found[_NUMBERS[name]] = int(value)
    return found
