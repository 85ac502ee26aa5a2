"""Where values come from, and the environment. The command line and the file have modules of their own.

Reading stops at no mistake and judges no value. A Reading has what was given, each value with its source, and what
is wrong with the names.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from config.fields import takes
from config.nearest import did_you_mean
from config.settings import Settings

PREFIX = str(Settings.model_config["env_prefix"])
# The file itself: an option and a variable, but no setting, as a TOML file can't name another file.
CONFIG = "config"
ENTRIES: Final = ("databases", "users", "peers")
"""The tables of single databases, users and peers. Only `users` is a setting as well, for passwords alone."""
NAMES: Final = (*Settings.model_fields, *(name for name in ENTRIES if name not in Settings.model_fields), CONFIG)
"""What an option or a variable can have for a name."""
DEFAULT: Final = "default"
"""The place of what was not given."""
TABLES: Final = tuple(name for name, field in Settings.model_fields.items() if takes(field).metavar == "JSON")
"""The settings that are tables of the TOML file."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: its name as written there, and the place.

    The place is a line of a file, or one of command line, environment, console and default.
    """

    name: str
    place: str

    def __str__(self) -> str:
        return f"{self.name} ({self.place})"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was given: text, or what TOML made of it."""

    value: object
    source: Source


@dataclass(slots=True)
class Reading:
    """What one source gave, by the names of the settings, and the mistakes made there."""

    given: dict[str, Given] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


def read_environment(environ: Mapping[str, str]) -> Reading:
    """Read the variables PGFUNNEL_<NAME>; any other that begins so is a mistake."""
    reading = Reading()
    variables = {PREFIX + name.upper(): name for name in NAMES}
    for variable, text in environ.items():
        if not variable.upper().startswith(PREFIX) or _is_service_link(variable, text):
            continue
        source = Source(variable, "environment")
        if variable in variables:
            reading.given[variables[variable]] = Given(text, source)
        else:
            reading.mistakes.append(unknown(source, variables))
    return reading


def _is_service_link(variable: str, text: str) -> bool:
    """Tell whether Kubernetes set this variable, as it does in every pod for a Service named pgfunnel or pgfunnel-...

    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables. For a Service named
    pgfunnel-metrics they even include PGFUNNEL_METRICS_PORT=tcp://10.0.0.11:9127.
    """
    return re.search(
        r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$", variable
    ) is not None or (variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text) is not None)


def unknown(source: Source, names: Collection[str]) -> str:
    """Return the message for a name that no setting has, with the right one if it is near."""
    hint = did_you_mean(source.name, names, plain=_plain)
    return f"{source.name}: there is no such setting{hint} ({source.place})"


def _plain(name: str) -> str:
    # Without what all names of a source have in common, which would make any two of them look alike.
    return name.upper().removeprefix("--").removeprefix(PREFIX).replace("-", "_")
