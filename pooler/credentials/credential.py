"""What there may be to log in with at Postgres: a password, or what is made of one.

None of it shows what it has in a repr. Where it comes from is the vault's affair, what it answers connect's.
"""

import asyncio
from dataclasses import dataclass, field
from typing import final

from protocol.scram import ScramKeys, ScramSecret, is_md5_secret, is_scram_secret


@final
class Password:
    """A password in clear. It answers whatever Postgres may ask."""

    __slots__ = ("_derived", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._derived: ScramKeys | None = None

    async def keys(self, salt: bytes, iterations: int) -> ScramKeys:
        """Return its SCRAM keys: from a thread when they are new, as deriving them may take a second of CPU."""
        derived = self._derived
        if derived is None or (derived.salt, derived.iterations) != (salt, iterations):
            derived = await asyncio.to_thread(ScramKeys.of_password, self.text, salt, iterations)
            self._derived = derived
        return derived

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Password) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return "Password(***)"


@final
@dataclass(frozen=True, slots=True)
class Md5Hash:
    """A password's md5 hash in Postgres's form. It answers md5."""

    text: str = field(repr=False)


Credential = Password | Md5Hash | ScramKeys | ScramSecret
"""ScramKeys answer SCRAM. A ScramSecret answers nothing: it is known until a client's proof has brought the keys."""


def credential_of(secret: str) -> Credential | None:
    """Return what a secret in the form of an auth_file is; None if it is empty. Raises ValueError."""
    if not secret:
        return None
    if is_md5_secret(secret):
        return Md5Hash(secret)
    if is_scram_secret(secret):
        return ScramSecret.parse(secret)
    return Password(secret)
