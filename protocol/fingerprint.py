"""Statements without their literals, short enough for a log line and for a metric's label."""

import re
from typing import Final

from protocol.lexer import DOUBT, lex

LIMIT: Final = 200
"""Characters."""

_READ: Final = 8192
"""Bytes of a text that are looked at: more never fits."""

_LIST: Final = re.compile(r"\( ?-?\?(?: ?, ?-?\?)+ ?\)")
_LISTS: Final = re.compile(r"\(\.\.\.\)(?: ?, ?\(\.\.\.\))+")


def fingerprint(text: bytes) -> str:
    """Return `text` with ? for its literals, without comments, and with lists of literals as (...)."""
    text = text[:_READ]
    tokens, starts, _ = lex(text)
    parts: list[str] = []
    end = 0
    for token, start in zip(tokens, starts, strict=True):
        if start > end and parts:
            parts.append(" ")
        end = start + len(token)
        if token is DOUBT or token[-1:] in (b"'", b"$") or token[:1].isdigit():
            parts.append("?")
        else:
            parts.append(text[start:end].decode("utf-8", "replace"))
    normal = _LISTS.sub("(...)", _LIST.sub("(...)", "".join(parts))).rstrip("; ")
    return normal if len(normal) <= LIMIT else normal[: LIMIT - 3] + "..."
