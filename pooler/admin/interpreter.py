"""Understands commands of the console, for one of its clients: what each means, and whether that client may."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

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

_OPTIONAL, _REQUIRED, _NONE = "[DATABASE]", "DATABASE", ""

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "pause": (_OPTIONAL, "Lend no server connections, and close them as they come back; returns when all are closed"),
    "resume": (_OPTIONAL, "Undo PAUSE or KILL"),
    "reconnect": (_OPTIONAL, "Close server connections as they come back, and open others as they are needed"),
    "wait_close": (_OPTIONAL, "Wait until those that RECONNECT or RELOAD closes are closed"),
    "kill": (_OPTIONAL, "Close all connections of clients and servers at once, and hold up new clients until RESUME"),
    "kill_client": ("ID", "Close one client's connection, and its server's"),
    "disable": (_REQUIRED, "Refuse new clients of a database"),
    "enable": (_REQUIRED, "Let new clients in again"),
    "reload": (_NONE, "Read the configuration again"),
    "suspend": (_NONE, "Refused: see PAUSE and SHUTDOWN"),
    "shutdown": ("[WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]", "End: at once, when servers, or when clients are done"),
}
"""What each takes, and does; SET and SHOW have a syntax of their own."""

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
        verb, argument = command.verb, command.argument
        takes, _ = COMMANDS[verb]
        if argument and not takes:
            raise _invalid(command.text)
        shutdown = _shutdown_mode(command) if verb == "shutdown" else None
        self._needs_admin()
        operations = self._operations
        undo: Callable[[], None] | None = None
        run: Callable[[], Awaitable[None]]
        if shutdown is not None:
            run = _at_once(partial(operations.shutdown, shutdown))
        elif verb == "pause":
            undo = partial(operations.resume, argument)
            run = partial(self._pause, argument)
        elif verb == "wait_close":
            run = partial(operations.wait_close, argument)
        elif verb == "reload":
            run = _at_once(operations.reload)
        elif verb == "suspend":
            run = _at_once(operations.suspend)
        else:
            named: dict[str, Callable[[str], None]] = {
                "resume": operations.resume,
                "reconnect": operations.reconnect,
                "kill": operations.kill,
                "kill_client": operations.kill_client,
                "disable": operations.disable,
                "enable": operations.enable,
            }
            run = _at_once(partial(named[verb], argument))
        return Plan(partial(self._logged, command, run), undo=undo)

    async def _pause(self, name: str) -> None:
        self._operations.pause(name)
        await self._operations.paused(name)

    async def _logged(self, command: Command, run: Callable[[], Awaitable[None]]) -> Outcome:
        self._log.info(
            "console_command", command=f"{command.verb.upper()} {command.argument}".strip(), user=self._login.user
        )
        await run()
        return Outcome(command.verb.upper())

    def _needs_admin(self) -> None:
        if not self._admin:
            raise CommandError("admin access needed", hint="The user is in stats_users, not in admin_users.")


def help_text() -> str:
    """Return a line for each command and SHOW."""
    lines = [(f"SHOW {name.upper()}", table.help) for name, table in sorted(TABLES.items())]
    lines += [(f"{verb.upper()} {takes}".strip(), text) for verb, (takes, text) in COMMANDS.items()]
    lines += [("SET key = value", "Change a setting until the next restart or reload")]
    width = max(len(command) for command, _ in lines)
    return "\n" + "\n".join(f"\t{command:{width}}  {text}" for command, text in lines)


def _shutdown_mode(command: Command) -> Shutdown:
    modes = {"": Shutdown.IMMEDIATE, **{mode.name: mode for mode in Shutdown if mode is not Shutdown.IMMEDIATE}}
    mode = modes.get(command.argument.upper())
    if mode is None:
        raise _invalid(command.text)
    return mode


def _invalid(text: str) -> CommandError:
    first, *rest = text.lower().split() or [""]
    if first == "show" and rest:
        near = did_you_mean(f"show {rest[0]}", [f"show {name}" for name in (*TABLES, _HELP)])
    else:
        near = did_you_mean(first, [*COMMANDS, "show", "set"])
    near = near.removeprefix("; did you mean ").removesuffix("?")
    hint = f"Did you mean {near.upper()}?" if near else ""
    return CommandError(f"invalid command '{shown(text)}', use SHOW HELP;", hint=hint)


def _at_once(operation: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        operation()

    return run
