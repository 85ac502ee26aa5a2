"""A client twice: straight at Postgres, and through a pgfunnel. Both say the same, and must be told the same.

They have a database each, so that locks and notifications of one don't meet the other. What the straight one sees of
its session says also whether the other one has to keep a server connection.
"""

import re
from ast import literal_eval
from collections.abc import Mapping
from difflib import ndiff
from itertools import chain
from typing import Final

from tests.session_state.clients import Client
from tests.session_state.machine_texts import (
    describes,
    in_vain,
    is_query,
    is_single,
    names_statement,
    pins_visibly,
    replaces_unnamed,
    resets_something,
    units,
)
from tests.session_state.notation import Leave, Login, Say, read_step

STATES: Final[Mapping[str, str]] = {
    "listen": "SELECT string_agg(channel, ' ' ORDER BY 1) FROM pg_listening_channels() AS channel",
    "prepared": "SELECT string_agg(name, ' ' ORDER BY 1) FROM pg_prepared_statements WHERE from_sql",
    "cursor": "SELECT string_agg(name, ' ' ORDER BY 1) FROM pg_cursors WHERE name <> ''",
    "temporary": "SELECT string_agg(relname, ' ' ORDER BY 1) FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
    "advisory_lock": "SELECT string_agg(objid::text, ' ' ORDER BY objid) FROM pg_locks"
    " WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
}
"""How a client sees what pins it, by class."""
SETTINGS: Final = (
    "SELECT string_agg(name || '=' || setting, E'\\n' ORDER BY name) FROM pg_settings"
    " WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend') AND name !~ '[.]'"
)
LOOK: Final = (
    f"SELECT {', '.join(f'({query})' for query in STATES.values())}, ({SETTINGS}), session_user, current_user,"
    " nullif(current_setting('app.x', true), ''), nullif(current_setting('app.y', true), '')"
)
TOO_MANY: Final = re.compile(r"error V=\w+ C=53400 .*", re.DOTALL)
IN_VAIN: Final = re.compile(r'error V=ERROR C=(42601|26000) .*"nonsense".*', re.DOTALL)


class Twins:
    """`pins` are the classes of session state by which the pooled one is pinned."""

    def __init__(self, name: str, straight: Client, pooled: Client) -> None:
        self.name = name
        self.straight = straight
        self.pooled = pooled
        self.pins: frozenset[str] = frozenset()
        self._startup = False
        """There are settings that it has logged in with."""
        self._unnamed_in_doubt = False

    @property
    def keeps_server(self) -> bool:
        return bool(self.pins) or self.straight.status != "I"

    def login(self, login: Login) -> None:
        self._startup = bool(login.parameters)
        compare(self.straight.do(login), self.pooled.do(login))
        self._compare_parameters()

    def may_say(self, line: str, *, crowded: bool) -> bool:
        """Tell whether what has to be answered is known. With `crowded`, no other client may be pinned.

        What is not known is in Known limits (docs/session-state.md), or depends on whether pgfunnel has heard yet how
        what came before in the same step has ended.
        """
        first, *rest = units(line)
        later = list(chain(*rest))
        idle = self.straight.status == "I"
        may_be_ended_between = bool(later) and crowded and not self.pins
        # In a failed transaction, it makes a difference whether the server has the statement.
        in_doubt = any(map(names_statement, later)) or (not idle and any(map(describes, first)))
        resets = self._startup and any(map(resets_something, [*first, *later]))
        resets_well = idle and is_single(first) and not any(map(resets_something, later))
        return not (may_be_ended_between or in_doubt or (resets and not resets_well) or self._binds_in_doubt(line))

    def say(self, line: str, *, crowded: bool) -> None:
        """Say it twice. With `crowded`, what would pin it is refused; Postgres is then told what it refuses, too."""
        refused = crowded and not self.pins and self.straight.status != "E" and pins_visibly(line)
        pooled = self._do(self.pooled, line)
        straight = self._do(self.straight, in_vain(line) if refused else line)
        if refused:
            pooled = [TOO_MANY.sub("error", words) for words in pooled]
            straight = [IN_VAIN.sub("error", words) for words in straight]
        compare(straight, pooled)
        failed = any(words.startswith("error ") for words in straight)
        for unit in units(line):
            if is_query(unit[0]):
                self._unnamed_in_doubt = False
            elif any(map(replaces_unnamed, unit)):
                self._unnamed_in_doubt = failed

    def look(self, *, crowded: bool = False) -> bool:
        """Look at the session, if that is possible; return whether it goes on, or has to end as it can't be pinned.

        It looks by a name, lest the unnamed statement is lost.
        """
        if self.straight.status == "E":
            return True
        line = f"{self.name}> close look | parse look {LOOK} | run look [] | sync"
        straight = self._do(self.straight, line)
        if self.straight.status == "I":
            row = literal_eval(next(words for words in straight if words.startswith("row ")).removeprefix("row "))
            pins = frozenset(name for name, value in zip(STATES, row, strict=False) if value)
            if pins and not self.pins and crowded:
                (words,) = self.pooled.hear_end()
                assert TOO_MANY.fullmatch(words), words
                return False
            self.pins = pins
        compare(straight, self._do(self.pooled, line))
        self._compare_parameters()
        if self.straight.status == "I" and "listen" in self.pins:
            self._listen()
        return True

    def leave(self, leave: Leave) -> None:
        for client in (self.straight, self.pooled):
            client.do(leave)

    def _do(self, client: Client, line: str) -> list[str]:
        does = read_step(line).does
        assert isinstance(does, Say)
        return client.say(does)

    def _binds_in_doubt(self, line: str) -> bool:
        """An unnamed statement is bound that may be another one through pgfunnel."""
        in_doubt = self._unnamed_in_doubt
        for unit in units(line):
            replaced = False
            for message in unit:
                if message.startswith('run ""') and in_doubt and not replaced:
                    return True
                replaced |= replaces_unnamed(message)
            in_doubt = (in_doubt or replaced) and not is_query(unit[0])
        return False

    def _listen(self) -> None:
        """All notifications come before those that one sends to oneself."""
        for client in (self.straight, self.pooled):
            self._do(client, f"{self.name}: notify news, 'self'; notify jobs, 'self'")
        compare(self.straight.heard(), self.pooled.heard())

    def _compare_parameters(self) -> None:
        straight, pooled = (
            [f"{name} is {value}" for name, value in sorted(client.parameters.items())]
            for client in (self.straight, self.pooled)
        )
        compare(straight, pooled)


def compare(straight: list[str], pooled: list[str]) -> None:
    """Raise AssertionError with what is told otherwise."""
    if pooled != straight:
        told = ndiff(pieces(straight), pieces(pooled))
        raise AssertionError("\n".join(["(+ is pooled, - is straight)", *(line for line in told if line[0] in "+-")]))


def pieces(answer: list[str]) -> list[str]:
    """Cut long values into what is worth comparing."""
    return [piece for words in answer for piece in words.split("\\n")]
