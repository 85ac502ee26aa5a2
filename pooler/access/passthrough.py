"""passthrough: lets in whom Postgres lets in, so that no list of users is needed.

The client's password is asked for in clear and proven by a login at Postgres; that connection then goes into the pool.
Of the password a salted, keyed hash is kept for a while, and what Postgres's way of asking takes to log in again.
"""

import asyncio
import hmac
import os
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple, Protocol

from pooler.access.candidate import Candidate, Judge
from pooler.access.proofs import password_in
from pooler.credentials.brought import MOST_EACH, MOST_PAIRS, Brought
from pooler.credentials.credential import Credential, Password
from pooler.log import Log
from pooler.reasons import Ending, Reason
from pooler.upstream.connect import Login, LoginRefusedError, leave
from pooler.upstream.dial import ConnectFailedError
from protocol.messages import AUTHENTICATION_CLEARTEXT
from protocol.scram import AuthenticationFailedError, is_md5_secret
from protocol.startup import Replication

MOST_PROOFS: Final = 8
"""Logins at Postgres under way at once; whoever brings another password waits for a turn."""
FIRST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 2.0
SWEEP_S: Final = 10.0
"""How often what has run out is forgotten."""
_SALT_SIZE: Final = 16

_IN_CLEAR: Final = Ending(
    Reason.LOGIN_REFUSED,
    "28000",
    "pgfunnel takes passwords to pass through only over TLS, a Unix socket or loopback: anybody could read them here",
    hint="Connect with sslmode=require, or set passthrough_cleartext where the network is trusted.",
)
_NOTHING_PROVEN: Final = Ending(
    Reason.LOGIN_REFUSED,
    "28000",
    "no password can be proven: Postgres lets pgfunnel in without asking for one",
    hint="Let pg_hba.conf ask for scram-sha-256 here, or set another auth_type.",
)


class Upstream(Protocol):
    """Postgres, and the pools of connections to it."""

    async def prove(self, user: str, database: str, password: Password, *, physical: bool = False) -> Login:
        """Log in. Raises LoginRefusedError, or ConnectFailedError where it may work later.

        With `physical` for physical replication, which needs no database of that name.
        """

    def adopt(self, user: str, database: str, login: Login) -> None:
        """Put the connection into its pool, if there is room; else close it."""


class _Memory(NamedTuple):
    """A password that Postgres has taken."""

    salt: bytes
    mark: bytes
    credential: Credential
    until: float

    def __repr__(self) -> str:
        return "_Memory(***)"


class _Attempt:
    """A login at Postgres under way, and those whom it is for: all have brought the same password."""

    def __init__(self, user: str, database: str, password: Password, *, physical: bool) -> None:
        self.user = user
        self.database = database
        self.password = password
        self.physical = physical
        self.applicants: list[tuple[Judge, Candidate]] = []
        self.failures = 0
        self.task: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        """Somebody still waits for it."""
        return any(not candidate.ended for _, candidate in self.applicants)

    def __repr__(self) -> str:
        return f"<_Attempt {self.user}@{self.database}>"


