"""The Gate: decides by which method a client has to prove who it is, and what comes of that.

What it can decide at once it decides at once; what has to be asked for elsewhere (auth_query, passthrough) comes back
to it by callback. A client learns from a failure no more than that it failed; the log has the reason.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

from config.access import Access
from config.authentication import AuthType
from config.hba import Method, Rule
from config.ident import allows
from pooler.access.candidate import Candidate, Judge, Learnt, Proof
from pooler.access.hba import find_rule, refusal
from pooler.access.identity import name_in_certificate, system_user
from pooler.access.proofs import Md5Proof, PlainProof, ScramProof
from pooler.access.secrets import Secrets
from pooler.reasons import Ending, Reason
from protocol.scram import AuthenticationFailedError, is_scram_secret


class Lookup(Protocol):
    """Where the secrets of users are who are not in the list: auth_query."""

    def serves(self, candidate: Candidate) -> bool:
        """Tell whether users are looked up for the database that it wants."""

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
        access: Access,
        scram_iterations: int,
        *,
        everybody: str = "",
        learn: Callable[[Candidate, Learnt], None] | None = None,
        lookup: Lookup | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """`everybody` is the user as whom auth_type any serves; `learn` is told what proofs bring to light.

        Raises ValueError for a malformed SCRAM secret, naming its user.
        """
        self._auth_type = auth_type
        self._everybody = everybody
        self._learn = learn
        self._lookup = lookup
        self._elsewhere = elsewhere
        self._secrets = Secrets(access.users, scram_iterations)
        self._access = access

    def reload(self, auth_type: AuthType, access: Access, scram_iterations: int, everybody: str = "") -> None:
        """Judge by other users, rules and maps. Raises ValueError for a malformed secret; then nothing changes."""
        self._secrets.reload(access.users, scram_iterations)
        self._auth_type = auth_type
        self._everybody = everybody
        self._access = access

    # --- the method

    def examine(self, candidate: Candidate) -> None:
        """Let it in, ask it for a proof, or send it away, now or later."""
        if self._auth_type == "hba":
            rule = find_rule(self._access.rules, candidate)
            if rule is not None:
                candidate.rule = rule.place
            if rule is None or rule.method == "reject":
                self.refuse(candidate, refusal(candidate, rule))
            elif self._has_certificate_for(candidate, rule):
                self._apply(candidate, rule.method, rule.ident_map)
        elif self._auth_type == "any":
            candidate.let_in(user=self._everybody)
        else:
            self._apply(candidate, self._auth_type)

    def _has_certificate_for(self, candidate: Candidate, rule: Rule) -> bool:
        """Refuse the candidate if it has not shown the certificate that a rule asks for."""
        if not rule.client_certificate:
            return True
        try:
            name = name_in_certificate(candidate)
        except AuthenticationFailedError as failure:
            self._refuse_identity(candidate, "connection requires a valid client certificate", str(failure))
            return False
        if rule.client_certificate == "verify-full" and name != candidate.startup.user:
            self._deny(candidate, "cert", f"the certificate is that of {name!r}")
            return False
        return True

    def _apply(self, candidate: Candidate, method: AuthType | Method, ident_map: str = "") -> None:
        if method in ("cert", "peer"):
            self._identify(candidate, "cert" if method == "cert" else "peer", ident_map)
        elif method == "passthrough":
            if self._elsewhere is None:
                raise RuntimeError("there is nobody to pass passwords through to")
            self._elsewhere.begin(self, candidate)
        else:
            secret = self._secrets.find(candidate.startup.user)
            if secret is None and self._lookup is not None and self._lookup.serves(candidate):
                self._lookup.find(candidate, partial(self._found, candidate, method))
            else:
                self._ask(candidate, method, secret)

    def _identify(self, candidate: Candidate, method: Literal["cert", "peer"], ident_map: str) -> None:
        user = candidate.startup.user
        try:
            name = (name_in_certificate if method == "cert" else system_user)(candidate)
        except AuthenticationFailedError as failure:
            self._deny(candidate, method, str(failure))
            return
        if allows(self._access.maps, ident_map, name, user):
            candidate.let_in()
        else:
            by = f"by the map {ident_map}" if ident_map else "as another"
            self._deny(candidate, method, f"{name!r} may not log in {by}")

    def _found(self, candidate: Candidate, method: AuthType | Method, secret: str | None) -> None:
        """Go on with what the lookup has found."""
        if secret:
            self._secrets.seen(candidate.startup.user, secret)
        if not candidate.ended:
            self._ask(candidate, method, secret)

    def _ask(self, candidate: Candidate, method: AuthType | Method, secret: str | None) -> None:
        if method == "trust":
            if secret is None:
                self.reject(candidate, "no such user")
            else:
                candidate.let_in()
            return
        proof: Proof
        if method == "plain":
            proof = PlainProof(self, candidate, secret, self._secrets)
        elif method == "md5" and not (is_scram_secret(secret) if secret else self._secrets.scram_is_usual):
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

    def _deny(self, candidate: Candidate, method: Literal["cert", "peer"], why: str) -> None:
        what = "certificate" if method == "cert" else "Peer"
        self._refuse_identity(candidate, f'{what} authentication failed for user "{candidate.startup.user}"', why)

    def _refuse_identity(self, candidate: Candidate, message: str, why: str) -> None:
        self.refuse(candidate, Ending(Reason.LOGIN_FAILED, "28000", message, why=why))
