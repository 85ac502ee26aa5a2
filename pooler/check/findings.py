"""What a look at a database finds, and what is wrong when all of them are seen together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from config.percent import Percent
from config.terms import Terms
from pooler.upstream.address import Address

_ROLES: Final = {"primary": "primary", "read-write": "primary", "standby": "standby", "read-only": "standby"}
"""What one of the hosts has to be, by target_session_attrs."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One host of one database, and what holds there."""

    database: str
    """As clients name it; * for those without an entry."""
    host: Address
    terms: Terms


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a visit."""

    visit: Visit
    failure: str = ""
    """Why there was no login; empty: there was."""
    warning: str = ""
    version: str = ""
    max_connections: int = 0
    available: int = 0
    """How many of them are not reserved."""
    role: str = ""
    tls: str = ""
    login_s: float = 0.0
    query_s: float = 0.0


def failures(findings: Iterable[Finding]) -> Iterator[str]:
    """Say which databases can't be used as they are set, although there was a login."""
    seen: dict[str, tuple[str, list[Finding]]] = {}
    for finding in findings:
        attrs = finding.visit.terms.endpoint.target_session_attrs
        seen.setdefault(finding.visit.database, (attrs, []))[1].append(finding)
    for database, (attrs, hosts) in seen.items():
        found = [host.role for host in hosts if not host.failure]
        if found and _ROLES.get(attrs, found[0]) not in found:
            yield f"{database}: target_session_attrs is {attrs}, and no host is a {_ROLES[attrs]}"


def warnings(findings: Iterable[Finding]) -> Iterator[str]:
    """Say where pools may want more connections than a server has for them."""
    servers: dict[tuple[str, int], list[Finding]] = {}
    for finding in findings:
        if finding.warning:
            yield f"{finding.visit.database}: {finding.warning}"
        if not finding.failure:
            servers.setdefault((finding.visit.host.host, finding.visit.host.port), []).append(finding)
    for there in servers.values():
        available = max(finding.available for finding in there)
        sizes = [_most(finding.visit.terms) for finding in there]
        if 0 in sizes:
            yield f"{there[0].visit.host} has {available} connections to give, and a pool has no limit"
        elif sum(sizes) > available:
            names = ", ".join(finding.visit.database for finding in there)
            yield (
                f"{there[0].visit.host} has {available} connections to give, and the pools of {names} may open "
                f"{sum(sizes)}, with one user each"
            )


def _most(terms: Terms) -> int:
    """Return how many connections one pool may open; 0 = no limit. A share never asks for too many."""
    if isinstance(terms.pool_size, Percent) or isinstance(terms.max_db_connections, Percent):
        return 1
    pool = terms.pool_size + terms.reserve_pool_size if terms.pool_size else 0
    limits = [limit for limit in (pool, terms.max_db_connections, terms.max_user_connections) if limit]
    return min(limits, default=0)


_COLUMNS: Final = ("database", "host", "user", "version", "max_connections", "role", "TLS", "login", "query")


def table(findings: Iterable[Finding]) -> str:
    """Return a table of all that was found."""
    rows = [_COLUMNS, *(_row(finding) for finding in findings)]
    # What has failed has a text in the last column, which makes none of the others wider.
    widths = [max(len(row[column]) for row in rows if len(row) > column + 1) for column in range(len(_COLUMNS) - 1)]
    lines = ("  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def _row(finding: Finding) -> tuple[str, ...]:
    visit = finding.visit
    start = visit.database, str(visit.host), visit.terms.user
    if finding.failure:
        return (*start, f"FAILED: {finding.failure}")
    return (
        *start,
        finding.version,
        f"{finding.max_connections} ({finding.available} to give)",
        finding.role,
        finding.tls,
        f"{finding.login_s * 1000:.1f} ms",
        f"{finding.query_s * 1000:.1f} ms",
    )
