"""What there is to set, for people: the text of --help, and docs/settings.md (python -m config.reference)."""

import sys
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.command_line import is_boolean, option_name
from config.fields import default_text, takes
from config.settings import GROUPS
from config.sources import PREFIX

_WIDTH = 80
_INDENT = " " * 8


def help_text() -> str:
    """Return the text of --help, at most 80 columns wide."""
    return "\n".join(_help_lines()) + "\n"


def _help_lines() -> Iterator[str]:
    yield "usage: pgfunnel --upstream postgresql://user:password@host:port/dbname [OPTION]"
    yield "       pgfunnel demo [--once]"
    yield "       pgfunnel lint FILE..."
    yield ""
    yield from textwrap.wrap(
        "A connection pooler for PostgreSQL. Each setting may be given as an option, as the environment variable named "
        "with it, or under its name with underscores in a TOML file; the option goes before the variable, and that "
        "before the file.",
        _WIDTH,
    )
    yield ""
    yield from _help_option("--config FILE", f"TOML file of settings. ({PREFIX}CONFIG)")
    yield from _help_option("--help, --version", "Show this text, or the version.")
    for group in GROUPS:
        yield ""
        yield from textwrap.wrap(f"{_title(group)}: {group.__doc__}", _WIDTH)
        for name, field in group.model_fields.items():
            option = f"{option_name(name)} {takes(field).metavar}"
            if is_boolean(name):
                option = f"{option_name(name)} [0|1], --no-{option_name(name)[2:]}"
            default = "" if field.is_required() else f", default {default_text(field)}"
            yield from _help_option(option, f"{field.description} ({PREFIX}{name.upper()}{default})")


def _help_option(option: str, text: str) -> Iterator[str]:
    yield f"  {option}"
    yield from textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)


def markdown() -> str:
    """Return docs/settings.md."""
    return "\n".join(_markdown_lines()) + "\n"


def _markdown_lines() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "<!-- Written by `python -m config.reference`; change config/ instead. -->"
    yield ""
    yield "A setting such as `pool_mode` may be given in three ways. The first that is there counts:"
    yield ""
    yield "1. the option `--pool-mode session`; a boolean also as `--log-connections` or `--no-log-connections`"
    yield f"2. the environment variable `{PREFIX}POOL_MODE=session`"
    yield '3. `pool_mode = "session"` in a TOML file, which `--config` or `PGFUNNEL_CONFIG` names'
    yield ""
    yield "An unknown name and an impossible value keep pgfunnel from starting; its message lists all of them."
    for group in GROUPS:
        yield ""
        yield f"## {_title(group)}"
        yield ""
        yield str(group.__doc__)
        yield ""
        yield "| setting | default | takes | meaning |"
        yield "|---|---|---|---|"
        for name, field in group.model_fields.items():
            yield _row(name, field)


def _title(group: type[BaseModel]) -> str:
    return group.__name__.replace("Tls", " TLS")


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{default_text(field)}`"
    cells = f"`{name}`", default.replace("`empty`", "empty"), takes(field).words, str(field.description)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
