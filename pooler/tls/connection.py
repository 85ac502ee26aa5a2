"""TLS over a connection: a transport to the protocol above it, a protocol to the transport below it.

The same for clients and servers. Handshakes and records are dealt with in the callbacks of the connection itself, at
no cost of a task or a future per connection; why not the event loop's own TLS: docs/decisions/0012-tls.md.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Final, Protocol, cast, final

from pooler.tls.binding import server_end_point

_PIECE: Final = 4096
"""Bytes. What is handed to OpenSSL at once, in either direction: the buffers in between keep the size that they have
had, for as long as the connection lasts. PgBouncer's records are no longer than that either (pkt_buf)."""
_RECORD: Final = 16 * 1024
"""Bytes. The longest plaintext of a TLS record (RFC 8446, section 5.1)."""
_NOTHING: Final = memoryview(b"")
_NOBODY: Final = asyncio.Protocol()

Step = Callable[[], None]


class Turns(Protocol):
    """Who decides which handshake goes on next; each step of one costs the event loop as much as 20 queries."""

    def take(self, step: Step) -> bool:
        """True: it is your turn. False: `step` is called when it is."""


class _Records(Protocol):
    """What ssl.SSLObject calls in turn; without its Python around it, a query costs 2 µs less."""

    def read(self, size: int) -> bytes: ...
    def write(self, data: bytes | memoryview) -> int: ...
    def pending(self) -> int: ...


class HandshakeError(Exception):
    """There is no TLS connection; the message says why."""


