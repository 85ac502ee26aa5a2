"""The clients of the console: who is there, who may be, and what they have done."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pooler.figures.statistics import Totals

if TYPE_CHECKING:
    from pooler.admin.session import ConsoleSession


class Consoles:
    """Those that are logged in."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, ConsoleSession] = {}
        """By their cancel keys."""
        self.logins = 0
        self._commands = 0
        """Of those that have gone."""

    def __iter__(self) -> "Iterator[ConsoleSession]":
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def joined(self, session: "ConsoleSession") -> None:
        """One more."""
        self.logins += 1
        self._sessions[session.key] = session

    def left(self, session: "ConsoleSession") -> None:
        """One less."""
        if self._sessions.pop(session.key, None) is not None:
            self._commands += session.commands

    def find(self, key: bytes) -> "ConsoleSession | None":
        """Return the one with this cancel key."""
        return self._sessions.get(key)

    @property
    def totals(self) -> Totals:
        """What the console has done, as SHOW STATS has it: each command is a transaction of one query."""
        commands = self._commands + sum(session.commands for session in self)
        return Totals(xact_count=commands, query_count=commands, client_login_count=self.logins)
