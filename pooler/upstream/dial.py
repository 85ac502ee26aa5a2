"""Reaching Postgres: over TCP or a Unix socket, and with TLS as far as the settings want it and the server has it.

A cold path, written as coroutines. What is said on the connection is connect's and cancel's affair.
"""

import asyncio
import ssl
from typing import Final, cast, final

from config.tls import SslMode
from pooler.reasons import Reason
from pooler.tls.connection import HandshakeError, TlsConnection, secure
from pooler.tls.contexts import ALPN
from pooler.tls.watched import WatchedContext
from pooler.upstream.address import Address
from protocol.messages import SSL_REQUEST, first_message

_MAX_LOGIN_MESSAGE: Final = 64 * 1024


class ConnectFailedError(Exception):
    """No connection this time; it may work at the next attempt."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoTlsError(ConnectFailedError):
    """TLS has not come about."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.SERVER_TLS_FAILED, message)


class ServerTls:
    """TLS towards Postgres. One for all connections, so that each may resume the session of the one before."""

    def __init__(self, mode: SslMode, identity: WatchedContext, *, direct: bool = False) -> None:
        """`direct`: TLS begins without an SSLRequest."""
        self.mode = mode
        self.direct = direct
        self.identity = identity
        self._sessions: dict[str, tuple[ssl.SSLContext, ssl.SSLSession]] = {}
        """The newest of each host."""

    async def secure(self, host: str, conversation: "Conversation") -> None:
        """Encrypt the conversation from here on. Raises NoTlsError."""
        context = self.identity.context
        made_by, session = self._sessions.get(host, (None, None))
        if made_by is not context:
            session = None
        try:
            connection = await secure(conversation.transport, conversation, context, host, session)
        except HandshakeError as error:
            raise NoTlsError(f"TLS with {host}: {error}") from None
        conversation.transport = connection
        if self.direct and connection.ssl.selected_alpn_protocol() != ALPN:
            raise NoTlsError(f"{host} speaks TLS, but not Postgres directly within it (Postgres 17 does)")

    def remember(self, host: str, connection: TlsConnection) -> None:
        """Resume the session of this connection with the next to the same host, if the server lets us."""
        if connection.ssl.session is not None:
            self._sessions[host] = connection.ssl.context, connection.ssl.session


@final
class Conversation(asyncio.Protocol):
    """A connection on which what arrives is awaited."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._data = b""
        self._arrived = asyncio.Event()
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are not instances of it

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._data += data
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._lost = True
        self._arrived.set()

    @property
    def tls(self) -> TlsConnection | None:
        """The encryption, if there is any."""
        return self.transport if isinstance(self.transport, TlsConnection) else None

    @property
    def unread(self) -> bool:
        """More has arrived than has been awaited."""
        return bool(self._data)

    async def next_byte(self) -> bytes:
        """Return the next byte. Raises ConnectFailedError."""
        while not self._data:
            await self._more()
        first, self._data = self._data[:1], self._data[1:]
        return first

    async def next_message(self) -> tuple[int, bytes]:
        """Return kind and payload of the next message. Raises ConnectFailedError or ProtocolViolation."""
        while (found := first_message(self._data, _MAX_LOGIN_MESSAGE)) is None:
            await self._more()
        kind, payload, size = found
        self._data = self._data[size:]
        return kind, payload

    async def _more(self) -> None:
        if self._lost:
            raise self._why_lost()
        self._arrived.clear()
        await self._arrived.wait()

    def _why_lost(self) -> ConnectFailedError:
        failure = self.tls.failure if self.tls is not None else ""
        if failure:
            return ConnectFailedError(Reason.SERVER_TLS_FAILED, f"the server has ended TLS: {failure}")
        return ConnectFailedError(Reason.SERVER_CONNECT_FAILED, "the server closed the connection during the login")

    async def until_lost(self) -> None:
        """Wait until the peer has closed the connection."""
        while not self._lost:
            self._arrived.clear()
            await self._arrived.wait()


async def dial(host: str, port: int, ip: str = "") -> Conversation:
    """Connect to an Address. Raises OSError."""
    address = Address(host, port, ip)
    loop = asyncio.get_running_loop()
    if address.local:
        _, conversation = await loop.create_unix_connection(Conversation, address.socket_path)
    else:
        _, conversation = await loop.create_connection(Conversation, ip or host, port)
    return conversation


async def encrypt(conversation: Conversation, host: str, tls: ServerTls) -> None:
    """Begin TLS, unless the server has none and need not. Raises ConnectFailedError.

    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
    """
    if not tls.direct:
        conversation.transport.write(SSL_REQUEST)
        answer = await conversation.next_byte()
        if answer == b"N" and tls.mode == "prefer":
            return
        if answer == b"N":
            raise NoTlsError(f"{host} has no TLS, and server_tls_sslmode is {tls.mode}")
        if answer == b"E":
            # Not its text: whoever stands in between could have written it.
            raise ConnectFailedError(
                Reason.SERVER_CONNECT_FAILED, "the server answers with an error when asked for TLS"
            )
        if answer != b"S":
            raise ConnectFailedError(Reason.SERVER_VIOLATION, "the server does not speak the protocol")
        if conversation.unread:
            # Sent in clear by somebody, to be taken for what came over TLS (CVE-2021-23222).
            raise ConnectFailedError(Reason.SERVER_VIOLATION, "data in clear where TLS should begin")
    await tls.secure(host, conversation)
