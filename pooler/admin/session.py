"""A client of the console, from the proof of its identity to its end: the protocol's two ways to ask, and answers.

The one session of the pooler that awaits: it serves few, and what it does takes its time. One task takes its messages
one by one; no more are read while it is busy, and rows are sent in pieces that its client has to read.
"""

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple, Protocol, final

from pooler.admin.commands import split
from pooler.admin.results import CommandError, Outcome, Plan, Row
from pooler.reasons import CLIENT_GONE, CLIENT_QUIT, Ending, Reason
from protocol.console import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    EMPTY_QUERY,
    NO_DATA,
    PARSE_COMPLETE,
    PORTAL_SUSPENDED,
    READY_IN_TRANSACTION,
    command_complete,
    data_row,
    notice,
    parameter_description,
    read_bind,
    read_execute,
    read_named,
    read_parse,
    read_query,
    row_description,
)
from protocol.errors import ClientViolation, ProtocolViolation
from protocol.kinds import BIND, CLOSE, DESCRIBE, EXECUTE, FLUSH, PARSE, QUERY, SYNC, TERMINATE
from protocol.messages import READY_IDLE, ErrorFields, error_response, fatal, first_message
from protocol.startup import Startup

LONGEST_MESSAGE: Final = 32 * 1024
"""Bytes of a request."""
MOST_NAMES: Final = 200
"""Prepared statements of a client, and portals."""
PIECE: Final = 100
"""Rows that are made and sent at once; in between, others have their turn."""
PATIENCE_S: Final = 60.0
"""How long a client may leave unread what stops the rest of its answer."""

_PARAMETER: Final = re.compile(r"\$(\d{1,3})").findall
_TOO_SLOW: Final = Ending(Reason.CLIENT_IDLE_TIMEOUT, message="it does not read the console's answer")
_CANCELLED: Final = ErrorFields("ERROR", "57014", "canceling statement due to user request")


class Interpreter(Protocol):
    """Whoever understands commands."""

    def plan(self, text: str) -> Plan:
        """Understand one command. Raises CommandError."""


class ConsoleDuties(NamedTuple):
    """What console sessions need of the rest of the pooler; one for all of them."""

    ended: "Callable[[ConsoleSession, Ending], None]"
    """Forget it, log and count."""
    linger: Callable[[asyncio.Transport], None]
    """Close the connection such that what has been written still arrives."""
    now: Callable[[], float]


class _Portal(NamedTuple):
    plan: Plan | None
    formats: tuple[int, ...]


