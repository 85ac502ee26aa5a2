"""The databases as clients know them: those with an entry, and those that `*` stands for, made when they are asked for.

Holds what belongs to a database rather than to one of its pools: whether clients may come, whether they are
served, and the limit on its server connections.
"""

from collections.abc import Callable, Iterator
from typing import Final

from config.databases import FALLBACK
from config.terms import entry_of, is_automatic, most_clients_of_database
from pooler.current import Current
from pooler.pool import Cap
from pooler.reasons import Ending, Reason
from pooler.server import ServerSession

CONSOLE: Final = ("pgbouncer", "pgfunnel")
"""The names under which the console is reached."""


class DatabaseState:
    """One database, while the pooler runs."""

    __slots__ = ("auto", "cap", "disabled", "name", "paused", "unused_since")

    def __init__(self, name: str, *, auto: bool) -> None:
        self.name = name
        self.auto = auto
        """It has no entry of its own."""
        self.paused = False
        self.disabled = False
        self.cap: Cap[ServerSession] = Cap(0)
        """The limit on its server connections (max_db_connections)."""
        self.unused_since: float | None = None

    @property
    def forgettable(self) -> bool:
        """It has nothing that is not made again when it is asked for."""
        return self.auto and not self.paused and not self.disabled


class Databases:
    """All of them, by name."""

    def __init__(self, current: Current, now: Callable[[], float]) -> None:
        self._current = current
        self._now = now
        self.paused = False
        """All of them are (PAUSE without a name)."""
        self._known: dict[str, DatabaseState] = {}
        self.apply()

    def __iter__(self) -> Iterator[DatabaseState]:
        return iter(list(self._known.values()))

    def find(self, name: str) -> DatabaseState | None:
        """Return a database that clients may ask for, made now if `*` stands for it; None if there is none."""
        database = self._known.get(name)
        if database is None and entry_of(self._current.settings, self._current.directory, name) is not None:
            database = self._known[name] = DatabaseState(name, auto=True)
        return database

    def known(self, name: str) -> DatabaseState | None:
        """Return a database that has an entry or was asked for before."""
        return self._known.get(name)

    def is_paused(self, name: str) -> bool:
        """Tell whether a database is, by itself or with all others."""
        database = self._known.get(name)
        return self.paused or (database is not None and database.paused)

    def refusal(self, name: str) -> Ending | None:
        """Say why a client can't have a database; None if it can."""
        database = self.find(name)
        if database is None:
            return Ending(
                Reason.NO_SUCH_DATABASE,
                "3D000",
                f'no such database: "{name}"',
                hint="pgfunnel has no entry for it in [databases], and none for *.",
            )
        if database.disabled:
            return Ending(
                Reason.DATABASE_DISABLED,
                "55000",
                f'database "{name}" does not allow connections',
                hint="It was disabled on pgfunnel's console (DISABLE).",
            )
        return None

    def most_clients(self, name: str) -> int:
        """Return how many clients a database may have; 0 = no limit."""
        return most_clients_of_database(self._current.settings, self._current.directory, name)

    def apply(self) -> "list[DatabaseState]":
        """Take over what a reload has changed; return the databases that are gone."""
        settings, directory = self._current.settings, self._current.directory
        gone = []
        for database in self:
            if entry_of(settings, directory, database.name) is None:
                gone.append(self._known.pop(database.name))
            else:
                database.auto = is_automatic(directory, database.name)
        for name in directory.databases:
            if name != FALLBACK and name not in self._known:
                self._known[name] = DatabaseState(name, auto=False)
        return gone

    def forget(self, name: str) -> None:
        """Nobody uses a database: if `*` stands for it, it can be made again."""
        database = self._known.get(name)
        if database is not None and database.forgettable:
            del self._known[name]

    def sweep(self, used: Callable[[str], bool]) -> "list[DatabaseState]":
        """Forget those that `*` stands for and nobody has used for autodb_idle_timeout; return them."""
        timeout, now = self._current.settings.autodb_idle_timeout, self._now()
        forgotten = []
        for database in self:
            if not database.forgettable or not timeout or used(database.name):
                database.unused_since = None
            elif database.unused_since is None:
                database.unused_since = now
            elif now - database.unused_since >= timeout:
                forgotten.append(self._known.pop(database.name))
        return forgotten
