"""Connections of one context share buffers: whatever happens in any order, each byte arrives where it belongs."""

import contextlib
import random
import ssl

import pytest

from pooler.tls.connection import TlsContext
from pooler.tls.contexts import client_context
from tests.pooler.tls.peer import Link, Notes, Peer, client_settings, trusting
from tests.support.certificates import Certificates

STEPS = 600
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class Passes(Notes):
    """Does to the other connections what comes to its mind, whenever it is given anything; as a pooler may."""

    house: "House"

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.house.meddle(data)

    def eof_received(self) -> bool:
        self.house.meddle(b"eof")
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.house.meddle(b"lost")


class Client:
    """A link, what its peer has said, what it was to be told, and what it has heard."""

    def __init__(self, house: "House", context: TlsContext, certificates: Certificates, rng: random.Random) -> None:
        notes = Passes(stays=rng.random() < 0.2)
        notes.house = house
        newest = rng.choice(VERSIONS)
        self.link = Link(context, Peer(trusting(certificates, maximum_version=newest)), notes=notes)
        self.on_its_way = self.link.peer.shake()
        self.said = self.told = self.heard = b""
        self.spoilt = self.cut_off = self.complained = False

    @property
    def gone(self) -> bool:
        return self.link.transport.lost or self.link.transport.closing or self.link.transport.eof

    def is_told(self, data: bytes) -> None:
        if self.link.outcomes == [None] and not self.gone and self.link.tls._open:
            self.told += data
        self.link.tls.write(data)

    def hears(self) -> None:
        """Take what was sent, as far as it has come."""
        peer, sent = self.link.peer, self.link.transport.take()
        try:
            if not peer.ready:
                self.on_its_way += peer.shake(sent)
                sent = b""
            while peer.ready:
                # Record by record: an alert may follow.
                record = 5 + int.from_bytes(sent[3:5]) if sent else 0
                self.heard += peer.hears(sent[:record])
                sent = sent[record:]
                if not sent:
                    break
        except ssl.SSLError:
            self.complained = True


class House:
    def __init__(self, certificates: Certificates, rng: random.Random) -> None:
        self.context = client_context(client_settings(certificates.ec))
        self.certificates = certificates
        self.rng = rng
        self.clients: list[Client] = []
        self.depth = 0

    def something(self) -> bytes:
        size = self.rng.choice((1, 5, 100, 3000, 17_000, 70_000))
        return self.rng.randbytes(self.rng.randint(1, size))

    def meddle(self, data: bytes) -> None:
        """Be called from inside a callback of some connection, and use any others, or the same."""
        if self.depth > 3:
            return
        self.depth += 1
        for client in self.rng.sample(self.clients, min(2, len(self.clients))):
            match self.rng.choice(("write", "write", "write", "more", "receive", "close", "abort", "pause", "eof")):
                case "write":
                    client.is_told(data)
                case "more":
                    client.is_told(self.something() * self.rng.choice((1, 1, 1, 8)))
                case "receive" if not client.link.transport.lost:
                    self.deliver(client)
                case "close" if self.rng.random() < 0.03:
                    client.link.tls.close()
                case "abort" if self.rng.random() < 0.03:
                    client.cut_off = True
                    client.link.tls.abort()
                case "eof" if self.rng.random() < 0.03 and not client.gone:
                    client.link.tls.write_eof()
                case "pause":
                    client.link.tls.pause_reading()
                case _:
                    client.link.tls.resume_reading()
        self.depth -= 1

    def deliver(self, client: Client) -> None:
        count = self.rng.choice((1, 3, 30, 1000, 20_000, 300_000))
        piece, client.on_its_way = client.on_its_way[:count], client.on_its_way[count:]
        client.link.transport.receive(piece)
        if any(client.link.outcomes):
            client.link.transport.close()  # what comes then is no TLS

    def step(self) -> None:
        rng = self.rng
        if len(self.clients) < 8:
            self.clients.append(Client(self, self.context, self.certificates, rng))
        client = rng.choice(self.clients)
        transport = client.link.transport
        match rng.choice(("say", "deliver", "deliver", "deliver", "hear", "hear", "tell", "goodbye", "spoil", "lose")):
            case "say" if client.link.peer.ready and not client.spoilt:
                data = self.something()
                with contextlib.suppress(ssl.SSLError):
                    client.on_its_way += client.link.peer.says(data)
                    client.said += data
            case "deliver":
                transport.resume_reading()
                self.deliver(client)
            case "hear":
                client.hears()
            case "tell":
                client.is_told(self.something())
            case "goodbye" if rng.random() < 0.05 and client.link.peer.ready:
                client.on_its_way += client.link.peer.says_goodbye()
                client.spoilt = True
            case "spoil" if rng.random() < 0.05 and client.on_its_way:
                at = rng.randrange(len(client.on_its_way))
                way = client.on_its_way
                client.on_its_way = way[:at] + bytes((way[at] ^ 1,)) + way[at + 1 :]
                client.spoilt = True
            case "lose" if rng.random() < 0.05 or transport.closing:
                client.hears()
                transport.lose()
                self.check(client)
                self.clients.remove(client)

    def check(self, client: Client) -> None:
        assert client.said.startswith(client.link.notes.data)
        assert client.told.startswith(client.heard)
        assert client.spoilt or not client.complained
        if not client.cut_off and client.link.peer.ready:
            assert client.told == client.heard

    def finish(self) -> None:
        for client in self.clients:
            self.depth = 100  # nobody meddles any more
            client.link.transport.resume_reading()
            client.link.transport.receive(client.on_its_way)
            client.hears()
            self.check(client)
            if not (client.spoilt or client.gone):
                assert client.link.notes.data == client.said


@pytest.mark.parametrize("seed", range(12))
def test_each_byte_arrives_where_it_belongs(certificates: Certificates, seed: int) -> None:
    house = House(certificates, random.Random(seed))
    for _ in range(STEPS):
        house.step()
        buffers = house.context.buffers
        assert (buffers.incoming.pending, buffers.outgoing.pending) == (0, 0)
    house.finish()
