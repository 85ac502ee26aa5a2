"""SCRAM-SHA-256 against the RFC's own example and an independent implementation, honest and tampered with."""

import contextlib
import hmac
from base64 import b64decode, b64encode
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scramp import ScramClient as OtherClient
from scramp import ScramMechanism

from protocol import scram
from protocol.scram import (
    END_POINT,
    MAX_ITERATIONS,
    UNBOUND,
    UNOFFERED,
    AuthenticationFailedError,
    ScramClient,
    ScramKeys,
    ScramSecret,
    ScramServer,
    md5_response,
    md5_secret,
    saslprep,
)

# RFC 7677, section 3.
NONCE = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
CLIENT_FIRST = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = f"r={NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
CLIENT_FINAL = f"c=biws,r={NONCE},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
SERVER_FINAL = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
SALT = b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
SECRET = ScramSecret.of_password("pencil", SALT, 4096)


def zeros(count: int) -> bytes:
    return b"\0" * count


def server_of_the_rfc() -> ScramServer:
    server = ScramServer(SECRET, zeros)
    server._nonce = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    return server


def test_the_servers_side_of_the_rfcs_example() -> None:
    server = server_of_the_rfc()
    assert server.first(CLIENT_FIRST.encode()).decode() == SERVER_FIRST
    assert server.final(CLIENT_FINAL.encode()).decode() == SERVER_FINAL


def test_the_clients_side_of_the_rfcs_example() -> None:
    client = ScramClient(zeros)
    client._nonce = b"rOprNGfwEbeRWgbNEkqO"
    client._client_first_bare = b"n=user,r=" + client._nonce
    client.challenge(SERVER_FIRST.encode())
    assert client.final(ScramKeys.of_password("pencil", client.salt, client.iterations)).decode() == CLIENT_FINAL
    client.verify(SERVER_FINAL.encode())


PASSWORDS = st.sampled_from(["pencil", "x" * 300, "pässwörd", "I\u00adX", "\u2168", "a\u00a0b", "пароль"])


@given(PASSWORDS, st.sampled_from([4096, 5000]), st.binary(min_size=16, max_size=30))
@settings(max_examples=20, deadline=None)
def test_an_independent_client_logs_in(password: str, iterations: int, salt: bytes) -> None:
    server = ScramServer(ScramSecret.of_password(password, salt, iterations), zeros)
    other = OtherClient(["SCRAM-SHA-256"], "user", password)
    other.set_server_first(server.first(other.get_client_first().encode()).decode())
    other.set_server_final(server.final(other.get_client_final().encode()).decode())


@given(PASSWORDS)
@settings(max_examples=20, deadline=None)
def test_an_independent_server_lets_us_in(password: str) -> None:
    mechanism = ScramMechanism("SCRAM-SHA-256")
    stored = mechanism.make_auth_info(password, iteration_count=4096)
    other = mechanism.make_server(lambda _: stored)
    client = ScramClient(zeros)
    client._client_first_bare = b"n=user,r=" + client._nonce  # that server wants to hear a name
    other.set_client_first(client.first().decode())
    client.challenge(other.get_server_first().encode())
    other.set_client_final(client.final(ScramKeys.of_password(password, client.salt, client.iterations)).decode())
    client.verify(other.get_server_final().encode())


@pytest.mark.parametrize("header", [UNBOUND, UNOFFERED, END_POINT])
def test_the_first_message_says_what_the_client_makes_of_the_channel_and_the_last_says_it_again(header: bytes) -> None:
    client = ScramClient(zeros, header)
    first = client.first()
    assert first.startswith(header + b"n=,r=")
    client.challenge(first[len(header) + 3 :] + b"x,s=QQ==,i=1")
    binding = b"hash of a certificate" if header == END_POINT else b""
    final = client.final(ScramKeys.of_password("pencil", client.salt, client.iterations), binding)
    assert final.startswith(b"c=" + b64encode(header + binding) + b",r=")


@pytest.mark.parametrize(
    "first",
    [
        "",
        "n,,",
        "n,,n=user",
        "n,,n=user,r=",
        "n,,r=abc,n=user",
        "p=tls-server-end-point,,n=user,r=abc",
        "n,a=other,n=user,r=abc",
        "n,,m=ext,n=user,r=abc",
        "n,,n=user,r=a\x01b",
        "n,,n=user,r=a\0",
        "n,,n=us\0er,r=abc",
        "n,,n=user,r=abc\0",
        "n,,n=user,r=abc,x=y\0",
        "p=tls-unique,,n=user,r=abc",
        "x,,n=user,r=abc",
    ],
)
def test_a_malformed_first_message_is_refused(first: str) -> None:
    with pytest.raises(AuthenticationFailedError):
        ScramServer(SECRET, zeros).first(first.encode())


