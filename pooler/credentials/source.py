"""What asking for a password means, whoever is asked."""

from typing import Protocol

from config.password_source import PasswordSource


class SourceFailedError(Exception):
    """There is no password; the message says of which source, why, and what to do. It has no secret in it."""

    def __init__(self, source: PasswordSource, why: str) -> None:
        super().__init__(f"server_password_source {source}: {why}")


class Source(Protocol):
    """Where a password is asked for."""

    keeps_s: float
    """How long an answer is good, in seconds, unless Postgres refuses it: 0 = it costs nothing to ask each time."""

    async def ask(self, user: str) -> str:
        """Return the password. Raises SourceFailedError."""
