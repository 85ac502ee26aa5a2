"""What holds, for people: the rows of the console's SHOW CONFIG, and the text of `pgfunnel config show`.

No secret is in either.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pydantic import BaseModel, SecretStr

from config.fields import default_text, text
from config.load import Loaded
from config.pgbouncer import DEFAULTS, PLACE_OF_DEFAULTS, WITHOUT_EFFECT
from config.settings import RESTART, Settings
from config.sources import DEFAULT

_HIDDEN: Final = "***"


class Row(NamedTuple):
    """A setting, its value and its default as one would write them, and whether it changes without a restart."""

    key: str
    value: str
    default: str
    changeable: bool


def shown(loaded: Loaded) -> Sequence[Row]:
    """Return all settings by name, also those of PgBouncer's that have no effect here, for whoever looks for them."""
    return [_row(loaded, name) for name in sorted((*Settings.model_fields, *WITHOUT_EFFECT))]


def _row(loaded: Loaded, name: str) -> Row:
    if name in WITHOUT_EFFECT:
        return Row(name, loaded.idle.get(name, DEFAULTS[name]), DEFAULTS[name], changeable=True)
    field = Settings.model_fields[name]
    value = text(field, getattr(loaded.settings, name))
    if name == "conffile" and not value:
        value = str(loaded.file or "")
    ours = default_text(field)
    default = DEFAULTS[name] if loaded.from_ini and name in DEFAULTS else "" if ours == "empty" else ours
    return Row(name, value, default, name not in RESTART)


def report(loaded: Loaded, *, only_changed: bool) -> str:
    """Return what holds and where each value came from."""
    return "\n".join(_report(loaded, only_changed=only_changed)) + "\n"


def _report(loaded: Loaded, *, only_changed: bool) -> Iterator[str]:
    lines = []
    for name, field in Settings.model_fields.items():
        source = loaded.sources[name]
        if not (only_changed and source.place in (DEFAULT, PLACE_OF_DEFAULTS)):
            named = "" if source.name == name else f"{source.name}, "
            value = text(field, getattr(loaded.settings, name)).replace("\n", " ")
            lines.append((name, value or '""', f"{named}{source.place}"))
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(2)]
    for name, value, place in sorted(lines):
        yield f"{name:{widths[0]}}  {value:{min(widths[1], 30)}}  # {place}"

    directory = loaded.directory
    yield from _entries("databases", directory.databases)
    yield from _entries("users", directory.users)
    yield from _entries("peers", {str(number): peer for number, peer in directory.peers.items()})
    for note in loaded.notes:
        yield f"# {note}"


def _entries(table: str, models: Mapping[str, BaseModel]) -> Iterator[str]:
    if models:
        yield from ("", f"[{table}]")
    for name, model in models.items():
        given = ((key, getattr(model, key)) for key in type(model).model_fields if key in model.model_fields_set)
        yield f"{name} = " + " ".join(f"{key}={_written(value)}" for key, value in given if value is not None)


def _written(value: object) -> str:
    if isinstance(value, SecretStr):
        return _HIDDEN
    written = ",".join(value) if isinstance(value, tuple) else str(value)
    return f"'{written}'" if not written or " " in written else written