def proof_of(first_bare: bytes, server_first: bytes, without_proof: bytes) -> bytes:
    """The whole client-final-message of a client that knows the password, whatever it says besides."""
    keys = ScramKeys.of_password("pencil", SALT, 4096)
    auth_message = b",".join((first_bare, server_first, without_proof))
    signature = hmac.digest(sha256(keys.client_key).digest(), auth_message, "sha256")
    proof = bytes(one ^ other for one, other in zip(keys.client_key, signature, strict=True))
    return without_proof + b",p=" + b64encode(proof)


@pytest.mark.parametrize(
    ("without_proof", "is_right"),
    [
        (f"c=biws,r={NONCE}", True),
        (f"c=biws,r={NONCE},ext=ignored", True),
        ("c=biws", False),
        ("c=biws,", False),
        ("c=biws,r=", False),
        ("c=biws,r=rOprNGfwEbeRWgbNEkqO", False),
        (f"c=biws,r={NONCE}x", False),
        (f"c=biws,r={NONCE[:-1]}", False),
        (f"r={NONCE},c=biws", False),
        (f"r={NONCE}", False),
        (f"c=eSws,r={NONCE}", False),  # y,,
        (f"c=,r={NONCE}", False),
        (f"c=biws=,r={NONCE}", False),
        (f"c=biwsYWJj,r={NONCE}", False),  # n,,abc
        (f"c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsaGFzaA==,r={NONCE}", False),
    ],
)
def test_who_knows_the_password_still_has_to_give_nonce_and_channel_back(without_proof: str, is_right: bool) -> None:
    server = server_of_the_rfc()
    server_first = server.first(CLIENT_FIRST.encode())
    final = proof_of(CLIENT_FIRST[3:].encode(), server_first, without_proof.encode())
    if is_right:
        server.final(final)
        assert server.keys == ScramKeys.of_password("pencil", SALT, 4096)
    else:
        with pytest.raises(AuthenticationFailedError):
            server.final(final)


@pytest.mark.parametrize("proof", [b"", b"p=", b"p=AAAA", b"p=" + b"A" * 44, b"p=%%%%", b"p=" + b"\0" * 44, b"x=AAAA"])
def test_a_final_message_without_a_proof_is_refused(proof: bytes) -> None:
    server = server_of_the_rfc()
    server.first(CLIENT_FIRST.encode())
    with pytest.raises(AuthenticationFailedError):
        server.final(f"c=biws,r={NONCE},".encode() + proof)


BINDING = b"hash of a certificate"


@pytest.mark.parametrize(
    ("header", "plus", "binding", "is_right"),
    [
        (END_POINT, True, BINDING, True),
        (END_POINT, True, b"hash of another", False),
        (END_POINT, True, b"", False),
        (END_POINT, False, BINDING, False),
        (UNBOUND, False, b"", True),  # a client that can't
        (UNBOUND, True, b"", False),
        (UNBOUND, False, BINDING, False),
        (UNOFFERED, False, b"", False),  # somebody has taken our offer away
        (UNOFFERED, True, b"", False),
        (b"p=tls-unique,,", True, BINDING, False),
    ],
)
def test_a_proof_is_bound_to_the_channel(header: bytes, plus: bool, binding: bytes, is_right: bool) -> None:
    server = ScramServer(SECRET, zeros, BINDING)
    client = ScramClient(zeros, header)
    try:
        client.challenge(server.first(client.first(), plus=plus))
        client.verify(server.final(client.final(ScramKeys.of_password("pencil", SALT, 4096), binding)))
    except AuthenticationFailedError:
        assert not is_right
    else:
        assert is_right


@pytest.mark.parametrize(("header", "is_right"), [(UNBOUND, True), (UNOFFERED, True), (END_POINT, False)])
def test_without_a_channel_to_bind_none_is_bound(header: bytes, is_right: bool) -> None:
    server = ScramServer(SECRET, zeros)
    with contextlib.nullcontext() if is_right else pytest.raises(AuthenticationFailedError):
        server.first(ScramClient(zeros, header).first())


