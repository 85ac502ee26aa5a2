"""Visits: logs in at each host of each database, as the pooler would, and asks what it is."""

import asyncio
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from config.databases import FALLBACK
from config.hosts import host_and_port
from config.load import Loaded
from config.terms import entry_of, terms_for
from pooler.check.findings import Finding, Visit
from pooler.credentials.credential import Credential, Password, credential_of
from pooler.credentials.source import SourceFailedError
from pooler.credentials.sourced import sourced_passwords
from pooler.credentials.vault import Vault
from pooler.current import Current
from pooler.log import make_log
from pooler.tls.connection import encryption
from pooler.tls.watched import watch_server_context
from pooler.upstream.address import Address
from pooler.upstream.ask import ask
from pooler.upstream.connect import Login, LoginRefusedError, leave
from pooler.upstream.connect_query import run_connect_query
from pooler.upstream.dial import ConnectFailedError, ServerTls
from pooler.upstream.hosts import Hosts
from pooler.upstream.resolver import Resolver

LONGEST_S: Final = 30.0
"""How long a visit may take, whatever server_connect_timeout says."""
AT_ONCE: Final = 8
"""How many are under way at the same time."""

_USUAL_DATABASE: Final = "postgres"
"""Where to look if any may be asked for."""
_NO_SUCH_DATABASE: Final = "3D000"
_QUESTION: Final = (
    "SELECT pg_catalog.current_setting('max_connections'),"
    " pg_catalog.current_setting('superuser_reserved_connections'),"
    " coalesce(pg_catalog.current_setting('reserved_connections', true), '0'),"
    " CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby' ELSE 'primary' END"
)
_VERIFIED: Final = {"verify-full": "verified", "verify-ca": "CA verified"}


class Visits:
    """All that are to be made. Raises ValueError for what can't be used."""

    def __init__(self, loaded: Loaded, now: Callable[[], float] = time.perf_counter) -> None:
        settings = loaded.settings
        self._loaded = loaded
        self._now = now
        log = make_log("text", "error", io.StringIO())  # what it would say is in the findings
        self._vault = Vault(loaded.credentials, sourced_passwords(settings, now), now)
        current = Current(loaded)
        self._hosts = Hosts(current, Resolver(current, now, log), now, log)
        self._tls: ServerTls | None = None
        if settings.server_tls_sslmode != "disable":
            direct = settings.server_tls_sslnegotiation == "direct"
            self._tls = ServerTls(settings.server_tls_sslmode, watch_server_context(settings, log), direct=direct)
        self.unvisited: list[str] = []
        """Why some databases can't be looked at."""

    async def make(self) -> list[Finding]:
        """Make them, and return what came of each, in the order of the entries."""
        places = asyncio.Semaphore(AT_ONCE)

        async def make(visit: Visit) -> Finding:
            async with places:
                return await self._make(visit)

        return await asyncio.gather(*map(make, self._planned()))

    def _planned(self) -> Iterator[Visit]:
        settings, directory = self._loaded.settings, self._loaded.directory
        names = list(directory.databases)
        if settings.upstream is not None and FALLBACK not in names:
            names.append(FALLBACK)
        for name in names:
            user = self._user_for(name)
            if user is None:
                self.unvisited.append(
                    f"{name}: not tried, as no user is known to log in with; clients bring their own passwords"
                )
                continue
            upstream = settings.upstream
            elsewhere = (upstream.dbname or upstream.user) if upstream is not None and name == FALLBACK else None
            database = (elsewhere or settings.auth_dbname or _USUAL_DATABASE) if name == FALLBACK else name
            terms = terms_for(settings, directory, database, user)
            if terms is None:
                continue
            for host in terms.endpoint.hosts:
                address = Address(*host_and_port(host, terms.endpoint.port))
                yield Visit(name, address, terms)

    def _user_for(self, name: str) -> str | None:
        """Return whom to log in as: whoever is named for it, else one whose password is listed."""
        settings, directory = self._loaded.settings, self._loaded.directory
        entry = entry_of(settings, directory, name)
        named = [entry.user if entry is not None else None]
        named += [settings.upstream.user if settings.upstream is not None else None]
        named += [entry.auth_user if entry is not None else None, settings.auth_user]
        return next(filter(None, named), None) or next(self._listed(), None)

    def _listed(self) -> Iterator[str]:
        for user, secret in self._loaded.credentials.items():
            if isinstance(credential_of(secret.get_secret_value()), Password):
                yield user

    async def _make(self, visit: Visit) -> Finding:
        try:
            async with asyncio.timeout(LONGEST_S):
                return await self._look(visit)
        except TimeoutError:
            return Finding(visit, f"it took more than {LONGEST_S:g} s")
        except (ConnectFailedError, SourceFailedError, LoginRefusedError) as failure:
            return Finding(visit, str(failure))

    async def _look(self, visit: Visit) -> Finding:
        """Raises ConnectFailedError, SourceFailedError or LoginRefusedError."""
        endpoint = visit.terms.endpoint
        alone = replace(endpoint, hosts=(_written(visit.host),), port=visit.host.port, target_session_attrs="any")
        password = endpoint.password
        credential: Credential | None
        if password is not None:
            credential = Password(password.get_secret_value())
        else:
            credential = await self._vault.fetch(endpoint.user, visit.terms.database)
        began = self._now()
        login = await self._hosts.log_in(alone, credential, self._tls, dict(endpoint.parameters))
        login_s = self._now() - began
        try:
            return await self._ask(visit, login, login_s)
        finally:
            leave(login)

    async def _ask(self, visit: Visit, login: Login, login_s: float) -> Finding:
        settings = self._loaded.settings
        timeout_s = settings.server_connect_timeout
        rows = await ask(login, _QUESTION, timeout_s)
        if [len(row) for row in rows] != [4] or not all(map(str.isdecimal, rows[0][:3])):
            return Finding(visit, "it lets us in, and does not answer as Postgres does")
        most, *reserved = map(int, rows[0][:3])
        began = self._now()
        await ask(login, "SELECT 1", timeout_s)
        query_s = self._now() - began
        warning = ""
        if visit.terms.endpoint.connect_query:
            login = await run_connect_query(login, visit.terms.user, visit.terms.endpoint.connect_query, timeout_s)
            warning = f"connect_query: {login.objection}" if login.objection is not None else ""
        found = encryption(login.transport)
        checked = _VERIFIED.get(settings.server_tls_sslmode, "not verified")
        return Finding(
            replace(visit, host=login.peer),
            warning=warning,
            version=login.parameters.get("server_version", "?"),
            max_connections=most,
            available=most - sum(reserved),
            role=rows[0][3],
            tls=f"{found['tls']}, {found['cipher']}, {checked}" if found else "none",
            login_s=login_s,
            query_s=query_s,
        )


def _written(host: Address) -> str:
    return f"[{host.host}]" if ":" in host.host and not host.local else host.host
