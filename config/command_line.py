"""The command line: --name VALUE or --name=VALUE for each setting and --config, PgBouncer's own flags, and a file.

Done by hand, as argparse stops at the first mistake and quotes what it can't place, which may be a piece of a
password.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from config.settings import Settings
from config.sources import NAMES, Given, Reading, Source, unknown

_PLACE: Final = "command line"
_FLAGS: Final = {"--quiet": "q", "--daemon": "d", "--reboot": "R"}
_SHORT: Final = re.compile(r"-(?P<flags>[qdvR]*)(?P<user>u.*)?")
_SHOWN: Final = re.compile(r"[^@]*\.(ini|toml|conf|cfg)")
"""A file that may be named in a message: any other argument may be a piece of a password."""


@dataclass(slots=True)
class CommandLine(Reading):
    """A Reading of the command line."""

    file: Path | None = None
    """The one that is named without an option."""
    quiet: bool = False
    """-q: nothing goes to standard error."""
    daemon: bool = False
    """-d: it runs in the background."""


def option_name(name: str) -> str:
    """Return the option of a setting: --pool-mode for pool_mode."""
    return "--" + name.replace("_", "-")


def is_boolean(name: str) -> bool:
    """Tell whether a setting's option may stand without a value, and as --no-name."""
    return name in Settings.model_fields and Settings.model_fields[name].annotation is bool


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read the arguments, without the program's name. Where an option is repeated, the last one counts."""
    return _Reader(arguments).reading


class _Reader:
    """Takes one argument after the other."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.reading = CommandLine()
        self._options = {option_name(name): name for name in NAMES}
        self._negations = {f"--no-{option[2:]}": name for option, name in self._options.items() if is_boolean(name)}
        self._rest = deque(arguments)
        while self._rest:
            argument = self._rest.popleft()
            if argument.startswith("--"):
                self._long(argument)
            elif len(argument) > 1 and (match := _SHORT.fullmatch(argument)) is not None:
                self._short(match["flags"], match["user"] or "")
            elif re.fullmatch(r"-\w", argument):
                self._unknown(argument)
            else:
                self._file(argument)

    def _long(self, argument: str) -> None:
        option, equals, text = argument.partition("=")
        value = text if equals else self._value_of(option)
        name, negated = self._options.get(option), self._negations.get(option)
        if name is not None and value is not None:
            self._give(name, value, option)
        elif name == "verbose":
            self._more_verbose(option)
        elif name is not None and is_boolean(name):
            self._give(name, "1", option)
        elif name is not None:
            self._mistake(f"{option}: its value is missing")
        elif (negated is not None or option in _FLAGS) and value is not None:
            self._mistake(f"{option}: it takes no value")
        elif negated is not None:
            self._give(negated, "0", option)
        elif option in _FLAGS:
            self._flag(_FLAGS[option], option)
        elif re.fullmatch(r"--[\w-]+", option):
            self._unknown(option)
        else:
            self._misplaced()

    def _value_of(self, option: str) -> str | None:
        """Take the next argument if it is this option's value."""
        # An unknown option takes its value along. No value begins with --: that one must be --name=--value.
        if option in self._negations or option in _FLAGS or not self._rest or self._rest[0].startswith("--"):
            return None
        if option == "--verbose" and not self._rest[0].isdecimal():
            return None
        return self._rest.popleft() if option != "--" else None

    def _short(self, flags: str, user: str) -> None:
        for flag in flags:
            self._flag(flag, f"-{flag}")
        if user == "u" and self._rest:
            self._give("user", self._rest.popleft(), "-u")
        elif user == "u":
            self._mistake("-u: its value is missing")
        elif user:
            self._give("user", user[1:], "-u")

    def _flag(self, flag: str, written: str) -> None:
        match flag:
            case "q":
                self.reading.quiet = True
            case "d":
                self.reading.daemon = True
            case "v":
                self._more_verbose(written)
            case _:
                self._mistake(
                    f"{written}: sockets are not handed over; give so_reuseport=1 to both processes, start the new one "
                    "and end the old one by SIGTERM"
                )

    def _more_verbose(self, written: str) -> None:
        before = self.reading.given.get("verbose")
        level = int(str(before.value)) if before is not None and str(before.value).isdecimal() else 0
        self._give("verbose", str(level + 1), written)

    def _file(self, argument: str) -> None:
        path = Path(argument)
        try:
            exists = argument != "" and path.exists()
        except (OSError, ValueError):  # no path can be like this
            exists = False
        if not exists and not _SHOWN.fullmatch(argument):
            self._misplaced()
        elif self.reading.file is not None:
            self._mistake("there are two files: give one")
        else:
            self.reading.file = path

    def _give(self, name: str, value: str, option: str) -> None:
        self.reading.given[name] = Given(value, Source(option, _PLACE))

    def _unknown(self, option: str) -> None:
        self.reading.mistakes.append(unknown(Source(option, _PLACE), [*self._options, *self._negations, *_FLAGS]))

    def _misplaced(self) -> None:
        self._mistake("an argument that is no file and has no option: a --name goes before each value")

    def _mistake(self, text: str) -> None:
        self.reading.mistakes.append(f"{text} ({_PLACE})")
