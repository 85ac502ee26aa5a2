"""Reads what is typed at the console: commands apart, their words unquoted. What they mean is not known here.

As in PgBouncer, a command is a word and maybe one argument, or SET key = value; a database's name that is more than
letters, digits and underlines may be quoted as in SQL, and is not folded to lower case.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_LONGEST_SHOWN: Final = 100

_PIECES: Final = re.compile(
    r"""(?P<quoted> '(?:[^']|'')*' | "(?:[^"]|"")*" )
      | (?P<blank> (?: \s | --[^\n]* | /\*.*?\*/ )+ )
      | (?P<end> ; )
      | (?P<other> /\*.* | . )""",
    re.VERBOSE | re.DOTALL,
)
_WORD: Final = r"""("(?:[^"]|"")*"|[^\s;"'=]+)"""
_COMMAND: Final = re.compile(rf"\s*{_WORD}(?:\s+{_WORD})?\s*")
_SET: Final = re.compile(
    rf"""\s*set\s+(?:session\s+|local\s+)?{_WORD}\s*(?:=|\s+to\s)\s*('(?:[^']|'')*'|"(?:[^"]|"")*"|[^\s;"']*)\s*""",
    re.IGNORECASE,
)


class Command(NamedTuple):
    """A command other than SET key = value."""

    text: str
    """As it was typed, but for comments and blanks."""
    verb: str
    """In lower case; empty where the text has more than two words."""
    argument: str = ""


class SetCommand(NamedTuple):
    """SET key = value."""

    text: str
    key: str
    """In lower case."""
    value: str


def split(text: str) -> list[str]:
    """Return the commands between semicolons, without comments, and without those that are empty.

    Blanks become one: long runs of them take regular expressions quadratic time.
    """
    found = [""]
    for piece in _PIECES.finditer(text):
        if piece["end"]:
            found.append("")
        elif piece["blank"]:
            found[-1] += " "
        else:
            found[-1] += piece[0]
    return [command.strip() for command in found if command.strip()]


def read(text: str) -> Command | SetCommand:
    """Read one command."""
    if setting := _SET.fullmatch(text):
        return SetCommand(text, _unquoted(setting[1]).lower(), _unquoted(setting[2]))
    if words := _COMMAND.fullmatch(text):
        return Command(text, _unquoted(words[1]).lower(), _unquoted(words[2] or ""))
    return Command(text, "")


def shown(text: str) -> str:
    """Return as much of a text as fits into a message."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def items(text: str) -> Iterator[str]:
    """Return what stands between the commas of a list that has no parentheses but empty ones."""
    found = ""
    for piece in _PIECES.finditer(text):
        if piece[0] == ",":
            yield found.strip()
            found = ""
        else:
            found += piece[0]
    yield found.strip()


def _unquoted(word: str) -> str:
    quote = word[:1]
    return word[1:-1].replace(quote * 2, quote) if quote in ("'", '"') and quote else word
