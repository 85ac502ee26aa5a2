"""Opening a connection to Postgres and logging in there, as the client that a pooler is to it.

A cold path, written as a coroutine: connect, send a StartupMessage, answer what is asked, read until ReadyForQuery.
"""

import asyncio
import os
from collections.abc import Mapping
from struct import Struct
from typing import Final, NamedTuple

from pooler.reasons import Reason
from protocol.errors import ProtocolViolation
from protocol.kinds import (
    AUTH_CLEARTEXT,
    AUTH_MD5,
    AUTH_OK,
    AUTH_SASL,
    AUTH_SASL_CONTINUE,
    AUTH_SASL_FINAL,
    AUTHENTICATION,
    BACKEND_KEY_DATA,
    ERROR_RESPONSE,
    NEGOTIATE_PROTOCOL_VERSION,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    READY_FOR_QUERY,
)
from protocol.messages import (
    ErrorFields,
    cstring,
    first_message,
    parameter_status,
    password,
    read_error,
    sasl_initial_response,
    sasl_response,
    startup,
    text_of,
)
from protocol.scram import (
    MECHANISM,
    AuthenticationFailedError,
    ScramClient,
    is_md5_secret,
    is_scram_secret,
    md5_response,
    md5_secret,
    salted_password,
)

_MAX_LOGIN_MESSAGE: Final = 64 * 1024
_int32 = Struct("!I").unpack_from

_NOT_FOR_LONG: Final = frozenset(("08", "53", "57", "58"))
"""SQLSTATE classes of a refusal that may be over at the next attempt: connection exception, insufficient resources
(53300 too_many_connections), operator intervention (57P03 cannot_connect_now), system error."""


class ConnectFailedError(Exception):
    """No connection this time; it may work at the next attempt."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LoginRefusedError(Exception):
    """Postgres does not let this user into this database, and will not at the next attempt either."""

    def __init__(self, error: ErrorFields) -> None:
        super().__init__(str(error))
        self.error = error


class Target(NamedTuple):
    """Where to connect, and as whom."""

    host: str
    """A name or an address; a path is the directory of a Unix socket."""
    port: int
    user: str
    database: str
    secret: str
    """The password; or its md5 hash, which serves where the server asks for md5. Empty = none is known."""

    def __repr__(self) -> str:
        return f"Target({self.user}@{self.host}:{self.port}/{self.database})"


class Login(NamedTuple):
    """A connection that is logged in."""

    transport: asyncio.Transport
    key: bytes
    """The payload of the BackendKeyData."""
    parameters: Mapping[str, str]

    @property
    def welcome(self) -> bytes:
        """The ParameterStatus messages that were received."""
        return b"".join(parameter_status(name, value) for name, value in self.parameters.items())


class SaltedPasswords:
    """Remembers what has been derived from the passwords: as long as the salt stays, a login costs no derivation."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes, int], bytes] = {}

    async def derive(self, secret: str, salt: bytes, iterations: int) -> bytes:
        """Return SaltedPassword (RFC 5802), from a thread the first time: it may take a second of CPU."""
        key = (secret, salt, iterations)
        if key not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[key] = await asyncio.to_thread(salted_password, secret, salt, iterations)
        return self._known[key]


async def open_transport(host: str, port: int, protocol: asyncio.Protocol) -> asyncio.Transport:
    """Connect `protocol` over TCP, or over the Unix socket in the directory `host`. Raises OSError."""
    loop = asyncio.get_running_loop()
    if host.startswith("/"):
        transport, _ = await loop.create_unix_connection(lambda: protocol, f"{host}/.s.PGSQL.{port}")
    else:
        transport, _ = await loop.create_connection(lambda: protocol, host, port)
    return transport


async def log_in(target: Target, parameters: Mapping[str, str], timeout_s: float, salted: SaltedPasswords) -> Login:
    """Connect and log in. Raises ConnectFailedError or LoginRefusedError; the connection is then closed."""
    conversation = _Conversation()
    try:
        async with asyncio.timeout(timeout_s or None):
            try:
                transport = await open_transport(target.host, target.port, conversation)
            except OSError as error:
                raise ConnectFailedError(Reason.SERVER_CONNECT_FAILED, str(error)) from None
            return await _Dialogue(conversation, transport, target, salted).run(parameters)
    except TimeoutError:
        conversation.abort()
        message = f"no login at {target.host}:{target.port} within {timeout_s:g} s"
        raise ConnectFailedError(Reason.SERVER_CONNECT_TIMEOUT, message) from None
    except BaseException:
        conversation.abort()
        raise


class _Conversation(asyncio.Protocol):
    """What arrives, as messages to be awaited."""

    def __init__(self) -> None:
        self._data = b""
        self._arrived = asyncio.Event()
        self._lost = False
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._arrived.set()

    def abort(self) -> None:
        if isinstance(self._transport, asyncio.Transport):
            self._transport.abort()

    async def next_message(self) -> tuple[int, bytes]:
        while True:
            found = first_message(self._data, _MAX_LOGIN_MESSAGE)
            if found is not None:
                kind, payload, size = found
                self._data = self._data[size:]
                return kind, payload
            if self._lost:
                raise ConnectFailedError(
                    Reason.SERVER_CONNECT_FAILED, "the server closed the connection during the login"
                )
            self._arrived.clear()
            await self._arrived.wait()

    @property
    def rest(self) -> bytes:
        return self._data


