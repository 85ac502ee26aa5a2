"""Logging in at Postgres, as the client that a pooler is to it.

A cold path, written as a coroutine: dial, send a StartupMessage, answer what is asked, read until ReadyForQuery.
"""

import asyncio
import os
from collections.abc import Mapping
from struct import Struct
from typing import Final, NamedTuple

from pooler.credentials.credential import Credential, Md5Hash, Password
from pooler.reasons import Reason
from pooler.upstream.address import Address
from pooler.upstream.dial import ConnectFailedError, Conversation, NoTlsError, ServerTls, dial, encrypt
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
    TERMINATE,
    ErrorFields,
    cstring,
    parameter_status,
    password,
    read_error,
    sasl_initial_response,
    sasl_response,
    startup,
    text_of,
)
from protocol.question import Findings
from protocol.scram import (
    END_POINT,
    MECHANISM,
    MECHANISM_PLUS,
    UNBOUND,
    UNOFFERED,
    AuthenticationFailedError,
    ScramClient,
    ScramKeys,
    ScramSecret,
    md5_response,
    md5_secret,
)

_int32 = Struct("!I").unpack_from

_NOT_FOR_LONG: Final = frozenset(("08", "53", "57", "58"))
"""SQLSTATE classes of a refusal that may be over at the next attempt: connection exception, insufficient resources
(53300 too_many_connections), operator intervention (57P03 cannot_connect_now), system error."""
_INVALID_AUTHORIZATION: Final = "28000"


class LoginRefusedError(Exception):
    """Postgres does not let this user into this database, and will not at the next attempt either."""

    def __init__(self, error: ErrorFields, *, at_the_door: bool = False) -> None:
        """`at_the_door`: it has asked for nothing before, as where pg_hba.conf has no line for such a connection."""
        super().__init__(str(error))
        self.error = error
        self.at_the_door = at_the_door and error.sqlstate == _INVALID_AUTHORIZATION


class Target(NamedTuple):
    """Where to connect, as whom, and how."""

    host: str
    """As in Address."""
    port: int
    user: str
    database: str
    credential: Credential | None = None
    tls: ServerTls | None = None
    """None = without."""
    channel_binding: str = "prefer"
    """Whether a proof has to be bound to the TLS connection: disable, prefer or require."""
    ip: str = ""
    """As in Address."""

    @property
    def address(self) -> Address:
        """Where to connect."""
        return Address(self.host, self.port, self.ip)

    def __repr__(self) -> str:
        return f"Target({self.user}@{self.host}:{self.port}/{self.database})"


class Login(NamedTuple):
    """A connection that is logged in."""

    transport: asyncio.Transport
    """A TlsConnection, if it is encrypted."""
    key: bytes
    """The payload of the BackendKeyData."""
    parameters: Mapping[str, str]
    proof: Credential | None = None
    """The least that answers what was asked of us; None = nothing was."""
    peer: Address = Address("", 0)
    """Where it leads, and where a CancelRequest for it goes."""
    left: Findings | None = None
    """What connect_query has left in the session; None = it was not run."""
    objection: ErrorFields | None = None
    """What Postgres has said against connect_query."""

    @property
    def welcome(self) -> bytes:
        """The ParameterStatus messages that were received."""
        return b"".join(parameter_status(name, value) for name, value in self.parameters.items())


def leave(login: Login) -> None:
    """Close a connection that nobody needs."""
    login.transport.write(TERMINATE)
    login.transport.close()


async def log_in(target: Target, parameters: Mapping[str, str], timeout_s: float) -> Login:
    """Connect and log in. Raises ConnectFailedError or LoginRefusedError; the connection is then closed."""
    try:
        async with asyncio.timeout(timeout_s or None):
            return await _log_in_by_mode(target, parameters)
    except TimeoutError:
        message = f"no login at {target.address} within {timeout_s:g} s"
        raise ConnectFailedError(Reason.SERVER_CONNECT_TIMEOUT, message) from None


