"""The command line: one option per setting, --config, --help and --version.

argparse does the syntax and the help. It is never left to judge, as it would stop at the first mistake.
"""

import argparse
from collections.abc import Sequence
from importlib.metadata import version

from pydantic.fields import FieldInfo

from config.fields import default_text, takes
from config.settings import GROUPS, Settings
from config.sources import CONFIG, PREFIX, Given, Reading, Source, unknown

_PLACE = "command line"
_WIDTH = 80


class _Remember(argparse.Action):
    """Notes an option with the name it was called by and its value; None where that is missing."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        namespace.options.append((self.dest, option_string, values))


def read_command_line(arguments: Sequence[str]) -> Reading:
    """Read the arguments, without the program's name. --help and --version print and raise SystemExit."""
    reading = Reading()
    namespace = argparse.Namespace(options=[])
    _, rest = _parser().parse_known_args(arguments, namespace)
    for name, option, value in namespace.options:
        source = Source(option, _PLACE)
        field = Settings.model_fields.get(name)
        if field is not None and field.annotation is bool:
            if option.startswith("--no-"):
                if value is not None:
                    reading.mistakes.append(f"{option}: it takes no value ({_PLACE})")
                value = "0"
            elif value is None:
                value = "1"
        if value is None:
            reading.mistakes.append(f"{option}: its value is missing ({_PLACE})")
        else:
            reading.given[name] = Given(value, source)
    reading.mistakes += _strangers(rest)
    return reading


def _strangers(arguments: Sequence[str]) -> list[str]:
    """Return the mistakes for what argparse could not place. Nothing but option names is quoted: all else, such as
    the end of a password with a space in it, may be secret."""
    mistakes: list[str] = []
    after_stranger = False
    for argument in arguments:
        if argument.startswith("-"):
            name = argument.partition("=")[0]
            mistakes.append(
                unknown(Source(name, _PLACE), [option_name(each) for each in Settings.model_fields])
            )
            after_stranger = "=" not in argument
        elif after_stranger:
            after_stranger = False  # probably its value
        else:
            mistakes.append(
                f"an argument belongs to no option: every value has a --name before it ({_PLACE})"
            )
    return mistakes


def option_name(name: str) -> str:
    """Return the option of a setting: --pool-mode for pool_mode."""
    return "--" + name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgfunnel",
        usage="pgfunnel --upstream postgresql://user:password@host:port/dbname [options]",
        description="A connection pooler for PostgreSQL. Each option may also be given as the environment variable "
        "named after it, or by its name with underscores in a TOML file. The command line goes before the "
        "environment, and that before the file.",
        add_help=False,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=8, width=_WIDTH),
    )
    general = parser.add_argument_group("General")
    general.add_argument("-h", "--help", action="help", help="Show this help.")
    general.add_argument(
        "-V",
        "--version",
        action="version",
        version=f"pgfunnel {version('pgfunnel')}",
        help="Show the version.",
    )
    general.add_argument(
        "--config",
        dest=CONFIG,
        metavar="FILE",
        nargs="?",
        action=_Remember,
        help=f"TOML file of settings. [{PREFIX}CONFIG]",
    )
    for group in GROUPS:
        options = parser.add_argument_group(group.__name__, group.__doc__)
        for name, field in group.model_fields.items():
            _add_option(options, name, field)
    return parser


def _add_option(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    flags = [option_name(name)]
    if field.annotation is bool:
        flags.append(f"--no-{flags[0][2:]}")
    group.add_argument(
        *flags,
        dest=name,
        metavar=takes(field).metavar,
        nargs="?",  # a missing value is reported with all other mistakes
        action=_Remember,
        help=f"{field.description} [{PREFIX}{name.upper()}, default: {default_text(field)}]".replace(
            "%", "%%"
        ),
    )
