"""The users and their secrets, and what is derived from these; also what stands in for a user who does not exist.

https://www.postgresql.org/docs/current/auth-password.html: a secret is a password, an md5 hash or a SCRAM secret.
"""

import hmac
import os
from collections import Counter
from collections.abc import Mapping
from typing import Final

from pydantic import SecretStr

from protocol.scram import ScramSecret, is_md5_secret, is_scram_secret

_SALT_SIZE: Final = 16
_MOST_DERIVED: Final = 10_000
_MOST_COUNTED: Final = 100
"""Numbers of iterations: whoever has a password may have Postgres store it with one of its own choice."""


class Secrets:
    """Secrets by user, as text. One that is empty is a user without a password: known, but no proof leads there."""

    def __init__(self, users: Mapping[str, SecretStr], scram_iterations: int) -> None:
        """Raises ValueError for a malformed SCRAM secret, naming its user."""
        self._scram: dict[tuple[str, str], ScramSecret] = {}
        # What an unknown user is asked must be the same each time, and not to be foreseen.
        self._mock_key = os.urandom(32)
        self.reload(users, scram_iterations)

    def reload(self, users: Mapping[str, SecretStr], scram_iterations: int) -> None:
        """Take another list. Raises ValueError for a malformed SCRAM secret; then the old one stays."""
        texts = {user: secret.get_secret_value() for user, secret in users.items()}
        scram: dict[tuple[str, str], ScramSecret] = {}
        for user, secret in texts.items():
            if is_scram_secret(secret):
                try:
                    scram[user, secret] = ScramSecret.parse(secret)
                except ValueError as error:
                    raise ValueError(f'the secret of user "{user}" is a {error}') from None
        kept = {key: secret for key, secret in self._scram.items() if texts.get(key[0]) == key[1]}
        self._iterations = scram_iterations
        self._users = texts
        self._scram = kept | scram
        # Who does not exist must not stand out by the number of iterations either.
        self._stored = Counter(secret.iterations for secret in scram.values())
        passwords = (text for text in texts.values() if text and not is_md5_secret(text) and not is_scram_secret(text))
        self._asked = self._stored + Counter({self._iterations: sum(1 for _ in passwords)})
        self.any_scram = bool(scram)
        """To check a password may take a derivation; so it has to where there is nothing to check it against."""
        self.scram_is_usual = 2 * len(scram) > len(texts)
        """Who does not exist is asked for SCRAM where there is a choice."""

    def seen(self, user: str, secret: str) -> None:
        """Note a secret that was found elsewhere: who does not exist must not stand out among those who do."""
        self.scram_is_usual = is_scram_secret(secret)
        self.any_scram = self.any_scram or self.scram_is_usual
        if not is_md5_secret(secret):
            iterations = self.challenge(user, secret).iterations
            for counted in (self._asked, self._stored) if self.scram_is_usual else (self._asked,):
                if iterations in counted or len(counted) < _MOST_COUNTED:
                    counted[iterations] += 1

    def find(self, user: str) -> str | None:
        """Return the secret of a user of the list, None if there is no such user."""
        return self._users.get(user)

    def challenge(self, user: str, secret: str | None) -> ScramSecret:
        """Return what SCRAM asks a user by who has this secret, or none; its keys may be a mock's.

        Nothing is derived for it, so that nobody is asked later for being known.
        """
        if secret and is_scram_secret(secret):
            return self.scram(user, secret)
        mock = self.mock(user)
        return mock._replace(iterations=self._iterations) if secret and not is_md5_secret(secret) else mock

    def scram(self, user: str, secret: str | None) -> ScramSecret:
        """Return what SCRAM takes for this secret; a mock, by which nobody gets in, where there is none.

        Derives it from a password the first time (1 ms of CPU).
        """
        if not secret or is_md5_secret(secret):
            return self.mock(user)
        scram = self._scram.get((user, secret))
        if scram is None:
            if is_scram_secret(secret):
                try:
                    scram = ScramSecret.parse(secret)
                except ValueError:
                    return self.mock(user)
            else:
                scram = ScramSecret.of_password(secret, self.mock(user).salt, self._iterations)
            if len(self._scram) >= _MOST_DERIVED:
                self._scram.clear()
            self._scram[user, secret] = scram
        return scram

    def mock(self, user: str) -> ScramSecret:
        """Return what a user without a secret is asked by, looking like any other."""
        mock = hmac.digest(self._mock_key, user.encode("utf-8", "surrogateescape"), "sha256")
        return ScramSecret(self._usual(self._asked), mock[:_SALT_SIZE], mock, mock)

    def stored_mock(self, user: str) -> ScramSecret:
        """Return what takes the same work to check a password against as a SCRAM secret does."""
        return self.mock(user)._replace(iterations=self._usual(self._stored))

    def _usual(self, counted: Counter[int]) -> int:
        return max(counted, key=counted.__getitem__, default=self._iterations)
