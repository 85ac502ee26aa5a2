"""The other traffic on the pool: two clients that push the program's clients from one server connection to the other.

The pool has two server connections. Between steps one of the crowd holds one of them in a transaction, so that the
next client gets the other. To move a client that has been served, the second one of the crowd takes the connection
that it was on, looks around there for what may have leaked, and the first one lets go. Nothing is timed: a request
that reaches pgfunnel before another's COMMIT is in the queue before that COMMIT can free anything.

A client may need the connection that is held, for pins and transactions keep the other one. It gets it as soon as it
waits visibly long. That costs the program its shuffling, never its result.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from difflib import ndiff
from typing import Final

from tests.session_state.clients import PATIENCE, Client, PatientWire, in_words
from tests.support.wire import ServerError, query

CROWD: Final[tuple[dict[str, str], ...]] = (
    {
        "application_name": "crowd one",
        "DateStyle": "SQL, DMY",
        "TimeZone": "Asia/Tokyo",
        "options": "-c search_path=nowhere,public -c work_mem=7MB -c app.x=one",
    },
    {
        "application_name": "crowd two",
        "IntervalStyle": "iso_8601",
        "extra_float_digits": "-2",
        "options": "-c search_path=elsewhere -c statement_timeout=59s -c default_transaction_isolation=serializable",
    },
)
LOOK: Final = r"""
SELECT string_agg(name || ' is ' || setting, E'\n' ORDER BY name) FROM pg_catalog.pg_settings
  WHERE setting IS DISTINCT FROM boot_val AND context IN ('user', 'superuser', 'backend', 'superuser-backend');
SELECT session_user, current_user, current_schemas(false)::text,
  nullif(current_setting('app.x', true), ''), nullif(current_setting('app.y', true), ''),
  (SELECT count(*) FROM pg_catalog.pg_listening_channels()) AS listening,
  (SELECT count(*) FROM pg_catalog.pg_prepared_statements WHERE from_sql) AS prepared,
  (SELECT count(*) FROM pg_catalog.pg_cursors WHERE name <> '') AS cursors,
  (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema()) AS temporary,
  (SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()) AS locks
"""
TAKE: Final = query(f"BEGIN; {LOOK}; SELECT pg_catalog.pg_backend_pid()")
LET_GO: Final = query("COMMIT")
ATTEMPTS: Final = 3
"""A connection that is just being cleaned looks like a pinned one, for a moment."""


class LeakError(Exception):
    """A client of the crowd saw what it would not see on a connection of its own, or never got one."""


class Nobody:
    """Straight at Postgres, nobody is in anyone's way."""

    def before(self, client: Client, others: Sequence[Client]) -> None:
        """Do nothing."""

    def make_way(self) -> None:
        """Do nothing."""


class Holder:
    """One of the crowd. It holds a server connection from the answer to `take` until `let_go`."""

    def __init__(self, wire: PatientWire, parameters: Mapping[str, str]) -> None:
        self.wanting = False
        """It holds a server, or waits for one."""
        self.server = 0
        self.view: list[str] = []
        self._wire = wire
        self._parameters = parameters
        self._owed = 0

    def login(self, user: str, database: str) -> None:
        try:
            self._wire.login(user, database, **self._parameters)
        except (ServerError, OSError, EOFError) as error:
            raise LeakError(f"a client of the crowd could not log in: {error!r}") from error

    def take(self) -> None:
        self.wanting = True
        self._owed += 1
        self._wire.send(TAKE)

    def let_go(self) -> None:
        self.wanting = False
        self._owed += 1
        self._wire.send(LET_GO)

    def settle(self) -> None:
        """Wait for the answers to all requests."""
        while self._owed:
            self._read()

    def settled(self) -> bool:
        """All requests have been answered; some patience is taken to find out."""
        while self._owed and self._wire.readable(PATIENCE):
            self._read()
        return not self._owed

    def close(self) -> None:
        self._wire.close()

    def _read(self) -> None:
        try:
            answer = self._wire.read_until()
        except (OSError, EOFError) as error:
            raise LeakError(f"a client of the crowd was not served: {error!r}") from error
        self._owed -= 1
        if any(message.kind == "E" for message in answer):
            raise LeakError("a client of the crowd was told: " + "; ".join(map(in_words, answer)))
        if rows := [message for message in answer if message.kind == "D"]:
            self.view = [in_words(row) for row in rows[:-1]]
            self.server = int(rows[-1].columns[0] or 0)