@final
class ConsoleSession(asyncio.Protocol):
    """One client of the console."""

    def __init__(
        self,
        id_: int,
        login: Startup,
        transport: asyncio.Transport,
        key: bytes,
        interpreter: Interpreter,
        duties: ConsoleDuties,
        *,
        placed_beside: bool = True,
    ) -> None:
        """`key` is the cancel key that the client was given."""
        self.id = id_
        self.login = login
        self.placed_beside = placed_beside
        """Its place is none of max_client_conn."""
        self.transport = transport
        self.key = key
        self._interpreter = interpreter
        self._duties = duties
        self.connected_at = self.asked_at = duties.now()
        self.busy_since = 0.0
        """When the command that runs was begun; 0 = none does."""
        self.commands = 0
        """How many were begun."""
        self.ended = False
        self._buffer = b""
        self._arrived = asyncio.Event()
        self._readable = asyncio.Event()
        self._readable.set()
        """The client reads what it is sent."""
        self._statements: dict[str, str] = {}
        self._portals: dict[str, _Portal] = {}
        self._rows: dict[str, tuple[Iterator[Row], str]] = {}
        """What is left of the results of portals, and their tags."""
        self._skipping = False
        """After an error, up to the next Sync."""
        self._in_transaction = False
        """A BEGIN was sent. It has no effect, but drivers look for it."""
        self._command: asyncio.Future[Outcome] | None = None
        self._cancelled = False
        self._task = asyncio.get_running_loop().create_task(self._serve())
        self._task.add_done_callback(self._served)

    # --- what arrives

    def data_received(self, data: bytes) -> None:
        """Keep it for the task, up to a message or so."""
        self._buffer += data
        if len(self._buffer) > LONGEST_MESSAGE:
            self.transport.pause_reading()
        self._arrived.set()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._readable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._readable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone; what it has asked for is not undone."""
        self._finish(CLIENT_GONE)

    def cancel(self) -> None:
        """The client asks to cancel what it waits for."""
        if self._command is not None:
            self._cancelled = True
            self._command.cancel()

    @property
    def prepared_statements(self) -> int:
        """How many the client has under a name."""
        return len(self._statements) - ("" in self._statements)

    # --- the end

    def end(self, ending: Ending) -> None:
        """Tell the client why, and close the connection."""
        if not self.ended:
            self._finish(ending)
            if ending.sqlstate:
                self.transport.write(fatal(ending.sqlstate, ending.message, ending.detail, ending.hint))
            self._duties.linger(self.transport)

    def _finish(self, ending: Ending) -> None:
        if not self.ended:
            self.ended = True
            self._task.cancel()
            self._duties.ended(self, ending)

    def _served(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a fault of ours
            asyncio.get_running_loop().call_exception_handler({"message": "console session", "exception": error})
            self.end(Ending(Reason.INTERNAL_ERROR, "XX000", "internal error of the console", hint="See the log."))

    # --- messages

    async def _serve(self) -> None:
        try:
            while True:
                kind, payload = await self._next()
                if kind == TERMINATE:
                    self._finish(CLIENT_QUIT)
                    self.transport.close()
                    return
                self.asked_at = self._duties.now()
                await self._take(kind, payload)
                await self._until_read()
        except ProtocolViolation as violation:
            self.end(Ending(Reason.CLIENT_VIOLATION, violation.sqlstate, violation.message))
        except TimeoutError:
            self._finish(_TOO_SLOW)
            self.transport.abort()

    async def _next(self) -> tuple[int, bytes]:
        while (message := first_message(self._buffer, LONGEST_MESSAGE)) is None:
            self._arrived.clear()
            await self._arrived.wait()
        kind, payload, size = message
        paused = len(self._buffer) > LONGEST_MESSAGE
        self._buffer = self._buffer[size:]
        if paused and len(self._buffer) <= LONGEST_MESSAGE:
            self.transport.resume_reading()
        return kind, payload

    async def _take(self, kind: int, payload: bytes) -> None:
        if kind == SYNC:
            self._skipping = False
            self._write(self._ready())
        elif kind == QUERY:
            await self._query(read_query(payload))
        elif not self._skipping:
            try:
                await self._take_step(kind, payload)
            except CommandError as error:
                self._skipping = True
                self._write(error_response(error.fields))

    def _ready(self) -> bytes:
        if not self._in_transaction:
            self._portals.clear()
            self._rows.clear()
        return READY_IN_TRANSACTION if self._in_transaction else READY_IDLE

    def _write(self, data: bytes) -> None:
        if not self.ended:
            self.transport.write(data)

    # --- the simple way

    async def _query(self, text: str) -> None:
        commands = split(text)
        if not commands:
            self._write(EMPTY_QUERY)
        try:
            for command in commands:
                plan = self._interpreter.plan(command)
                outcome = await self._run(plan)
                if plan.columns is not None:
                    self._write(row_description(plan.columns))
                await self._complete(iter(outcome.rows), plan, outcome.tag, (), 0)
        except CommandError as error:
            self._write(error_response(error.fields))
        self._write(self._ready())

    async def _run(self, plan: Plan) -> Outcome:
        """Carry a command out. What it waits for may be cancelled by its client."""
        self.commands += 1
        self._command = asyncio.ensure_future(plan.run())
        self.busy_since = self._duties.now()
        try:
            outcome = await self._command
        except asyncio.CancelledError:
            if not self._cancelled or self.ended:
                raise
            if plan.undo is not None:
                with suppress(CommandError):  # somebody else has undone it, or it can't be undone any more
                    plan.undo()
            raise CommandError(_CANCELLED.message, sqlstate=_CANCELLED.sqlstate) from None
        finally:
            self._command, self._cancelled, self.busy_since = None, False, 0.0
        if outcome.notice:
            self._write(notice(outcome.notice, outcome.detail))
        if outcome.tag in ("BEGIN", "COMMIT", "ROLLBACK"):
            self._in_transaction = outcome.tag == "BEGIN"
        return outcome

    async def _complete(self, rows: Iterator[Row], plan: Plan, tag: str, formats: tuple[int, ...], limit: int) -> bool:
        """Send rows, `limit` at most unless that is 0, and the end of the result; False if there are more."""
        count = 0
        columns = plan.columns or ()
        while piece := list(islice(rows, min(PIECE, limit - count) if limit else PIECE)):
            count += len(piece)
            self._write(b"".join(data_row(columns, row, formats) for row in piece))
            await self._until_read()
        if limit and count == limit:
            self._write(PORTAL_SUSPENDED)
            return False
        self._write(command_complete(f"{tag} {count}" if tag == "SELECT" else tag))
        await self._until_read()
        return True

    async def _until_read(self) -> None:
        """Go on when the client has read what it was sent, or most of it, and others have had their turn."""
        async with asyncio.timeout(PATIENCE_S):
            await self._readable.wait()
        await asyncio.sleep(0)

    # --- the extended way

    async def _take_step(self, kind: int, payload: bytes) -> None:
        if kind == PARSE:
            self._parse(payload)
        elif kind == BIND:
            self._bind(payload)
        elif kind == DESCRIBE:
            self._describe(payload)
        elif kind == EXECUTE:
            await self._execute(payload)
        elif kind == CLOSE:
            self._close(payload)
        elif kind != FLUSH:
            raise ClientViolation(f"unsupported packet type for admin console: {chr(kind)!r}")

    def _plan(self, text: str) -> Plan | None:
        commands = split(text)
        if len(commands) > 1:
            raise CommandError("cannot insert multiple commands into a prepared statement", sqlstate="42601")
        return self._interpreter.plan(commands[0]) if commands else None

    def _parse(self, payload: bytes) -> None:
        name, text = read_parse(payload)
        self._plan(text)
        if len(self._statements) >= MOST_NAMES and name not in self._statements:
            raise CommandError(f"more than {MOST_NAMES} prepared statements on the console", sqlstate="54000")
        self._statements[name] = text
        self._write(PARSE_COMPLETE)

    def _bind(self, payload: bytes) -> None:
        bind = read_bind(payload)
        if len(self._portals) >= MOST_NAMES and bind.portal not in self._portals:
            raise CommandError(f"more than {MOST_NAMES} portals on the console", sqlstate="54000")
        self._rows.pop(bind.portal, None)
        self._portals[bind.portal] = _Portal(self._plan(self._text_of(bind.statement)), bind.formats)
        self._write(BIND_COMPLETE)

    def _close(self, payload: bytes) -> None:
        of_portal, name = read_named(payload)
        if of_portal:
            self._portals.pop(name, None)
            self._rows.pop(name, None)
        else:
            self._statements.pop(name, None)
        self._write(CLOSE_COMPLETE)

    def _text_of(self, statement: str) -> str:
        text = self._statements.get(statement)
        if text is None:
            raise CommandError(f'prepared statement "{statement}" does not exist', sqlstate="26000")
        return text

    def _portal(self, name: str) -> _Portal:
        portal = self._portals.get(name)
        if portal is None:
            raise CommandError(f'portal "{name}" does not exist', sqlstate="34000")
        return portal

    def _describe(self, payload: bytes) -> None:
        of_portal, name = read_named(payload)
        formats: tuple[int, ...] = ()
        if of_portal:
            plan, formats = self._portal(name)
        else:
            text = self._text_of(name)
            plan = self._plan(text)
            self._write(parameter_description(max(map(int, _PARAMETER(text)), default=0)))
        columns = plan.columns if plan is not None else None
        self._write(NO_DATA if columns is None else row_description(columns, formats))

    async def _execute(self, payload: bytes) -> None:
        name, limit = read_execute(payload)
        plan, formats = self._portal(name)
        if plan is None:
            self._write(EMPTY_QUERY)
            return
        if name not in self._rows:
            outcome = await self._run(plan)
            self._rows[name] = iter(outcome.rows), outcome.tag
        rows, tag = self._rows[name]
        if await self._complete(rows, plan, tag, formats, max(0, limit)):
            self._rows[name] = iter(()), tag