# The last letter of the proof has two bits that mean nothing in base64.
@given(st.integers(0, len(CLIENT_FINAL) - 3), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_one_changed_byte_of_the_clients_proof_is_refused(at: int, by: int) -> None:
    server = server_of_the_rfc()
    server.first(CLIENT_FIRST.encode())
    tampered = bytearray(CLIENT_FINAL.encode())
    tampered[at] ^= by
    with pytest.raises(AuthenticationFailedError):
        server.final(bytes(tampered))


@given(st.binary(max_size=100) | st.text(",=rncpyabc\0\x7f", max_size=40).map(str.encode))
@settings(deadline=None)
def test_random_bytes_are_no_proof(data: bytes) -> None:
    with contextlib.suppress(AuthenticationFailedError):
        ScramServer(SECRET, zeros).first(data)
    server = server_of_the_rfc()
    server.first(CLIENT_FIRST.encode())
    for final in (data, f"c=biws,r={NONCE},p=".encode() + data):
        with pytest.raises(AuthenticationFailedError):
            server.final(final)


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "r=another,s=QQ==,i=4096",
        "r=AAAAAAAAAAAAAAAAAAAAAAAA,s=QQ==,i=4096",
        "r=AAAAAAAAAAAAAAAAAAAAAAAAx,s=,i=4096",
        "r=AAAAAAAAAAAAAAAAAAAAAAAAx,s=!!,i=4096",
        "r=AAAAAAAAAAAAAAAAAAAAAAAAx,s=QQ==,i=0",
        f"r=AAAAAAAAAAAAAAAAAAAAAAAAx,s=QQ==,i={MAX_ITERATIONS + 1}",
        "r=AAAAAAAAAAAAAAAAAAAAAAAAx,s=QQ==,i=x",
        "r=AAAAAAAAAAAAAAAAAAAAAAAAx,QQ==,4096",
    ],
)
def test_a_challenge_that_is_wrong_is_refused(challenge: str) -> None:
    with pytest.raises(AuthenticationFailedError):
        ScramClient(zeros).challenge(challenge.encode())


@pytest.mark.parametrize("final", ["", "e=other-error", "v=AAAA", SERVER_FINAL[:-4]])
def test_a_server_that_does_not_know_the_password_is_refused(final: str) -> None:
    client = ScramClient(zeros)
    client.challenge(b"r=" + client._nonce + b"x,s=QQ==,i=1")
    client.final(ScramKeys.of_password("pencil", client.salt, client.iterations))
    with pytest.raises(AuthenticationFailedError):
        client.verify(final.encode())


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u0007", "\u0007"),  # prohibited: used as it is
        ("\u0627\u0031", "\u0627\u0031"),  # inconsistent direction: used as it is
        ("\u00ad", "\u00ad"),
    ],
)
def test_saslprep_examples(text: str, normal: str) -> None:
    assert saslprep(text) == normal


def test_a_password_that_grows_when_it_is_normalised_is_no_work_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []

    def look_at(char: str) -> bool:
        looked_at.append(char)
        return False

    monkeypatch.setattr(scram, "_prohibited", look_at)
    assert len(saslprep("\ufdfa" * 3000)) == 54_000
    assert len(looked_at) == len(set(looked_at))


def test_a_stored_secret_is_read_and_never_shown() -> None:
    salt, stored_key, server_key = (b64encode(each).decode() for each in (SALT, SECRET.stored_key, SECRET.server_key))
    line = f"SCRAM-SHA-256$4096:{salt}${stored_key}:{server_key}"
    secret = ScramSecret.parse(line)
    assert secret == SECRET
    assert repr(secret) == "ScramSecret(***)"


@pytest.mark.parametrize("text", ["", "SCRAM-SHA-256$", "SCRAM-SHA-256$0:QQ==$QQ==:QQ==", "SCRAM-SHA-256$x:y$z:w"])
def test_a_malformed_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="SCRAM secret") as caught:
        ScramSecret.parse(text)
    assert "QQ==" not in str(caught.value)


def test_md5_answers_are_those_of_the_documentation() -> None:
    secret = md5_secret("alice", "hush")
    assert md5_secret("alice", secret) == secret
    assert md5_response(secret, b"salt") != md5_response(secret, b"tlas")
    assert len(md5_response(secret, b"salt")) == 35
