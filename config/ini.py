"""PgBouncer's own file format: sections of names and values, %include, and the key=value pairs inside of a value.

Reading stops at no mistake. What the names and values mean is config.pgbouncer's and config.databases's affair.
https://www.pgbouncer.org/config.html; where that is silent, what PgBouncer 1.18 does with a file is followed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from config.nearest import did_you_mean

SECTIONS: Final = ("pgbouncer", "databases", "users", "peers")

_BLANK: Final = " \t\n\v\f\r"
"""What C calls a space. Python's own idea has more, such as U+00A0, which a password may end with."""
# A section's bracket ends no line: a comment, and even an item, may follow it.
_PIECE: Final = re.compile(
    r"[ \t\n\v\f\r]*+(?:"
    r"(?P<comment>[#;][^\n]*+)"
    r"|\[(?P<section>[^\]\n]*+)\]"
    r"|%include[ \t]++(?P<include>[^\n]++)"
    r'|(?P<name>[\w.*-]++|"(?:[^"\n]|"")*+")[ \t]*+=[ \t]*+(?P<value>[^\n]*+)'
    r"|(?P<nonsense>[^\n]++)"
    r")",
    re.ASCII,
)
# Only spaces separate: in PgBouncer too, a tab is a part of the value.
_PAIR: Final = re.compile(r" *+(?P<key>[^ =]++) *+= *+(?:'(?P<quoted>(?:[^']|'')*+)'(?= |$)|(?P<bare>(?!')[^ ]*+))")


class Place(NamedTuple):
    """Where something stands."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file!r} line {self.line}"


@dataclass(frozen=True, slots=True)
class Item:
    """One name = value. The value may be a password, or hold one."""

    name: str
    value: str = field(repr=False)
    place: Place


@dataclass(slots=True)
class Ini:
    """What a file and those that it includes say. Within a section, the last item of a name counts."""

    sections: dict[str, dict[str, Item]] = field(default_factory=lambda: {name: {} for name in SECTIONS})
    notes: list[str] = field(default_factory=list)
    """What PgBouncer makes of the file, and its author may not have meant."""
    mistakes: list[str] = field(default_factory=list)


def read(path: Path) -> Ini:
    """Read a file. Relative paths, its own and included ones, are relative to the working directory, as in PgBouncer.

    A file that can't be read is a mistake like any other. Mistakes name file and line, and quote no value.
    """
    reader = _Reader()
    reader.read(path, ())
    return reader.ini


def pairs(value: str) -> dict[str, str]:
    """Return the pairs of a value such as host=db password='it''s', the last one of each key.

    Raises ValueError, whose message quotes no value.
    """
    found: dict[str, str] = {}
    position, end = 0, len(value.rstrip(" "))
    while position < end:
        match = _PAIR.match(value, position)
        if match is None:
            after = f" after {_shown(list(found)[-1])}" if found else ""
            raise ValueError(f"has something{after} that is not key=value or key='value' (a ' inside is written '')")
        text = match["bare"] if match["quoted"] is None else match["quoted"].replace("''", "'")
        if not text:
            raise ValueError(f"has {_shown(match['key'])} without a value: leave it out")
        found[match["key"]] = text
        position = match.end()
    return found


class _Reader:
    """Reads a file and those that it includes. The section goes on into an included file, and out of it again."""

    def __init__(self) -> None:
        self.ini = Ini()
        self._items: dict[str, Item] | None = None  # None: no section yet, or one that does not exist
        self._began = False
        self._pgbouncer: Place | None = None  # where the section [pgbouncer] began

    def read(self, path: Path, outer: tuple[Path, ...], including: str = "") -> None:
        try:
            # Not only UTF-8 is taken, as a comment may be in any encoding; an item has to be.
            text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
            real = path.resolve()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no path can have such a name"
            self._mistake(f"{str(path)!r} cannot be read: {reason}{including}")
            return
        if real in outer:
            self._mistake(f"{str(path)!r} includes itself{including}")
            return
        for match, place in _pieces(text, str(path)):
            self._take(match, place, (*outer, real))

    def _take(self, match: re.Match[str], place: Place, files: tuple[Path, ...]) -> None:
        match match.lastgroup:
            case "section":
                self._begin(match["section"], place)
            case "include":
                self.read(Path(match["include"].rstrip(_BLANK)), files, f" (%include, {place})")
            case "value":
                self._add(_unquoted(match["name"]), match["value"].rstrip(_BLANK), place)
            case "nonsense":
                self._mistake(f"it is not of the form name = value, [section], %include file or ; comment ({place})")

    def _begin(self, section: str, place: Place) -> None:
        self._began = True
        self._items = self.ini.sections.get(section)
        if self._items is None:
            self._mistake(f"there is no section [{_shown(section)}]{did_you_mean(section, SECTIONS)} ({place})")
        elif section == "pgbouncer":
            if self._items:
                self.ini.notes.append(
                    f"[pgbouncer] begins anew: as in PgBouncer, what {self._pgbouncer} and the lines below it say is "
                    f"forgotten ({place})"
                )
            self._items.clear()
            self._pgbouncer = place

    def _add(self, name: str, value: str, place: Place) -> None:
        if not self._began:
            self._mistake(f"{_shown(name)} stands in no section ({place})")
        elif "\0" in value or not _is_unicode(name + value):
            self._mistake(f"{_shown(name)} is not UTF-8, or has a zero byte in it ({place})")
        elif self._items is not None:
            self._items[name] = Item(name, value, place)

    def _mistake(self, text: str) -> None:
        self.ini.mistakes.append(text)


def _pieces(text: str, file: str) -> Iterator[tuple[re.Match[str], Place]]:
    position, line = 0, 1
    while match := _PIECE.match(text, position):
        # Blanks come first, and with them the ends of lines.
        line += text.count("\n", position, match.end())
        yield match, Place(file, line)
        position = match.end()


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(name: str) -> str:
    """Return a name, or as much of it as a line of the log can bear: a misplaced quote makes anything a name."""
    return name if re.fullmatch(r"[\w.*-]{1,63}", name, re.ASCII) else "something"