async def _log_in_by_mode(target: Target, parameters: Mapping[str, str]) -> Login:
    """Log in with TLS, without, or by the one after the other, as the mode says.

    https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-SSLMODE-STATEMENTS. Other than in libpq, who has
    been asked for a password is not tried again: a wrong one would go out in clear because it is wrong.
    """
    tls = None if target.address.local else target.tls
    if tls is None or tls.mode not in ("allow", "prefer"):
        return await _attempt(target, parameters, tls)
    first, second = (None, tls) if tls.mode == "allow" else (tls, None)
    try:
        return await _attempt(target, parameters, first)
    except (ConnectFailedError, LoginRefusedError) as failure:
        if not _depends_on_encryption(failure):
            raise
        first_failure = failure
    try:
        return await _attempt(target, parameters, second)
    except (ConnectFailedError, LoginRefusedError) as failure:
        raise (first_failure if _depends_on_encryption(failure) else failure) from None


def _depends_on_encryption(failure: ConnectFailedError | LoginRefusedError) -> bool:
    if isinstance(failure, LoginRefusedError):
        return failure.at_the_door
    return isinstance(failure, NoTlsError)


async def _attempt(target: Target, parameters: Mapping[str, str], tls: ServerTls | None) -> Login:
    """Log in over one connection."""
    try:
        conversation = await dial(*target.address)
    except OSError as error:
        why = f"can't connect to {target.address}: {error.strerror or error}"
        raise ConnectFailedError(Reason.SERVER_CONNECT_FAILED, why) from None
    try:
        if tls is not None:
            await encrypt(conversation, target.host, tls)
        login = await _Dialogue(conversation, target).run(parameters)
    except BaseException:
        conversation.transport.abort()
        raise
    if tls is not None and conversation.tls is not None:
        tls.remember(target.host, conversation.tls)
    return login


def reported(payload: bytes) -> tuple[str, str]:
    """Read a ParameterStatus."""
    fields = payload.split(b"\0")
    if len(fields) != 3:
        raise ProtocolViolation("malformed ParameterStatus")
    return text_of(fields[0]), text_of(fields[1])