@final
class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """One TLS connection, from its handshake to its end."""

    __slots__ = (
        "_deaf",
        "_held",
        "_incoming",
        "_on_ready",
        "_open",
        "_outgoing",
        "_paused",
        "_protocol",
        "_records",
        "_transport",
        "_turns",
        "failure",
        "ssl",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        on_ready: Callable[[OSError | None], None],
        *,
        server_hostname: str | None = None,
        server_side: bool = True,
        turns: Turns | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """Take `transport` over from `protocol`, which gets what comes in the clear from now on.

        `on_ready` is called when the handshake is done (None), or has failed. An ssl.SSLError is ours, or the peer's
        as it has told us: then the alert has been sent, and `transport` is `protocol`'s again, to be closed. Any other
        error: the connection is gone, and `protocol` is told so as ever. A client begins the handshake at once, and
        resumes `session` if the server lets it.
        """
        super().__init__()
        self._transport = transport
        self._protocol = protocol
        self._on_ready: Callable[[OSError | None], None] | None = on_ready
        self._turns = turns
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname, session)
        """The handshake's facts: certificates, version, cipher, what ALPN has chosen."""
        self._records: _Records = getattr(self.ssl, "_sslobj", self.ssl)
        self.failure = ""
        """Why TLS has ended after its handshake, if it has not ended well."""
        self._held = _NOTHING
        """Received, and not yet given to OpenSSL."""
        self._open = False
        """What is written can be sent: the handshake is done, and we have not said that nothing follows."""
        self._deaf = False
        """What is received is nobody's any more."""
        self._paused = False
        transport.set_protocol(self)
        if not server_side:
            self._shake_hands()

    # --- facts

    @property
    def below(self) -> asyncio.Transport:
        """The connection that carries this one."""
        return self._transport

    @property
    def end_point(self) -> bytes:
        """What binds a proof to this connection: tls-server-end-point (RFC 5929); empty if the certificate has none."""
        if self.ssl.server_side:
            certificate = getattr(self.ssl.context, "certificate", None)
        else:
            certificate = self.ssl.getpeercert(binary_form=True)
        return server_end_point(certificate) if certificate else b""

    @property
    def peer_names(self) -> tuple[str, ...]:
        """The common names in the certificate that the peer has shown, if that was asked for and verified."""
        certificate = self.ssl.getpeercert()
        subject = cast("tuple[tuple[tuple[str, str], ...], ...]", (certificate or {}).get("subject", ()))
        return tuple(value for names in subject for name, value in names if name == "commonName")

    # --- what arrives

    def data_received(self, data: bytes) -> None:
        """Decrypt a chunk; hot path."""
        if self._deaf:
            return
        if self._open and not self._held and len(data) <= _PIECE:
            self._incoming.write(data)
            self._deliver(len(data))
            return
        self._held = memoryview(bytes(self._held) + data) if self._held else memoryview(data)
        if self._on_ready is None:
            self._work_off()
        elif self._turns is None or self._turns.take(self._go_on_shaking):
            self._shake_hands()
        else:
            self._transport.pause_reading()

    def _next_piece(self) -> None:
        self._incoming.write(self._held[:_PIECE])
        self._held = self._held[_PIECE:] or _NOTHING

    def _deliver(self, size: int) -> None:
        """Decrypt what OpenSSL has been given; `size` bytes of it at a time are enough."""
        incoming, records = self._incoming, self._records
        try:
            while not self._paused and not self._deaf:
                data = records.read(size)
                if not data:
                    self._peer_has_finished()
                    return
                self._protocol.data_received(data)
                if not incoming.pending and not records.pending():
                    return  # to be told so by an exception would cost more than to look
        except ssl.SSLWantReadError:
            self._flush()  # the answer to a key update
        except ssl.SSLError as error:
            self._break_off(error)

    def _work_off(self) -> None:
        while self._held and not self._paused and not self._deaf:
            self._next_piece()
            self._deliver(_RECORD)

    def _peer_has_finished(self) -> None:
        self._deaf = True
        self._held = _NOTHING
        if not self._protocol.eof_received():
            self.close()

    def eof_received(self) -> bool | None:
        """The peer has closed its side, maybe without saying so before: the messages above say what was whole."""
        if self._deaf or self._on_ready is not None:
            return None
        self._deaf = True
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._open = False
        self._deaf = True
        self._held = _NOTHING
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready(ConnectionResetError("the connection was closed during the TLS handshake"))
        # What refers to each other would keep OpenSSL's memory until the garbage collector comes by.
        protocol, self._protocol = self._protocol, _NOBODY
        protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._protocol.resume_writing()

    # --- the handshake

    def _shake_hands(self) -> None:
        """Take the handshake as far as it goes with what has been received."""
        try:
            while True:
                if self._held:
                    self._next_piece()
                try:
                    self.ssl.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    if not self._held:
                        self._flush()
                        return
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._fail(error)
            return
        on_ready, self._on_ready, self._turns = self._on_ready, None, None
        self._open = True
        self._flush()
        if on_ready is not None:
            on_ready(None)
        if self._incoming.pending or self._held:
            self._go_on()

    def _go_on_shaking(self) -> None:
        """It has been this handshake's turn to wait, and now is its turn."""
        if not self._deaf:
            self._transport.resume_reading()
            self._shake_hands()

    def _fail(self, error: ssl.SSLError) -> None:
        self._deaf = True
        self._held = _NOTHING
        protocol, self._protocol = self._protocol, _NOBODY
        on_ready, self._on_ready = self._on_ready, None
        self._transport.set_protocol(protocol)
        if on_ready is not None:
            on_ready(error)

    # --- what is sent

    def write(self, data: bytes) -> None:  # type: ignore[override] # nobody here writes anything else
        """Encrypt and send a chunk; hot path. Before the handshake is done nothing can be said, so nothing is."""
        if not self._open or not data:
            return
        try:
            if len(data) <= _PIECE:
                self._records.write(data)
                self._transport.write(self._outgoing.read())
            else:
                self._transport.writelines(self._encrypt(data))
        except ssl.SSLError as error:
            self._break_off(error)

    def _encrypt(self, data: bytes) -> list[bytes]:
        whole = memoryview(data)
        pieces = []
        for at in range(0, len(data), _PIECE):
            self._records.write(whole[at : at + _PIECE])
            pieces.append(self._outgoing.read())
        return pieces

    def _flush(self) -> None:
        if self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())

    def can_write_eof(self) -> bool:
        """TLS can say that nothing follows (RFC 8446, section 6.1)."""
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        """Say that nothing follows, and close our side; what the peer still sends is nobody's."""
        self._say_goodbye()
        self._transport.resume_reading()
        self._transport.write_eof()

    def _say_goodbye(self) -> None:
        self._deaf = True
        self._held = _NOTHING
        if self._open:
            self._open = False
            with contextlib.suppress(ssl.SSLError):  # that the peer has not said it, too: we do not wait for that
                self.ssl.unwrap()
            self._flush()

    # --- the rest of a transport

    def close(self) -> None:
        """Close the connection when what was written has been sent."""
        if not self._transport.is_closing():
            self._say_goodbye()
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._open = False
        self._deaf = True
        self._transport.abort()

    def _break_off(self, error: ssl.SSLError) -> None:
        """The peer does not keep to TLS, or somebody in between does not let it."""
        self.failure = explain(error)
        self._open = False
        self._deaf = True
        unread = self._transport.get_write_buffer_size()
        self._flush()  # the alert that says why
        if unread:
            self._transport.abort()  # it may never read the alert
        else:
            self._transport.close()

    def is_closing(self) -> bool:
        """Tell whether the connection is closed, or is about to be."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Deliver nothing until resume_reading()."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again; what stands here already comes first, and soon."""
        if not self._paused:
            return
        self._paused = False
        if self._held or self._incoming.pending or self._records.pending():
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self._transport.resume_reading()

    def _go_on(self) -> None:
        self._deliver(_RECORD)
        self._work_off()
        if not self._paused and not self._deaf:
            self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See asyncio.BaseTransport."""
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See asyncio.BaseTransport."""
        return self._protocol

    def get_write_buffer_size(self) -> int:
        """Return how many bytes, encrypted, have not been sent yet."""
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Return a fact about the connection below."""
        return self._transport.get_extra_info(name, default)


async def secure(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    server_hostname: str | None,
    session: ssl.SSLSession | None = None,
) -> TlsConnection:
    """Begin TLS as a client over `transport`, which is `protocol`'s. Raises HandshakeError; it is closed then.

    Whoever cancels this closes the connection.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready(error: OSError | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(HandshakeError(explain(error)))

    try:
        connection = TlsConnection(
            transport, protocol, context, ready, server_hostname=server_hostname, server_side=False, session=session
        )
    except ValueError as error:  # a name that can be no server's
        transport.abort()
        raise HandshakeError(str(error)) from None
    try:
        await done
    except BaseException:
        connection.abort()
        raise
    return connection


def explain(error: OSError) -> str:
    """Return what has gone wrong in a handshake, in words, without OpenSSL's places in its source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)
