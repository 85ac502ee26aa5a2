"""Statements out of SQL scripts and Postgres's logs, one after the other, however long the file is.

What they mean for a session is protocol.sql's to say.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Literal, NamedTuple

from pooler.lint import scripts
from protocol.sql import Verdict, classify, clauses

Format = Literal["sql", "csvlog", "jsonlog"]

LONGEST_LINE: Final = scripts.LONGEST
"""Bytes. What has longer ones is neither a script nor a log."""

# Columns of a csvlog that all versions have in these places, and those of a jsonlog.
# https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-LOGGING-CSVLOG
_MESSAGE, _QUERY = 13, 19
# "statement: ..." comes by log_statement or, behind a duration, by log_min_duration_statement; "execute NAME: ..." is
# the same by the extended protocol, where parse, bind and a further fetch belong to a statement that is logged anyhow.
_LOGGED: Final = re.compile(
    r"(?:duration: [\d.]+ ms\s+)?(?:statement|execute (?!fetch from )[^\n]*?): (.*)", flags=re.DOTALL
)


class InputError(Exception):
    """An input that can't be read; its text says which and why."""


class Statement(NamedTuple):
    """A single statement, where it stands, and how often it was run there."""

    text: bytes
    verdict: Verdict
    source: str
    line: int
    times: int = 1


@dataclass(slots=True)
class Input:
    """A file of statements. `on_read` is told how many bytes each step took."""

    name: str
    file: BinaryIO
    on_read: Callable[[int], None]
    notes: list[str] = field(default_factory=list)
    """What was left out."""

    def statements(self, format_: Format) -> Iterator[Statement]:
        """Yield the statements. Raises InputError and OSError."""
        if format_ == "sql":
            return self._script()
        return self._log(self._csv_rows() if format_ == "csvlog" else self._json_rows())

    def _lines(self) -> Iterator[bytes]:
        for number in itertools.count(1):
            line = self.file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise InputError(f"{self.name}:{number}: a line of more than {LONGEST_LINE >> 20} MiB")
            self.on_read(len(line))
            yield line

    def _script(self) -> Iterator[Statement]:
        notes: list[str] = []
        try:
            for text, line in scripts.read(self._lines(), notes):
                yield Statement(text, classify(text), self.name, line)
        except scripts.ScriptError as error:
            raise InputError(f"{self.name}:{error}") from None
        finally:
            self.notes += [f"{self.name}:{note}" for note in notes]

    # --- logs

    def _log(self, rows: Iterator[tuple[int, str, str]]) -> Iterator[Statement]:
        """Read the statements of log rows (line, message, query): those that were logged, and those that failed."""
        for line, message, query in rows:
            logged = _LOGGED.match(message)
            text = logged[1] if logged is not None else query
            if text:
                for clause in clauses(text.encode(errors="replace")):
                    yield Statement(clause.text, clause.verdict, self.name, line)

    def _csv_rows(self) -> Iterator[tuple[int, str, str]]:
        rows = csv.reader((line.decode(errors="replace") for line in self._lines()), strict=True)
        line, strange = 1, 0
        try:
            for row in rows:
                if len(row) > _QUERY:
                    yield line, row[_MESSAGE], row[_QUERY]
                else:
                    strange += 1
                line = rows.line_num + 1
        except csv.Error as error:
            raise InputError(f"{self.name}:{line}: no csvlog of Postgres: {error}") from None
        self._note_strange(strange, "csvlog")

    def _json_rows(self) -> Iterator[tuple[int, str, str]]:
        strange = 0
        for number, line in enumerate(self._lines(), start=1):
            try:
                row = json.loads(line.decode(errors="replace"))
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield number, str(row.get("message", "")), str(row.get("statement", ""))
            else:
                strange += 1
        self._note_strange(strange, "jsonlog")

    def _note_strange(self, strange: int, format_: Format) -> None:
        if strange:
            self.notes.append(f"{self.name}: {strange:,} rows are none of a {format_} and were left out")
