"""A pgbouncer.ini as the TOML file that means the same to pgfunnel."""

import json
import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel, SecretStr

from config import databases, pgbouncer
from config.errors import ConfigurationError
from config.ini import Ini


def from_pgbouncer(ini: Ini) -> str:
    """Return the TOML text. Raises ConfigurationError with all mistakes in names and in single databases and users.

    Whether the values of the settings are possible here shows when the file is loaded. Passwords stand in it as they
    do in the ini file.
    """
    directory, wrong = databases.from_ini(ini)
    reading = pgbouncer.read(ini)
    if mistakes := [*reading.mistakes, *wrong]:
        raise ConfigurationError(mistakes)
    return "\n".join(_lines(reading, directory)) + "\n"


def _lines(reading: pgbouncer.PgBouncerReading, directory: databases.Directory) -> Iterator[str]:
    for name, given in reading.given.items():
        yield f"{name} = {_value(given.value)}"
    for name, text in reading.idle.items():
        yield f"# {name} = {_value(text)} has no effect: {pgbouncer.WITHOUT_EFFECT[name]}"

    yield from ("", "# PgBouncer's defaults, where pgfunnel has others.")
    for name, given in pgbouncer.defaults().items():
        if name not in reading.given and pgbouncer.differs(name):
            yield f"{name} = {_value(given.value)}"

    entries: dict[str, Mapping[str, BaseModel]] = {
        "databases": directory.databases,
        "users": directory.users,
        "peers": {str(number): peer for number, peer in directory.peers.items()},
    }
    for table, models in entries.items():
        for name, model in models.items():
            yield from ("", f"[{table}.{_key(name)}]")
            for key in type(model).model_fields:
                if key in model.model_fields_set and (value := getattr(model, key)) is not None:
                    yield f"{key} = {_value(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value!r}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return _text(value.get_secret_value() if isinstance(value, SecretStr) else str(value))


def _text(text: str) -> str:
    # JSON's strings are TOML's, but for one character that has to be escaped there.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
