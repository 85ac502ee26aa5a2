"""The way from command line, environment and TOML file to settings, or to one message with all that is wrong.

pydantic judges the values. Which of them counts, where it came from and how a mistake reads is decided here.
"""

import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from config.access import Access, read_access
from config.command_line import option_name, read_command_line
from config.errors import ConfigurationError
from config.fields import takes
from config.reference import help_text
from config.settings import Settings
from config.sources import CONFIG, PREFIX, TABLES, Given, Reading, Source, read_environment, read_toml
from config.upstream import Upstream, mask

_LONGEST_SHOWN = 100
_NO_DATABASE = f"upstream: it is missing; give {option_name('upstream')} postgresql://... or {PREFIX}UPSTREAM"
_ACCESS_FILES = ("auth_file", "auth_hba_file", "auth_ident_file")
_BY_PASSWORD = ("plain", "md5", "scram-sha-256")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Valid settings, where each came from, and who may log in."""

    settings: Settings
    sources: Mapping[str, Source]
    access: Access

    @property
    def credentials(self) -> Mapping[str, SecretStr]:
        """All users: name to password, md5 or SCRAM secret."""
        return self.access.users


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """Load the settings from the arguments (without the program's name), the environment and the TOML file.

    Raises ConfigurationError with all mistakes. --help and --version print and raise SystemExit.
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(help_text())
        raise SystemExit(0)
    if "--version" in argv or "-V" in argv:
        sys.stdout.write(f"pgfunnel {version('pgfunnel')}\n")
        raise SystemExit(0)

    command_line = read_command_line(argv)
    environment = read_environment(environ)
    file = _read_file(command_line, environment)
    given, contradictions = _with_options_of_the_url(ChainMap(command_line.given, environment.given, file.given))
    settings, wrong_values = _validate(given)
    # Even if other settings are wrong: all mistakes at once.
    access, in_files = read_access(*(_path(given, name) for name in _ACCESS_FILES))
    wrong_lines = [
        f"{given[each.setting].source.name}: {each.text} ({given[each.setting].source.place})" for each in in_files
    ]

    missing = [] if "upstream" in given and given["upstream"].value != "" else [_NO_DATABASE]
    mistakes = [
        *command_line.mistakes,
        *environment.mistakes,
        *file.mistakes,
        *contradictions,
        *wrong_values,
        *wrong_lines,
        *missing,
    ]
    if settings is None or mistakes:
        raise ConfigurationError(mistakes)
    access = _complete(settings, access)
    sources = {name: given[name].source if name in given else Source(name, "default") for name in Settings.model_fields}
    return Loaded(settings, sources, access)


def reload_access(loaded: Loaded) -> Access:
    """Read the files that say who may log in again. Raises ConfigurationError with all mistakes."""
    settings = loaded.settings
    access, mistakes = read_access(settings.auth_file, settings.auth_hba_file, settings.auth_ident_file)
    if mistakes:
        raise ConfigurationError([str(mistake) for mistake in mistakes])
    return _complete(settings, access)


def _read_file(command_line: Reading, environment: Reading) -> Reading:
    path = ChainMap(command_line.given, environment.given).get(CONFIG)
    command_line.given.pop(CONFIG, None)
    environment.given.pop(CONFIG, None)
    return read_toml(Path(str(path.value)), path.source) if path is not None and path.value else Reading()


def _with_options_of_the_url(given: Mapping[str, Given]) -> tuple[Mapping[str, Given], list[str]]:
    """Add the settings that the upstream URL's options stand for; and what contradicts them."""
    url = given.get("upstream")
    if url is None or not isinstance(url.value, str):
        return given, []
    try:
        options = dict(Upstream.parse(url.value).tls)
    except ValueError:
        return given, []  # what is wrong with it is said when it is validated
    contradictions = [
        f"{given[name].source.name}: it is not what the options of {url.source.name} say ({given[name].source.place})"
        for name, value in options.items()
        if name in given and given[name].value != value
    ]
    return {**given, **{name: Given(value, url.source) for name, value in options.items()}}, contradictions


def _validate(given: Mapping[str, Given]) -> tuple[Settings | None, list[str]]:
    # The exception itself goes no further: its text and its traceback could show what was given.
    try:
        return Settings.model_validate({name: each.value for name, each in given.items()}), []
    except ValidationError as error:
        return None, [_explain(details, given) for details in error.errors()]


def _explain(details: ErrorDetails, given: Mapping[str, Given]) -> str:
    """Return the line about one value that pydantic refused."""
    name, *inside = map(str, details["loc"])
    reason = str(details["ctx"]["error"]) if details["type"] == "value_error" else None
    if name not in given:
        return f"{name}: it {reason} (default)"
    source = given[name].source
    if inside:
        return f"{source.name}: the password of {'.'.join(inside)} is not text ({source.place})"
    shown = _show(name, given[name].value)
    return f"{source.name}: {shown} {reason or f'is not {takes(Settings.model_fields[name]).words}'} ({source.place})"


def _show(name: str, value: object) -> str:
    """Return a value for a message, or as much of it as can't be secret."""
    if name in (*TABLES, "server_password_source") or not isinstance(value, (str, int, float)):
        return "its value"
    if isinstance(value, str):
        text = mask(value) if name == "upstream" or "://" in value or "@" in value else value
        return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")
    return str(value).lower()


def _path(given: Mapping[str, Given], name: str) -> Path | None:
    value = given[name].value if name in given else None
    return Path(value) if isinstance(value, str) and value else None


def _complete(settings: Settings, access: Access) -> Access:
    """Add the users of the settings, and see that somebody may log in. Raises ConfigurationError."""
    users = _users(settings, access.users)
    mistakes = []
    if settings.auth_type in _BY_PASSWORD and not users and not settings.auth_user:
        mistakes.append(
            f"upstream, users, auth_file: none has a password, so auth_type {settings.auth_type} would let nobody in; "
            "auth_user finds users in Postgres, auth_type passthrough needs no list"
        )
    if settings.auth_type == "any" and (settings.upstream is None or settings.upstream.user is None):
        mistakes.append("upstream: it names no user, as whom auth_type any serves everybody")
    if settings.auth_type == "peer" and settings.unix_socket_dir is None:
        mistakes.append("auth_type: peer takes unix_socket_dir: only there the system user of a client is known")
    mistakes.extend(_unverifiable(settings, access))
    if mistakes:
        raise ConfigurationError(mistakes)
    return replace(access, users=users)


def _unverifiable(settings: Settings, access: Access) -> Iterator[str]:
    """Yield what asks for certificates of clients that nothing could verify."""
    if settings.client_tls_ca_file is not None and settings.client_tls_sslmode != "disable":
        return
    without = "takes client_tls_ca_file, and a client_tls_sslmode other than disable"
    if settings.auth_type == "cert":
        yield f"auth_type: cert {without}"
    for rule in access.rules:
        if settings.auth_type == "hba" and (rule.method == "cert" or rule.client_certificate):
            yield f"auth_hba_file: {rule.place} asks for a certificate of the client's, which {without}"


def _users(settings: Settings, listed: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    """Merge all users.

    The upstream's own goes last: that password is the one which logs in at Postgres, so a line left behind in a file
    can't lock its user out.
    """
    users = {**listed, **settings.users}
    upstream = settings.upstream
    if upstream is None or upstream.user is None:
        return users
    if upstream.password is not None or settings.auth_type not in _BY_PASSWORD:
        users[upstream.user] = upstream.password or users.get(upstream.user, SecretStr(""))
    return users
