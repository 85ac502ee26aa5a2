"""What there is to set, for people: the text of --help, and docs/settings.md (python -m config.reference)."""

import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.command_line import is_boolean, option_name
from config.databases import Database, Peer, User
from config.fields import default_text, takes
from config.pgbouncer import DEFAULTS, WITHOUT_EFFECT, differs
from config.settings import GROUPS, RESTART
from config.sources import PREFIX

_ENTRIES: Final = f"""\
In a pgbouncer.ini, each is a line of key=value pairs; in TOML, a table such as `[databases.shop]`. What is not set
there goes by the settings above. As an option or a variable, they are a JSON object that takes the place of the file's
table: `{PREFIX}DATABASES='{{"shop": {{"host": "db"}}}}'`."""
MODELS: Final[Mapping[str, type[BaseModel]]] = {"databases": Database, "users": User, "peers": Peer}
_INTRODUCTION: Final = f"""\
A setting such as `pool_mode` may be given in three ways. The first that is there counts:

1. the option `--pool-mode session`; a boolean also as `--log-connections` or `--no-log-connections`
2. the environment variable `{PREFIX}POOL_MODE=session`
3. a file: `pool_mode = "session"` in TOML, which `--config` or `{PREFIX}CONFIG` names, or `pool_mode = session` in a
   pgbouncer.ini, named without an option: `pgfunnel pgbouncer.ini`

An unknown name and an impossible value keep pgfunnel from starting; its message lists all of them. `pgfunnel config
show` prints what holds and where it came from.

With a pgbouncer.ini, PgBouncer's defaults hold; they are given where they differ. SIGHUP, RELOAD and the console's SET
change settings while pgfunnel runs, but for those that change at a restart only."""
_WIDTH = 80
_INDENT = " " * 8
_USAGE: Final = """\
usage: pgfunnel FILE [OPTION]...
       pgfunnel --upstream postgresql://user:password@host/dbname [OPTION]...
       pgfunnel check [FILE] [OPTION]...
       pgfunnel config show [--changed] [FILE] [OPTION]...
       pgfunnel config import FILE [-o FILE]
       pgfunnel lint FILE...
       pgfunnel demo [--once]
"""


def help_text() -> str:
    """Return the text of --help, at most 80 columns wide."""
    return "\n".join(_help_lines()) + "\n"


def _help_lines() -> Iterator[str]:
    yield _USAGE
    yield from textwrap.wrap(
        "A connection pooler for PostgreSQL. Each setting may be given as an option, as the environment variable named "
        "with it, or under its name with underscores in a file; the option goes before the variable, and that before "
        "the file.",
        _WIDTH,
    )
    yield ""
    yield from textwrap.wrap(
        "check logs in to each database and says what it has found; config show prints what holds and where it came "
        "from; config import writes a pgbouncer.ini as TOML; lint finds statements that leave state in a session; demo "
        "shows a storm of clients. Each has a --help of its own.",
        _WIDTH,
    )
    yield ""
    yield from _help_option("FILE", "A pgbouncer.ini. Then PgBouncer's defaults hold, where it has others.")
    yield from _help_option("--config FILE", f"TOML file of settings. ({PREFIX}CONFIG)")
    yield from _help_option(
        "--databases, --users, --peers JSON",
        "Tables of entries, instead of those in the file: an object of objects. "
        f"({PREFIX}DATABASES, {PREFIX}USERS, {PREFIX}PEERS)",
    )
    yield from _help_option("-q, --quiet", "Do not log to standard error.")
    yield from _help_option("-v, --verbose", "Log more: --verbose 1. Twice for 2, and so on.")
    yield from _help_option("-d, --daemon", "Run in the background. It takes a pidfile, and a logfile or syslog.")
    yield from _help_option("-u NAME, --user NAME", "Become this system user after the start.")
    yield from _help_option("-h, --help; -V, --version", "Show this text, or the version.")
    for group in GROUPS:
        yield ""
        yield from textwrap.wrap(f"{_title(group)}: {group.__doc__}", _WIDTH)
        for name, field in group.model_fields.items():
            option = f"{option_name(name)} {takes(field).metavar}"
            if is_boolean(name):
                option = f"{option_name(name)} [0|1], --no-{option_name(name)[2:]}"
            default = f"{PREFIX}{name.upper()}, default {default_text(field)}"
            yield from _help_option(option, f"{field.description} ({default})")


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
    yield _INTRODUCTION
    for group in GROUPS:
        yield from ("", f"## {_title(group)}", "", str(group.__doc__), "")
        yield "| setting | default | PgBouncer's | changes at | takes | meaning |"
        yield "|---|---|---|---|---|---|"
        for name, field in group.model_fields.items():
            yield _row(name, field)
    yield from ("", "## Databases, users and peers", "")
    yield _ENTRIES
    for section, model in MODELS.items():
        yield from ("", f"### [{section}]", "", str(model.__doc__), "", "| key | takes | meaning |", "|---|---|---|")
        for name, field in model.model_fields.items():
            yield _cells(f"`{name}`", takes(field).words, str(field.description))
    yield from ("", "## Without effect", "")
    yield "These settings of PgBouncer are taken, with a line in the log that says why nothing comes of them."
    yield from ("", "| setting | why |", "|---|---|")
    for name, reason in WITHOUT_EFFECT.items():
        yield _cells(f"`{name}`", reason)


def _title(group: type[BaseModel]) -> str:
    return group.__name__.replace("Tls", " TLS")


def _row(name: str, field: FieldInfo) -> str:
    theirs = _code(DEFAULTS[name]) if name in DEFAULTS and differs(name) else ""
    changes = "restart" if name in RESTART else "reload"
    return _cells(f"`{name}`", _code(default_text(field)), theirs, changes, takes(field).words, str(field.description))


def _code(text: str) -> str:
    return "empty" if text in ("", "empty") else f"`{text}`"


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
