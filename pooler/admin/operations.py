"""What the console does: PAUSE, RESUME, RECONNECT, KILL and the like, for signals just as for its clients.

The semantics are those of PgBouncer's documentation; the words of errors are PgBouncer's. What has to wait for server
connections to go has one part that takes effect at once and one that waits.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from config.errors import ConfigurationError
from pooler.admin.office import Office
from pooler.admin.results import CommandError
from pooler.client import ClientSession
from pooler.databases import CONSOLE, DatabaseState
from pooler.reasons import Ending, Reason
from pooler.shutdown import Shutdown
from pooler.upstream.opening import ServerPool

_KILLED: Final = Ending(Reason.KILLED, "57P01", "terminating connection: the database was killed on the console (KILL)")
_KILLED_CLIENT: Final = Ending(Reason.KILLED, "57P01", "admin forced disconnect", hint="KILL_CLIENT on the console.")
_FAILED: Final = "F0000"
"""config_file_error"""


class Operations:
    """Everything that changes what the pooler does."""

    def __init__(self, office: Office) -> None:
        self._office = office

    # --- PAUSE and RESUME

    def pause(self, name: str = "") -> None:
        """Lend and open no connections of a database, or of any, and close them as they come back."""
        self._not_while_stopping()
        self._not_while_paused()
        if name:
            self._database(name, "pause").paused = True
        else:
            self._office.databases.paused = True
        for pool in self._pools(name):
            self._office.pools.pause(pool)

    async def paused(self, name: str = "") -> None:
        """Wait until all of them are closed. Raises CommandError if it was resumed meanwhile."""

        def still() -> bool:
            databases = self._office.databases
            return databases.is_paused(name) if name else databases.paused

        def closed() -> bool:
            return not still() or all(not (pool.servers or pool.opening or pool.aside) for pool in self._pools(name))

        await self._until(closed)
        if not still():
            raise CommandError("the pause was ended by RESUME before all server connections were closed")

    def resume(self, name: str = "") -> None:
        """Lend and open again, after PAUSE or KILL."""
        databases = self._office.databases
        if name:
            database = databases.known(name)
            if database is None:
                raise _no_such_database(name)
            if not database.paused:
                raise CommandError(
                    f"database {name} is not paused",
                    hint="The pooler is, as a whole: RESUME without a name." if databases.paused else "",
                )
            database.paused = False
        else:
            self._not_while_stopping()
            if not databases.paused:
                paused = ", ".join(database.name for database in databases if database.paused)
                raise CommandError(
                    "pooler is not paused/suspended", hint=f"Paused by name: {paused}." if paused else ""
                )
            databases.paused = False
        for pool in self._pools(name):
            if not databases.is_paused(pool.database):
                self._office.pools.resume(pool)

    # --- connections

    def reconnect(self, name: str = "") -> None:
        """Close server connections as they come back; new ones are opened as they are needed."""
        if name:
            self._database(name, "reconnect")
        for pool in self._pools(name):
            self._office.pools.reconnect(pool)

    async def wait_close(self, name: str = "") -> None:
        """Wait until what is to be closed (close_needed) is."""
        if name:
            self._database(name, "wait in")
        await self._until(lambda: not any(server.retired for pool in self._pools(name) for server in pool.servers))

    def kill(self, name: str = "") -> None:
        """Close all client and server connections at once, and hold up who comes until RESUME."""
        self._not_while_paused()
        if name:
            self._database(name, "kill").paused = True
        else:
            self._office.databases.paused = True
        pools = set(self._pools(name))
        for pool in pools:
            self._office.pools.pause(pool)
            for queued in (*pool.newcomers, *pool.waiters):
                queued.end(_KILLED)
        self._office.passages.turn_away(pools, _KILLED)
        for client in (*self._office.clients.values(), *self._office.passages):
            if client.pool in pools:
                client.end(_KILLED)
        for pool in pools:
            for server in list(pool.servers):
                server.end(Reason.KILLED)

    def kill_client(self, given: str) -> None:
        """Close the connection of one client, and its server's."""
        if not given.isdecimal():
            raise CommandError("invalid client pointer supplied", hint="KILL_CLIENT takes an id of SHOW CLIENTS.")
        office = self._office
        lobby = office.lobby
        logins = (*lobby.strangers, *lobby.queue, *lobby.proving)
        everybody = (*office.clients.values(), *office.passages, *office.consoles, *logins)
        client = next((each for each in everybody if each.id == int(given)), None)
        if client is None:
            raise CommandError("client not found", hint="SHOW CLIENTS has the ids.")
        server = client.server if isinstance(client, ClientSession) else None
        client.end(_KILLED_CLIENT)
        if server is not None:
            server.end(Reason.KILLED)

    # --- databases

    def disable(self, name: str) -> None:
        """Refuse new clients of a database."""
        self._named(name)
        self._database(name, "disable").disabled = True

    def enable(self, name: str) -> None:
        """Let clients of a database in again."""
        self._named(name)
        self._database(name, "enable").disabled = False

    # --- the process

    def suspend(self) -> None:
        """Refuse: there are no sockets to hand over to another process."""
        raise CommandError(
            "SUSPEND is not supported",
            hint="To hold up clients, PAUSE. To replace the process without losing any, start another one with "
            "so_reuseport and SHUTDOWN WAIT_FOR_CLIENTS this one.",
        )

    def shutdown(self, how: Shutdown) -> None:
        """Stop accepting clients, and end as soon as `how` says."""
        self._office.service.shut_down(how)

    def reload(self) -> None:
        """Read the configuration again. Raises CommandError with what is wrong with it; then nothing has changed."""
        try:
            self._office.service.try_reload()
        except ConfigurationError as error:
            raise CommandError(
                "RELOAD failed, see logs for additional details",
                detail="\n".join(error.mistakes),
                hint="What was read before stays in use.",
                sqlstate=_FAILED,
            ) from None

    def set(self, key: str, value: str) -> None:
        """Change one setting until the next restart or reload."""
        try:
            self._office.service.set(key, value)
        except ConfigurationError as error:
            raise CommandError("SET failed", detail="\n".join(error.mistakes), hint="SHOW CONFIG has all.") from None

    # --- what they have in common

    def _pools(self, name: str) -> list[ServerPool]:
        return self._office.pools.of_database(name) if name else list(self._office.pools)

    def _database(self, name: str, verb: str) -> DatabaseState:
        if name in CONSOLE:
            raise CommandError(f"cannot {verb} admin db: {name}")
        database = self._office.databases.find(name)
        if database is None:
            raise _no_such_database(name)
        return database

    def _named(self, name: str) -> None:
        if not name:
            raise CommandError("a database is required")

    def _not_while_paused(self) -> None:
        if self._office.databases.paused:
            raise CommandError("already suspended/paused")

    def _not_while_stopping(self) -> None:
        if self._office.service.stopping:
            raise CommandError("pooler is shutting down")

    async def _until(self, over: Callable[[], bool]) -> None:
        """Wait until something is true that only changes when server connections go, or their pools do."""
        changed = asyncio.Event()
        watchers = self._office.pools.watchers
        watchers.add(changed.set)
        try:
            while not over():
                changed.clear()
                await changed.wait()
        finally:
            watchers.discard(changed.set)


def _no_such_database(name: str) -> CommandError:
    return CommandError(f"no such database: {name}", hint="SHOW DATABASES has their names.")
