"""The terms between those who want in and those who decide: a Candidate, its Proof, and the Judge who hears it.

Only shapes. The Candidate is pooler.login's ClientLogin, the Judge is the Gate; proofs need not know either of them.
"""

import asyncio
from typing import Protocol

from pooler.credentials.credential import Md5Hash
from pooler.reasons import Ending
from protocol.scram import ScramKeys
from protocol.startup import Startup


class Encrypted(Protocol):
    """What the Gate asks of a TLS connection."""

    @property
    def end_point(self) -> bytes:
        """What SCRAM binds its proof to: tls-server-end-point of our certificate; empty if it has none."""

    @property
    def peer_names(self) -> tuple[str, ...]:
        """The common names in the certificate that the client has shown, if that was asked for and verified."""


class Proof(Protocol):
    """One login's conversation about the password."""

    @property
    def request(self) -> bytes:
        """What to send first."""

    def answer(self, payload: bytes) -> bytes | None:
        """Take the payload of a password message; return what to send before the next, or None if that was the last.

        After the last one the Judge is told, now or later. Raises AuthenticationFailedError, which is the same as
        Judge.reject() with its text.
        """


class Candidate(Protocol):
    """A client that has said who it is. It is told exactly one of let_in() and refuse(), maybe after an ask()."""

    @property
    def startup(self) -> Startup:
        """Who it says it is, and what it wants."""

    @property
    def transport(self) -> asyncio.Transport:
        """Its connection; over TLS, the encrypted one."""

    @property
    def tls(self) -> Encrypted | None:
        """The encryption, if there is any."""

    @property
    def ended(self) -> bool:
        """It has gone, or has been sent away: whatever is said to it now is void."""

    rule: str
    """Where the rule stands that it is judged by (FILE line N), for the log; empty without one."""

    def ask(self, proof: Proof) -> None:
        """Send the proof's request, and give it the client's answers."""

    def let_in(self, out: bytes = b"", user: str = "") -> None:
        """It has proven who it is. Send `out` ahead of the welcome, and serve it as `user` if that is not itself."""

    def refuse(self, ending: Ending) -> None:
        """Send it away; after a login that has failed, not before a while has passed."""


Learnt = str | Md5Hash | ScramKeys
"""What a proof shows to be good for logging in elsewhere; text is the password itself. It need not be news."""


class Judge(Protocol):
    """Who hears what has become of a proof. All of it is void if the candidate has ended meanwhile."""

    def accept(self, candidate: Candidate, out: bytes = b"", learnt: Learnt | None = None) -> None:
        """It is proven; `out` is the last thing to tell the client about it."""

    def reject(self, candidate: Candidate, why: str) -> None:
        """It is not. `why` goes to the log, while the client learns no more than that."""

    def refuse(self, candidate: Candidate, ending: Ending) -> None:
        """It can't be, and the client is told why, such as in Postgres's words."""
