"""The way from command line, environment and file to what holds, or to one message with all that is wrong.

Which of several values counts is decided here; they are judged in config.validation.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from config import admission
from config.access import Access, Mistake, read_access
from config.command_line import CommandLine, option_name, read_command_line
from config.configfile import ConfigFile, read_ini, read_toml, replace_tables
from config.databases import FALLBACK, Directory
from config.errors import ConfigurationError
from config.pgbouncer import WITHOUT_EFFECT, plain
from config.reference import help_text
from config.settings import RESTART, Settings
from config.sources import CONFIG, DEFAULT, PREFIX, Given, Reading, Source, read_environment, unknown
from config.validation import validate, with_options_of_the_url

_ACCESS_FILES: Final = ("auth_file", "auth_hba_file", "auth_ident_file")
_NO_DATABASE: Final = (
    f"upstream: it is missing, and so are [databases]; give {option_name('upstream')} postgresql://... or "
    f"{PREFIX}UPSTREAM, or a file that has them"
)
_CONSOLE: Final = "console"


@dataclass(frozen=True, slots=True)
class Origin:
    """What was started with, to read it again."""

    argv: tuple[str, ...] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    file: Path | None = None
    """The file that conffile has named since, if any."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What holds, where each setting came from, and who may log in. It is replaced as a whole."""

    settings: Settings
    sources: Mapping[str, Source]
    access: Access
    directory: Directory
    notes: tuple[str, ...]
    """Lines for the log: what was given and has no effect, or none yet."""
    idle: Mapping[str, str]
    """PgBouncer's settings that have no effect, as they were given."""
    file: Path | None
    """The pgbouncer.ini or TOML file that was read."""
    from_ini: bool
    """PgBouncer's defaults hold."""
    quiet: bool
    """-q: nothing goes to standard error."""
    daemon: bool
    """-d: it runs in the background."""
    given: Mapping[str, Given] = field(repr=False)
    """What was given, before it was judged."""
    origin: Origin

    @property
    def credentials(self) -> Mapping[str, SecretStr]:
        """All users: name to password, md5 or SCRAM secret."""
        return self.access.users


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """Load what holds from the arguments (without the program's name), the environment and the file.

    Raises ConfigurationError with all mistakes. --help and --version print and raise SystemExit.
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(help_text())
        raise SystemExit(0)
    if "--version" in argv or "-V" in argv:
        sys.stdout.write(f"pgfunnel {version('pgfunnel')}\n")
        raise SystemExit(0)
    return _load(Origin(tuple(argv), dict(environ)))


def reload(loaded: Loaded) -> Loaded:
    """Read everything again. What takes a restart stays as it is, and notes say so.

    Raises ConfigurationError with all mistakes, and then nothing has changed.
    """
    read = _load(replace(loaded.origin, file=loaded.settings.conffile or loaded.origin.file))
    kept = sorted(changed(loaded, read) & RESTART)
    if not kept:
        return read
    notes = [f"{name}: it stays as it was until a restart ({read.sources[name].place})" for name in kept]
    return replace(
        read,
        settings=read.settings.model_copy(update={name: getattr(loaded.settings, name) for name in kept}),
        sources={**read.sources, **{name: loaded.sources[name] for name in kept}},
        given={
            **{name: given for name, given in read.given.items() if name not in kept},
            **{name: loaded.given[name] for name in kept if name in loaded.given},
        },
        notes=(*read.notes, *notes),
    )


def with_setting(loaded: Loaded, name: str, text: str) -> Loaded:
    """Change one setting, as the console's SET does, until the next reload.

    Raises ConfigurationError if there is none of the name, if the value is impossible, or if it takes a restart.
    """
    source = Source(name, _CONSOLE)
    if name in RESTART:
        raise ConfigurationError([f"{name}: it can only be changed by a restart ({_CONSOLE})"])
    if name in WITHOUT_EFFECT:
        note = f"{name}: it has no effect: {WITHOUT_EFFECT[name]} ({_CONSOLE})"
        return replace(loaded, idle={**loaded.idle, name: text}, notes=(note,))
    if name not in Settings.model_fields:
        raise ConfigurationError([unknown(source, (*Settings.model_fields, *WITHOUT_EFFECT))])
    given, contradictions = with_options_of_the_url({**loaded.given, name: Given(plain(name, text), source)})
    if contradictions:
        raise ConfigurationError(contradictions)
    return _judge(replace(loaded, given=given, notes=()), [])


def changed(old: Loaded, new: Loaded) -> frozenset[str]:
    """Return the names of the settings that differ."""
    return frozenset(
        name for name in Settings.model_fields if getattr(old.settings, name) != getattr(new.settings, name)
    )


def _load(origin: Origin) -> Loaded:
    command_line, environment = read_command_line(origin.argv), read_environment(origin.environ)
    mistakes: list[str] = []
    path, file = _read_file(origin, command_line, environment, mistakes)
    without_file = {**environment.given, **command_line.given}
    replace_tables(file, without_file)
    given, contradictions = with_options_of_the_url({**file.given, **without_file})
    mistakes = [*command_line.mistakes, *environment.mistakes, *mistakes, *file.mistakes, *contradictions]
    if not (file.may_have_databases or _is_given(given, "upstream")):
        if file.defaults:
            # PgBouncer starts nevertheless: a reload may bring some.
            file.notes.append(f"[databases] is empty: clients get the console only ('{path}')")
        else:
            mistakes.append(_NO_DATABASE)
    unjudged = Loaded(
        settings=Settings(),
        sources={},
        access=Access(),
        directory=file.directory,
        notes=tuple(file.notes),
        idle=file.idle,
        file=path,
        from_ini=bool(file.defaults),
        quiet=command_line.quiet,
        daemon=command_line.daemon,
        given={**file.defaults, **given},
        origin=origin,
    )
    return _judge(unjudged, mistakes)


def _read_file(
    origin: Origin, command_line: CommandLine, environment: Reading, mistakes: list[str]
) -> tuple[Path | None, ConfigFile]:
    """Read the file that is named, if one is."""
    option, variable = command_line.given.pop(CONFIG, None), environment.given.pop(CONFIG, None)
    named = option or variable
    if origin.file is not None:
        named = Given(str(origin.file), Source("conffile", DEFAULT))
    elif command_line.file is not None:
        named = Given(str(command_line.file), Source("FILE", "command line"))
        if option is not None:
            mistakes.append(f"{option.source.name}: there are two files: give one ({option.source.place})")
    if named is None or not named.value:
        return None, ConfigFile()
    path = Path(str(named.value))
    # A file without an option is PgBouncer's way, so a name that tells nothing is one of its own.
    usual = ".toml" if named in (option, variable) else ".ini"
    form = path.suffix if path.suffix in (".ini", ".toml") else usual
    return path, read_ini(path) if form == ".ini" else read_toml(path, named.source)


def _judge(unjudged: Loaded, mistakes: list[str]) -> Loaded:
    """Judge what was given. Raises ConfigurationError with these mistakes and all others."""
    given = unjudged.given
    settings, wrong_values = validate(given)
    # Even if other settings are wrong: all mistakes at once.
    access, wrong_files = _read_access(given)
    mistakes = [
        *mistakes,
        *wrong_values,
        *(
            f"{given[each.setting].source.name}: {each.text} ({given[each.setting].source.place})"
            for each in wrong_files
        ),
        *_two_of_a_kind(unjudged),
    ]
    if settings is None:
        raise ConfigurationError(mistakes)
    mistakes.extend(_unfit_for_the_background(settings) if unjudged.daemon else ())
    notes = list(unjudged.notes)
    if not mistakes:
        access = admission.complete(settings, access)
        mistakes.extend(admission.mistakes(settings, unjudged.directory, access))
        if nobody := admission.nobody(settings, unjudged.directory, access):
            (notes if unjudged.from_ini else mistakes).append(nobody)
        notes.extend(admission.nowhere(settings, unjudged.directory))
    if mistakes:
        raise ConfigurationError(mistakes)
    sources = {name: given[name].source if name in given else Source(name, DEFAULT) for name in Settings.model_fields}
    return replace(unjudged, settings=settings, sources=sources, access=access, notes=tuple(notes))


def _two_of_a_kind(unjudged: Loaded) -> Iterator[str]:
    if _is_given(unjudged.given, "upstream") and FALLBACK in unjudged.directory.databases:
        source = unjudged.given["upstream"].source
        yield f"{source.name}: [databases] has an entry {FALLBACK} too: leave out one ({source.place})"


def _unfit_for_the_background(settings: Settings) -> Iterator[str]:
    if settings.pidfile is None:
        yield "-d: it takes a pidfile (command line)"
    if settings.logfile is None and not settings.syslog:
        yield "-d: it takes a logfile or syslog, as nobody would read standard error (command line)"


def _read_access(given: Mapping[str, Given]) -> tuple[Access, list[Mistake]]:
    values = (given[name].value if name in given else None for name in _ACCESS_FILES)
    return read_access(*(Path(value) if isinstance(value, str) and value else None for value in values))


def _is_given(given: Mapping[str, Given], name: str) -> bool:
    return name in given and given[name].value != ""
