"""Who is let in with what they know, and that a failure says the same whether the user exists or not."""

import pytest

from config.authentication import AuthType
from pooler.access.candidate import Learnt
from pooler.credentials.credential import Md5Hash
from pooler.reasons import Reason
from protocol.scram import ScramKeys, ScramSecret, md5_secret
from tests.pooler.access.applicant import Applicant, gate, scram_secret
from tests.support.wire import sasl_initial_response

PASSWORD = "hush hush"
STORED = scram_secret(PASSWORD)
MD5_SECRET = md5_secret("alice", PASSWORD)
CLIENT_FIRST = sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r=abc")[5:]


def lets_in(auth_type: AuthType, user: str, password: str, secret: str = PASSWORD) -> bool:
    return Applicant(user).try_to_get_in(gate(auth_type, alice=secret), password)


@pytest.mark.parametrize("auth_type", ["trust", "plain", "md5", "scram-sha-256"])
def test_the_right_password(auth_type: AuthType) -> None:
    assert lets_in(auth_type, "alice", PASSWORD)


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
@pytest.mark.parametrize(("user", "password"), [("alice", "wrong"), ("alice", "x" * 100), ("bob", PASSWORD)])
def test_the_wrong_one(auth_type: AuthType, user: str, password: str) -> None:
    assert not lets_in(auth_type, user, password)


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_a_user_without_a_password_is_let_in_by_trust_alone(auth_type: AuthType) -> None:
    assert not lets_in(auth_type, "alice", "x", "")
    assert lets_in("trust", "alice", "", "")


@pytest.mark.parametrize("auth_type", ["plain", "md5"])
def test_a_stored_md5_hash_serves_and_is_no_password_itself(auth_type: AuthType) -> None:
    stored = md5_secret("alice", PASSWORD)
    assert lets_in(auth_type, "alice", PASSWORD, stored)
    if auth_type == "plain":
        assert not lets_in(auth_type, "alice", stored, stored)


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
async def test_a_stored_scram_secret_serves(auth_type: AuthType) -> None:
    for password, is_right in ((PASSWORD, True), ("wrong", False)):
        applicant = Applicant("alice")
        applicant.try_to_get_in(gate(auth_type, alice=STORED), password)
        assert await applicant.verdict() is is_right


def test_trust_lets_nobody_in_who_is_not_known() -> None:
    assert not lets_in("trust", "bob", "")


def test_an_unknown_user_is_asked_with_the_same_salt_each_time() -> None:
    doorway = gate("scram-sha-256", alice=PASSWORD)

    def salt(user: str) -> bytes:
        applicant = Applicant(user)
        doorway.examine(applicant)
        asked = applicant.say(doorway, CLIENT_FIRST)
        assert asked is not None
        return asked.split(b"s=")[1]

    assert salt("bob") == salt("bob")
    assert salt("bob") != salt("carol")
    assert salt("alice") == salt("alice")


@pytest.mark.parametrize("auth_type", ["trust", "plain", "md5", "scram-sha-256"])
def test_who_fails_learns_that_and_the_log_learns_why(auth_type: AuthType) -> None:
    told = []
    for user, password in (("alice", "wrong"), ("bob", PASSWORD)):
        applicant = Applicant(user)
        # By trust, nobody fails who exists.
        users = {"eve": PASSWORD} if auth_type == "trust" else {"alice": PASSWORD}
        applicant.try_to_get_in(gate(auth_type, None, **users), password)
        assert applicant.ending is not None
        assert applicant.ending.reason is Reason.LOGIN_FAILED
        assert applicant.ending.why
        told.append(applicant.ending._replace(message=applicant.ending.message.replace(user, "x"), why=""))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("user", "secret", "why"),
    [
        ("bob", PASSWORD, "no such user, or one without a password"),
        ("alice", "", "no such user, or one without a password"),
        ("alice", PASSWORD, "proof does not match"),
        ("alice", md5_secret("alice", PASSWORD), "only an md5 hash is known, and SCRAM takes more"),
    ],
)
def test_the_log_learns_why_scram_has_failed(user: str, secret: str, why: str) -> None:
    applicant = Applicant(user)
    applicant.try_to_get_in(gate("scram-sha-256", alice=secret), "wrong")
    assert applicant.ending is not None
    assert applicant.ending.why == why


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_a_stored_secret_that_is_malformed_is_refused_at_start(auth_type: AuthType) -> None:
    with pytest.raises(ValueError, match='the secret of user "alice" is a malformed SCRAM secret') as refusal:
        gate(auth_type, alice="SCRAM-SHA-256$nonsense")
    assert "nonsense" not in str(refusal.value)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"SCRAM-SHA-1\0\0\0\0\0",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abcd",
        b"SCRAM-SHA-256-PLUS" + CLIENT_FIRST.removeprefix(b"SCRAM-SHA-256"),
        b"\xff" * 50,
        PASSWORD.encode(),
        PASSWORD.encode() + b"\0\0",
        PASSWORD.encode() + b"\0more\0",
    ],
)
@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_nonsense_is_no_proof(auth_type: AuthType, payload: bytes) -> None:
    applicant = Applicant("alice")
    doorway = gate(auth_type, alice=PASSWORD)
    doorway.examine(applicant)
    assert applicant.say(doorway, payload) is None
    assert applicant.ending is not None


def test_what_a_scram_proof_shows_serves_to_log_in_elsewhere() -> None:
    learnt: list[Learnt] = []
    assert Applicant("alice").try_to_get_in(
        gate("scram-sha-256", lambda _, what: learnt.append(what), alice=STORED), PASSWORD
    )
    secret = ScramSecret.parse(STORED)
    assert learnt == [ScramKeys.of_password(PASSWORD, secret.salt, secret.iterations)]


def test_a_wrong_proof_teaches_nothing() -> None:
    learnt: list[Learnt] = []
    doorway = gate("scram-sha-256", lambda _, what: learnt.append(what), alice=STORED)
    assert not Applicant("alice").try_to_get_in(doorway, "wrong")
    assert not Applicant("bob").try_to_get_in(doorway, PASSWORD)
    assert not learnt


@pytest.mark.parametrize(
    ("auth_type", "secret", "brings"),
    [
        ("plain", PASSWORD, PASSWORD),
        ("plain", STORED, PASSWORD),
        ("md5", MD5_SECRET, Md5Hash(MD5_SECRET)),
        ("md5", PASSWORD, Md5Hash(MD5_SECRET)),
        ("scram-sha-256", PASSWORD, PASSWORD),
    ],
)
async def test_a_login_shows_what_is_good_for_one_elsewhere(auth_type: AuthType, secret: str, brings: Learnt) -> None:
    learnt: list[Learnt] = []
    applicant = Applicant()
    applicant.try_to_get_in(gate(auth_type, lambda _, what: learnt.append(what), alice=secret), PASSWORD)
    assert await applicant.verdict()
    assert learnt == [brings]
