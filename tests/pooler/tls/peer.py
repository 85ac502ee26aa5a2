"""The other end of a TLS connection, with buffers of its own; and a protocol that takes notes."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from config.settings import Settings
from pooler.tls.connection import TlsConnection, TlsContext
from pooler.tls.contexts import client_context
from tests.support.certificates import Certificates, Pair
from tests.support.transport import MockTransport

Cut = Callable[[bytes], Iterable[bytes]]


def settings(**given: object) -> Settings:
    return Settings.model_validate({"upstream": "postgresql://alice@localhost/shop", **given})


def client_settings(pair: Pair, **given: object) -> Settings:
    return settings(
        **{
            "client_tls_sslmode": "prefer",
            "client_tls_cert_file": pair.certificate,
            "client_tls_key_file": pair.key,
            **given,
        }
    )


def trusting(certificates: Certificates, show: Pair | None = None, **attributes: object) -> ssl.SSLContext:
    """What a client uses that trusts our authority, and has a certificate of its own to `show`."""
    context = ssl.create_default_context(cafile=certificates.ca)
    context.set_alpn_protocols(["postgresql"])
    if show is not None:
        context.load_cert_chain(*show)
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def in_pieces_of(size: int) -> Cut:
    def cut(data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), size):
            yield data[at : at + size]

    return cut


class Notes(asyncio.Protocol):
    """Takes notes of what it is told, and keeps the connection open after the peer's last word if it `stays`."""

    def __init__(self, *, stays: bool = False) -> None:
        self.data = b""
        self.chunks = 0
        self.ended = 0
        self.losses: list[Exception | None] = []
        self.paused = False
        self.stays = stays

    def data_received(self, data: bytes) -> None:
        assert data
        self.data += data
        self.chunks += 1

    def eof_received(self) -> bool:
        self.ended += 1
        return self.stays

    def connection_lost(self, exc: Exception | None) -> None:
        self.losses.append(exc)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


class Peer:
    """OpenSSL at the other end."""

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool = False, session: ssl.SSLSession | None = None
    ) -> None:
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server_side else "localhost"
        self.ssl = context.wrap_bio(self._incoming, self.outgoing, server_side, name, session)
        self.ready = False

    def shake(self, received: bytes = b"") -> bytes:
        self._incoming.write(received)
        try:
            self.ssl.do_handshake()
            self.ready = True
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def says(self, data: bytes) -> bytes:
        """Return what it sends to say `data`."""
        self.ssl.write(data)
        return self.outgoing.read()

    def says_goodbye(self) -> bytes:
        with contextlib.suppress(ssl.SSLError):
            self.ssl.unwrap()
        return self.outgoing.read()

    def hears(self, received: bytes) -> bytes:
        """Return what `received` says; b"" behind it is a good-bye."""
        self._incoming.write(received)
        heard = b""
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while True:
                data = self.ssl.read(1 << 20)
                if not data:
                    break
                heard += data
        return heard

    @property
    def told_goodbye(self) -> bool:
        try:
            return not self.ssl.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLWantReadError:
            return False


@dataclass
class Link:
    """A connection of ours on a transport without a socket, and its peer."""

    context: TlsContext
    peer: Peer
    server_side: bool = True
    cut: Cut = whole
    slow: bool = False
    session: ssl.SSLSession | None = None
    notes: Notes = field(default_factory=Notes)
    outcomes: list[OSError | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.transport = MockTransport(self.notes, slow_peer=self.slow)
        self.tls = TlsConnection(
            self.transport,
            self.notes,
            self.context,
            self.outcomes.append,
            server_side=self.server_side,
            server_hostname=None if self.server_side else "localhost",
            session=self.session,
        )

    def receive(self, data: bytes) -> None:
        for piece in self.cut(data):
            self.transport.receive(piece)

    def shake_hands(self) -> "Link":
        """Carry the handshake's bytes to and fro until nobody has anything more to say."""
        out = self.peer.shake() if self.server_side else self.peer.shake(self.transport.take())
        while out:
            self.receive(out)
            out = self.transport.take()
            if out and self.peer.ready:
                self.peer.hears(out)
                out = b""
            elif out:
                out = self.peer.shake(out)
        return self


def link(certificates: Certificates, *, keys: Path | None = None, **given: object) -> Link:
    """Establish a connection with a client that trusts us, and logs its `keys`."""
    context = client_context(client_settings(certificates.ec))
    attributes = {} if keys is None else {"keylog_filename": str(keys)}
    return Link(context, Peer(trusting(certificates, **attributes)), **given).shake_hands()  # type: ignore[arg-type]