class _Dialogue:
    """The login's questions and answers."""

    def __init__(self, conversation: Conversation, target: Target) -> None:
        self._conversation = conversation
        self._target = target
        self._asked = False
        """The server has said how the user is to prove itself."""
        self._proof: Credential | None = None

    def _send(self, message: bytes) -> None:
        self._conversation.transport.write(message)

    async def run(self, parameters: Mapping[str, str]) -> Login:
        target = self._target
        self._send(startup({"user": target.user, "database": target.database, **parameters}))
        try:
            await self._authenticate()
            return await self._read_greeting()
        except AuthenticationFailedError as failure:
            error = ErrorFields("FATAL", _INVALID_AUTHORIZATION, f"pgfunnel can't log in: {failure}")
            raise LoginRefusedError(error) from None
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
                raise LoginRefusedError(error, at_the_door=not self._asked)
            if kind not in (NOTICE_RESPONSE, NEGOTIATE_PROTOCOL_VERSION):
                return kind, payload

    async def _next_authentication(self) -> tuple[int, bytes]:
        kind, payload = await self._next()
        if kind != AUTHENTICATION or len(payload) < 4:
            raise ProtocolViolation(f"expected an authentication request, got message type {chr(kind)!r}")
        self._asked = True
        return _int32(payload)[0], payload[4:]

    async def _authenticate(self) -> None:
        bound = self._target.channel_binding != "require"
        while True:
            code, rest = await self._next_authentication()
            if code != AUTH_SASL and not bound:
                raise AuthenticationFailedError("the server asks for no channel binding, and it is required")
            if code == AUTH_OK:
                return
            if code == AUTH_CLEARTEXT:
                self._proof = self._password()
                self._send(password(cstring(self._proof.text)[:-1]))
            elif code == AUTH_MD5:
                self._proof = Md5Hash(self._md5_hash())
                self._send(password(md5_response(self._proof.text, rest[:4])))
            elif code == AUTH_SASL:
                await self._prove_by_scram(rest)
                bound = True
            else:
                raise AuthenticationFailedError(
                    f"the server asks for an authentication that is not known (code {code})"
                )

    async def _prove_by_scram(self, mechanisms: bytes) -> None:
        mechanism, header, binding = self._choose_mechanism([text_of(name) for name in mechanisms.split(b"\0") if name])
        scram = ScramClient(os.urandom, header)
        self._send(sasl_initial_response(mechanism, scram.first()))
        code, challenge = await self._next_authentication()
        if code != AUTH_SASL_CONTINUE:
            raise ProtocolViolation("expected a SASL challenge")
        scram.challenge(challenge)
        self._proof = keys = await self._scram_keys(scram)
        self._send(sasl_response(scram.final(keys, binding)))
        code, outcome = await self._next_authentication()
        if code != AUTH_SASL_FINAL:
            raise ProtocolViolation("expected the outcome of the SASL exchange")
        scram.verify(outcome)

    def _choose_mechanism(self, offered: list[str]) -> tuple[str, bytes, bytes]:
        """Return a mechanism, the header that says why, and what binds the proof to this connection."""
        tls = self._conversation.tls
        binding = self._target.channel_binding
        end_point = tls.end_point if tls is not None and binding != "disable" else b""
        if end_point and MECHANISM_PLUS in offered:
            return MECHANISM_PLUS, END_POINT, end_point
        if binding == "require":
            raise AuthenticationFailedError("the server offers no channel binding, and it is required")
        if MECHANISM not in offered:
            raise AuthenticationFailedError(f"the server offers only {', '.join(offered) or 'no SASL mechanism'}")
        return MECHANISM, UNOFFERED if end_point else UNBOUND, b""

    # --- what the credential can answer

    def _credential(self) -> Credential:
        credential = self._target.credential
        if credential is None:
            raise AuthenticationFailedError(
                f'the server asks for a password, and none is known for user "{self._target.user}"'
            )
        if isinstance(credential, ScramSecret):
            raise AuthenticationFailedError(
                f'only a SCRAM secret is known for user "{self._target.user}"; logging in takes the password itself, '
                "or a client that has logged in with scram-sha-256"
            )
        return credential

    def _password(self) -> Password:
        credential = self._credential()
        if isinstance(credential, Password):
            return credential
        known = "an md5 hash is" if isinstance(credential, Md5Hash) else "SCRAM keys are"
        raise AuthenticationFailedError(
            f'only {known} known for user "{self._target.user}"; the server asks for the password itself'
        )

    def _md5_hash(self) -> str:
        credential = self._credential()
        if isinstance(credential, Md5Hash):
            return credential.text
        return md5_secret(self._target.user, self._password().text)

    async def _scram_keys(self, scram: ScramClient) -> ScramKeys:
        credential = self._credential()
        if not isinstance(credential, ScramKeys):
            return await self._password().keys(scram.salt, scram.iterations)
        if (credential.salt, credential.iterations) != (scram.salt, scram.iterations):
            raise AuthenticationFailedError(
                f'the SCRAM secret that is known for user "{self._target.user}" is not the one that Postgres has'
            )
        return credential

    async def _read_greeting(self) -> Login:
        parameters: dict[str, str] = {}
        key = b""
        while True:
            kind, payload = await self._next()
            if kind == PARAMETER_STATUS:
                name, value = reported(payload)
                parameters[name] = value
            elif kind == BACKEND_KEY_DATA:
                key = payload
            elif kind == READY_FOR_QUERY and len(payload) == 1:
                if self._conversation.unread:
                    raise ProtocolViolation("data after the greeting that nobody has asked for")
                return Login(self._conversation.transport, key, parameters, self._proof, self._target.address)
            else:
                raise ProtocolViolation(f"message type {chr(kind)!r} in the greeting")
