"""Who is let in with what they know, and that a failure says the same whether the user exists or not."""

import pytest
from pydantic import SecretStr

from pooler.authentication import Authenticator
from protocol.scram import AuthenticationFailedError, md5_secret
from tests.support.wire import Login, Message, sasl_initial_response

PASSWORD = "hush hush"


def authenticator(auth_type: str, secret: str = PASSWORD) -> Authenticator:
    return Authenticator(auth_type, {"alice": SecretStr(secret)}, 4096)


def lets_in(auth: Authenticator, user: str, password: str) -> bool:
    proof = auth.begin(user)
    driver = Login(user, password)
    out, complete = proof.request, not proof.request
    while not complete:
        answer = driver.answer(Message(chr(out[0]), out[5:]))
        try:
            out, complete = proof.answer(answer[5:])
        except AuthenticationFailedError:
            return False
    return True


@pytest.mark.parametrize("auth_type", ["trust", "plain", "md5", "scram-sha-256"])
def test_the_right_password(auth_type: str) -> None:
    assert lets_in(authenticator(auth_type), "alice", PASSWORD)


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
@pytest.mark.parametrize(("user", "password"), [("alice", "wrong"), ("alice", "x" * 100), ("bob", PASSWORD)])
def test_the_wrong_one(auth_type: str, user: str, password: str) -> None:
    assert not lets_in(authenticator(auth_type), user, password)


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_a_user_without_a_password_is_let_in_by_trust_alone(auth_type: str) -> None:
    assert not lets_in(authenticator(auth_type, ""), "alice", "x")
    assert lets_in(authenticator("trust", ""), "alice", "")


@pytest.mark.parametrize("auth_type", ["plain", "md5"])
def test_a_stored_md5_hash_serves_and_is_no_password_itself(auth_type: str) -> None:
    stored = md5_secret("alice", PASSWORD)
    auth = authenticator(auth_type, stored)
    assert lets_in(auth, "alice", PASSWORD)
    if auth_type == "plain":
        assert not lets_in(auth, "alice", stored)


def test_trust_lets_nobody_in_who_is_not_known() -> None:
    with pytest.raises(AuthenticationFailedError):
        authenticator("trust").begin("bob")


def test_an_unknown_user_is_asked_with_the_same_salt_each_time() -> None:
    auth = authenticator("scram-sha-256")
    first = sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r=abc")[5:]

    def salt(user: str) -> bytes:
        return auth.begin(user).answer(first)[0].split(b"s=")[1]

    assert salt("bob") == salt("bob")
    assert salt("bob") != salt("carol")
    assert salt("alice") == salt("alice")


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_a_stored_secret_that_is_malformed_is_refused_at_start(auth_type: str) -> None:
    with pytest.raises(ValueError, match='the secret of user "alice" is a malformed SCRAM secret') as refusal:
        authenticator(auth_type, "SCRAM-SHA-256$nonsense")
    assert "nonsense" not in str(refusal.value)


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"SCRAM-SHA-1\0\0\0\0\0", b"SCRAM-SHA-256\0\xff\xff\xff\xff", b"\xff" * 50]
)
@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_nonsense_is_no_proof(auth_type: str, payload: bytes) -> None:
    with pytest.raises(AuthenticationFailedError):
        authenticator(auth_type).begin("alice").answer(payload)
