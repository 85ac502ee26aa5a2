"""The Gate: decides by which method a client has to prove who it is, and what comes of that.

What it can decide at once it decides at once; what has to be asked for elsewhere (auth_query, passthrough) comes back
to it by callback. A client learns from a failure no more than that it failed; the log has the reason.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from pydantic import SecretStr

from config.authentication import AuthType
from pooler.access.candidate import Candidate, Judge, Learnt, Proof
from pooler.access.proofs import Md5Proof, PlainProof, ScramProof
from pooler.access.secrets import Secrets
from pooler.reasons import Ending, Reason
from protocol.scram import AuthenticationFailedError, is_scram_secret


class Lookup(Protocol):
    """Where the secrets of users are who are not in the list: auth_query."""

    def find(self, candidate: Candidate, found: Callable[[str | None], None]) -> None:
        """Call `found` with the secret of its user, None if there is no such user: at once if it is known, or later.

        Where it can't be told, the candidate is refused instead.
        """

    def forget(self, candidate: Candidate) -> None:
        """A login has failed by the secret that was found for it, which thus may be out of date."""


class Elsewhere(Protocol):
    """Who judges passwords instead of us: passthrough."""

    def begin(self, judge: Judge, candidate: Candidate) -> None:
        """Ask the candidate for its password, and tell the judge what has come of it."""


class Gate:
    """Where clients come to log in; their Judge."""

    def __init__(
        self,
        auth_type: AuthType,
        users: Mapping[str, SecretStr],
        scram_iterations: int,
        *,
        learn: Callable[[Candidate, Learnt], None] | None = None,
        lookup: Lookup | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """Raises ValueError for a malformed SCRAM secret, naming its user."""
        self._auth_type = auth_type
        self._secrets = Secrets(users, scram_iterations)
        self._learn = learn
        self._lookup = lookup
        self._elsewhere = elsewhere

    def examine(self, candidate: Candidate) -> None:
        """Let it in, ask it for a proof, or send it away, now or later."""
        method = self._auth_type
        secret = self._secrets.find(candidate.startup.user)
        if secret is None and self._lookup is not None:
            self._lookup.find(candidate, partial(self._begin, candidate, method))
        else:
            self._begin(candidate, method, secret)

    def _begin(self, candidate: Candidate, method: AuthType, secret: str | None) -> None:
        if candidate.ended:
            return
        if method == "trust":
            if secret is None:
                self.reject(candidate, "no such user")
            else:
                candidate.let_in()
            return
        proof: Proof
        if method == "plain":
            proof = PlainProof(self, candidate, secret, self._secrets)
        elif method == "md5" and not (secret and is_scram_secret(secret)):
            proof = Md5Proof(self, candidate, secret)
        else:
            proof = ScramProof(self, candidate, secret, self._secrets)
        candidate.ask(proof)

    def hear(self, candidate: Candidate, proof: Proof, payload: bytes) -> bytes | None:
        """Give the payload of a password message to the proof; return what to send, None if nothing more is asked."""
        try:
            return proof.answer(payload)
        except AuthenticationFailedError as failure:
            self.reject(candidate, str(failure))
            return None

    # --- the Judge

    def accept(self, candidate: Candidate, out: bytes = b"", learnt: Learnt | None = None) -> None:
        """See Judge."""
        if candidate.ended:
            return
        if learnt is not None and self._learn is not None:
            self._learn(candidate, learnt)
        candidate.let_in(out)

    def reject(self, candidate: Candidate, why: str) -> None:
        """See Judge."""
        if self._lookup is not None:
            self._lookup.forget(candidate)
        user = candidate.startup.user
        self.refuse(
            candidate,
            Ending(Reason.LOGIN_FAILED, "28P01", f'password authentication failed for user "{user}"', why=why),
        )

    def refuse(self, candidate: Candidate, ending: Ending) -> None:
        """See Judge."""
        if not candidate.ended:
            candidate.refuse(ending)
