"""SQL cut into tokens by PostgreSQL's lexical rules: enough to tell where a statement ends, and what is only quoted.

Not a parser: it knows no grammar, and it never raises. Source: PostgreSQL documentation, "Lexical Structure", and
scan.l where that is silent.
"""

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final, NamedTuple

TOKEN_LIMIT: Final = 20_000
"""Tokens. A text that has more is given up: it may not keep the event loop for longer than some 10 milliseconds."""

DOUBT: Final = b""
"""Stands before what can be read in more than one way, and in place of what has no end."""


class Lexed(NamedTuple):
    """The tokens of a text, and the offset at which each of them begins.

    A token is its own bytes. Only unquoted words are changed, to lower case, as the server does it.
    """

    tokens: list[bytes]
    starts: list[int]
    whole: bool
    """The text has been read to its end, not given up."""


# Possessive throughout: nothing is read more than twice, so that hostile texts cost no more than others.
_STRING: Final = rb"'[^']*+(?:''[^']*+)*+'"
_ESCAPED: Final = rb"'[^'\\]*+(?:(?:\\.|'')[^'\\]*+)*+'"
_NAME: Final = rb'"[^"]*+(?:""[^"]*+)*+"'
# A string goes on after a line break (and "--" comments), under the rules that it began with.
_LINE_BREAK: Final = rb"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:\s|--[^\n\r]*+[\n\r])*+"
_NEXT: Final = re.compile(
    rb"""
    (?:\s++ | --[^\n\r]*+ | /\*[^*/]*+(?:(?:\*(?!/)|/(?!\*))[^*/]*+)*+\*/)*+     # what separates tokens
    (?:
      (?![eE]'|[uU]&['"]) ([A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+)           # 1 word
    | ([(),;=*<>+] | %(name)s)                                                   # 2 frequent punctuation, quoted name
    | (%(string)s)                                                               # 3 string
    | ([eE]%(escaped)s(?:%(line_break)s%(escaped)s)*+)                           # 4 string with escapes
    | ([uU]&(?:%(string)s|%(name)s))                                             # 5 string or name with code points
    | (\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?+\$)                      # 6 a dollar quote begins
    | (/\*)                                                                      # 7 a comment with comments in it
    | ([eE]?'|[uU]&['"]|")                                                       # 8 a quote that never ends
    | \Z
    | ( 0[xX][0-9A-Fa-f_]++ | 0[oO][0-7_]++ | 0[bB][01_]++                       # 9 number, parameter, anything else
      | (?:[0-9][0-9_]*+(?:\.(?!\.)[0-9_]*+)?+ | \.[0-9]++) (?:[eE][+-]?[0-9]++)?+
      | \$[0-9]++ | :: | .)
    )"""
    % {b"string": _STRING, b"name": _NAME, b"escaped": _ESCAPED, b"line_break": _LINE_BREAK},
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK: Final = re.compile(rb"/\*|\*/")

_WORD, _SIMPLE, _QUOTED, _ESCAPES, _CODE_POINTS, _DOLLAR, _COMMENT, _ENDLESS, _OTHER = range(1, 10)

_DOUBTFUL: Final[Mapping[int, Callable[[bytes], object]]] = {
    # It ends elsewhere where standard_conforming_strings is off.
    _QUOTED: re.compile(rb"\\'").search,
    # In some client encodings the second byte of a character may be a backslash.
    _ESCAPES: re.compile(rb"[\x80-\xff]\\").search,
    # What a name with code points says depends on a UESCAPE further on.
    _CODE_POINTS: re.compile(rb'.&"').match,
}


def lex(text: bytes, limit: int = TOKEN_LIMIT) -> Lexed:
    """Cut `text` into tokens, at most `limit` of them."""
    tokens: list[bytes] = []
    starts: list[int] = []
    at: int | None = 0
    while at is not None and limit > 0:
        before = len(tokens)
        at = _run(text, at, limit, tokens, starts)
        limit -= len(tokens) - before + 1
    return Lexed(tokens, starts, at is None)


def name_of(token: bytes) -> bytes:
    """Return what an identifier says."""
    return token[1:-1].replace(b'""', b'"') if token[:1] == b'"' else token


def is_string(token: bytes) -> bool:
    """Tell whether `token` is a string of any kind."""
    return token[-1:] == b"'" or (token[:1] == token[-1:] == b"$" and len(token) > 1)


def string_of(token: bytes) -> bytes | None:
    """Return what a string says; None if `token` is none, or one with escapes."""
    if token[:1] == b"'":
        return token[1:-1].replace(b"''", b"'")
    if is_string(token) and token[:1] == b"$":
        tag = token.index(b"$", 1) + 1
        return token[tag:-tag]
    if token[:2] in (b"E'", b"e'") and b"\\" not in token and b"'" not in token[2:-1]:
        return token[2:-1]
    return None


def _run(text: bytes, at: int, limit: int, tokens: list[bytes], starts: list[int]) -> int | None:
    """Add the tokens from `at` on, at most `limit`; return where to go on, None at the end."""
    for match in islice(_NEXT.finditer(text, at), limit):
        kind = match.lastindex
        if kind is None:
            return None
        token = match[kind]
        start = match.start(kind)
        if kind == _WORD:
            token = token.lower()
        elif kind in _DOUBTFUL:
            if _DOUBTFUL[kind](token):
                tokens.append(DOUBT)
                starts.append(start)
        elif _DOLLAR <= kind <= _ENDLESS:
            return _jump(text, kind, start, tokens, starts)
        tokens.append(token)
        starts.append(start)
    return match.end()


def _jump(text: bytes, kind: int, start: int, tokens: list[bytes], starts: list[int]) -> int | None:
    """Find the end of what no regular expression finds it for; return where to go on, None if there is no end."""
    if kind == _DOLLAR:
        tag = text[start : text.index(b"$", start + 1) + 1]
        end = text.find(tag, start + len(tag))
        if end >= 0:
            end += len(tag)
            tokens.append(text[start:end])
            starts.append(start)
            return end
    elif kind == _COMMENT:
        depth = 0
        for match in islice(_COMMENT_MARK.finditer(text, start), TOKEN_LIMIT):
            depth += 1 if match[0] == b"/*" else -1
            if not depth:
                return match.end()
    tokens.append(DOUBT)
    starts.append(start)
    return None
