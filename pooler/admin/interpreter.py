"""Understands commands of the console, for one of its clients: what each means, and whether that client may."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from config.nearest import did_you_mean
from pooler.admin.commands import Command, SetCommand, read, shown
from pooler.admin.office import Office
from pooler.admin.operations import Operations
from pooler.admin.results import CommandError, Outcome, Plan, finished
from pooler.admin.show import TABLES
from pooler.admin.small_talk import answer, ignored_set
from pooler.log import Log
from pooler.shutdown import Shutdown
from protocol.startup import Startup

Operation = Callable[[Operations, str], Awaitable[None]]


class Verb(NamedTuple):
    """A command that does something."""

    takes: str
    help: str
    run: Operation
    undo: Callable[[Operations, str], None] | None = None
    """What to do if it is cancelled while it waits."""


async def _pause(operations: Operations, database: str) -> None:
    operations.pause(database)
    await operations.paused(database)


async def _shutdown(operations: Operations, mode: str) -> None:
    modes = {"": Shutdown.IMMEDIATE} | {each.name: each for each in Shutdown if each is not Shutdown.IMMEDIATE}
    if mode.upper() not in modes:
        raise _invalid(f"SHUTDOWN {mode}")
    how = modes[mode.upper()]
    operations.shutdown(how)
    if how is Shutdown.IMMEDIATE:
        await asyncio.get_running_loop().create_future()  # as in PgBouncer, the answer is that the connection ends


def _at_once(operation: Callable[[Operations, str], None]) -> Operation:
    async def run(operations: Operations, argument: str) -> None:
        operation(operations, argument)

    return run


_MAYBE, _DATABASE, _NOTHING = "[DATABASE]", "DATABASE", ""

COMMANDS: Final[Mapping[str, Verb]] = {
    "pause": Verb(
        _MAYBE,
        "Lend no server connections, and close them as they come back; returns when all are closed",
        _pause,
        undo=Operations.resume,
    ),
    "resume": Verb(_MAYBE, "Undo PAUSE or KILL", _at_once(Operations.resume)),
    "reconnect": Verb(
        _MAYBE,
        "Close server connections as they come back, and open others as they are needed",
        _at_once(Operations.reconnect),
    ),
    "wait_close": Verb(_MAYBE, "Wait until those that RECONNECT or RELOAD closes are closed", Operations.wait_close),
    "kill": Verb(
        _MAYBE,
        "Close all connections of clients and servers at once, and hold up new clients until RESUME",
        _at_once(Operations.kill),
    ),
    "kill_client": Verb("ID", "Close one client's connection, and its server's", _at_once(Operations.kill_client)),
    "disable": Verb(_DATABASE, "Refuse new clients of a database", _at_once(Operations.disable)),
    "enable": Verb(_DATABASE, "Let new clients in again", _at_once(Operations.enable)),
    "reload": Verb(_NOTHING, "Read the configuration again", _at_once(lambda operations, _: operations.reload())),
    "suspend": Verb(_NOTHING, "Refused: see PAUSE and SHUTDOWN", _at_once(lambda operations, _: operations.suspend())),
    "shutdown": Verb(
        "[WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]",
        "End: at once, when servers, or when clients are done",
        _shutdown,
    ),
}
"""SET and SHOW have a syntax of their own."""

_HELP: Final = "help"


class Commander:
    """One client's."""

    def __init__(self, office: Office, operations: Operations, log: Log, login: Startup, *, admin: bool) -> None:
        """`admin` may do everything; others may look."""
        self._office = office
        self._operations = operations
        self._log = log
        self._login = login
        self._admin = admin

    def plan(self, text: str) -> Plan:
        """See Interpreter."""
        command = read(text)
        if isinstance(command, SetCommand):
            return self._set(command)
        if command.verb in COMMANDS:
            return self._operation(command)
        if command.verb == _HELP and not command.argument:
            return self._help()
        if command.verb in ("show", "select") and (table := self._show(command.argument.lower())) is not None:
            return table
        small_talk = answer(text, self._login.user, self._login.database)
        if small_talk is None:
            raise _invalid(text)
        return small_talk

    # --- SHOW

    def _show(self, name: str) -> Plan | None:
        if name == _HELP:
            return self._help()
        table = TABLES.get(name)
        if table is None:
            return None
        if table.for_admins:
            self._needs_admin()

        async def run() -> Outcome:
            return Outcome("SHOW", table.rows(self._office))

        return Plan(run, table.columns)

    @staticmethod
    def _help() -> Plan:
        return Plan(finished(Outcome("SHOW", notice="Console usage", detail=help_text())))

    # --- what changes something

    def _set(self, command: SetCommand) -> Plan:
        ignored = ignored_set(command)
        if ignored is not None:
            return ignored
        self._needs_admin()

        async def run() -> Outcome:
            self._log.info("console_command", command=f"SET {command.key}", user=self._login.user)
            self._operations.set(command.key, command.value)
            return Outcome(f"SET {command.key}={command.value}")

        return Plan(run)

    def _operation(self, command: Command) -> Plan:
        verb, argument, operations = COMMANDS[command.verb], command.argument, self._operations
        if argument and not verb.takes:
            raise _invalid(command.text)
        self._needs_admin()

        async def run() -> Outcome:
            name = command.verb.upper()
            self._log.info("console_command", command=f"{name} {argument}".strip(), user=self._login.user)
            await verb.run(operations, argument)
            return Outcome(name)

        return Plan(run, undo=partial(verb.undo, operations, argument) if verb.undo is not None else None)

    def _needs_admin(self) -> None:
        if not self._admin:
            raise CommandError("admin access needed", hint="It takes a user of admin_users.")


def help_text() -> str:
    """Return a line for each command and SHOW."""
    lines = [(f"SHOW {name.upper()}", table.help) for name, table in sorted(TABLES.items())]
    lines += [(f"{name.upper()} {verb.takes}".strip(), verb.help) for name, verb in COMMANDS.items()]
    lines += [("SET key = value", "Change a setting until the next restart or reload")]
    width = max(len(command) for command, _ in lines)
    return "\n" + "\n".join(f"\t{command:{width}}  {text}" for command, text in lines)


def _invalid(text: str) -> CommandError:
    first, *rest = text.lower().split() or [""]
    if first == "show" and rest:
        near = did_you_mean(f"show {rest[0]}", [f"show {name}" for name in (*TABLES, _HELP)])
    else:
        known = (*COMMANDS, "show", "set")
        near = "" if first in known else did_you_mean(first, known)
    near = near.removeprefix("; did you mean ").removesuffix("?")
    hint = f"Did you mean {near.upper()}?" if near else ""
    return CommandError(f"invalid command '{shown(text)}', use SHOW HELP;", hint=hint)
