"""What one statement leaves in its session: by the words that it begins with, and the functions that it calls.

No grammar. A kind of statement that is not known to be harmless counts as if it might leave anything.
Source: PostgreSQL documentation, "SQL Commands".
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final

from protocol.functions import calls, setting, setting_at, settings_in_blocks
from protocol.lexer import DOUBT, name_of
from protocol.verdict import ASKS, HARMLESS, UNKNOWN, State, Verdict, unite

Tokens = Sequence[bytes]

NAME_LIMIT: Final = 63
"""Bytes of an identifier; the server cuts off what is beyond."""

_TEMPORARY: Final = frozenset((b"temp", b"temporary"))
_AFTER_A_SETTING: Final = frozenset((b".", b"=", b"to", b""))
_QUERIES: Final = frozenset((b"select", b"values", b"table", b"with", b"("))
_DISCARDED: Final = (
    State.SETTING | State.IDENTITY | State.LISTEN | State.PREPARED | State.CURSOR | State.TEMPORARY
    | State.ADVISORY_LOCK | State.SEQUENCE
)  # fmt: skip


def judge(tokens: Tokens) -> Verdict:
    """Judge one statement."""
    verdict = _kind(tokens)
    called = calls(tokens)
    if called is not HARMLESS:
        verdict = unite(verdict, called)
    return unite(verdict, ASKS) if DOUBT in tokens else verdict


def _kind(tokens: Tokens) -> Verdict:
    """Judge a statement by its first words."""
    first = next((at for at, token in enumerate(tokens) if token not in (b"(", DOUBT)), len(tokens))
    if first == len(tokens) or tokens[first] in HARMLESS_KINDS:
        return HARMLESS
    judge_kind = _KINDS.get(tokens[first])
    return judge_kind(tokens[first:]) if judge_kind else UNKNOWN


def _inner(tokens: Tokens) -> Verdict:
    """Judge the statement inside of an EXPLAIN or PREPARE, which is neither of these."""
    return UNKNOWN if _word(tokens, 0) in (b"explain", b"prepare") else _kind(tokens)


# --- what creates


def _query(tokens: Tokens) -> Verdict:
    """SELECT and WITH: an INTO makes a table of the result, unless it is that of an INSERT or MERGE.

    These words may be names as well: they begin a statement only in parentheses, or behind WITH and before any SELECT.
    """
    depth = 0
    selects = False
    for at, token in enumerate(tokens):
        if token in (b"(", b")"):
            depth += 1 if token == b"(" else -1
        elif token == b"select" and not depth:
            selects = True
        elif token == b"into":
            before = tokens[at - 2]
            begins = before == b"(" or (before == b")" and not depth and not selects)
            if begins and tokens[at - 1] in (b"insert", b"merge"):
                continue
            after = at + 1 + (_word(tokens, at + 1) in (b"local", b"global", b"table"))
            if _word(tokens, after) in _TEMPORARY or _in_temporary_schema(tokens, after):
                return Verdict(leaves=State.TEMPORARY)
            return Verdict(asks=True, ddl=True)
    return HARMLESS


def _create(tokens: Tokens) -> Verdict:
    """CREATE: what is not temporary by its name or words may still be so by the search_path."""
    at = next(at for at in count(1) if _word(tokens, at) not in (b"or", b"replace", b"local", b"global"))
    executes = _find(tokens, b"as", b"execute") >= 0
    if _word(tokens, at) in _TEMPORARY:
        if _word(tokens, at + 1) == b"table" and _dropped_on_commit(tokens):
            return Verdict(executes=executes)
        return Verdict(leaves=State.TEMPORARY, executes=executes)
    if any(token == b"." and _in_temporary_schema(tokens, at - 1) for at, token in enumerate(tokens)):
        return Verdict(leaves=State.TEMPORARY, asks=True, executes=executes, ddl=True)
    return Verdict(asks=True, executes=executes, ddl=True)


def _in_temporary_schema(tokens: Tokens, at: int) -> bool:
    return _word(tokens, at + 1) == b"." and name_of(tokens[at]).startswith(b"pg_temp")


def _dropped_on_commit(tokens: Tokens) -> bool:
    """Tell whether a CREATE TEMPORARY TABLE says ON COMMIT DROP, before any query in it."""
    depth = 0
    for at, token in enumerate(tokens):
        depth += (token == b"(") - (token == b")")
        if not depth and token == b"as":
            return False
        if not depth and tokens[at : at + 3] == [b"on", b"commit", b"drop"]:
            return True
    return False


# --- settings


def _set(tokens: Tokens) -> Verdict:
    at = 1
    if _word(tokens, 2) not in _AFTER_A_SETTING:  # else these words are the beginning of a setting's name
        if tokens[1] == b"local":
            return HARMLESS
        if tokens[1] == b"session" and tokens[2] != b"authorization" and tokens[2:4] != [b"characteristics", b"as"]:
            at = 2
    if _word(tokens, at) in (b"transaction", b"constraints") and _word(tokens, at + 1) not in _AFTER_A_SETTING:
        return HARMLESS
    default = tokens[-1] in (b"default", b"local", b"none") or tokens[at:] == [b"names"]
    return _set_or_reset(tokens, at, undoes=default)


def _reset(tokens: Tokens) -> Verdict:
    return _set_or_reset(tokens, 1, undoes=True)


def _set_or_reset(tokens: Tokens, at: int, *, undoes: bool) -> Verdict:
    """Judge a SET or RESET of the setting whose name begins at `at`."""
    if tokens[at : at + 2] == [b"session", b"authorization"]:
        verdict = setting(b"session_authorization")
    else:
        verdict = setting_at(tokens, at)
    return verdict._replace(undoes=verdict.leaves, asks=True) if undoes else verdict


def _discard(tokens: Tokens) -> Verdict:
    what = _word(tokens, 1)
    if what == b"all":
        return Verdict(leaves=State.SETTING, undoes=_DISCARDED, asks=True, drops_statements=True)
    if what in _TEMPORARY:
        return Verdict(undoes=State.TEMPORARY)
    return Verdict(undoes=State.SEQUENCE) if what == b"sequences" else HARMLESS


# --- prepared statements, cursors


def _prepare(tokens: Tokens) -> Verdict:
    query = _find(tokens, b"as")
    if query < 0:
        return HARMLESS if _word(tokens, 1) == b"transaction" else UNKNOWN
    return unite(Verdict(leaves=State.PREPARED), _inner(tokens[query + 1 :]))


def _deallocate(tokens: Tokens) -> Verdict:
    *words, last = tokens
    if words not in ([b"deallocate"], [b"deallocate", b"prepare"]) or last is DOUBT:
        return Verdict(undoes=State.PREPARED, asks=True)
    if last == b"all":
        return Verdict(undoes=State.PREPARED, drops_statements=True)
    name = name_of(last)
    if len(name) > NAME_LIMIT:
        name = name[:NAME_LIMIT].decode("utf-8", "ignore").encode()
    return Verdict(undoes=State.PREPARED, deallocates=name)


def _declare(tokens: Tokens) -> Verdict:
    return HARMLESS if _find(tokens, b"with", b"hold") < 0 else Verdict(leaves=State.CURSOR)


def _explain(tokens: Tokens) -> Verdict:
    at = 1
    runs = False
    if _word(tokens, 1) == b"(" and _word(tokens, 2) not in _QUERIES:  # options
        at = tokens.index(b")") + 1 if b")" in tokens else len(tokens)
        runs = any(name_of(token) in (b"analyze", b"analyse") for token in tokens[:at])
    while _word(tokens, at) in (b"analyze", b"analyse", b"verbose"):
        runs = runs or tokens[at] != b"verbose"
        at += 1
    verdict = _inner(tokens[at:])
    return verdict if runs else Verdict(executes=verdict.executes)


def _do(tokens: Tokens) -> Verdict:
    return unite(ASKS, settings_in_blocks(tokens))


# --- tables of kinds


def _always(verdict: Verdict) -> Callable[[Tokens], Verdict]:
    return lambda _: verdict


HARMLESS_KINDS: Final = frozenset(  # whatever they say, but for the functions that they call
    b"abort analyse analyze begin checkpoint cluster comment commit copy delete end fetch grant insert lock merge move "
    b"notify reassign refresh reindex release revoke rollback savepoint security show start table truncate update "
    b"vacuum values".split()
)

_KINDS: Final[Mapping[bytes, Callable[[Tokens], Verdict]]] = {
    b"alter": _always(Verdict(ddl=True)),
    b"call": _always(ASKS),
    b"close": _always(Verdict(undoes=State.CURSOR)),
    b"create": _create,
    b"deallocate": _deallocate,
    b"declare": _declare,
    b"discard": _discard,
    b"do": _do,
    b"drop": _always(Verdict(undoes=State.TEMPORARY, ddl=True)),
    b"execute": _always(Verdict(executes=True)),
    b"explain": _explain,
    b"import": _always(Verdict(asks=True, ddl=True)),
    b"listen": _always(Verdict(leaves=State.LISTEN)),
    b"load": _always(Verdict(leaves=State.LIBRARY)),
    b"prepare": _prepare,
    b"reset": _reset,
    b"select": _query,
    b"set": _set,
    b"unlisten": _always(Verdict(undoes=State.LISTEN)),
    b"with": _query,
}


# --- tokens


def _word(tokens: Tokens, at: int) -> bytes:
    """Return the token at `at`, b"" if there is none."""
    return tokens[at] if at < len(tokens) else b""


def _find(tokens: Tokens, *wanted: bytes) -> int:
    """Return where `wanted` stands first in `tokens`; -1 if it does nowhere."""
    size = len(wanted)
    starts = (at for at, token in enumerate(tokens) if token == wanted[0])
    return next((at for at in starts if tuple(tokens[at : at + size]) == wanted), -1)