class Crowd:
    """Two holders. Between steps one of them holds a server connection, while a client may need both of them none."""

    def __init__(self, connect: Callable[[], PatientWire]) -> None:
        self._holders = [Holder(connect(), parameters) for parameters in CROWD]
        self._holding: Holder | None = None
        self._views: Sequence[list[str]] = ()
        self._avoided: dict[int, int] = {}
        """The server connection that was held while a client was served last: it is the client's next."""

    def arrive(self, user: str, database: str, views: Sequence[list[str]]) -> None:
        """Log in, look around on both server connections, and hold one. `views` is what each sees when alone."""
        self._views = views
        for holder in self._holders:
            holder.login(user, database)
        self._inspect()
        self._holding = self._holders[0]
        self._holding.take()
        self._look(self._holding)

    def before(self, client: Client, others: Sequence[Client]) -> None:
        """See to it that the next step of `client` is done on another server connection than its last one."""
        if not client.at_boundary:
            return
        undisturbed = all(other.at_boundary for other in others)
        if undisturbed and self._hold(self._avoided.get(id(client))):
            assert self._holding is not None
            self._avoided[id(client)] = self._holding.server
        else:
            self.make_way()

    def make_way(self) -> None:
        """Leave both server connections to those who need them."""
        for holder in self._holders:
            if holder.wanting:
                holder.let_go()
        self._holding = None

    def finish(self) -> None:
        """Look around on both server connections after the program's clients have left."""
        self.make_way()
        for holder in self._holders:
            holder.settle()
        self._inspect()

    def close(self) -> None:
        for holder in self._holders:
            holder.close()

    def _inspect(self) -> None:
        for holder in self._holders:
            holder.take()
        for holder in self._holders:
            self._look(holder)
            holder.let_go()
        for holder in self._holders:
            holder.settle()

    def _hold(self, wanted: int | None) -> bool:
        """Hold a server connection other than the one that is wanted; False if it can't be had at once."""
        if self._holding is None:
            self._holding = next((holder for holder in self._holders if holder.settled()), None)
            if self._holding is not None:
                self._holding.take()
        if self._holding is None or not self._holding.settled():
            return False
        self._look(self._holding)
        for _ in range(ATTEMPTS):
            if self._holding.server != wanted:
                return True
            self._holding = self._change(self._holding)
        return self._holding.server != wanted

    def _change(self, holding: Holder) -> Holder:
        """Let the other one take the server connection that is free, if it can be had, else the one that was held."""
        (other,) = (holder for holder in self._holders if holder is not holding)
        other.take()
        holding.let_go()
        holding.settle()
        self._look(other)
        return other

    def _look(self, holder: Holder) -> None:
        holder.settle()
        expected = self._views[self._holders.index(holder)]
        if holder.view != expected:
            unlike = "\n".join(ndiff(lines(expected), lines(holder.view)))
            raise LeakError(f"a client of the crowd sees what is not its own:\n{unlike}")


def views_of_the_crowd(user: str, database: str, connect: Callable[[], PatientWire]) -> list[list[str]]:
    """Return what each of the crowd sees where nobody shares its connection."""
    return [_view(Holder(connect(), parameters), user, database) for parameters in CROWD]


def _view(holder: Holder, user: str, database: str) -> list[str]:
    with closing(holder):
        holder.login(user, database)
        holder.take()
        holder.settle()
    return holder.view


def lines(view: list[str]) -> list[str]:
    """Cut a view into the pieces that a reader wants to see compared."""
    return [piece for row in view for piece in row.split("\\n")]
