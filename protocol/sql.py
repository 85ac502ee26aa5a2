"""What the text of a query may leave behind in its session, or undo there.

The text decides only when the server has to be asked; the server's answer decides everything else. So what may leave
state must never be missed, and what is not known to be harmless counts as if it might not be.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from protocol.fingerprint import fingerprint
from protocol.functions import NEEDLES, SEQUENCE_FUNCTIONS, calls
from protocol.judgement import HARMLESS_KINDS, judge
from protocol.lexer import DOUBT, lex
from protocol.verdict import HARMLESS, UNKNOWN, State, Verdict, unite, words

__all__ = [
    "HARMLESS",
    "Clause",
    "State",
    "Verdict",
    "classify",
    "clauses",
    "fingerprint",
    "is_plain_query",
    "words",
]

TEXT_LIMIT: Final = 1 << 20
"""Bytes. A text that is longer, and not plain, is not cut into tokens: that would take too long."""

# Most texts are told to be harmless without cutting them into tokens. In a statement of one of these kinds, what could
# make it harmful is searched for in its bytes, quoted or not, so that it does not matter how its quotes are to be read:
# a second statement, an INTO, a call of one of the functions, a name that is spelt by code points.

_NEVER: Final = "\0"
_SEQUENCE: Final = Verdict(leaves=State.SEQUENCE)
_PLAIN_KINDS: Final[Mapping[str, str]] = dict.fromkeys((kind.decode() for kind in HARMLESS_KINDS), _NEVER) | {
    "select": "into",
    "with": "into",  # an UPDATE in it has parentheses before it, and the view's name has a needle
    "update": "pg_settings",
}
"""Kinds of statements, and what must not follow in them."""

_PLAIN_BEGINNINGS: Final[Mapping[str, str]] = {
    (kind + separator)[:7]: _PLAIN_KINDS[kind]
    for kind in ("select", "insert", "update", "delete", "rollback", "savepoint", "release")
    for separator in " \n\r\t"
} | dict.fromkeys(("begi", "begin", "commi", "commit", "en", "end", "start t"), _NEVER)
"""The most frequent of them, by the first seven characters of texts whose last character is missing."""

_HEADERS: Final = tuple(b"Q" + max(size - 1, 0).to_bytes(4, "big") for size in range(2048))
"""The header of a Query, by the size of the message."""

_BEGINNING: Final = re.compile(
    rb"""
    (?:\s++ | --[^\n\r]*+ | /\*[^*/]*+(?:(?:\*(?!/)|/(?!\*))[^*/]*+)*+\*/)*+
    (?: (%s)(?![A-Za-z0-9_$\x80-\xff]) | set\s++local\s++[a-z_"\x80-\xff] )"""
    % b"|".join(kind.encode() for kind in _PLAIN_KINDS),
    re.VERBOSE | re.IGNORECASE,
)


def is_plain_query(data: bytes) -> bool:
    """Tell whether `data` is exactly one Query whose text surely is harmless, but for the state of sequences.

    Hot path: paid for by every simple query. True means that classify() finds nothing but State.SEQUENCE, too, if it is
    a text that a server accepts; one that it refuses leaves nothing anyway.
    """
    try:
        if data[:5] != _HEADERS[len(data)]:
            return False
    except IndexError:
        return False  # for classify(): what is this long costs more anyway
    # Without its last character, often a semicolon: nothing that matters is complete without something behind it.
    text = data[5:-2].lower().decode("latin-1")
    if _PLAIN_BEGINNINGS.get(text[:7], "") in text:
        return text[:10] == "set local " and ";" not in text and (text[10:11].isalpha() or text[10:11] in ("_", '"'))
    return (
        ";" not in text
        and ("&" not in text or 'u&"' not in text)
        and (
            "(" not in text  # else any of NEEDLES, written out
            or ("pg_" not in text and "set_config" not in text and "set_limit" not in text and "dblink_" not in text)
        )
    )


def classify(text: bytes) -> Verdict:
    """Judge `text`: SQL without the trailing NUL, in any encoding that extends ASCII. Never raises."""
    plain = _at_first_sight(text)
    if plain is not None:
        return plain
    if len(text) > TEXT_LIMIT:
        return UNKNOWN
    tokens, _, whole = lex(text)
    verdict = HARMLESS if whole else UNKNOWN
    for count, (start, end) in enumerate(_statements(tokens)):
        found = judge(tokens[start:end])
        verdict = unite(verdict, found) if count or not whole else found
    return verdict


def _at_first_sight(text: bytes) -> Verdict | None:
    """As is_plain_query(), for any harmless kind behind white space and comments; None if more is to be looked at."""
    beginning = _BEGINNING.match(text)
    if beginning is None:
        return None
    low = text.rstrip(b" \t\n\r\f\v;").lower().decode("latin-1")
    kind = beginning[1]
    if kind is None:  # SET LOCAL, followed by a name
        return None if ";" in low else HARMLESS
    if ";" in low or 'u&"' in low or _PLAIN_KINDS[kind.lower().decode()] in low:
        return None
    if "(" in low:
        if _has_any(low, NEEDLES):
            return None
        if _has_any(low, SEQUENCE_FUNCTIONS):
            tokens, _, whole = lex(text[: TEXT_LIMIT + 1])
            if len(text) > TEXT_LIMIT or not whole or State.SEQUENCE in calls(tokens).leaves:
                return _SEQUENCE
    return HARMLESS


def _has_any(text: str, needles: Sequence[str]) -> bool:
    for needle in needles:  # noqa: SIM110 - half the time of any() with a generator
        if needle in text:
            return True
    return False


class Clause(NamedTuple):
    """One statement of a text, the line that it begins on (the first is 1), and its verdict."""

    text: bytes
    line: int
    verdict: Verdict


def clauses(text: bytes) -> Iterator[Clause]:
    """Judge each statement of `text` for itself; takes all the time that this needs."""
    tokens, starts, _ = lex(text, limit=len(text) + 1)
    line = 1
    counted = 0
    for start, end in _statements(tokens):
        first, last = starts[start], tokens[end - 1]
        line += text.count(b"\n", counted, first)
        counted = first
        after = len(text) if last is DOUBT else starts[end - 1] + len(last)
        yield Clause(text[first:after], line, judge(tokens[start:end]))


def _statements(tokens: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield where in `tokens` each statement that is not empty begins and ends."""
    start = 0
    while start < len(tokens):
        end = _end(tokens, start)
        if end > start:
            yield start, end
        start = end + 1


def _end(tokens: list[bytes], start: int) -> int:
    """Return where the statement that begins at `start` ends: at a semicolon, and a CREATE not at one inside of it.

    The actions of a rule stand in parentheses, the body of a function between BEGIN ATOMIC and END.
    """
    if tokens[start] != b"create":
        try:
            return tokens.index(b";", start)
        except ValueError:
            return len(tokens)
    depth = 0
    bodies = 0
    for at in range(start, len(tokens)):
        token = tokens[at]
        if token == b";" and not depth and not bodies:
            return at
        if token in (b"(", b")"):
            depth = max(0, depth + (1 if token == b"(" else -1))
        elif (token == b"case" and bodies) or (token == b"atomic" and tokens[at - 1] == b"begin"):
            bodies += 1
        elif token == b"end" and bodies:
            bodies -= 1
    return len(tokens)
