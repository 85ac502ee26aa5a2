"""The lookups of users by auth_query: one for each database that is asked, as the entries of databases say.

Where clients choose the database (`*`) there may be any number of them, so only the last ones are kept.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from config.terms import Endpoint, terms_for
from pooler.access.candidate import Candidate
from pooler.access.lookup import Lookup, Noted, Taken, lookup_at
from pooler.credentials.vault import Vault
from pooler.current import Current
from pooler.log import Log
from pooler.upstream.dial import ServerTls

MOST_LOOKUPS: Final = 32


class Place(NamedTuple):
    """Where and how users are looked up."""

    endpoint: Endpoint
    database: str
    """The name by which the vault knows where auth_user logs in."""
    query: str


class Lookups:
    """See gate.Lookup; each candidate's user is looked up as its database's entry says."""

    def __init__(
        self,
        current: Current,
        vault: Vault,
        noted: Noted,
        tls: Callable[[], ServerTls | None],
        outcomes: Counter[str],
        now: Callable[[], float],
        log: Log,
    ) -> None:
        self._current = current
        self._vault = vault
        self._noted = noted
        self._tls = tls
        self._outcomes = outcomes
        self._now = now
        self._log = log
        self._lookups: OrderedDict[Place, Lookup] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def serves(self, candidate: Candidate) -> bool:
        """Tell whether users are looked up for the database that a candidate wants."""
        return self._place(candidate.startup.database) is not None

    def find(self, candidate: Candidate, found: Taken) -> None:
        """See gate.Lookup."""
        lookup = self._lookup(candidate.startup.database)
        if lookup is None:
            found(None)
        else:
            lookup.find(candidate, found)

    def forget(self, candidate: Candidate) -> None:
        """See gate.Lookup."""
        place = self._place(candidate.startup.database)
        if place is not None and place in self._lookups:
            self._lookups[place].forget(candidate)

    def _place(self, name: str) -> Place | None:
        settings, directory = self._current.settings, self._current.directory
        entry = directory.database(name)
        auth_user = (entry.auth_user if entry is not None else None) or settings.auth_user
        if not auth_user:
            return None
        elsewhere = (entry.auth_dbname if entry is not None else None) or settings.auth_dbname
        if not elsewhere and entry is None and settings.upstream is not None:
            elsewhere = settings.upstream.dbname or auth_user
        terms = terms_for(settings, directory, elsewhere or name, auth_user)
        if terms is None:
            return None
        query = (entry.auth_query if entry is not None else None) or settings.auth_query
        return Place(replace(terms.endpoint, user=auth_user, password=None), terms.database, query)

    def _lookup(self, name: str) -> Lookup | None:
        place = self._place(name)
        if place is None:
            return None
        lookup = self._lookups.get(place)
        if lookup is None:
            lookup = self._lookups[place] = lookup_at(
                place.endpoint,
                place.database,
                place.query,
                self._current.settings,
                self._vault,
                self._tls(),
                self._noted,
                self._outcomes,
                self._now,
                self._log,
            )
            if len(self._lookups) > MOST_LOOKUPS:
                self._close(self._lookups.popitem(last=False)[1])
        return lookup

    def apply(self) -> None:
        """Take over what a reload has changed: what was known is looked up anew."""
        while self._lookups:
            self._close(self._lookups.popitem()[1])

    def _close(self, lookup: Lookup) -> None:
        task = asyncio.get_running_loop().create_task(lookup.retire())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Ask no more."""
        for lookup in self._lookups.values():
            await lookup.close()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
