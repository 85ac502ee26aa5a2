"""TLS over a connection: a transport to the protocol above it, a protocol to the transport below it.

The same for clients and servers. Handshakes and records are dealt with in the callbacks of the connection itself, at
no cost of a task or a future per connection; why not the event loop's own TLS: docs/decisions/0012-tls.md.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol, cast, final

from pooler.tls.binding import server_end_point

_MOST: Final = 256 * 1024
"""Bytes that are encrypted at once; as many as uvloop reads at once."""
_RECORD: Final = 16 * 1024
"""Bytes. The longest plaintext of a TLS record (RFC 8446, section 5.1)."""
_SLICE: Final = 32 * 1024
"""Bytes that are decrypted at once. A chunk of nothing but key updates costs 0.5 ms per KB."""
_MOST_ANSWERS: Final = 8 * 1024
"""Bytes that OpenSSL may have to say of its own accord once the handshake is done: 300 answers to key updates, of which
ours send one in years, if any. A flood of them would fill the memory, as nobody else limits what is unsent."""
_NOBODY: Final = asyncio.Protocol()

Step = Callable[[], bool]
"""False: there was nothing left to do, as the connection has gone."""


class Turns(Protocol):
    """Who decides which handshake goes on next; each step of one costs the event loop as much as 20 queries."""

    def take(self, step: Step) -> bool:
        """True: it is your turn. False: `step` is called when it is."""


class Buffers(NamedTuple):
    """Between OpenSSL and its callers. One pair serves all connections of a context.

    They never shrink: if each connection had its own, they would be as large as the longest message that it has ever
    sent and received. Nothing stays in them from one call to the next, and all calls come from one thread.
    """

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


class TlsContext(ssl.SSLContext):
    """An SSLContext, with what our connections need beside it."""

    shown: bytes = b""
    """The certificate that the peer is shown (DER); empty if there is none. The standard library can't tell."""
    end_point: bytes = b""
    """What binds proofs to the certificate that clients are shown; see binding. The standard library can't tell."""

    def __init__(self, protocol: int) -> None:
        """`protocol` is ssl.PROTOCOL_TLS_SERVER or ssl.PROTOCOL_TLS_CLIENT."""
        super().__init__()
        self.buffers = Buffers(ssl.MemoryBIO(), ssl.MemoryBIO())


class _Records(Protocol):
    """What ssl.SSLObject calls in turn; without its Python around it, a query costs 2 µs less."""

    def read(self, size: int) -> bytes: ...
    def write(self, data: bytes) -> int: ...
    def pending(self) -> int: ...
    def do_handshake(self) -> None: ...


class HandshakeError(Exception):
    """There is no TLS connection; the message says why."""


