"""A house whose servers are models: what the pooler sends is read, carried out and answered, in pieces, at random.

Each client has a second model of its own, that is what it would see on a direct connection; the two must not differ.
"""

import random
from dataclasses import dataclass, field
from struct import unpack_from

from pooler.client import ClientSession
from pooler.server import ServerSession
from tests.pooler.house import House, wire
from tests.protocol.session_model import SessionModel
from tests.support.transport import MockTransport

Message = tuple[str, bytes]


def messages_in(data: bytes) -> tuple[list[Message], bytes]:
    """The whole messages in `data`, and what is left."""
    found, at = [], 0
    while at + 5 <= len(data):
        kind, length = unpack_from("!BI", data, at)
        if at + length + 1 > len(data):
            break
        found.append((chr(kind), data[at + 5 : at + length + 1]))
        at += length + 1
    return found, data[at:]


def piece(rng: random.Random, data: bytes) -> tuple[bytes, bytes]:
    """Cut `data` somewhere, or not at all."""
    size = rng.choice((len(data), 1 + rng.randrange(len(data)), 1 + rng.randrange(min(len(data), 8))))
    return data[:size], data[size:]


@dataclass
class Back:
    """A server connection and the Postgres behind it."""

    session: ServerSession
    transport: MockTransport
    model: SessionModel
    rng: random.Random
    unread: bytes = b""
    unflushed: bytes = b""
    unsent: bytes = b""

    @property
    def whole(self) -> bool:
        """It can read a request."""
        self.unread += self.transport.take()
        return bool(messages_in(self.unread)[0])

    def read(self) -> None:
        """Carry out one request."""
        kind, payload = messages_in(self.unread)[0][0]
        self.unread = self.unread[len(payload) + 5 :]
        self.unflushed += self.model.answer(kind, payload)
        if kind in "SHQ" or self.model.skipping or self.rng.randrange(4) == 0:
            self.unsent += self.unflushed
            self.unflushed = b""


@dataclass
class Front:
    """A client, and what it has seen."""

    session: ClientSession
    transport: MockTransport
    direct: SessionModel = field(default_factory=SessionModel)
    unsent: bytes = b""
    expected: bytes = b""
    seen: bytes = b""

    def ask(self, requests: bytes) -> None:
        """Send `requests`, in whatever pieces; a direct connection would be sent them, too."""
        self.unsent += requests
        self.expected += b"".join(self.direct.answer(*each) for each in messages_in(requests)[0])

    @property
    def served(self) -> bool:
        self.seen += self.transport.take()
        return not self.unsent and len(self.seen) >= len(self.expected)


class Playhouse:
    """Clients that talk to model servers through a pool."""

    def __init__(self, rng: random.Random, *, clients: int, **settings: object) -> None:
        self.rng = rng
        self.house = House(watched=True, **settings)  # type: ignore[arg-type]
        self.backs: list[Back] = []
        for _ in range(self.house.size):
            session = self.house.server()
            self.backs.append(Back(session, wire(session), SessionModel(), self.rng))
        self.fronts = [Front(session, wire(session)) for session in (self.house.client() for _ in range(clients))]

    def step(self) -> bool:
        """Let one thing happen that can; False if nothing can."""
        self.house.pool.idle.rotate(self.rng.randrange(2))
        everybody: list[Front | Back] = [*self.fronts, *self.backs]
        can_send = [each for each in everybody if each.unsent]
        can_read = [back for back in self.backs if back.whole]
        if can_read and (not can_send or self.rng.randrange(2)):
            self.rng.choice(can_read).read()
        elif can_send:
            chosen = self.rng.choice(can_send)
            data, chosen.unsent = piece(self.rng, chosen.unsent)
            chosen.transport.receive(data)
        return bool(can_read or can_send)

    def settle(self) -> None:
        """Go on until nothing more happens."""
        for _ in range(100_000):
            if not self.step():
                return
        raise AssertionError("it never ends")
