"""What there is to say about a statement's text: the classes of session state, and the verdict that names them."""

from enum import IntFlag
from typing import Final, NamedTuple

CUSTOM_LIMIT: Final = 100
"""Names of custom settings that one verdict tells; a text that sets more is dynamic."""


class State(IntFlag):
    """Classes of session state. The lower-case name is the word in settings, logs and metrics."""

    SETTING = 1
    IDENTITY = 2
    LISTEN = 4
    PREPARED = 8
    CURSOR = 16
    TEMPORARY = 32
    ADVISORY_LOCK = 64
    SEQUENCE = 128
    LIBRARY = 256
    UNKNOWN = 512


NOTHING: Final = State(0)


def words(states: State) -> list[str]:
    """Return the names of the classes as settings, logs and metrics have them."""
    return [name.lower() for name, state in State.__members__.items() if state in states]


class Verdict(NamedTuple):
    """What a text may do to the session that runs it."""

    leaves: State = NOTHING
    """What it may leave behind."""
    undoes: State = NOTHING
    """What of that, left by itself or earlier, it may undo."""
    asks: bool = False
    """The classes do not tell all: the server has to be asked, whatever they are."""
    executes: bool = False
    """Has an EXECUTE of an SQL-level prepared statement."""
    deallocates: bytes = b""
    """The name that it deallocates, as the server reads it, if it does nothing else."""
    drops_statements: bool = False
    """Has a DEALLOCATE ALL or DISCARD ALL."""
    ddl: bool = False
    """May change what other statements return."""
    custom: tuple[str, ...] = ()
    """The settings with a dot in their name that it sets or resets, as the server reads them."""
    dynamic: bool = False
    """Sets a setting whose name the text does not tell."""


HARMLESS: Final = Verdict()
ASKS: Final = Verdict(asks=True)
UNKNOWN: Final = Verdict(leaves=State.UNKNOWN, asks=True)


def unite(one: Verdict, other: Verdict) -> Verdict:
    """Return the verdict on two statements that make up one text."""
    if other is HARMLESS and not one.deallocates:
        return one
    if one is HARMLESS and not other.deallocates:
        return other
    custom = one.custom
    if other.custom and custom != other.custom:
        custom = tuple(dict.fromkeys(custom + other.custom))
    return Verdict(
        leaves=one.leaves | other.leaves,
        undoes=one.undoes | other.undoes,
        asks=one.asks or other.asks,
        executes=one.executes or other.executes,
        drops_statements=one.drops_statements or other.drops_statements,
        ddl=one.ddl or other.ddl,
        custom=custom[:CUSTOM_LIMIT],
        dynamic=one.dynamic or other.dynamic or len(custom) > CUSTOM_LIMIT,
    )
