"""A candidate without a connection, and gates for it to try."""

import asyncio
from collections.abc import Callable

from pydantic import SecretStr

from config.authentication import AuthType
from pooler.access.candidate import Candidate, Learnt, Proof
from pooler.access.gate import Gate
from pooler.reasons import Ending
from protocol.startup import Startup
from tests.support.transport import MockTransport
from tests.support.wire import Login, Message


def gate(auth_type: AuthType, /, learn: Callable[[Candidate, Learnt], None] | None = None, **users: str) -> Gate:
    return Gate(auth_type, {user: SecretStr(secret) for user, secret in users.items()}, 4096, learn=learn)


class Applicant:
    """Wants in; notes what it is told."""

    def __init__(self, user: str = "alice", database: str = "shop") -> None:
        self.startup = Startup(user, database, minor=0, negotiate=False, unknown_options=[], parameters={})
        self.transport: asyncio.Transport = MockTransport()
        self.tls = None
        self.ended = False
        self.proof: Proof | None = None
        self.out: bytes | None = None
        """What it was told ahead of its welcome; None if it has not been let in."""
        self.served_as = ""
        self.ending: Ending | None = None

    def ask(self, proof: Proof) -> None:
        assert self.proof is None, "asked twice"
        self.proof = proof

    def let_in(self, out: bytes = b"", user: str = "") -> None:
        assert not self.ended
        self.ended = True
        self.out = out
        self.served_as = user or self.startup.user

    def refuse(self, ending: Ending) -> None:
        assert not self.ended
        self.ended = True
        self.ending = ending

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

    def say(self, to: Gate, payload: bytes) -> bytes | None:
        """Send a password message."""
        assert self.proof is not None, "not asked"
        return to.hear(self, self.proof, payload)
