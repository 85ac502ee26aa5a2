"""A failure takes the same work whether the user exists or not: what takes time is counted, not measured."""

import asyncio

import pytest

from config.authentication import AuthType
from pooler.access import proofs
from protocol.scram import ScramSecret, md5_secret
from tests.pooler.access.applicant import Applicant, gate, scram_secret

KINDS = {"plain": "hush", "md5": md5_secret("alice", "hush"), "scram": scram_secret("hush")}


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the iterations of each derivation that is made for a proof."""
    made: list[int] = []

    class Counting(ScramSecret):
        @classmethod
        def of_password(cls, password: str, salt: bytes, iterations: int) -> ScramSecret:
            made.append(iterations)
            return ScramSecret.of_password(password, salt, iterations)

    monkeypatch.setattr(proofs, "ScramSecret", Counting)
    return made


@pytest.mark.parametrize("others", ["plain", "md5", "scram"])
@pytest.mark.parametrize("kind", ["plain", "md5", "scram"])
async def test_a_wrong_password_in_clear_takes_as_many_derivations_as_an_unknown_user(
    derivations: list[int], kind: str, others: str
) -> None:
    to = gate("plain", None, alice=KINDS[kind], bob=KINDS[others])
    taken = []
    for user in ("alice", "mallory"):
        derivations.clear()
        applicant = Applicant(user)
        applicant.try_to_get_in(to, "wrong")
        assert not await applicant.verdict()
        taken.append(list(derivations))
    assert taken[0] == taken[1]


async def test_a_wrong_password_in_clear_takes_as_many_iterations_as_scram_secrets_have(derivations: list[int]) -> None:
    to = gate("plain", None, alice=scram_secret("hush", 5000), bob="hush", carol="hush", dave="hush")
    for user in ("alice", "bob", "mallory"):
        applicant = Applicant(user)
        applicant.try_to_get_in(to, "wrong")
        assert not await applicant.verdict()
    assert derivations == [5000, 5000, 5000]


@pytest.mark.parametrize("auth_type", ["md5", "scram-sha-256"])
@pytest.mark.parametrize("kind", ["plain", "md5", "scram"])
async def test_an_unknown_user_is_asked_as_many_times(auth_type: AuthType, kind: str) -> None:
    # Every user's secret is of the same kind: then a stranger can't be told from any of them.
    to = gate(auth_type, None, alice=KINDS[kind])
    asked = []
    for user in ("alice", "mallory"):
        applicant = Applicant(user)
        applicant.try_to_get_in(to, "wrong")
        assert applicant.proof is not None
        asked.append((len(applicant.proof.request), type(applicant.proof)))
        await asyncio.sleep(0)
        assert applicant.ending is not None
    assert asked[0] == asked[1]
