"""Whose turn it is: in which order hosts are tried, and which of them are put off because they have failed.

Knows no sockets and no names, so that it can be tried with any history of failures.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Final, TypeVar

MOST_PUT_OFF: Final = 1024
"""What is put off for no longer is forgotten at the latest when there are as many."""

_Host = TypeVar("_Host", bound=Hashable)


class Turns:
    """The turns of all lists of hosts. Times are monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._begun: dict[Hashable, int] = {}
        """How many logins each list has had."""
        self._favourite: dict[Hashable, Hashable] = {}
        """Which host of a list has worked last."""
        self._put_off: dict[Hashable, float] = {}
        """Until when; a failure before that is remembered beyond, until it works."""

    def order(self, hosts: Sequence[_Host], *, balance: bool) -> tuple[list[_Host], int]:
        """Return the hosts as they are to be tried now, and how often all of them have been the first.

        With `balance` each login begins with the next one, else with the one that has worked last.
        """
        key = tuple(hosts)
        first = rounds = 0
        if balance:
            begun = self._begun[key] = self._begun.get(key, -1) + 1
            rounds, first = divmod(begun, len(hosts))
        elif self._favourite.get(key) in key:
            first = key.index(self._favourite[key])
        return [*hosts[first:], *hosts[:first]], rounds

    def worked(self, hosts: Sequence[_Host], host: _Host) -> None:
        """This host of the list has been what was wanted."""
        self._favourite[tuple(hosts)] = host

    def answered(self, what: Hashable) -> None:
        """It is all right."""
        self._put_off.pop(what, None)

    def put_off(self, what: Hashable, seconds: float) -> bool:
        """Pass it over for a while; return whether it was all right before."""
        if len(self._put_off) >= MOST_PUT_OFF:
            now = self._now()
            self._put_off = {each: until for each, until in self._put_off.items() if until > now}
        fresh = what not in self._put_off
        self._put_off[what] = self._now() + seconds
        return fresh

    def put_off_until(self, what: Hashable, seconds: float) -> float:
        """Return until when it is passed over; 0 = it is to be tried now.

        If it had failed, it is put off again meanwhile: one login at a time finds out whether it is back.
        """
        until = self._put_off.get(what, 0.0)
        if until > self._now():
            return until
        if until:
            self._put_off[what] = self._now() + seconds
        return 0.0
