"""What Postgres has answered before, where it can't answer otherwise now.

An application that sets the same again and again (a search_path before each query, RESET ALL as its driver gives a
connection back) would have Postgres asked again and again what that comes to. The answer is remembered for texts that
do nothing but set and reset, to values that they spell out, by what the session held before.
"""

import re
from typing import Final, NamedTuple, final

from protocol.parameters import Profile

MOST: Final = 2000
LONGEST: Final = 1000
"""Bytes of a text."""

_STRING: Final = rb"\s*'[^';\\$]*'\s*"
# Without brackets, dollars and semicolons in between: no functions, no dollar quotes, one statement after the other.
_STATEMENT: Final = (
    rb"(?:(?:set|reset|unlisten|close)\s[^;()$]*"
    rb"|discard\s+all\s*|deallocate\s+all\s*|select\s+pg_advisory_unlock_all\s*\(\s*\)\s*"
    rb"|select\s+(?:pg_catalog\.)?set_config\s*\(%b,%b,\s*(?:false|true)\s*\)\s*)" % (_STRING, _STRING)
)
_REPEATABLE: Final = re.compile(rb"\s*%b(?:;\s*%b)*;?\s*" % (_STATEMENT, _STATEMENT), re.IGNORECASE).fullmatch
_CURRENT: Final = re.compile(rb"\bcurrent\b", re.IGNORECASE).search  # SET x FROM CURRENT: what that is may change


class Circumstances(NamedTuple):
    """A text that ran by itself, and what the session and its client had before."""

    text: bytes
    session: Profile | None
    startup: Profile | None


class Answer(NamedTuple):
    """What the client and the session have after it; there is nothing else in the session."""

    client: Profile | None
    session: Profile | None


def repeatable(text: bytes) -> bool:
    """Tell whether `text` comes to the same whenever it runs in a session that holds the same."""
    return len(text) <= LONGEST and _REPEATABLE(text) is not None and _CURRENT(text) is None


@final
class Answers:
    """The answers of one pool."""

    def __init__(self) -> None:
        self._known: dict[Circumstances, Answer] = {}

    def find(self, circumstances: Circumstances) -> Answer | None:
        """Return the answer, if it is known."""
        return self._known.get(circumstances)

    def keep(self, circumstances: Circumstances, answer: Answer) -> None:
        """Remember an answer, if it can't be another the next time."""
        if repeatable(circumstances.text):
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[circumstances] = answer
