"""What the pooler knows to log in with at Postgres, for each user: listed, asked for, or brought by clients.

It decides what counts and when a source is asked again. Asking is the sources' affair, answering Postgres connect's.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from math import inf

from pydantic import SecretStr

from pooler.credentials.brought import Brought
from pooler.credentials.credential import Credential, Password, credential_of
from pooler.credentials.sourced import SourcedPasswords


class Vault:
    """Credentials for logins at Postgres."""

    def __init__(
        self,
        secrets: Mapping[str, SecretStr],
        sourced: SourcedPasswords | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`secrets` are listed by user, in the forms of an auth_file. Raises ValueError, which names the user."""
        self._sourced = sourced
        self.brought = Brought(now)
        """What clients have brought, and proven."""
        self._listed: Mapping[str, Credential] = {}
        self.reload(secrets)

    def reload(self, secrets: Mapping[str, SecretStr]) -> None:
        """Take a new list. Raises ValueError for what is malformed in it; then the old one stays."""
        listed: dict[str, Credential] = {}
        for user, secret in secrets.items():
            try:
                credential = credential_of(secret.get_secret_value())
            except ValueError as error:
                raise ValueError(f'the secret of user "{user}" is a {error}') from None
            if credential is not None:
                # A password that has not changed stays the object it was, with the keys that were derived from it.
                known = self._listed.get(user)
                listed[user] = known if known is not None and known == credential else credential
        self._listed = listed
        if self._sourced is not None:
            self._sourced.forget()

    def take_source(self, sourced: SourcedPasswords | None) -> None:
        """Ask another source from now on."""
        self._sourced = sourced

    def learn(self, user: str, database: str, credential: Credential, until: float = inf) -> None:
        """Keep what a client has brought and proven, beside what others have, until a time of `now`."""
        if self._listed.get(user) != credential:
            self.brought.keep(user, database, credential, until)

    def forget(self, user: str, database: str) -> None:
        """Keep no longer what clients have brought."""
        self.brought.drop(user, database)

    def credential(self, user: str, database: str, refused: Credential | None = None) -> Credential | None:
        """Return the best that is at hand without asking anybody, and is not what was `refused`."""
        return next((known for known in self._known(user, database) if known != refused), None)

    async def fetch(self, user: str, database: str, refused: Credential | None = None) -> Credential | None:
        """Return what to log in with; None if nothing is known, which suffices where Postgres asks for nothing.

        If Postgres has just `refused` what this returned, what it returns now may be something else, or the same.
        Raises SourceFailedError.
        """
        sourced = self._sourced
        if sourced is not None and sourced.serve(user, listed=user in self._listed):
            return await sourced.password(user, refused)
        if refused is not None:
            self.brought.drop(user, database, refused)
        return self.credential(user, database, refused) or refused

    def _known(self, user: str, database: str) -> Iterator[Credential]:
        listed = self._listed.get(user)
        if isinstance(listed, Password):
            yield listed
        yield from self.brought.of(user, database)
        if listed is not None and not isinstance(listed, Password):
            yield listed  # an md5 hash or a SCRAM secret answers less than what a client brings