@final
class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """One TLS connection, from its handshake to its end."""

    __slots__ = (
        "_answers",
        "_deaf",
        "_incoming",
        "_on_ready",
        "_open",
        "_outgoing",
        "_protocol",
        "_records",
        "_tickets",
        "_transport",
        "_turns",
        "failure",
        "ssl",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        context: TlsContext,
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
        self._incoming, self._outgoing = context.buffers
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname, session)
        """The handshake's facts: certificates, version, cipher, what ALPN has chosen."""
        self._records: _Records = getattr(self.ssl, "_sslobj", self.ssl)
        self._open = False
        """What is written can be sent: the handshake is done, and we have not said that nothing follows."""
        self._deaf = False
        """What is received is nobody's any more."""
        self._tickets = b""
        """Tickets to resume the session with, in TLS 1.3. They go with what is written next, to save a system call."""
        self._answers = 0
        """Bytes that OpenSSL has sent of its own accord."""
        self.failure = ""
        """Why TLS has ended after its handshake, if it has not ended well."""
        transport.set_protocol(self)
        if not server_side:
            self._shake_hands(b"")

    # --- facts

    @property
    def below(self) -> asyncio.Transport:
        """The connection that carries this one."""
        return self._transport

    @property
    def end_point(self) -> bytes:
        """What binds a proof to this connection: tls-server-end-point (RFC 5929); empty if the certificate has none."""
        if self.ssl.server_side:
            return cast("TlsContext", self.ssl.context).end_point
        certificate = self.ssl.getpeercert(binary_form=True)
        return server_end_point(certificate) if certificate else b""

    @property
    def peer_names(self) -> tuple[str, ...]:
        """The common names in the certificate that the peer has shown, if that was asked for and verified."""
        certificate = self.ssl.getpeercert()
        subject = cast("tuple[tuple[tuple[str, str], ...], ...]", (certificate or {}).get("subject", ()))
        return tuple(value for names in subject for name, value in names if name == "commonName")

    @property
    def peer_has_expired(self) -> bool:
        """The peer's certificate was verified in time, and has expired since: resuming a session verifies nothing."""
        until = (self.ssl.getpeercert() or {}).get("notAfter")
        return until is not None and ssl.cert_time_to_seconds(str(until)) < time.time()

    # --- what arrives

    def data_received(self, data: bytes) -> None:
        """Decrypt a chunk; hot path."""
        if self._deaf:
            return
        if not self._open:
            self._wait_for_turn(data)
            return
        if len(data) > _SLICE:
            for at in range(0, len(data), _SLICE):
                self.data_received(data[at : at + _SLICE])
            return
        incoming, records = self._incoming, self._records
        incoming.write(data)
        try:
            clear = records.read(len(data))
        except ssl.SSLWantReadError:
            self._answer()
            return
        except ssl.SSLError as error:
            self._break_off(explain(error))
            return
        # To look whether there is more is cheaper than to be told by an exception that there is not.
        if incoming.pending or records.pending() or self._outgoing.pending or not clear:
            self._read_on(clear)
        else:
            self._protocol.data_received(clear)

    def _read_on(self, first: bytes) -> None:
        """Decrypt the rest of a chunk, and deliver it with its `first` part.

        Not part by part: whoever is given one may make other connections use the buffers.
        """
        parts = [first]
        failure = None
        try:
            while parts[-1] and (self._incoming.pending or self._records.pending()):
                parts.append(self._records.read(_RECORD))
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            failure = error.with_traceback(None)  # which would refer to this frame, and that to us
            self._open = False  # what the first part is answered with can't be encrypted any more
        self._incoming.read()
        self._answer()
        if first and not self._deaf:
            self._protocol.data_received(b"".join(parts))
        if self._deaf:
            return
        if failure is not None:
            self._break_off(explain(failure))
        elif not parts[-1]:
            self._deaf = True
            if not self._protocol.eof_received():
                self.close()

    def _answer(self) -> None:
        """Send what OpenSSL says to what was received: to a key update, or that there is no renegotiation."""
        self._answers += self._outgoing.pending
        if self._answers > _MOST_ANSWERS:
            self._outgoing.read()
            self._break_off("too many key updates or renegotiations")
        else:
            self._flush()

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

    def _wait_for_turn(self, data: bytes) -> None:
        # Only the first step is dear: keys are agreed on in it, and ours signs.
        turns, self._turns = self._turns, None
        if turns is None or turns.take(partial(self._take_late_turn, data)):
            self._shake_hands(data)
        else:
            self._transport.pause_reading()

    def _take_late_turn(self, data: bytes) -> bool:
        if self._deaf:
            return False
        self._transport.resume_reading()
        self._shake_hands(data)
        return True

    def _shake_hands(self, data: bytes) -> None:
        """Take the handshake as far as it goes with what has been received."""
        self._incoming.write(data)
        failure = None
        try:
            self._records.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            failure = error.with_traceback(None)  # which would refer to this frame, and that to us
        rest = self._incoming.read()
        on_ready, self._on_ready = self._on_ready, None
        if failure is None:
            self._open = True
            if self.ssl.server_side and self.ssl.version() == "TLSv1.3":
                self._tickets = self._outgoing.read()
            else:
                self._flush()
        else:
            self._deaf = True
            self._flush()  # the alert that says why
            protocol, self._protocol = self._protocol, _NOBODY
            self._transport.set_protocol(protocol)
        if on_ready is not None:
            on_ready(failure)
        if rest:
            self.data_received(rest)

    # --- what is sent

    def write(self, data: bytes) -> None:  # type: ignore[override] # nobody here writes anything else
        """Encrypt and send a chunk; hot path. Before the handshake is done nothing can be said, so nothing is."""
        if not self._open or not data:
            return
        if len(data) > _MOST:
            for at in range(0, len(data), _MOST):
                self.write(data[at : at + _MOST])
            return
        try:
            self._records.write(data)
        except ssl.SSLError as error:
            self._break_off(explain(error))
        else:
            if self._tickets:
                self._flush()
            else:
                self._transport.write(self._outgoing.read())

    def _flush(self) -> None:
        sealed = self._tickets + self._outgoing.read()
        self._tickets = b""
        if sealed and not self._transport.is_closing():
            self._transport.write(sealed)

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

    def _break_off(self, why: str) -> None:
        """The peer does not keep to TLS, or somebody in between does not let it."""
        self.failure = why
        self._open = False
        self._deaf = True
        unread = self._transport.get_write_buffer_size()
        self._incoming.read()
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
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again."""
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
    context: TlsContext,
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


def encryption(transport: asyncio.Transport) -> dict[str, str | None]:
    """Return what the log says of a connection's encryption, if it has any."""
    if not isinstance(transport, TlsConnection):
        return {}
    cipher = transport.ssl.cipher()
    return {"tls": transport.ssl.version(), "cipher": cipher[0] if cipher is not None else None}
