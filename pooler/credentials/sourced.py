"""The passwords that a source has given: how long one is good, and when it is asked again.

However many logins want one at the same time, the source is asked once.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from config.password_source import (
    FromCommand,
    FromEnvironment,
    FromFile,
    FromRdsIam,
    FromSecretsManager,
    PasswordSource,
)
from config.settings import Settings
from pooler.credentials.aws import RdsIam, SecretsManager
from pooler.credentials.credential import Credential, Password
from pooler.credentials.local import CommandSource, EnvironmentSource, FileSource
from pooler.credentials.source import Source, SourceFailedError

ASK_S: Final = 10.0
"""How long a source may take to answer."""
PAUSE_S: Final = 5.0
"""A source is asked on account of a refusal no more often than this: logins that fail must not become a flood of calls
to somebody else's service."""
MOST_USERS: Final = 1_000
"""Passwords that are kept; where the URL names no user, there may be one for whoever comes."""


class _Given:
    """What the source has said for one user."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.password: Password | None = None
        self.at = -inf
        self.refused_at = -inf
        """When it was last asked on account of a refusal."""


class SourcedPasswords:
    """The passwords of one source."""

    def __init__(self, named: PasswordSource, source: Source, only_user: str | None, now: Callable[[], float]) -> None:
        """`only_user` is the user whose password it has; None = it is asked for whoever has no secret listed."""
        self._named = named
        self._source = source
        self._only_user = only_user
        self._now = now
        self._given: dict[str, _Given] = {}

    def serve(self, user: str, *, listed: bool) -> bool:
        """Tell whether it is this source that has the user's password."""
        return user == self._only_user if self._only_user is not None else not listed

    def forget(self) -> None:
        """Ask for all of them anew."""
        self._given.clear()

    async def password(self, user: str, refused: Credential | None) -> Password:
        """Return a user's password: another than `refused`, if the source has one. Raises SourceFailedError."""
        given = self._given.get(user)
        if given is None:
            if len(self._given) >= MOST_USERS:
                del self._given[next(iter(self._given))]
            given = self._given[user] = _Given()
        async with given.lock:
            password = given.password
            now = self._now()
            if password is not None and now - given.at < self._source.keeps_s:
                if password != refused or now - given.refused_at < PAUSE_S:
                    return password
                given.refused_at = now
            text = await self._ask(user)
            if password is None or password.text != text:  # else it has its SCRAM keys already
                password = given.password = Password(text)
            given.at = now
            return password

    async def _ask(self, user: str) -> str:
        try:
            async with asyncio.timeout(ASK_S):
                return await self._source.ask(user)
        except TimeoutError:
            raise SourceFailedError(self._named, f"it has not answered within {ASK_S:g} s") from None


def sourced_passwords(settings: Settings, now: Callable[[], float]) -> SourcedPasswords | None:
    """Return the passwords that server_password_source gives, if it is set."""
    upstream, named = settings.upstream, settings.server_password_source
    if named is None:
        return None
    host, port, user = (upstream.host, upstream.port, upstream.user) if upstream is not None else ("", 0, None)
    return SourcedPasswords(named, source_for(named, host, port), user, now)


def source_for(named: PasswordSource, host: str, port: int, environ: Mapping[str, str] = os.environ) -> Source:
    """Return what asks at a source for passwords of the Postgres at `host` and `port`."""
    match named:
        case FromEnvironment():
            return EnvironmentSource(named, environ)
        case FromFile():
            return FileSource(named)
        case FromCommand():
            return CommandSource(named)
        case FromSecretsManager():
            return SecretsManager(named)
        case FromRdsIam():
            return RdsIam(named, host, port)
