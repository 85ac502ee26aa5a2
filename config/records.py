"""The common form of pg_hba.conf and pg_ident.conf: records of fields of words, and files that include others.

https://www.postgresql.org/docs/current/auth-pg-hba-conf.html has the rules. What the fields mean is config.hba's and
config.ident's affair.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from config.files import read_text

_DEEPEST: Final = 10
"""How many files may include one another; as in Postgres."""
_MOST_FILES: Final = 1000
_LONGEST_NAME: Final = 256
"""Characters of a name that is looked at with a pattern: how long that takes is the pattern's to say. Postgres's names
have up to 63 bytes."""

_PIECE: Final = re.compile(
    r'"(?P<quoted>(?:[^"]|"")*+)"|(?P<bare>[^ \t\r\f\v",#]++)|(?P<comma>,)|(?P<blank>[ \t\r\f\v]++)'
    r'|(?P<comment>#.*)|(?P<open>")',
    re.DOTALL,
)


class Word(NamedTuple):
    """One word; quotes take away the meaning that it may have beside being a name."""

    text: str
    quoted: bool = False

    @property
    def keyword(self) -> str:
        """The text if it is not quoted; else empty."""
        return "" if self.quoted else self.text


class Record(NamedTuple):
    """One record, and where it stands, for messages: FILE line N."""

    place: str
    fields: list[list[Word]]


class Pattern(NamedTuple):
    """A regular expression for names, written with a slash before it."""

    source: str

    def search(self, name: str) -> re.Match[str] | None:
        """Return where it matches `name`, if it does."""
        return re.search(self.source, name) if len(name) <= _LONGEST_NAME else None

    @property
    def groups(self) -> int:
        """How many parentheses it has whose contents can be used."""
        return re.compile(self.source).groups

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Check it. Raises ValueError."""
        if "[[" in text:
            raise ValueError(
                f"has the pattern {text!r}, whose [[ Python reads in another way: write [a-z] for [[:lower:]]"
            )
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"has a pattern that is none: {error}") from None
        return cls(text)


class Records:
    """Reads a file and those that it includes; `found` are the records in order, `mistakes` what can't be read."""

    def __init__(self, path: Path) -> None:
        self.found: list[Record] = []
        self.mistakes: list[str] = []
        self._files = 0
        self._read(path, 0)

    def _read(self, path: Path, depth: int) -> None:
        for record in self._records(path, depth):
            try:
                included = _included(record, path.parent)
            except ValueError as error:
                self.mistakes.append(f"{record.place} {error}")
                continue
            if included is None:
                self.found.append(record)
            else:
                for each in included:
                    self._read(each, depth + 1)

    def _records(self, path: Path, depth: int) -> Iterator[Record]:
        """Yield the records of one file, with the words of others (@file) in place."""
        self._files += 1
        if depth > _DEEPEST or self._files > _MOST_FILES:
            endless = f"{str(path)!r} is included too deeply, too often or in a circle"
            if endless not in self.mistakes:
                self.mistakes.append(endless)
            return
        try:
            text = read_text(path)
        except ValueError as error:
            self.mistakes.append(f"{str(path)!r} {error}")
            return
        for number, line in _logical_lines(text):
            place = f"{str(path)!r} line {number}"
            try:
                fields = split(line)
            except ValueError as error:
                self.mistakes.append(f"{place} {error}")
                continue
            if fields:
                yield Record(place, [list(self._expand(field, path.parent, depth)) for field in fields])

    def _expand(self, field: list[Word], directory: Path, depth: int) -> Iterator[Word]:
        for word in field:
            if word.keyword.startswith("@") and word.text != "@":
                for record in self._records(directory / word.text[1:], depth + 1):
                    for words in record.fields:
                        yield from words
            else:
                yield word


def _included(record: Record, directory: Path) -> list[Path] | None:
    """Return the files that a record says to include, None if it is no such record. Raises ValueError."""
    directive = record.fields[0][0].keyword if record.fields[0] else ""
    if directive not in ("include", "include_if_exists", "include_dir"):
        return None
    if len(record.fields) != 2 or len(record.fields[1]) != 1:
        raise ValueError(f"has something other than one path after {directive}")
    path = directory / record.fields[1][0].text
    if directive == "include":
        return [path]
    if directive == "include_if_exists":
        return [path] if path.exists() else []
    try:
        return sorted(each for each in path.iterdir() if each.suffix == ".conf" and not each.name.startswith("."))
    except OSError as error:
        raise ValueError(f"names a directory that can't be read: {error.strerror}") from None


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines, joined where one ends in a backslash, with the number of the first."""
    begun = 0
    parts: list[str] = []
    for number, ended in enumerate(text.split("\n"), start=1):
        line = ended.removesuffix("\r")
        begun = begun or number
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield begun, "".join((*parts, line))
        begun, parts = 0, []
    if parts:
        yield begun, "".join(parts)


def split(line: str) -> list[list[Word]]:
    """Cut one record into fields, and each at its commas. Raises ValueError, which completes "FILE line N ..."."""
    if "\0" in line:
        raise ValueError("has a zero byte in it")
    fields: list[list[Word]] = []
    open_word = goes_on = False  # the next piece belongs to the last word; the next word to the last field
    for piece in _PIECE.finditer(line):
        kind = piece.lastgroup
        if kind == "open":
            raise ValueError('has a " that is not closed')
        if kind == "comment":
            break
        if kind == "blank":
            open_word = False
        elif kind == "comma":
            open_word, goes_on = False, bool(fields)
        else:
            text = piece["bare"] if kind == "bare" else piece["quoted"].replace('""', '"')
            if open_word:
                last = fields[-1][-1]
                fields[-1][-1] = Word(last.text + text, last.quoted)
            elif goes_on:
                fields[-1].append(Word(text, kind == "quoted"))
            else:
                fields.append([Word(text, kind == "quoted")])
            open_word, goes_on = True, False
    return fields
