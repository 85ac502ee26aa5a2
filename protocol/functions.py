"""What calling a function leaves in the session, as far as the server's own functions and its extensions' go.

Functions of users are not known here: what they leave is hidden from a look at the text.
Source: PostgreSQL documentation, "Functions and Operators" and "Additional Supplied Modules".
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from protocol.lexer import DOUBT, is_string, lex, name_of, string_of
from protocol.verdict import HARMLESS, UNKNOWN, State, Verdict, unite

ARGUMENTS_LIMIT: Final = 64
"""Tokens of a call's arguments that are looked at; with more, they are no literals."""

BODIES_LIMIT: Final = 8
"""Strings of a statement that are looked into, and blocks of a DO."""

NEEDLES: Final = ("pg_", "set_config", "set_limit", "dblink_")
"""Each function that leaves anything but the state of sequences has one of these in its name."""

SEQUENCE_FUNCTIONS: Final = ("nextval", "currval", "lastval", "setval", "setseed")

DYNAMIC: Final = Verdict(leaves=State.SETTING, asks=True, dynamic=True)
"""A setting is set whose name the text does not tell: it may be the role as well."""

_SETS: Final = Verdict(leaves=State.SETTING)
_SETS_IDENTITY: Final = Verdict(leaves=State.IDENTITY)

_LOCKS: Final = ("pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared")
_UNLOCKS: Final = ("pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_unlock_all")
_SESSIONS_OWN: Final = (  # state of the session that none of the classes covers
    "dblink_connect",
    "dblink_connect_u",
    "dblink_disconnect",
    "pg_backup_start",
    "pg_backup_stop",
    "pg_copy_logical_replication_slot",
    "pg_copy_physical_replication_slot",
    "pg_create_logical_replication_slot",
    "pg_create_physical_replication_slot",
    "pg_drop_replication_slot",
    "pg_replication_origin_session_reset",
    "pg_replication_origin_session_setup",
    "pg_start_backup",
    "pg_stop_backup",
)
FUNCTIONS: Final[Mapping[bytes, Verdict]] = {
    name.encode(): verdict
    for names, verdict in (
        (_LOCKS, Verdict(leaves=State.ADVISORY_LOCK)),
        (_UNLOCKS, Verdict(undoes=State.ADVISORY_LOCK)),
        (SEQUENCE_FUNCTIONS, Verdict(leaves=State.SEQUENCE)),
        (("set_config", "set_limit"), _SETS),
        (_SESSIONS_OWN, UNKNOWN),
    )
    for name in names
}

_SETTINGS: Final = b"pg_settings"
_UPDATED_SETTINGS: Final = Verdict(leaves=State.SETTING, asks=True)
"""A rule of the view turns an UPDATE of it into calls of set_config() (documentation, "pg_settings")."""

_MENTIONED: Final = frozenset(form for name in (*FUNCTIONS, _SETTINGS) for form in (name, b'"' + name + b'"'))

_RUN_STRINGS: Final = frozenset(
    b"crosstab query_to_xml query_to_xml_and_xmlschema query_to_xmlschema ts_rewrite ts_stat".split()
)
"""Functions that run what they are given as a query. (What isn't in the text as a string stays hidden.)"""

_TRUE: Final = frozenset((b"t", b"true", b"y", b"yes", b"on", b"1"))


def calls(tokens: Sequence[bytes]) -> Verdict:
    """Judge the functions that a statement calls, by itself or in strings that another function runs."""
    verdict = _called(tokens)
    if not _RUN_STRINGS.isdisjoint(tokens):
        for body in _bodies(tokens):
            verdict = unite(verdict, _called(lex(body).tokens))
    return verdict


def _called(tokens: Sequence[bytes]) -> Verdict:
    verdict = HARMLESS
    if _MENTIONED.isdisjoint(tokens):
        return verdict
    for at, token in enumerate(tokens):
        if token not in _MENTIONED:
            continue
        name = name_of(token)
        if name == _SETTINGS:
            if b"update" in tokens:
                verdict = unite(verdict, _UPDATED_SETTINGS)
        elif tokens[at + 1 : at + 2] == [b"("]:
            found = _set_config(tokens[at + 2 : at + 2 + ARGUMENTS_LIMIT]) if name == b"set_config" else FUNCTIONS[name]
            verdict = unite(verdict, found)
    return verdict


def settings_in_blocks(tokens: Sequence[bytes]) -> Verdict:
    """Tell the names of the settings that a DO sets, in its block or in one that this runs by another DO.

    Only the names: the server has to be asked in any case, but does not tell what custom settings there are.
    """
    verdict = HARMLESS
    blocks = [*_blocks(tokens)]
    for count, block in enumerate(blocks):
        code = string_of(block)
        if code is None or count == BODIES_LIMIT:
            verdict = unite(verdict, DYNAMIC)
            break
        inside, _, whole = lex(code)
        verdict = unite(verdict, _called(inside) if whole else DYNAMIC)
        for at, token in enumerate(inside):
            if token == b"set":
                session = inside[at + 1 : at + 2] == [b"session"] and inside[at + 2 : at + 3] != [b"."]
                verdict = unite(verdict, setting_at(inside, at + 2 if session else at + 1))
        blocks += _blocks(inside)
    return Verdict(custom=verdict.custom, dynamic=verdict.dynamic)


def _blocks(tokens: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the strings that follow each DO: its block, and maybe the name of its language."""
    for at, token in enumerate(tokens):
        if token == b"do":
            yield from filter(is_string, tokens[at + 1 : at + 5])


def _bodies(tokens: Sequence[bytes]) -> Iterator[bytes]:
    return islice(filter(None, map(string_of, tokens)), BODIES_LIMIT)


def setting(name: bytes) -> Verdict:
    """Judge setting the one that `name`, unquoted, stands for."""
    if b"." in name:
        return Verdict(leaves=State.SETTING, custom=(name.decode("utf-8", "surrogateescape"),))
    return _SETS_IDENTITY if name.lower() in (b"role", b"session_authorization") else _SETS


def setting_at(tokens: Sequence[bytes], at: int) -> Verdict:
    """Judge setting the one whose name begins at `at`."""
    parts = [*tokens[at : at + 1]]
    while tokens[at + 1 : at + 2] == [b"."]:
        at += 2
        parts += tokens[at : at + 1]
    return DYNAMIC if DOUBT in parts else setting(b".".join(map(name_of, parts)))


def _set_config(tokens: Sequence[bytes]) -> Verdict:
    """Judge a set_config() by its arguments, with which `tokens` begins."""
    arguments: list[list[bytes]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token == b"(") - (token == b")")
        if depth < 0:
            break
        if token == b"," and not depth:
            arguments.append([])
        else:
            arguments[-1].append(token)
    if len(arguments) == 3 and depth < 0 and _is_true(arguments[2]):
        return HARMLESS
    name = _literal(arguments[0], b"text", b"varchar")
    return setting(name) if name else DYNAMIC


def _is_true(argument: list[bytes]) -> bool:
    value = _literal(argument, b"bool", b"boolean")
    return argument == [b"true"] or (value is not None and value.lower() in _TRUE)


def _literal(argument: list[bytes], *types: bytes) -> bytes | None:
    """Return what an argument says that is a string and nothing else, but for a cast to one of `types`."""
    if len(argument) == 3 and argument[1] == b"::" and argument[2] in types:
        argument = argument[:1]
    return string_of(argument[0]) if len(argument) == 1 and argument[0] is not DOUBT else None
