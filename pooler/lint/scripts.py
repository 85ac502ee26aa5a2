"""SQL scripts, cut into statements while they are read: a script may be longer than memory, a statement may not.

psql's commands and the data of COPY FROM STDIN, which stand between the statements of dumps, are left out.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from protocol.lexer import DOUBT, lex

LONGEST: Final = 64 * 1024 * 1024
"""Bytes of a statement."""
# No more tokens than the lexer takes at once, however short they are.
_CHUNK: Final = 16 * 1024

# https://www.postgresql.org/docs/current/app-psql.html#APP-PSQL-META-COMMANDS
_COMMAND_THAT_SENDS: Final = re.compile(rb"\\(?:g|gx|gset|gexec|gdesc|bind|crosstabview|watch)\b[\w\s]*$")
_FROM_STDIN: Final = re.compile(rb"(?i)\bFROM\s+STDIN\b")
_END_OF_DATA: Final = rb"\."


class ScriptError(Exception):
    """The rest of a script can't be read: why, beginning with the number of the line."""


class Piece(NamedTuple):
    """A statement without its semicolon, and the line that it begins on."""

    text: bytes
    line: int


def read(lines: Iterable[bytes], notes: list[str]) -> Iterator[Piece]:
    """Yield the statements of a script that comes line by line. Raises ScriptError.

    Where it had to be guessed what a line is, `notes` gets a text that begins with the number of the line.
    """
    script, last, may_copy = _Script(), Piece(b"", 0), False
    rest = iter(lines)
    for line in rest:
        script.text += _without_commands(line)
        may_copy = may_copy or _FROM_STDIN.search(line) is not None
        if script.unseen < script.look_at and not (may_copy and b";" in line):
            continue
        for last in script.take():
            yield last
        if may_copy and script.between_statements:
            may_copy = False
            if last.text[:4].upper() == b"COPY" and _FROM_STDIN.search(last.text):
                data, ended = _skip_data(rest)
                script.line += data
                if not ended:
                    notes.append(f"{last.line}: all that follows was taken for the data of this COPY")
    script.text += b"\n;"
    yield from script.take()
    if script.text != b";":
        raise ScriptError(f"{script.start_line}: a quote or comment begins in this statement and never ends")


def _without_commands(line: bytes) -> bytes:
    """Return a line without psql's commands; one that sends a statement to the server ends it."""
    if b"\\" not in line:
        return line
    line = _COMMAND_THAT_SENDS.sub(b";\n", line)
    return b"\n" if line.startswith(b"\\") else line


def _skip_data(lines: Iterator[bytes]) -> tuple[int, bool]:
    """Pass over the data of a COPY; return how many lines they took, and whether they had an end."""
    count = 0
    for line in lines:
        count += 1
        if line.rstrip() == _END_OF_DATA:
            return count, True
    return count, count == 0


class _Script:
    """What has been read of a script and not been taken yet."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.line = 1
        """The number of the line up to which `text` has been cut into tokens."""
        self.start_line = 1
        """That of the last statement."""
        self.look_at = _CHUNK
        """How much should be unseen before take() is worth its while."""
        self._seen = 0
        self._start: int | None = None

    @property
    def unseen(self) -> int:
        """Bytes that have not been cut into tokens yet."""
        return len(self.text) - self._seen

    @property
    def between_statements(self) -> bool:
        """Whether no statement has begun that is not at its end."""
        return self._start is None

    def take(self) -> Iterator[Piece]:
        """Yield the statements that are at their end."""
        size, whole = _CHUNK, False
        while not whole:
            begin = self._seen
            tokens, starts, whole = lex(bytes(self.text[begin : begin + size]))
            whole = whole and self.unseen <= size
            # A quote or comment may not have ended yet, and what stands at a cut may go on behind it.
            sure = len(tokens) - (int(tokens[-1:] == [DOUBT]) if whole else 3)
            for token, start in zip(tokens[: max(0, sure)], starts, strict=False):
                if token == b";":
                    self._see(begin + start)
                    yield from self._end_statement()
                elif self._start is None:
                    self._see(begin + start)
                    self._start, self.start_line = self._seen, self.line
            if sure > 0:
                self._see(begin + starts[sure - 1])
            elif whole and not tokens:
                self._see(len(self.text))
            size = _CHUNK if self._seen > begin else 2 * size
        self._forget()

    def _see(self, to: int) -> None:
        self.line += self.text.count(b"\n", self._seen, to)
        self._seen = to

    def _end_statement(self) -> Iterator[Piece]:
        if self._start is not None:
            yield Piece(bytes(self.text[self._start : self._seen]), self.start_line)
            self._start = None

    def _forget(self) -> None:
        done = self._seen if self._start is None else self._start
        del self.text[:done]
        self._seen -= done
        self._start = None if self._start is None else 0
        if len(self.text) > LONGEST:
            raise ScriptError(f"{self.start_line}: a statement of more than {LONGEST >> 20} MiB")
        self.look_at = max(_CHUNK, min(2 * self.unseen, LONGEST))
