"""auth_query: asks Postgres for the secret of one user, over a few connections of auth_user's.

Nothing that a client sends gets there but the user's name, and that as the query's one parameter: neither its startup
parameters nor its database (CVE-2025-12819). When to ask, and how long an answer is good, is decided in lookup.
"""

import asyncio
import hashlib
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from types import SimpleNamespace
from typing import Final, NamedTuple

import asyncpg

from protocol.scram import MAX_ITERATIONS, AuthenticationFailedError

CONNECTIONS: Final = 2
"""How many there may be to ask with; they are opened when there is something to ask."""

_FIXED: Final = {"application_name": "pgfunnel", "search_path": "pg_catalog"}

_NO_NAME: Final = frozenset(("22021", "22P05", "42622"))
"""SQLSTATEs by which Postgres says that a user's name can't be one in this database: its bytes, or its length."""
_NOT_FOR_LONG: Final = frozenset(("08", "40", "53", "57", "58"))
"""Classes of errors that may be over at the next attempt; see connect."""
_TELLING: Final = _NOT_FOR_LONG | {"28", "3D", "42"}
"""Classes whose messages are of names and of the weather. Others might quote what a query of the user's works with."""


class Found(NamedTuple):
    """What Postgres has said of a user."""

    secret: str
    """A password, an md5 hash or a SCRAM secret; empty if the user has none that counts."""
    lifetime: float = inf
    """Seconds until it does not count any more (VALID UNTIL)."""

    def __repr__(self) -> str:
        return "Found(***)"


class NoAnswerError(Exception):
    """Postgres has not answered. The message is for the log, and has no data in it; `for_now`: it may do so later."""

    def __init__(self, message: str, *, for_now: bool = False) -> None:
        super().__init__(message)
        self.for_now = for_now


class Way(NamedTuple):
    """A kind of connection: with TLS or, None, without."""

    context: ssl.SSLContext | None
    direct: bool = False


UNENCRYPTED: Final = Way(None)


class Server(NamedTuple):
    """Where to ask, and as whom."""

    hosts: tuple[str, ...]
    """Tried in this order."""
    ports: tuple[int, ...]
    """One for each of them."""
    user: str
    database: str
    password: Callable[[str | None], Awaitable[str]]
    """The password of the moment; another than the one given, which has just been refused, if there is another."""
    ways: Callable[[], Sequence[Way]] = lambda: (UNENCRYPTED,)
    """By which kinds of connection to try, in this order."""


