"""Random and mutilated bytes against a login as a whole: no crash, no hang, bounded memory, and nobody gets in by it.

The readers that it is made of have fuzz tests of their own: tests/protocol, tests/config, tests/pooler/access.
"""

from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from config.access import Access, read_access
from config.authentication import AuthType
from pooler.access.gate import Gate
from pooler.entrance.login import MAX_EARLY_SIZE
from tests.pooler.house import sent
from tests.pooler.test_login import SECRET, Door
from tests.support.transport import MockTransport
from tests.support.wire import (
    GSSENC_REQUEST,
    SSL_REQUEST,
    Login,
    Message,
    cancel_request,
    message,
    password_message,
    query,
    sasl_initial_response,
    startup,
    terminate,
)

PROVING: Final[tuple[AuthType, ...]] = ("plain", "md5", "scram-sha-256")
quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

texts = st.text(max_size=20)
names = st.sampled_from(["user", "database", "options", "replication", "search_path", "_pq_.x", ""]) | texts
parameters = st.dictionaries(names, st.sampled_from(["alice", "-c=", "-c a=b", "true", "\\"]) | texts, max_size=5)
lengths = st.sampled_from([0, 1, 3, 4, 5, 8, 10_000, 10_005, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
sasl = st.sampled_from(
    [
        b"n,,n=,r=abcdefghijklmnop",
        b"y,,n=alice,r=abcdefghijklmnop",
        b"p=tls-server-end-point,,n=,r=abcdefghijklmnop",
        b"c=biws,r=abcdefghijklmnop,p=" + b"A" * 43 + b"=",
        b"n,,r=,,,",
        b"c=,r=,p=",
    ]
)
packets = st.one_of(
    st.builds(startup, st.fixed_dictionaries({"user": st.sampled_from(["alice", "nobody", ""])}), st.just(196608)),
    st.builds(startup, parameters, st.sampled_from([196608, 196610, 3 << 16 | 9, 2 << 16, 0xFFFFFFFF])),
    st.sampled_from([SSL_REQUEST, GSSENC_REQUEST, cancel_request(1, b"key!"), terminate(), query("SELECT 1")]),
    st.builds(password_message, texts),
    st.builds(sasl_initial_response, st.sampled_from(["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", ""]), sasl),
    st.builds(lambda data: message("p", data), sasl | st.binary(max_size=40)),
    st.builds(lambda kind, length, rest: kind + length.to_bytes(4, "big") + rest, st.binary(max_size=1), lengths, sasl),
    st.binary(max_size=60),
    st.builds(bytes, st.sampled_from([MAX_EARLY_SIZE, 4 * MAX_EARLY_SIZE])),
)


@pytest.mark.parametrize("auth_type", PROVING)
@quick
@given(said=st.lists(packets, min_size=1, max_size=6), cut=st.sampled_from([1, 5, 64, 1 << 20]))
def test_whatever_is_said_nobody_gets_in_by_it(auth_type: AuthType, said: list[bytes], cut: int) -> None:
    door = Door(auth_type)
    login, transport = door.knock()
    data = b"".join(said)
    # Byte by byte where that is not mere repetition.
    step = cut if len(data) < 2000 else max(cut, 1000)
    for at in range(0, len(data), step):
        transport.receive(data[at : at + step])
        assert len(login._buffer) <= MAX_EARLY_SIZE + step
        is_well_formed(sent(transport))
    assert door.joined == []
    leaves_nothing_behind(door, transport)


@pytest.mark.parametrize("auth_type", PROVING)
@quick
@given(data=st.data())
def test_a_login_with_a_wrong_password_fails_however_it_is_mutilated(auth_type: AuthType, data: st.DataObject) -> None:
    door = Door(auth_type)
    _, transport = door.knock()
    driver = Login("alice", SECRET + "!")
    to_say = startup({"user": "alice", "database": "shop"})
    for _ in range(5):
        transport.receive(data.draw(mutilated(to_say)))
        answers = is_well_formed(sent(transport))
        if not answers or answers[-1].kind != "R":
            break
        try:
            to_say = driver.answer(answers[-1])
        except Exception:  # noqa: BLE001 - the driver is confused, and that is not what is tested
            break
    assert door.joined == []
    leaves_nothing_behind(door, transport)


@pytest.mark.parametrize("auth_type", PROVING)
@quick
@given(data=st.data())
def test_a_proof_counts_only_as_it_was_made(auth_type: AuthType, data: st.DataObject) -> None:
    """The right password; but of what proves it, something is changed."""
    door = Door(auth_type)
    _, transport = door.knock()
    driver = Login("alice", SECRET)
    transport.receive(startup({"user": "alice", "database": "shop"}))
    (asked,) = is_well_formed(sent(transport))
    proof = driver.answer(asked)
    if auth_type == "scram-sha-256":
        transport.receive(proof)
        (challenge,) = is_well_formed(sent(transport))
        proof = driver.answer(challenge)
    changed = data.draw(mutilated(proof).filter(lambda it: not it.startswith(proof)))
    transport.receive(changed)
    assert door.joined == []
    leaves_nothing_behind(door, transport)


# fmt: off
WORDS: Final = st.sampled_from([
    "local", "host", "hostssl", "hostnossl", "all", "sameuser", "alice", "+alice", "shop", "samehost", "127.0.0.1/32",
    "0.0.0.0/0", "::1/128", "127.0.0.1", "255.0.0.0", "trust", "reject", "md5", "scram-sha-256", "password", "cert",
    "peer", "map=m", "clientcert=verify-full", "m", "/^(.*)$", "\\1", "#", ",", '"', "include", "\n", "\n", "\n",
    "host\tall\tall\tall\tmd5\n",
])
# fmt: on
files = st.lists(WORDS | st.text(max_size=5), max_size=30).map(" ".join)


@quick
@given(
    users=st.lists(st.sampled_from(['"alice"', '"wr0ng"', '""', '"', "\n", "SCRAM-SHA-256$"]) | texts, max_size=12),
    rules=files,
    maps=files,
)
def test_nobody_gets_in_by_files_that_are_nonsense_unless_a_rule_trusts_them(
    tmp_path_factory: pytest.TempPathFactory, users: list[str], rules: str, maps: str
) -> None:
    directory = tmp_path_factory.getbasetemp()
    paths = [directory / name for name in ("userlist.txt", "pg_hba.conf", "pg_ident.conf")]
    for path, text in zip(paths, (" ".join(users), rules, maps), strict=True):
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    access, mistakes = read_access(*paths)
    assert not any("wr0ng" in str(mistake) for mistake in mistakes if mistake.setting == "auth_file")
    door = Door()
    try:
        gate = Gate("hba", Access({**access.users, "alice": SecretStr(SECRET)}, access.rules, access.maps), 4096)
    except ValueError:
        return  # a malformed secret, which keeps pgfunnel from starting
    door.duties = door.duties._replace(gate=gate)
    _, transport = door.knock()
    driver = Login("alice", "guess")
    transport.receive(startup({"user": "alice", "database": "shop"}))
    while answers := is_well_formed(sent(transport)):
        if answers[-1].kind != "R" or door.joined:
            break
        transport.receive(driver.answer(answers[-1]))
    if not any(rule.method == "trust" for rule in access.rules):
        assert door.joined == []
        leaves_nothing_behind(door, transport)


@st.composite
def mutilated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw bytes that differ from `whole` in one way, or not at all."""
    at = draw(st.integers(0, max(0, len(whole) - 1)))
    bits = draw(st.integers(1, 255))
    more = draw(st.binary(min_size=1, max_size=8))
    return draw(
        st.sampled_from(
            [
                whole,
                whole[:at],
                whole[at:],
                whole + more,
                whole + whole,
                whole[:at] + more + whole[at:],
                whole[:at] + whole[at + 1 :],
                whole[:at] + bytes([(whole[at] if whole else 0) ^ bits]) + whole[at + 1 :],
            ]
        )
    )


def is_well_formed(data: bytes) -> list[Message]:
    """Return the messages that a client is sent; each is whole. A request for encryption is answered by a letter."""
    messages = []
    data = data.lstrip(b"N") if data[:2] != b"N\0" else data
    while data:
        size = int.from_bytes(data[1:5], "big") + 1
        assert 5 <= size <= len(data), data
        messages.append(Message(chr(data[0]), data[5:size]))
        data = data[size:]
    assert all(each.kind in "REvN" for each in messages)
    return messages


def leaves_nothing_behind(door: Door, transport: MockTransport) -> None:
    """Whatever it was, when it is gone it costs nothing, and others are served."""
    for _, done in door.cancels:
        done()
    transport.lose()
    for each in (door.lobby.strangers, door.lobby.queue, door.lobby.proving):
        assert not each
    assert door.lobby.clients == 0
    assert len(door.throttle) == 0
    assert len(door.endings) == 1
