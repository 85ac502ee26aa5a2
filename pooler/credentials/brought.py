"""What clients have brought to log in with at Postgres, after it was proven: several for each user and database.

The newest goes first, and one that Postgres refuses goes for good: so a token that has run out keeps nobody out as
long as another client has brought a good one.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from math import inf
from typing import Final, NamedTuple

from pooler.credentials.credential import Credential

MOST_PAIRS: Final = 10_000
"""Users and databases of which something is kept: the names of databases are the clients' to choose."""
MOST_EACH: Final = 8
"""Credentials of a user at a database. Tokens live for 15 minutes, and a fleet of clients may have one each; but when
the newest eight are refused, an older one is hardly any good."""


class _Kept(NamedTuple):
    credential: Credential
    until: float


class Brought:
    """Keeps them until their time is up, and for as long as clients are logged in who need them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: OrderedDict[tuple[str, str], list[_Kept]] = OrderedDict()
        self.needed: Callable[[str, str], bool] = lambda _user, _database: False
        """Tells whether clients of a user are logged in at a database."""

    def keep(self, user: str, database: str, credential: Credential, until: float = inf) -> None:
        """Keep one until a time of `now`, or longer if there is need."""
        others = [kept for kept in self._kept.pop((user, database), ()) if kept.credential != credential]
        self._kept[user, database] = [_Kept(credential, until), *others[: MOST_EACH - 1]]
        if len(self._kept) > MOST_PAIRS:
            # Who may log in may do so at as many databases as it can name: that must not drive out what others need.
            older = islice(self._kept, MOST_PAIRS)
            del self._kept[next((pair for pair in older if not self.needed(*pair)), next(iter(self._kept)))]

    def of(self, user: str, database: str) -> list[Credential]:
        """Return what there is, the newest first."""
        self._drop_old(user, database)
        return [kept.credential for kept in self._kept.get((user, database), ())]

    def drop(self, user: str, database: str, credential: Credential | None = None) -> None:
        """Forget one, since Postgres has refused it; or all."""
        left = [kept for kept in self._kept.get((user, database), ()) if credential not in (None, kept.credential)]
        self._replace(user, database, left)

    def sweep(self) -> None:
        """Forget those whose time is up."""
        for user, database in list(self._kept):
            self._drop_old(user, database)

    def _drop_old(self, user: str, database: str) -> None:
        kept = self._kept.get((user, database), [])
        now = self._now()
        if any(each.until <= now for each in kept) and not self.needed(user, database):
            self._replace(user, database, [each for each in kept if each.until > now])

    def _replace(self, user: str, database: str, left: list[_Kept]) -> None:
        if left:
            self._kept[user, database] = left
        else:
            self._kept.pop((user, database), None)

    def __repr__(self) -> str:
        return f"<Brought for {len(self._kept)} users and databases>"
