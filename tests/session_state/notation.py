"""Reads programs from their text, as README.md describes it; knows nothing of how they are run.

A program is a list of steps. The messages of a step are built here, and what has to be awaited after them.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import wire

TYPES: Final = {"?": 0, "bool": 16, "int8": 20, "int4": 23, "text": 25, "varchar": 1043}


class Say(NamedTuple):
    """Messages, sent as one piece. The answer ends after `readies` ReadyForQuery and then `replies` messages."""

    data: bytes
    readies: int
    replies: int


class Login(NamedTuple):
    parameters: dict[str, str]


class Hear(NamedTuple):
    """Wait until so many notifications have come that no earlier step has reported."""

    notifications: int


class Leave(NamedTuple):
    politely: bool


class Administer(NamedTuple):
    """SQL that the administrator runs straight at Postgres."""

    sql: str


class Step(NamedTuple):
    who: str
    does: Say | Login | Hear | Leave | Administer
    text: str
    compared: bool = True


@dataclass
class Program:
    title: str
    place: str
    steps: list[Step] = field(default_factory=list)
    setup: str = ""
    user: str = "postgres"
    only: frozenset[str] = frozenset()
    """Where it is run: variants of pgfunnel's settings; all of them if empty."""
    since: int = 0
    """The first major version of Postgres that can run it."""
    differs: str = ""
    """Why the client sees something else through pgfunnel: a documented exception."""

    todo: str = ""
    """Why it differs although it should not: a shortcoming that is known."""

    @property
    def all_compared(self) -> bool:
        """No single steps are excepted."""
        return all(step.compared for step in self.steps)


class NotationError(Exception):
    """A program can't be read; says where and why."""


def read_programs(path: Path) -> list[Program]:
    programs: list[Program] = []
    for number, line in _logical_lines(path.read_text(encoding="utf-8")):
        place = f"{path.name}:{number}"
        if line.startswith("# "):
            programs.append(Program(line[2:].strip(), place))
        elif not programs:
            raise NotationError(f"{place}: a program begins with '# ' and its title")
        else:
            _read_line(programs[-1], line, place)
    return programs


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Join indented lines to the one above; leave out empty lines and comments."""
    start, joined = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith((" ", "\t")) and line.strip():
            joined += "\n" + line.strip()
            continue
        if joined:
            yield start, joined
        start, joined = number, "" if line.startswith("--") else line.rstrip()
    if joined:
        yield start, joined


def _read_line(program: Program, line: str, place: str) -> None:
    if header := re.fullmatch(r"(setup|user|only|since|differs|todo): (.*)", line, re.DOTALL):
        _read_header(program, header[1], header[2])
        return
    try:
        program.steps.append(read_step(line))
    except ValueError as error:
        raise NotationError(f"{place}: {error}") from error


def read_step(line: str) -> Step:
    """Read one step; raises ValueError."""
    match = re.fullmatch(r"(\? )?(admin|[A-Z])(:|>| (?=\w))\s?(.*)", line, re.DOTALL)
    if match is None:
        raise ValueError(f"not a step: {line}")
    excepted, who, sign, rest = match.groups()
    return Step(who, _action(who, sign, rest), line, compared=not excepted)


def _read_header(program: Program, name: str, value: str) -> None:
    if name == "setup":
        program.setup = value
    elif name == "user":
        program.user = value
    elif name == "only":
        program.only = frozenset(value.split())
    elif name == "since":
        program.since = int(value)
    elif name == "differs":
        program.differs = value
    else:
        program.todo = value


def _action(who: str, sign: str, rest: str) -> Say | Login | Hear | Leave | Administer:
    if who == "admin":
        return Administer(rest)
    if sign == ":":
        return Say(wire.query(rest), 1, 0)
    if sign == ">":
        return _pipeline(rest)
    verb, _, arguments = rest.partition(" ")
    match verb:
        case "login":
            return Login(dict(_named_value(word) for word in shlex.split(arguments)))
        case "hears":
            return Hear(int(arguments))
        case "leaves" | "vanishes":
            return Leave(politely=verb == "leaves")
    raise ValueError(f"nobody can {verb!r}")


def _named_value(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"not a startup parameter: {word}")
    return name, value


def _pipeline(text: str) -> Say:
    """Build the messages of `op | op | op`, and count what answers them."""
    data, readies, replies = b"", 0, 0
    for written in re.split(r"\s\|\s", text):
        op = written.strip()
        data += _messages(op)
        verb = op.split(maxsplit=1)[0]
        if verb in {"sync", "query"}:
            readies, replies = readies + 1, 0
        else:
            replies += {"run": 3, "extended": 4, "flush": 0, "skipped": 0}.get(verb, 1)
        flushed = verb == "flush"
    return Say(data, readies, replies if flushed else 0)


def _messages(op: str) -> bytes:
    verb, _, rest = op.partition(" ")
    match verb:
        case "parse":
            return _parse(rest)
        case "bind":
            name, values, binary, portal = _bound(rest)
            return wire.bind(*values, statement=name, portal=portal, binary_results=binary)
        case "run":
            name, values, binary, _ = _bound(rest)
            bound = wire.bind(*values, statement=name, binary_results=binary)
            return bound + wire.describe_portal() + wire.execute()
        case "extended":
            sql, _, values_text = rest.partition(" <- ")
            return wire.extended(sql, *_values(values_text or "[]"))
        case "describe":
            return wire.describe_portal(_name(rest[7:])) if _of_portal(rest) else wire.describe_statement(_name(rest))
        case "close":
            return wire.close_portal(_name(rest[7:])) if _of_portal(rest) else wire.close_statement(_name(rest))
        case "execute":
            portal, _, limit = rest.partition("max ")
            return wire.execute(_name(portal.strip()), int(limit or 0))
        case "query" | "skipped":
            return wire.query(rest)
        case "sync":
            return wire.sync()
        case "flush":
            return wire.flush()
    raise ValueError(f"no such message: {op}")


def _parse(text: str) -> bytes:
    match = re.fullmatch(r'(""|[^\s(]+)(?:\(([^)]*)\))?\s?(.*)', text, re.DOTALL)
    if match is None:
        raise ValueError(f"parse NAME SQL, or parse NAME(TYPES) SQL: {text}")
    name, types, sql = match.groups()
    return wire.parse(sql, _name(name), [TYPES[each.strip()] for each in (types or "").split(",") if each.strip()])


def _bound(text: str) -> tuple[str, list[str | None], bool, str]:
    """Read `NAME [VALUES] binary into PORTAL`, the last two of which may be missing."""
    match = re.fullmatch(r'(""|\S+) (\[.*\])( binary)?(?: into (\S+))?', text, re.DOTALL)
    if match is None:
        raise ValueError(f"NAME [VALUES]: {text}")
    name, values, binary, portal = match.groups()
    return _name(name), _values(values), binary is not None, portal or ""


def _values(text: str) -> list[str | None]:
    """Read parameters in text format from a JSON list."""
    return [None if value is None else str(value) for value in json.loads(text)]


def _of_portal(text: str) -> bool:
    return text.startswith("portal ")


def _name(text: str) -> str:
    return "" if text == '""' else text