class _Dialogue:
    """The login's questions and answers."""

    def __init__(
        self, conversation: _Conversation, transport: asyncio.Transport, target: Target, salted: SaltedPasswords
    ) -> None:
        self._conversation = conversation
        self._transport = transport
        self._target = target
        self._salted = salted

    async def run(self, parameters: Mapping[str, str]) -> Login:
        target = self._target
        self._transport.write(startup({"user": target.user, "database": target.database, **parameters}))
        try:
            await self._authenticate()
            return await self._read_greeting()
        except AuthenticationFailedError as failure:
            raise LoginRefusedError(ErrorFields("FATAL", "28000", f"pgfunnel can't log in: {failure}")) from None
        except ProtocolViolation as violation:
            raise ConnectFailedError(
                Reason.SERVER_VIOLATION, f"the server does not speak the protocol: {violation}"
            ) from None

    async def _next(self) -> tuple[int, bytes]:
        """Return the next message that is no notice; an error is raised as what it means."""
        while True:
            kind, payload = await self._conversation.next_message()
            if kind == ERROR_RESPONSE:
                error = read_error(payload)
                if error.sqlstate[:2] in _NOT_FOR_LONG:
                    raise ConnectFailedError(Reason.SERVER_CONNECT_FAILED, str(error))
                raise LoginRefusedError(error)
            if kind not in (NOTICE_RESPONSE, NEGOTIATE_PROTOCOL_VERSION):
                return kind, payload

    async def _next_authentication(self) -> tuple[int, bytes]:
        kind, payload = await self._next()
        if kind != AUTHENTICATION or len(payload) < 4:
            raise ProtocolViolation(f"expected an authentication request, got message type {chr(kind)!r}")
        return _int32(payload)[0], payload[4:]

    async def _authenticate(self) -> None:
        while True:
            code, rest = await self._next_authentication()
            if code == AUTH_OK:
                return
            if code == AUTH_CLEARTEXT:
                secret = self._plain_secret()
                self._transport.write(password(cstring(secret)[:-1]))
            elif code == AUTH_MD5:
                hashed = md5_secret(self._target.user, self._secret())
                self._transport.write(password(md5_response(hashed, rest[:4])))
            elif code == AUTH_SASL:
                await self._prove_by_scram(rest)
            else:
                raise AuthenticationFailedError(
                    f"the server asks for an authentication that is not known (code {code})"
                )

    async def _prove_by_scram(self, mechanisms: bytes) -> None:
        offered = [text_of(name) for name in mechanisms.split(b"\0") if name]
        if MECHANISM not in offered:
            raise AuthenticationFailedError(f"the server offers only {', '.join(offered) or 'no SASL mechanism'}")
        scram = ScramClient(os.urandom)
        self._transport.write(sasl_initial_response(MECHANISM, scram.first()))
        code, challenge = await self._next_authentication()
        if code != AUTH_SASL_CONTINUE:
            raise ProtocolViolation("expected a SASL challenge")
        scram.challenge(challenge)
        salted = await self._salted.derive(self._plain_secret(), scram.salt, scram.iterations)
        self._transport.write(sasl_response(scram.final(salted)))
        code, outcome = await self._next_authentication()
        if code != AUTH_SASL_FINAL:
            raise ProtocolViolation("expected the outcome of the SASL exchange")
        scram.verify(outcome)

    def _secret(self) -> str:
        secret = self._target.secret
        if not secret:
            raise AuthenticationFailedError(
                f'the server asks for a password, and none is known for user "{self._target.user}"'
            )
        if is_scram_secret(secret):
            raise AuthenticationFailedError(
                f'only a SCRAM secret is known for user "{self._target.user}"; logging in takes the password itself'
            )
        return secret

    def _plain_secret(self) -> str:
        secret = self._secret()
        if is_md5_secret(secret):
            raise AuthenticationFailedError(
                f'only an md5 hash is known for user "{self._target.user}"; the server asks for the password itself'
            )
        return secret

    async def _read_greeting(self) -> Login:
        parameters: dict[str, str] = {}
        key = b""
        while True:
            kind, payload = await self._next()
            if kind == PARAMETER_STATUS:
                fields = payload.split(b"\0")
                if len(fields) != 3:
                    raise ProtocolViolation("malformed ParameterStatus")
                parameters[text_of(fields[0])] = text_of(fields[1])
            elif kind == BACKEND_KEY_DATA:
                key = payload
            elif kind == READY_FOR_QUERY and len(payload) == 1:
                if self._conversation.rest:
                    raise ProtocolViolation("data after the greeting that nobody has asked for")
                return Login(self._transport, key, parameters)
            else:
                raise ProtocolViolation(f"message type {chr(kind)!r} in the greeting")
