"""A candidate without a connection, and gates for it to try."""

import asyncio
import socket
from base64 import b64encode
from collections.abc import Callable

from pydantic import SecretStr

from config.access import Access
from config.authentication import AuthType
from pooler.access.candidate import Candidate, Encrypted, Learnt, Proof
from pooler.access.gate import Gate
from pooler.reasons import Ending
from protocol.scram import ScramSecret
from protocol.startup import Startup
from tests.support.transport import MockTransport
from tests.support.wire import Login, Message


def gate(auth_type: AuthType, /, learn: Callable[[Candidate, Learnt], None] | None = None, **users: str) -> Gate:
    access = Access({user: SecretStr(secret) for user, secret in users.items()})
    return Gate(auth_type, access, 4096, learn=learn)


def scram_secret(password: str, iterations: int = 4096) -> str:
    """What Postgres would store."""
    secret = ScramSecret.of_password(password, bytes(range(16)), iterations)
    salt, stored, server = (b64encode(part).decode() for part in (secret.salt, secret.stored_key, secret.server_key))
    return f"SCRAM-SHA-256${iterations}:{salt}${stored}:{server}"


class Applicant:
    """Wants in; notes what it is told."""

    def __init__(
        self,
        user: str = "alice",
        database: str = "shop",
        *,
        peer: tuple[object, ...] | str | None = ("127.0.0.1", 50000),
        socket: socket.socket | None = None,
    ) -> None:
        self.startup = Startup(user, database, minor=0, negotiate=False, unknown_options=[], parameters={})
        self.transport: asyncio.Transport = MockTransport(extra={"peername": peer, "socket": socket})
        self.tls: Encrypted | None = None
        self.ended = False
        self.rule = ""
        self.proof: Proof | None = None
        self.out: bytes | None = None
        """What it was told ahead of its welcome; None if it has not been let in."""
        self.served_as = ""
        self.ending: Ending | None = None
        self.decided = asyncio.Event()

    def ask(self, proof: Proof) -> None:
        assert self.proof is None, "asked twice"
        self.proof = proof

    def let_in(self, out: bytes = b"", user: str = "") -> None:
        assert not self.ended
        self.ended = True
        self.out = out
        self.served_as = user or self.startup.user
        self.decided.set()

    def refuse(self, ending: Ending) -> None:
        assert not self.ended
        self.ended = True
        self.ending = ending
        self.decided.set()

    @property
    def is_in(self) -> bool:
        return self.out is not None

    def try_to_get_in(self, to: Gate, password: str = "") -> bool:
        """Do what a driver does with this password."""
        to.examine(self)
        driver = Login(self.startup.user, password)
        out = self.proof.request if self.proof is not None else None
        while out is not None and not self.ended:
            answer = driver.answer(Message(chr(out[0]), out[5:]))
            assert answer, "nothing to say"
            out = self.say(to, answer[5:])
        if self.out:
            driver.answer(Message(chr(self.out[0]), self.out[5:]))
        return self.is_in

    async def verdict(self) -> bool:
        """Wait until it is let in, or refused."""
        await asyncio.wait_for(self.decided.wait(), 10)
        return self.is_in

    def say(self, to: Gate, payload: bytes) -> bytes | None:
        """Send a password message."""
        assert self.proof is not None, "not asked"
        return to.hear(self, self.proof, payload)
