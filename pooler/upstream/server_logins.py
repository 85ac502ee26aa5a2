"""Logging in at Postgres for a pool: with which credential, at which host, and what runs before it is lent.

What a failure means is the affair of pooler.upstream.opening.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from config.settings import Settings
from config.terms import Terms
from pooler.credentials.brought import MOST_EACH
from pooler.credentials.credential import Credential
from pooler.credentials.vault import Vault
from pooler.current import Current
from pooler.log import Log
from pooler.pool import Pool
from pooler.server import ServerSession
from pooler.upstream.connect import Login, LoginRefusedError
from pooler.upstream.connect_query import run_connect_query
from pooler.upstream.dial import ServerTls
from pooler.upstream.hosts import Hosts
from pooler.upstream.place import Place
from pooler.upstream.shares import Shares

_AUTHENTICATION_FAILED: Final = frozenset(("28000", "28P01"))
"""SQLSTATEs of a refusal that may be over with another password."""
_NO_PARAMETERS: Final[Mapping[str, str]] = MappingProxyType({})


class ServerLogins:
    """Logs in. All of it raises ConnectFailedError where it may work later, LoginRefusedError where it won't."""

    def __init__(
        self, current: Current, vault: Vault, tls: ServerTls | None, hosts: Hosts, shares: Shares, log: Log
    ) -> None:
        self._current = current
        self._vault = vault
        self.tls = tls
        self._hosts = hosts
        self._shares = shares
        self._log = log
        self.resized: Callable[[list[Pool[ServerSession]]], None] = lambda _pools: None
        """Called with the pools whose size is a share of what a server has, once that is another."""

    @property
    def _settings(self) -> Settings:
        return self._current.settings

    async def log_in(self, place: Place, parameters: Mapping[str, str] = _NO_PARAMETERS) -> Login:
        """Log in with what the vault knows; if that is refused, with what it then knows instead.

        Raises SourceFailedError, too.
        """
        if place.password is not None:
            return await self.log_in_with(place.terms, place.password, parameters)
        user, database = place.terms.user, place.terms.database
        credential = await self._vault.fetch(user, database)
        tried = [credential]
        while True:
            try:
                return await self.log_in_with(place.terms, credential, parameters)
            except LoginRefusedError as refusal:
                # What is refused at the door is not refused for its password.
                if refusal.at_the_door or refusal.error.sqlstate not in _AUTHENTICATION_FAILED:
                    raise
                credential = await self._vault.fetch(user, database, refused=credential)
                if credential in tried or len(tried) > MOST_EACH:
                    raise
                tried.append(credential)

    async def log_in_with(
        self, terms: Terms, credential: Credential | None, parameters: Mapping[str, str] = _NO_PARAMETERS
    ) -> Login:
        """Log in with this credential."""
        endpoint = terms.endpoint
        login = await self._hosts.log_in(endpoint, credential, self.tls, {**dict(endpoint.parameters), **parameters})
        if self._shares.used and "replication" not in parameters:
            self.resized(await self._shares.read(login, self._settings.server_connect_timeout))
        return login

    async def make_ready(self, terms: Terms, login: Login) -> Login:
        """Run connect_query. Raises ConnectFailedError."""
        sql = terms.endpoint.connect_query
        if not sql:
            return login
        login = await run_connect_query(login, terms.user, sql, self._settings.server_connect_timeout)
        if login.objection is not None and self._settings.log_pooler_errors:
            self._log.warning(
                "connect_query_failed",
                user=terms.user,
                database=terms.database,
                sqlstate=login.objection.sqlstate,
                error=login.objection.message,
                advice="the connection is used all the same, as in PgBouncer",
            )
        return login
