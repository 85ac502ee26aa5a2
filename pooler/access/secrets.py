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


class Secrets:
    """Secrets by user, as text. One that is empty is a user without a password: known, but no proof leads there."""

    def __init__(self, users: Mapping[str, SecretStr], scram_iterations: int) -> None:
        """Raises ValueError for a malformed SCRAM secret, naming its user."""
        self._users = {user: secret.get_secret_value() for user, secret in users.items()}
        self._scram: dict[tuple[str, str], ScramSecret] = {}
        # What an unknown user is asked must be the same each time, and not to be foreseen.
        self._mock_key = os.urandom(32)
        iterations: Counter[int] = Counter()
        for user, secret in self._users.items():
            if is_scram_secret(secret):
                try:
                    parsed = self._scram[user, secret] = ScramSecret.parse(secret)
                except ValueError as error:
                    raise ValueError(f'the secret of user "{user}" is a {error}') from None
                iterations[parsed.iterations] += 1
        self._iterations = scram_iterations
        # It must not stand out among the others either.
        self._mock_iterations = iterations.most_common(1)[0][0] if iterations else scram_iterations
        self.any_scram = bool(iterations)
        """To check a password may take a derivation; so it has to where there is nothing to check it against."""

    def find(self, user: str) -> str | None:
        """Return the secret of a user of the list, None if there is no such user."""
        return self._users.get(user)

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
                scram = ScramSecret.of_password(secret, os.urandom(_SALT_SIZE), self._iterations)
            if len(self._scram) >= _MOST_DERIVED:
                self._scram.clear()
            self._scram[user, secret] = scram
        return scram

    def mock(self, user: str) -> ScramSecret:
        """Return what a user without a secret is asked by, looking like any other."""
        mock = hmac.digest(self._mock_key, user.encode("utf-8", "surrogateescape"), "sha256")
        return ScramSecret(self._mock_iterations, mock[:_SALT_SIZE], mock, mock)