class AuthQuery:
    """The query, and the connections that it is asked over."""

    def __init__(self, query: str, server: Server, timeout_s: float, idle_s: float) -> None:
        """`timeout_s` bounds a login and a query each, `idle_s` how long an unused connection is kept; 0 = for ever."""
        self._query = query
        self._server = server
        self._timeout = timeout_s or None
        _bound_iterations()
        self._pool = asyncpg.create_pool(
            min_size=0,
            max_size=CONNECTIONS,
            max_inactive_connection_lifetime=idle_s,
            connect=self._connect,
            init=_read_times_as_seconds,
        )

    async def ask(self, user: str) -> Found | None:
        """Return what Postgres knows of `user`, None if there is no such user. Raises NoAnswerError."""
        try:
            user.encode()
        except UnicodeEncodeError:
            return None  # no name in any database that Postgres would convert it for
        # Whatever goes wrong, the exception goes no further: what it quotes, and what its traceback leads to, may be
        # somebody's secret.
        try:
            async with asyncio.timeout(self._timeout):
                return await self._ask(user)
        except TimeoutError:
            failure = NoAnswerError(f"no answer within {self._timeout:g} s", for_now=True)
        except asyncpg.PostgresError as error:
            if error.sqlstate in _NO_NAME:
                return None
            failure = _failure(error)
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            failure = NoAnswerError(str(error) or type(error).__name__, for_now=True)
        raise failure

    async def _ask(self, user: str) -> Found | None:
        await self._pool  # opens nothing yet
        async with self._pool.acquire() as connection:
            try:
                rows = await self._rows(connection, user)
            except asyncio.CancelledError:
                # Not even the cancelling of the query is to be waited for: there may be nobody at the other end.
                connection.terminate()
                raise
        if len(rows) > 1:
            raise NoAnswerError(f"auth_query returns {len(rows)} rows for one user")
        return _read(user, list(rows[0])) if rows else None

    async def _rows(self, connection: asyncpg.Connection, user: str) -> Sequence[asyncpg.Record]:
        statement = await connection.prepare(self._query)
        if len(statement.get_parameters()) != 1 or not 1 <= len(statement.get_attributes()) <= 3:
            raise NoAnswerError(
                "auth_query has to have one parameter, and one to three columns: "
                "user, secret and valid until, or no more than the secret"
            )
        rows: Sequence[asyncpg.Record] = await statement.fetch(user)
        return rows

    async def _connect(self, *_: object, **options: object) -> asyncpg.Connection:
        """Open a connection for the pool; a password that is refused may have been changed just now."""
        password = await self._server.password(None)
        try:
            return await self._connect_with(password, options)
        except asyncpg.InvalidPasswordError:
            other = await self._server.password(password)
            if other == password:
                raise
        return await self._connect_with(other, options)

    async def _connect_with(self, password: str, options: dict[str, object]) -> asyncpg.Connection:
        *first, last = self._server.ways()
        for way in first:
            try:
                return await self._connect_by(way, password, options)
            except asyncpg.InvalidPasswordError:
                raise
            except (OSError, asyncpg.InvalidAuthorizationSpecificationError):
                continue  # this kind of connection is not offered, or not to this user
        return await self._connect_by(last, password, options)

    async def _connect_by(self, way: Way, password: str, options: dict[str, object]) -> asyncpg.Connection:
        """Connect with every option said, so that none comes from the environment."""
        server = self._server
        return await asyncpg.connect(
            host=server.hosts,
            port=server.ports,
            user=server.user,
            password=password,
            database=server.database,
            ssl=way.context or False,
            direct_tls=way.direct,
            timeout=self._timeout or 0x7FFFFFFF,
            statement_cache_size=0,  # nothing is kept there that a change of the query's tables could spoil
            server_settings=_FIXED,
            target_session_attrs="any",
            krbsrvname="postgres",
            gsslib="gssapi",
            **options,
        )

    async def close(self) -> None:
        """Close the connections, whatever they are doing."""
        await self._pool  # it can't be closed before
        self._pool.terminate()


def _bound_iterations() -> None:
    """Keep a server from stopping us by the SCRAM iterations that it asks for.

    asyncpg derives as many as it is told to, up to ten minutes' worth, on the event loop, and leaves no other way to
    have a say in that.
    """
    asyncpg.protocol.protocol.hashlib = SimpleNamespace(**{**vars(hashlib), "pbkdf2_hmac": _derive})


def _derive(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
    if iterations > MAX_ITERATIONS:
        raise AuthenticationFailedError(f"the server asks for {iterations} SCRAM iterations")
    return hashlib.pbkdf2_hmac(name, password, salt, iterations)


def _failure(error: asyncpg.PostgresError) -> NoAnswerError:
    state = error.sqlstate or ""
    said = f"{state}: {error.args[0]}" if state[:2] in _TELLING and error.args else f"SQLSTATE {state}"
    return NoAnswerError(said, for_now=state[:2] in _NOT_FOR_LONG)


def _read(user: str, row: list[object]) -> Found | None:
    """Take (secret), (user, secret) or (user, secret, valid until)."""
    if row[0] is None:
        return None  # as from a function that returns no set, and has found nobody
    name, secret, valid_until = (user, *row, None) if len(row) == 1 else (*row, None)[:3]
    if name != user:
        raise NoAnswerError("auth_query returns another user than it was asked for")
    if secret is None:
        return Found("")
    if not isinstance(secret, str):
        raise NoAnswerError("auth_query returns a secret that is not text")
    if valid_until is None:
        return Found(secret)
    if not isinstance(valid_until, float):
        raise NoAnswerError("auth_query returns a third column that is not a timestamptz")
    lifetime = valid_until - time.time()
    return Found(secret, lifetime) if lifetime > 0 else Found("")


async def _read_times_as_seconds(connection: asyncpg.Connection) -> None:
    """Take a timestamptz as seconds since 1970: Python's datetime ends in 9999, and knows no infinity."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", format="tuple", encoder=_no_parameter, decoder=_seconds
    )


def _seconds(microseconds_since_2000: tuple[int]) -> float:
    return microseconds_since_2000[0] / 1e6 + 946_684_800


def _no_parameter(_: object) -> tuple[int]:
    raise NotImplementedError
