"""Looks up the secrets of users who are in no list: whom to ask for when, and how long an answer is good.

An answer is taken as it is for a second. After that Postgres is asked again, so that a new password, a dropped role or
a VALID UNTIL count at once; the old answer serves (up to auth_query_max_age) only while Postgres does not answer.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from config.hosts import host_and_port, is_local
from config.settings import Settings
from config.terms import Endpoint
from pooler.access.auth_query import CONNECTIONS, UNENCRYPTED, AuthQuery, Found, NoAnswerError, Server, Way
from pooler.access.candidate import Candidate
from pooler.credentials.credential import Password
from pooler.credentials.source import SourceFailedError
from pooler.credentials.vault import Vault
from pooler.log import Log
from pooler.reasons import Ending, Reason
from pooler.upstream.dial import ServerTls

FRESH_S: Final = 1.0
"""How long an answer is not asked for again: it bounds what logins, and attempts at them, cost Postgres."""
PATIENCE_S: Final = 1.0
"""How long Postgres may take before an answer that it has given earlier serves instead."""
FIRST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 2.0
MOST_KNOWN: Final = 10_000
"""Answers that are kept; as many again may be that there is no such user, so that who makes up names can't drive out
the answers for those who exist."""

_UNANSWERED: Final = Ending(
    Reason.AUTH_QUERY_FAILED,
    "08006",
    "the user can't be looked up: the auth_query has failed",
    hint="The log of pgfunnel says why.",
)

Taken = Callable[[str | None], None]
T = TypeVar("T")


class Query(Protocol):
    """Who is asked; see auth_query."""

    async def ask(self, user: str) -> Found | None:
        """Return what there is to know of `user`, None if there is no such user. Raises NoAnswerError."""

    async def close(self) -> None:
        """Ask no more."""


class Noted(Protocol):
    """Where it is noted whether Postgres can be reached."""

    def answered(self, now: float) -> None:
        """It can."""

    def failed(self, now: float, message: str) -> None:
        """It can't."""


class _Known(NamedTuple):
    found: Found
    fresh_until: float
    usable_until: float
    expires: float

    def __repr__(self) -> str:
        return "_Known(***)"


class _Inquiry:
    """One question under way, and the clients who wait for the answer."""

    def __init__(self) -> None:
        self.clients: list[tuple[Candidate, Taken]] = []
        self.task: asyncio.Task[None] | None = None
        self.patience: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        """Somebody still waits."""
        return any(not candidate.ended for candidate, _ in self.clients)


