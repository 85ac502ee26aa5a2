"""Which of its hosts a server connection is opened to: names, their addresses, failures, and who is the primary.

What a failure of all of them means is the affair of pooler.pools.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Iterable, Mapping
from contextlib import aclosing
from typing import Final

from config.hosts import host_and_port
from config.terms import Endpoint
from pooler.credentials.credential import Credential
from pooler.current import Current
from pooler.log import Log
from pooler.reasons import REPLACED, Reason
from pooler.replication import Passage
from pooler.server import ServerSession
from pooler.upstream.address import Address
from pooler.upstream.ask import ask
from pooler.upstream.connect import Login, Target, leave, log_in
from pooler.upstream.dial import ConnectFailedError, ServerTls
from pooler.upstream.resolver import Resolver, UnresolvedError
from pooler.upstream.turns import Turns

_IN_STANDBY: Final = "in_hot_standby"
_READ_ONLY: Final = "default_transaction_read_only"
# Since Postgres 14 both are told at the login.
_ASK_STANDBY: Final = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'on' ELSE 'off' END"
_ASK_READ_ONLY: Final = "SELECT pg_catalog.current_setting('transaction_read_only')"
_OUTGROWN: Final[Mapping[str, str]] = {"primary": "on", "read-write": "on", "standby": "off"}
"""What in_hot_standby says when a connection does not fit its target_session_attrs any more."""


PATIENCE_S: Final = 2.0
"""How long one host is waited for before the next one is tried beside it: it may be gone without a word."""


class Hosts:
    """Opens connections to the hosts of an endpoint. One for all pools, so that all know of a host that has failed."""

    def __init__(self, current: Current, resolver: Resolver, now: Callable[[], float], log: Log) -> None:
        self._current = current
        self.resolver = resolver
        self._turns = Turns(now)
        self._log = log

    async def log_in(
        self, endpoint: Endpoint, credential: Credential | None, tls: ServerTls | None, parameters: Mapping[str, str]
    ) -> Login:
        """Log in at the first host that lets us in and is what target_session_attrs wants.

        Raises ConnectFailedError if none does, LoginRefusedError if one refuses.
        """
        attempt = _Attempt(endpoint, credential, tls, parameters)
        try:
            async with aclosing(self._choices(attempt)) as choices:
                async for address, last_resort in choices:
                    if last_resort and attempt.second_best is not None:
                        break
                    attempt.begin(address, self._try(attempt, address))
                    if await attempt.succeeds_within(PATIENCE_S):
                        return attempt.login()
                    for silent in attempt.under_way:
                        self._note_silence(attempt, silent)
            await attempt.succeeds_within(PATIENCE_S if attempt.second_best is not None else None)
            return attempt.login()
        finally:
            await attempt.end()

    def _note_silence(self, attempt: "_Attempt", address: Address) -> None:
        """Have others pass over who takes so long, while it is still waited for here."""
        failure = ConnectFailedError(Reason.SERVER_CONNECT_TIMEOUT, f"no login at {address} within {PATIENCE_S:g} s")
        self._put_off(attempt, address, failure)

    async def _try(self, attempt: "_Attempt", address: Address) -> Login | None:
        """Log in at one address; None if that fails, or it is not what is wanted."""
        endpoint = attempt.endpoint
        target = Target(
            address.host,
            address.port,
            endpoint.user,
            endpoint.dbname,
            attempt.credential,
            attempt.tls,
            endpoint.channel_binding,
            address.ip,
        )
        try:
            login = await log_in(target, attempt.parameters, self._timeout_s)
            objection = await self._objection(login, endpoint.target_session_attrs)
        except ConnectFailedError as failure:
            attempt.failures.append(failure)
            self._put_off(attempt, address, failure)
            return None
        self._turns.answered(address)
        fit = (address, endpoint.target_session_attrs)
        if not objection:
            self._turns.answered(fit)
            self._turns.worked(attempt.hosts, address._replace(ip=""))
            return login
        message = f"{address} {objection}, and target_session_attrs is {endpoint.target_session_attrs}"
        attempt.decline(login, ConnectFailedError(Reason.MISFIT, message))
        self._put_off(attempt, fit, attempt.failures[-1])
        return None

    async def _choices(self, attempt: "_Attempt") -> AsyncGenerator[tuple[Address, bool], None]:
        """Yield what to try, one after the other, and whether it is a last resort.

        What has failed or did not fit lately comes when all else has failed: those that did not fit before the others,
        as one of them may be the primary by now.
        """
        attrs, retry = attempt.endpoint.target_session_attrs, self._current.settings.server_login_retry
        later: list[tuple[bool, float, Address]] = []
        balance = attempt.endpoint.load_balance_hosts != "disable"
        hosts, rounds = self._turns.order(attempt.hosts, balance=balance)
        for host in hosts:
            if until := self._turns.put_off_until(host, retry):
                later.append((True, until, host))
                continue
            for address in await self._addresses(attempt, host, rounds):
                if until := self._turns.put_off_until(address, retry) if address != host else 0.0:
                    later.append((True, until, address))
                elif until := self._turns.put_off_until((address, attrs), retry):
                    later.append((False, until, address))
                else:
                    yield address, False
        for _, _, put_off in sorted(later):
            for address in [put_off] if put_off.ip else await self._addresses(attempt, put_off, rounds):
                yield address, True

    async def _addresses(self, attempt: "_Attempt", host: Address, rounds: int) -> list[Address]:
        """Return the addresses of a host, the one whose turn it is at the front; none if it can't be resolved."""
        if host.local:
            return [host]
        try:
            ips = await self.resolver.addresses(host.host)
        except UnresolvedError as error:
            attempt.failures.append(ConnectFailedError(Reason.SERVER_CONNECT_FAILED, str(error)))
            self._put_off(attempt, host, attempt.failures[-1])
            return []
        self._turns.answered(host)
        first = rounds % len(ips)
        return [host._replace(ip=ip) for ip in (*ips[first:], *ips[:first])]

    def _put_off(self, attempt: "_Attempt", what: Hashable, failure: ConnectFailedError) -> None:
        seconds = self._current.settings.server_login_retry
        if self._turns.put_off(what, seconds) and len(attempt.hosts) > 1 and self._current.settings.log_pooler_errors:
            self._log.warning(
                "host_passed_over", reason=failure.reason.value, error=str(failure), retry_in_s=round(seconds, 2)
            )

    async def _objection(self, login: Login, attrs: str) -> str:
        """Say what a host is, if that is not what target_session_attrs wants. Raises ConnectFailedError.

        https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS
        """
        if attrs == "any":
            return ""
        told = login.parameters
        standby, read_only = told.get(_IN_STANDBY), told.get(_READ_ONLY)
        if attrs in ("read-write", "read-only"):
            if standby is None or read_only is None:
                read_only = await self._ask(login, _ASK_READ_ONLY)
            is_read_only = "on" in (standby, read_only)
            return "" if is_read_only == (attrs == "read-only") else f"is read-{'only' if is_read_only else 'write'}"
        if standby is None:
            standby = await self._ask(login, _ASK_STANDBY)
        if standby == "off":
            return "" if attrs == "primary" else "is the primary"
        return "is a standby" if attrs == "primary" else ""

    async def _ask(self, login: Login, sql: str) -> str:
        rows = await ask(login, sql, self._timeout_s)
        return rows[0][0] if rows and rows[0] else ""

    @property
    def _timeout_s(self) -> float:
        return self._current.settings.server_connect_timeout

    # --- while connections are open

    def sweep(self, servers: Iterable[tuple[ServerSession, str]], passages: Iterable[Passage]) -> None:
        """Retire connections, given with their target_session_attrs, whose host is not what it was any more."""
        in_use: set[str] = set()
        for server, attrs in servers:
            in_use.add(server.peer.host)
            if server.retired:
                continue
            if self._has_moved(server.peer):
                server.retire(Reason.ADDRESS_GONE)
            elif attrs in _OUTGROWN and server.state.reported.get(_IN_STANDBY) == _OUTGROWN[attrs]:
                server.retire(Reason.MISFIT)
        for passage in passages:
            peer = passage.server.peer
            in_use.add(peer.host)
            if self._has_moved(peer):
                passage.end(REPLACED._replace(reason=Reason.ADDRESS_GONE))
        self.resolver.sweep(in_use.__contains__)

    def _has_moved(self, address: Address) -> bool:
        return bool(address.ip) and not self.resolver.has(address.host, address.ip)