class Passthrough:
    """Judges passwords by what Postgres says of them."""

    def __init__(
        self,
        upstream: Upstream,
        brought: Brought,
        *,
        max_age: float,
        cleartext: bool,
        outcomes: Counter[str],
        now: Callable[[], float],
        log: Log,
    ) -> None:
        """`outcomes` counts how the clients' passwords were judged; see Tally."""
        self._upstream = upstream
        self._brought = brought
        self._max_age = max_age
        self._cleartext = cleartext
        self._now = now
        self._log = log
        self._key = os.urandom(32)
        self._memories: OrderedDict[tuple[str, str], list[_Memory]] = OrderedDict()
        self._attempts: dict[bytes, _Attempt] = {}
        self._sweep_at = MOST_PAIRS
        self._turns = asyncio.Semaphore(MOST_PROOFS)
        self._timer: asyncio.TimerHandle | None = None
        self._failing = False
        self._outcomes = outcomes

    def take_settings(self, max_age: float, *, cleartext: bool) -> None:
        """Go by these from now on."""
        self._max_age = max_age
        self._cleartext = cleartext

    def begin(self, judge: Judge, candidate: Candidate) -> None:
        """See gate.Elsewhere."""
        if self._cleartext or _nobody_listens(candidate):
            candidate.ask(_Question(self, judge, candidate))
        else:
            judge.refuse(candidate, _IN_CLEAR)

    def try_password(self, judge: Judge, candidate: Candidate, text: str) -> None:
        """Tell the judge whether Postgres takes this password, now or later."""
        user, database = candidate.startup.user, candidate.startup.database
        if self._remembers(user, database, text):
            self._outcomes["remembered"] += 1
            judge.accept(candidate)
            return
        physical = candidate.startup.replication is Replication.PHYSICAL
        names = (user, database, text, "physical" if physical else "")
        mark = self._mark(b"\0".join(name.encode("utf-8", "surrogateescape") for name in names))
        attempt = self._attempts.get(mark)
        if attempt is None:
            self._sweep_attempts()
            attempt = self._attempts[mark] = _Attempt(user, database, Password(text), physical=physical)
            attempt.task = asyncio.get_running_loop().create_task(self._prove(mark, attempt))
        attempt.applicants.append((judge, candidate))

    def expects(self, user: str, database: str) -> bool:
        """Tell whether a password for this user at this database is just being tried."""
        return any((attempt.user, attempt.database) == (user, database) for attempt in self._attempts.values())

    # --- proving

    async def _prove(self, mark: bytes, attempt: _Attempt) -> None:
        try:
            while attempt.wanted:
                async with self._turns:
                    done = attempt.wanted and await self._try(mark, attempt)
                if done:
                    return
                await asyncio.sleep(min(FIRST_RETRY_S * 2.0 ** min(attempt.failures - 1, 10), LONGEST_RETRY_S))
        finally:
            self._forget_attempt(mark, attempt)

    async def _try(self, mark: bytes, attempt: _Attempt) -> bool:
        """Log in once; False if it may work later."""
        try:
            login = await self._upstream.prove(
                attempt.user, attempt.database, attempt.password, physical=attempt.physical
            )
        except ConnectFailedError as failure:
            attempt.failures += 1
            if not self._failing:
                # Once for each time that it lasts: hundreds may be waiting.
                self._failing = True
                self._log.warning("passthrough_waits", error=str(failure), waiting=len(self._attempts))
            return False
        except LoginRefusedError as refusal:
            # Before they are told: one of them may come back at once.
            self._forget_attempt(mark, attempt)
            self._refuse(attempt, _in_postgres_words(refusal))
        else:
            self._forget_attempt(mark, attempt)
            self._accept(attempt, login)
        self._failing = False
        return True

    def _accept(self, attempt: _Attempt, login: Login) -> None:
        if login.proof is None:
            leave(login)
            self._refuse(attempt, _NOTHING_PROVEN)
            return
        self._remember(attempt.user, attempt.database, attempt.password.text, login.proof)
        if attempt.physical:
            leave(login)
        else:
            self._upstream.adopt(attempt.user, attempt.database, login)
        for judge, candidate in attempt.applicants:
            if not candidate.ended:
                self._outcomes["proven"] += 1
                judge.accept(candidate)

    def _refuse(self, attempt: _Attempt, ending: Ending) -> None:
        for judge, candidate in attempt.applicants:
            if not candidate.ended:
                self._outcomes["refused"] += 1
                judge.refuse(candidate, ending)

    def _forget_attempt(self, mark: bytes, attempt: _Attempt) -> None:
        if self._attempts.get(mark) is attempt:
            del self._attempts[mark]

    def _sweep_attempts(self) -> None:
        """Give up proofs whose clients have all gone: while Postgres is away they would pile up."""
        if len(self._attempts) < self._sweep_at:
            return
        for mark, attempt in list(self._attempts.items()):
            if not attempt.wanted and attempt.task is not None:
                attempt.task.cancel()
                del self._attempts[mark]
        self._sweep_at = max(MOST_PAIRS, 2 * len(self._attempts))

    # --- remembering

    def _mark(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, "sha256")

    def _remember(self, user: str, database: str, text: str, credential: Credential) -> None:
        until = self._now() + self._max_age
        self._brought.keep(user, database, credential, until)
        salt = os.urandom(_SALT_SIZE)
        memory = _Memory(salt, self._mark(salt + text.encode("utf-8", "surrogateescape")), credential, until)
        others = [other for other in self._memories.pop((user, database), ()) if other.credential != credential]
        self._memories[user, database] = [memory, *others[: MOST_EACH - 1]]
        if len(self._memories) > MOST_PAIRS:
            self._memories.popitem(last=False)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _remembers(self, user: str, database: str, text: str) -> bool:
        """Tell whether Postgres has taken this password lately, and has not refused what was kept of it since."""
        now = self._now()
        memories = self._memories.get((user, database))
        if not memories:
            return False
        kept = self._brought.of(user, database)
        given = text.encode("utf-8", "surrogateescape")
        return any(
            hmac.compare_digest(memory.mark, self._mark(memory.salt + given))
            for memory in memories
            if now < memory.until and memory.credential in kept
        )

    def _sweep(self) -> None:
        now = self._now()
        for pair, memories in list(self._memories.items()):
            left = [memory for memory in memories if now < memory.until]
            if left:
                self._memories[pair] = left
            else:
                del self._memories[pair]
        self._brought.sweep()
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    async def close(self) -> None:
        """Give up what is being proven."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [attempt.task for attempt in self._attempts.values() if attempt.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Question:
    """The Proof: asks for the password itself."""

    __slots__ = ("_candidate", "_judge", "_passthrough")

    request = AUTHENTICATION_CLEARTEXT

    def __init__(self, passthrough: Passthrough, judge: Judge, candidate: Candidate) -> None:
        self._passthrough = passthrough
        self._judge = judge
        self._candidate = candidate

    def answer(self, payload: bytes) -> None:
        """See Proof."""
        text = password_in(payload)
        if is_md5_secret(text):
            # Where Postgres asks for md5, the hash would do for the password that it is made of.
            raise AuthenticationFailedError("the hash of a password in place of the password")
        self._passthrough.try_password(self._judge, self._candidate, text)


def _nobody_listens(candidate: Candidate) -> bool:
    """Tell whether what the client sends is safe from others on its way."""
    if candidate.tls is not None:
        return True
    sock = candidate.transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        return True
    peer = candidate.transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return False
    address = ip_address(peer[0].partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def _in_postgres_words(refusal: LoginRefusedError) -> Ending:
    error = refusal.error
    # A wrong password, or a user that there is not: counted, and slowed down. No such database: not.
    reason = Reason.LOGIN_FAILED if error.sqlstate.startswith("28") else Reason.SERVER_REFUSED
    return Ending(reason, error.sqlstate, error.message, error.detail, error.hint)