class Lookup:
    """What is known of users by auth_query."""

    def __init__(
        self,
        query: Query,
        auth_user: str,
        max_age: float,
        noted: Noted,
        outcomes: Counter[str],
        now: Callable[[], float],
        log: Log,
    ) -> None:
        """`outcomes` counts how the clients' users were looked up; see Tally."""
        self._query = query
        self._auth_user = auth_user
        self._max_age = max_age
        self._now = now
        self._log = log
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        """Users that do not exist, and until when that is believed."""
        self._inquiries: dict[str, _Inquiry] = {}
        self._sweep_at = MOST_KNOWN
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._failures = 0
        self._failing_since = 0.0
        self._retry_at = 0.0
        """After a failure: no further attempt before this, for whatever user."""
        self._noted = noted
        self._outcomes = outcomes

    def find(self, candidate: Candidate, found: Taken) -> None:
        """Call `found` with the secret of the candidate's user, None if there is no such user: now or later.

        A candidate for whom that can't be told is refused. While Postgres is away it waits, until
        client_login_timeout.
        """
        user = candidate.startup.user
        now = self._now()
        known = self._known.get(user)
        if user == self._auth_user:
            found(None)  # its secret is what the query is asked with, and so is in the list, or is none at all
        elif known is not None and now < known.fresh_until:
            self._outcomes["remembered"] += 1
            found(known.found.secret if now < known.expires else "")
        elif now < self._unknown.get(user, now):
            self._outcomes["remembered"] += 1
            found(None)
        else:
            self._inquire(user, candidate, found)

    def forget(self, candidate: Candidate) -> None:
        """A login has failed: ask anew the next time.

        The salt of a SCRAM login has been sent by then, so this one can't be judged again; its next attempt can. What
        was known is kept for when Postgres is away: else a wrong password would lock out those who have the right one.
        """
        known = self._known.get(candidate.startup.user)
        if known is not None:
            self._known[candidate.startup.user] = known._replace(fresh_until=self._now())
        self._unknown.pop(candidate.startup.user, None)

    # --- asking

    def _inquire(self, user: str, candidate: Candidate, found: Taken) -> None:
        inquiry = self._inquiries.get(user)
        if inquiry is None:
            self._sweep()
            loop = asyncio.get_running_loop()
            inquiry = self._inquiries[user] = _Inquiry()
            inquiry.task = loop.create_task(self._ask(user, inquiry))
            inquiry.patience = loop.call_later(PATIENCE_S, self._make_do, user, inquiry)
        elif inquiry.patience is None and self._make_do_for(user, candidate, found):
            return
        inquiry.clients.append((candidate, found))

    async def _ask(self, user: str, inquiry: _Inquiry) -> None:
        try:
            done = False
            while inquiry.wanted and not done:
                async with self._turns:  # one attempt: whoever can't be looked up does not keep others from it
                    await asyncio.sleep(self._retry_at - self._now())
                    done = not inquiry.wanted or await self._try(user, inquiry)
        finally:
            self._end(user, inquiry)

    async def _try(self, user: str, inquiry: _Inquiry) -> bool:
        """Ask once; False if there may be an answer later."""
        try:
            answer = await self._query.ask(user)
        except NoAnswerError as failure:
            self._failed(failure)
            if failure.for_now:
                return False
            self._give_up(user, inquiry)
        else:
            self._answered(user, inquiry, answer)
        return True

    def _end(self, user: str, inquiry: _Inquiry) -> None:
        if inquiry.patience is not None:
            inquiry.patience.cancel()
        if self._inquiries.get(user) is inquiry:
            del self._inquiries[user]

    def _sweep(self) -> None:
        """Forget questions whose clients have all gone: while Postgres is away they would pile up."""
        if len(self._inquiries) < self._sweep_at:
            return
        for user, inquiry in list(self._inquiries.items()):
            if not inquiry.wanted and inquiry.task is not None:
                inquiry.task.cancel()
                self._end(user, inquiry)
        self._sweep_at = max(MOST_KNOWN, 2 * len(self._inquiries))

    # --- answers

    def _answered(self, user: str, inquiry: _Inquiry, answer: Found | None) -> None:
        now = self._now()
        self._noted.answered(now)
        if self._failures:
            self._log.info("auth_query_recovered", failures=self._failures, after_s=round(now - self._failing_since, 1))
            self._failures = 0
            self._retry_at = 0.0
        self._known.pop(user, None)
        if answer is None:
            _keep(self._unknown, user, now + FRESH_S)
        else:
            expires = now + answer.lifetime
            usable_until = min(now + self._max_age, expires)
            _keep(self._known, user, _Known(answer, now + FRESH_S, usable_until, expires))
        # Before the clients are told: one of them may fail at once, and ask again.
        self._end(user, inquiry)
        self._tell(inquiry, "unknown" if answer is None else "found", answer.secret if answer is not None else None)

    def _tell(self, inquiry: _Inquiry, outcome: str, secret: str | None) -> None:
        clients, inquiry.clients = inquiry.clients, []
        for candidate, found in clients:
            if not candidate.ended:
                self._outcomes[outcome] += 1
                found(secret)

    def _failed(self, failure: NoAnswerError) -> None:
        now = self._now()
        if failure.for_now:
            self._noted.failed(now, str(failure))
            self._retry_at = now + min(FIRST_RETRY_S * 2.0 ** min(self._failures, 10), LONGEST_RETRY_S)
        if not self._failures:
            self._failing_since = now
        if not self._failures or not failure.for_now:
            # Once for each time that it is away: hundreds may be waiting.
            waiting = len(self._inquiries)
            self._log.warning("auth_query_failed", auth_user=self._auth_user, error=str(failure), waiting=waiting)
        self._failures += 1

    def _give_up(self, user: str, inquiry: _Inquiry) -> None:
        self._end(user, inquiry)
        self._make_do(user, inquiry)
        clients, inquiry.clients = inquiry.clients, []
        for candidate, _ in clients:
            if not candidate.ended:
                self._outcomes["failed"] += 1
                candidate.refuse(_UNANSWERED)

    # --- making do with what was known before

    def _make_do(self, user: str, inquiry: _Inquiry) -> None:
        """Postgres has not answered in time: let the clients go on with what it has said before, if it has."""
        inquiry.patience = None
        secret = self._old_secret(user)
        if secret:
            self._tell(inquiry, "outdated", secret)

    def _make_do_for(self, user: str, candidate: Candidate, found: Taken) -> bool:
        secret = self._old_secret(user)
        if secret:
            self._outcomes["outdated"] += 1
            found(secret)
        return bool(secret)

    def _old_secret(self, user: str) -> str:
        known = self._known.get(user)
        return known.found.secret if known is not None and self._now() < known.usable_until else ""

    async def retire(self) -> None:
        """Ask for those who wait already, and no more."""
        tasks = [inquiry.task for inquiry in self._inquiries.values() if inquiry.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.close()

    async def close(self) -> None:
        """Ask no more."""
        tasks = [inquiry.task for inquiry in self._inquiries.values() if inquiry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._query.close()


def lookup_at(
    endpoint: Endpoint,
    database: str,
    query: str,
    settings: Settings,
    vault: Vault,
    tls: ServerTls | None,
    noted: Noted,
    outcomes: Counter[str],
    now: Callable[[], float],
    log: Log,
) -> Lookup:
    """Return a Lookup that asks `query` as the user of `endpoint`, whose password the vault has for `database`."""
    auth_user = endpoint.user

    async def password(refused: str | None) -> str:
        try:
            known = await vault.fetch(auth_user, database, Password(refused) if refused is not None else None)
        except SourceFailedError as failure:
            raise NoAnswerError(str(failure), for_now=True) from None
        if known is None:
            return ""
        if not isinstance(known, Password):
            raise NoAnswerError(f'the password of auth_user "{auth_user}" has to be known in clear, and is hashed')
        return known.text

    # Each of them knows the users, whatever target_session_attrs says of the rest.
    hosts, ports = zip(*(host_and_port(host, endpoint.port) for host in endpoint.hosts), strict=True)
    server = Server(hosts, ports, auth_user, endpoint.dbname, password, partial(_ways, hosts, tls))
    asker = AuthQuery(query, server, settings.server_connect_timeout, settings.server_idle_timeout)
    return Lookup(asker, auth_user, settings.auth_query_max_age, noted, outcomes, now, log)


def _ways(hosts: Sequence[str], tls: ServerTls | None) -> Sequence[Way]:
    """Return by which kinds of connection to try, in this order."""
    if tls is None or all(map(is_local, hosts)):
        return (UNENCRYPTED,)
    encrypted = Way(tls.identity.context, direct=tls.direct)
    by_mode = {"allow": (UNENCRYPTED, encrypted), "prefer": (encrypted, UNENCRYPTED)}
    return by_mode.get(tls.mode, (encrypted,))


def _keep(memory: OrderedDict[str, T], key: str, value: T) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > MOST_KNOWN:
        memory.popitem(last=False)
