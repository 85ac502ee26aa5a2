"""The way from command line, environment and TOML file to settings, or to one message with all that is wrong.

pydantic judges the values. Which of them counts, where it came from and how a mistake reads is decided here.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from config import userlist
from config.command_line import option_name, read_command_line
from config.errors import ConfigurationError
from config.fields import takes
from config.settings import Settings
from config.sources import CONFIG, PREFIX, Given, Reading, Source, read_environment, read_toml
from config.upstream import mask

DEFAULT = Source("default", "default")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Valid settings, the source of each, and everyone who may log in (name to password, md5 or SCRAM secret)."""

    settings: Settings
    sources: Mapping[str, Source]
    credentials: Mapping[str, SecretStr]


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """Load the settings from arguments (without the program's name), environment and the TOML file they name.

    Raises ConfigurationError with all mistakes, and SystemExit after --help and --version.
    """
    command_line = read_command_line(argv)
    environment = read_environment(environ)
    file = _read_file(command_line, environment)
    mistakes = [*command_line.mistakes, *environment.mistakes, *file.mistakes]

    given = ChainMap(command_line.given, environment.given, file.given)
    settings = _validate(given, mistakes)
    listed = _read_auth_file(given.get("auth_file"), mistakes)
    if settings is None or mistakes:
        raise ConfigurationError(mistakes)

    sources = {name: given[name].source if name in given else DEFAULT for name in Settings.model_fields}
    return Loaded(settings, sources, _credentials(settings, listed))


def _read_file(command_line: Reading, environment: Reading) -> Reading:
    given = command_line.given.pop(CONFIG, None), environment.given.pop(CONFIG, None)
    for each in given:
        if each is not None and each.value:
            return read_toml(Path(str(each.value)), each.source)
    return Reading()


def _validate(given: Mapping[str, Given], mistakes: list[str]) -> Settings | None:
    try:
        return Settings.model_validate({name: each.value for name, each in given.items()})
    except ValidationError as error:
        mistakes += [_explain(details, given) for details in error.errors()]
        return None


def _read_auth_file(given: Given | None, mistakes: list[str]) -> Mapping[str, SecretStr]:
    if given is None or not isinstance(given.value, str) or not given.value:
        return {}
    users, wrong = userlist.read(Path(given.value))
    mistakes += [f"{given.source.name}: '{given.value}' {each} ({given.source.place})" for each in wrong]
    return users


def _credentials(settings: Settings, listed: Mapping[str, SecretStr]) -> dict[str, SecretStr]:
    """Merge all users. The upstream's own password goes last: it is the one known to log in at Postgres, so a line
    left behind in a file can't lock its user out."""
    credentials = {**listed, **settings.users}
    if settings.upstream.user is not None and settings.upstream.password is not None:
        credentials[settings.upstream.user] = settings.upstream.password
    return credentials


def _explain(details: ErrorDetails, given: Mapping[str, Given]) -> str:
    """Return the line for one value that pydantic refused."""
    name = str(details["loc"][0])
    if name not in given:
        if name == "upstream":
            return f"upstream: it is missing: give {option_name(name)} postgresql://... or {PREFIX}{name.upper()}"
        return f"{name}: {details['ctx']['error']} (default)"
    value, source = given[name].value, given[name].source
    path = ".".join([source.name, *map(str, details["loc"][1:])])
    if details["type"] == "value_error":
        reason = f"{_show(name, value)}: {details['ctx']['error']}"
    elif len(details["loc"]) > 1:
        reason = "it is not text"
    else:
        reason = f"{_show(name, value)} is not {takes(Settings.model_fields[name]).words}"
    return f"{path}: {reason} ({source.place})"


def _show(name: str, value: object) -> str:
    """Return a value for a message, or as much of it as can't be secret."""
    if name == "users":
        return "the value"
    if isinstance(value, str):
        return f"'{mask(value)}'" if name == "upstream" or "://" in value else f"'{value}'"
    if isinstance(value, bool):
        return str(value).lower()
    return "a table" if isinstance(value, dict) else str(value)