class _Attempt:
    """One connection that is being opened."""

    def __init__(
        self, endpoint: Endpoint, credential: Credential | None, tls: ServerTls | None, parameters: Mapping[str, str]
    ) -> None:
        self.endpoint = endpoint
        self.credential = credential
        self.tls = tls
        self.parameters = parameters
        self.hosts = tuple(Address(*host_and_port(host, endpoint.port)) for host in endpoint.hosts)
        self.failures: list[ConnectFailedError] = []
        self.second_best: Login | None = None
        """The primary, where a standby would be better."""
        self._tries: dict[asyncio.Task[Login | None], Address] = {}
        self._best: Login | None = None

    def begin(self, address: Address, attempt: Coroutine[None, None, Login | None]) -> None:
        """Begin to log in at an address, beside those that have not answered yet."""
        self._newest = asyncio.get_running_loop().create_task(attempt)
        self._tries[self._newest] = address

    @property
    def under_way(self) -> list[Address]:
        """Where it is not known yet whether it succeeds."""
        return [address for task, address in self._tries.items() if not task.done()]

    async def succeeds_within(self, seconds: float | None) -> bool:
        """Wait until a login has succeeded, or the newest has failed, or for so long; None: until all have failed.

        Raises LoginRefusedError.
        """
        pending = {task for task in self._tries if not task.done()}
        while pending and self._best is None:
            done, pending = await asyncio.wait(pending, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._best = self._best or task.result()
            if seconds is not None and (not done or self._newest in done):
                break
        return self._best is not None

    def decline(self, login: Login, why: ConnectFailedError) -> None:
        """Keep a connection that does not fit in case that nothing better comes, or close it."""
        self.failures.append(why)
        if self.endpoint.target_session_attrs == "prefer-standby" and self.second_best is None:
            self.second_best = login
        else:
            leave(login)

    def login(self) -> Login:
        """Return the best that there is. Raises ConnectFailedError if there is none."""
        self._best = self._best or self.second_best
        if self._best is not None:
            return self._best
        if len(self.failures) == 1:
            raise self.failures[0]
        messages = dict.fromkeys(map(str, self.failures))
        reason = self.failures[-1].reason if self.failures else Reason.SERVER_CONNECT_FAILED
        raise ConnectFailedError(reason, "; ".join(messages))

    async def end(self) -> None:
        """Give up what is still being tried, and close what is not needed."""
        for task in self._tries:
            task.cancel()
        outcomes = await asyncio.gather(*self._tries, return_exceptions=True)
        for login in (*outcomes, self.second_best):
            if isinstance(login, Login) and login is not self._best:
                leave(login)
