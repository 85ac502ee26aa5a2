"""The file of settings, in either form: a pgbouncer.ini, with which PgBouncer's defaults hold, or TOML.

Its tables of databases, users and peers may also be given as JSON, by those who have no file.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from config import databases, ini, pgbouncer
from config.databases import Directory, Lines, place_in_toml
from config.files import read_text
from config.settings import Settings
from config.sources import ENTRIES, TABLES, Given, Reading, Source, unknown

# Keys of TOML, but for those with a \\ in them; and of lines, those that have one.
_KEY: Final = re.compile(r"""[\w-]+|"[^"\\]*"|'[^']*'""")
_HEADER: Final = re.compile(r"\s*\[{1,2}([^\[\]=]+)\]{1,2}\s*(?:#.*)?$")
_KEY_AND_VALUE: Final = re.compile(rf"\s*({_KEY.pattern})\s*[.=]")


@dataclass(slots=True)
class ConfigFile(Reading):
    """What a file says."""

    directory: Directory = field(default_factory=Directory)
    defaults: Mapping[str, Given] = field(default_factory=dict)
    """What holds instead of our own defaults."""
    notes: list[str] = field(default_factory=list)
    """Lines for the log."""
    idle: Mapping[str, str] = field(default_factory=dict)
    """PgBouncer's settings that have no effect, as they were given."""
    may_have_databases: bool = False
    """It has entries of databases, right or wrong; or could not be read, so that nobody knows."""


def read_ini(path: Path) -> ConfigFile:
    """Read a pgbouncer.ini, and what it includes."""
    content = ini.read(path)
    reading = pgbouncer.read(content)
    directory, wrong = databases.from_ini(content)
    unread = bool(content.mistakes) and not any(content.sections.values())
    return ConfigFile(
        given=reading.given,
        mistakes=[*reading.mistakes, *wrong],
        directory=directory,
        defaults=pgbouncer.defaults(),
        notes=reading.notes,
        idle=reading.idle,
        may_have_databases=bool(content.sections["databases"]) or unread,
    )


def read_toml(path: Path, named: Source) -> ConfigFile:
    """Read a TOML file: settings at its top level, and tables. `named` is what named the file."""
    reading = ConfigFile(may_have_databases=True)
    try:
        text = read_text(path)
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Its message says what is wrong and in which line, and quotes no values.
        reading.mistakes.append(f"{path}: not TOML: {error}")
        return reading
    except ValueError as error:
        reading.mistakes.append(f"{named.name}: '{path}' {error} ({named.place})")
        return reading

    reading.may_have_databases = "databases" in document
    lines, name = _lines(text), repr(str(path))
    for key, value in document.items():
        source = Source(key, place_in_toml(name, lines, key))
        if key in ENTRIES:
            continue
        if key in Settings.model_fields:
            reading.given[key] = Given(value, source)
        elif isinstance(value, dict):
            tables = ", ".join(f"[{table}]" for table in (*ENTRIES, *(name for name in TABLES if name not in ENTRIES)))
            reading.mistakes.append(f"{key}: settings stand in no table but {tables} ({source.place})")
        else:
            reading.mistakes.append(unknown(source, (*Settings.model_fields, *ENTRIES)))
    reading.directory, wrong = databases.from_toml(document, name, lines)
    reading.mistakes.extend(wrong)
    if "users" in document:
        reading.given["users"] = Given(
            _passwords(reading.directory), Source("users", place_in_toml(name, lines, "users"))
        )
    return reading


def replace_tables(file: ConfigFile, given: dict[str, Given]) -> None:
    """Let the tables of entries that are given as JSON take the places of the file's, and out of `given`."""
    for name in ENTRIES:
        table = _table(file, given, name)
        if table is None:
            continue
        source = given.pop(name).source
        directory, wrong = databases.from_toml({name: table}, f"{source.name}, {source.place}")
        file.mistakes.extend(wrong)
        file.directory = replace(file.directory, **{name: getattr(directory, name)})
        if name == "databases":
            file.may_have_databases = True
        elif name == "users":
            given[name] = Given(_passwords(directory), source)


def _table(file: ConfigFile, given: dict[str, Given], name: str) -> object | None:
    """Return what is given as JSON; None for nothing, or for names and passwords alone, which are a setting."""
    if name not in given:
        return None
    text, source = str(given[name].value), given[name].source
    try:
        table: object = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        if name not in Settings.model_fields:
            # error.msg and the position only: str(error.doc) may have passwords in it.
            message = f"its value is not JSON: {error.msg} at character {error.pos + 1}"
            file.mistakes.append(f"{source.name}: {message} ({source.place})")
            del given[name]
        return None
    has_entries = isinstance(table, dict) and any(isinstance(entry, dict) for entry in table.values())
    return table if has_entries or name not in Settings.model_fields else None


def _passwords(directory: Directory) -> Mapping[str, SecretStr]:
    return {name: user.password for name, user in directory.users.items() if user.password is not None}


def _lines(text: str) -> Lines:
    """Return the lines on which settings, tables and entries begin, for messages; tomllib does not tell."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            table = tuple(map(_unquoted, _KEY.findall(header[1])))
            for depth in (1, 2):
                lines.setdefault(table[:depth], number)
        elif (key := _KEY_AND_VALUE.match(line)) and len(table) < 2:
            lines.setdefault((*table, _unquoted(key[1])), number)
    return lines


def _unquoted(key: str) -> str:
    return key[1:-1] if key[0] in "\"'" else key
