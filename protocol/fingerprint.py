"""Statements without their literals, short enough for a log line and for the label of a metric.

Only good for being read and counted: no text is executed, or judged, by its fingerprint.
"""

import re
from typing import Final

from protocol.lexer import DOUBT, is_string, lex

LIMIT: Final = 200
"""Characters."""

_READ: Final = 4096
"""Bytes of a text that are looked at: no more ever fits."""

_ITEM: Final = r"(?:[+-]?\?|\$\d+|null|true|false|default)"
_LIST: Final = re.compile(  # unless it is the arguments of a function; a list at the end may be cut off
    rf"((?:(?<![\w\"])|(?<=\bin)|(?<=\bvalues))\(|\[) ?{_ITEM}(?: ?, ?{_ITEM})+ ?(?:[)\]]|,? ?\Z)", re.IGNORECASE
)
_ROWS: Final = re.compile(r"(\(\.\.\.\))(?: ?, ?\(\.\.\.\))+(?: ?, ?\([^()]*\Z)?")


def fingerprint(text: bytes) -> str:
    """Return `text` with ? for literals, without comments, and with (...) for lists of literals and rows of them.

    What follows a string that can be read in two ways is left out: it may be a literal as well.
    """
    text = text[:_READ]
    tokens, starts, _ = lex(text)
    parts: list[str] = []
    end = 0
    for token, start in zip(tokens, starts, strict=True):
        if start > end and parts:
            parts.append(" ")
        elif is_string(token) and parts and parts[-1].lower() in ("b", "n", "x"):
            parts.pop()  # B'1', N'a', X'f': one literal
        end = start + len(token)
        literal = token is DOUBT or is_string(token) or token[:1].isdigit() or (token[:1] == b"." and len(token) > 1)
        parts.append("?" if literal else text[start:end].decode("utf-8", "replace"))
        if token is DOUBT:
            break
    normal = _ROWS.sub(r"\1", _LIST.sub(_shortened, "".join(parts))).rstrip("; ")
    if not normal.isprintable():
        normal = "".join(character if character.isprintable() else " " for character in normal)
    return normal if len(normal) <= LIMIT else normal[: LIMIT - 3] + "..."


def _shortened(found: re.Match[str]) -> str:
    return found[1] + "..." + ("]" if found[1] == "[" else ")")
