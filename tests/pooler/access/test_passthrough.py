"""Whom passthrough lets in: what Postgres is asked, what is remembered of its answer, and who is asked for nothing."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from pooler.access import passthrough as module
from pooler.access.candidate import Candidate, Learnt
from pooler.access.passthrough import MOST_PROOFS, Passthrough
from pooler.credentials.brought import MOST_EACH, Brought
from pooler.credentials.credential import Credential, Password
from pooler.figures.tally import Tally
from pooler.log import make_log
from pooler.reasons import Ending, Reason
from pooler.upstream.connect import Login, LoginRefusedError
from pooler.upstream.dial import ConnectFailedError
from protocol.messages import TERMINATE, ErrorFields
from protocol.scram import AuthenticationFailedError, ScramKeys
from tests.pooler.access.applicant import Applicant
from tests.support.transport import MockTransport

WRONG = LoginRefusedError(ErrorFields("FATAL", "28P01", 'password authentication failed for user "alice"'))
FULL = ConnectFailedError(Reason.SERVER_CONNECT_FAILED, "FATAL 53300: sorry, too many clients already")


class ScriptedPostgres:
    """Takes the passwords that it is told to, once it answers."""

    def __init__(self) -> None:
        self.takes = {"hush"}
        self.failure: ConnectFailedError | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.asks_for_scram = True
        self.trusts = False
        self.asked: list[str] = []
        self.adopted: list[Login] = []
        self.transport = MockTransport()

    async def prove(self, user: str, database: str, password: Password, *, physical: bool = False) -> Login:
        self.asked.append(password.text)
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        if password.text not in self.takes:
            raise WRONG
        proof: Credential | None = password
        if self.asks_for_scram:
            proof = ScramKeys.of_password(password.text, b"salt", 1)
        return Login(self.transport, b"key", {}, None if self.trusts else proof)

    def adopt(self, user: str, database: str, login: Login) -> None:
        self.adopted.append(login)


class Judge:
    def accept(self, candidate: Candidate, out: bytes = b"", learnt: Learnt | None = None) -> None:
        candidate.let_in(out)

    def reject(self, candidate: Candidate, why: str) -> None:
        candidate.refuse(Ending(Reason.LOGIN_FAILED, "28P01", why))

    def refuse(self, candidate: Candidate, ending: Ending) -> None:
        candidate.refuse(ending)


class House:
    def __init__(self) -> None:
        self.postgres = ScriptedPostgres()
        self.time = 1000.0
        self.brought = Brought(lambda: self.time)
        self.tally = Tally()
        self.printed = io.StringIO()
        self.passthrough = self.new()

    def new(self, *, max_age: float = 300.0, cleartext: bool = False) -> Passthrough:
        return Passthrough(
            self.postgres,
            self.brought,
            max_age=max_age,
            cleartext=cleartext,
            outcomes=self.tally.passthrough,
            now=lambda: self.time,
            log=make_log("text", "debug", self.printed),
        )

    def knock(self, password: str = "hush", user: str = "alice", database: str = "shop") -> Applicant:
        applicant = Applicant(user, database)
        self.passthrough.begin(Judge(), applicant)
        assert applicant.proof is not None
        assert applicant.proof.answer(password.encode() + b"\0") is None
        return applicant

    async def enter(self, password: str = "hush", user: str = "alice", database: str = "shop") -> Applicant:
        applicant = self.knock(password, user, database)
        await until(lambda: applicant.ended)
        return applicant


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - whatever it is that becomes true
            await asyncio.sleep(0)


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.0)
    house = House()
    yield house
    await house.passthrough.close()


async def test_postgres_is_asked_once_for_a_while(house: House) -> None:
    assert (await house.enter()).is_in
    assert (await house.enter()).is_in
    house.time += 299
    assert (await house.enter()).is_in
    assert house.postgres.asked == ["hush"]
    house.time += 2
    assert (await house.enter()).is_in
    assert house.postgres.asked == ["hush"] * 2
    assert house.tally.passthrough == {"proven": 2, "remembered": 2, "refused": 0}
    assert len(house.postgres.adopted) == 2, "the connections are not wasted"


@pytest.mark.parametrize(("user", "database"), [("bob", "shop"), ("alice", "other")])
async def test_what_is_remembered_is_of_one_user_at_one_database(house: House, user: str, database: str) -> None:
    await house.enter()
    await house.enter("hush", user, database)
    assert len(house.postgres.asked) == 2


async def test_a_wrong_password_is_told_in_postgres_words(house: House) -> None:
    await house.enter()
    refused = await house.enter("wrong")
    assert refused.ending == Ending(Reason.LOGIN_FAILED, "28P01", 'password authentication failed for user "alice"')
    assert (await house.enter("wrong")).ending is not None, "each is asked for"
    assert house.postgres.asked == ["hush", "wrong", "wrong"]


async def test_clients_with_the_same_password_share_one_proof(house: House) -> None:
    house.postgres.answers.clear()
    applicants = [house.knock() for _ in range(100)]
    await until(lambda: house.postgres.asked)
    house.postgres.answers.set()
    await until(lambda: all(applicant.is_in for applicant in applicants))
    assert house.postgres.asked == ["hush"]


async def test_no_more_than_a_few_proofs_at_once(house: House) -> None:
    house.postgres.answers.clear()
    applicants = [house.knock(f"password {number}") for number in range(50)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert house.postgres.asked == [f"password {number}" for number in range(MOST_PROOFS)]
    house.postgres.answers.set()
    await until(lambda: all(applicant.ended for applicant in applicants))
    assert house.postgres.asked == [f"password {number}" for number in range(50)], "in order of arrival"


async def test_clients_wait_while_postgres_has_no_connection_to_spare(house: House) -> None:
    house.postgres.failure = FULL
    applicant = house.knock()
    await until(lambda: len(house.postgres.asked) > 5)
    assert not applicant.ended
    house.postgres.failure = None
    await until(lambda: applicant.is_in)
    assert house.printed.getvalue().count("event=passthrough_waits") == 1


async def test_nobody_is_asked_for_who_has_left(house: House) -> None:
    house.postgres.failure = FULL
    applicant = house.knock()
    await until(lambda: house.postgres.asked)
    applicant.ended = True
    await until(lambda: not house.passthrough._attempts)


async def test_memory_is_bounded_while_postgres_does_not_answer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PAIRS", 10)
    house.passthrough._sweep_at = 10
    house.postgres.answers.clear()
    for number in range(1000):
        house.knock(f"password {number}").ended = True
        await asyncio.sleep(0)
        assert len(house.passthrough._attempts) <= 11


async def test_a_password_whose_credential_postgres_refuses_later_is_proven_anew(house: House) -> None:
    await house.enter()
    (credential,) = house.brought.of("alice", "shop")
    house.brought.drop("alice", "shop", credential)
    house.postgres.takes = {"rotated"}
    assert not (await house.enter()).is_in
    assert (await house.enter("rotated")).is_in


async def test_tokens_of_several_clients_are_good_side_by_side(house: House) -> None:
    house.postgres.asks_for_scram = False
    house.postgres.takes = {"token 1", "token 2"}
    for _ in range(3):
        assert (await house.enter("token 1")).is_in
        assert (await house.enter("token 2")).is_in
    assert house.postgres.asked == ["token 1", "token 2"]
    assert house.brought.of("alice", "shop") == [Password("token 2"), Password("token 1")]


async def test_with_no_age_every_password_is_proven(house: House) -> None:
    house.passthrough = house.new(max_age=0)
    assert (await house.enter()).is_in
    assert (await house.enter()).is_in
    assert house.postgres.asked == ["hush"] * 2


async def test_a_postgres_that_asks_for_nothing_proves_nothing(house: House) -> None:
    house.postgres.trusts = True
    applicant = await house.enter()
    assert applicant.ending is not None
    assert (applicant.ending.sqlstate, applicant.ending.reason) == ("28000", Reason.LOGIN_REFUSED)
    assert house.postgres.transport.closing
    assert house.postgres.transport.sent == TERMINATE
    assert not house.postgres.adopted


@pytest.mark.parametrize("payload", [b"", b"\0", b"no end", b"a zero\0 byte\0"])
async def test_what_is_no_password_is_not_passed_on(house: House, payload: bytes) -> None:
    applicant = Applicant()
    house.passthrough.begin(Judge(), applicant)
    assert applicant.proof is not None
    with pytest.raises(AuthenticationFailedError):
        applicant.proof.answer(payload)
    assert house.postgres.asked == []


class Connection(MockTransport):
    def __init__(self, peer: object, family: int = socket.AF_INET) -> None:
        super().__init__()
        self.about = {"peername": peer, "socket": socket.socket(family)}

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.about.get(name, default)


@pytest.mark.parametrize(
    ("peer", "asked"),
    [
        (("127.0.0.1", 5000), True),
        (("127.8.9.10", 5000), True),
        (("::1", 5000, 0, 0), True),
        (("::ffff:127.0.0.1", 5000, 0, 0), True),
        (("10.0.0.1", 5000), False),
        (("::ffff:10.0.0.1", 5000, 0, 0), False),
        (("fe80::1%eth0", 5000, 0, 2), False),
        ("", True),
        (None, False),
    ],
)
async def test_a_password_is_asked_for_only_where_nobody_can_read_it(house: House, peer: object, asked: bool) -> None:
    connection = Connection(peer, socket.AF_UNIX if peer == "" else socket.AF_INET)
    for cleartext in (False, True):
        applicant = Applicant()
        applicant.transport = connection
        house.new(cleartext=cleartext).begin(Judge(), applicant)
        assert (applicant.proof is not None) is (asked or cleartext)
        if applicant.ending is not None:
            assert (applicant.ending.sqlstate, bool(applicant.ending.hint)) == ("28000", True)
    connection.about["socket"].close()  # type: ignore[attr-defined]


async def test_the_password_itself_is_not_kept_where_scram_keys_will_do(house: House) -> None:
    await house.enter()
    (credential,) = house.brought.of("alice", "shop")
    assert isinstance(credential, ScramKeys)
    ((memory,),) = house.passthrough._memories.values()
    assert "hush" not in str(tuple(memory))
    shown = repr(house.passthrough._memories) + repr(house.brought._kept) + repr(house.knock("other").proof)
    shown += repr(house.passthrough._attempts) + house.printed.getvalue()
    for secret in ("hush", "other", repr(credential.client_key)):
        assert secret not in shown


async def test_what_has_run_out_is_forgotten(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.0)
    await house.enter()
    await asyncio.sleep(0)
    assert house.passthrough._memories
    house.time += 301
    await until(lambda: not house.passthrough._memories)
    assert not house.brought._kept


async def test_endless_passwords_and_databases_do_not_fill_the_memory(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PAIRS", 10)
    house.postgres.takes = {f"token {number}" for number in range(100)}
    for number in range(100):
        await house.enter(f"token {number}")
        await house.enter("token 1", database=f"shop{number}")
    assert len(house.passthrough._memories) == 10
    assert max(map(len, house.passthrough._memories.values())) <= MOST_EACH


@pytest.mark.parametrize("text", ["md5" + 32 * "a", "md5" + 32 * "0"])
async def test_the_hash_of_a_password_does_not_pass_for_the_password(house: House, text: str) -> None:
    house.postgres.takes.add(text)
    with pytest.raises(AuthenticationFailedError, match="the hash of a password"):
        house.knock(text)
    assert house.postgres.asked == []
