"""What the vault gives for a login at Postgres, and when it asks a source again."""

import asyncio
from math import inf

import pytest
from pydantic import SecretStr

from config.password_source import FromEnvironment
from pooler.credentials import sourced
from pooler.credentials.brought import MOST_PAIRS
from pooler.credentials.credential import Credential, Md5Hash, Password
from pooler.credentials.source import SourceFailedError
from pooler.credentials.sourced import SourcedPasswords
from pooler.credentials.vault import Vault
from protocol.scram import ScramKeys, ScramSecret, md5_secret

SALT = b"salt"
KEYS = ScramKeys.of_password("hush", SALT, 1)
NAMED = FromEnvironment("DB_PASSWORD")
MD5 = md5_secret("alice", "hush")
SCRAM = "SCRAM-SHA-256$4096:c2FsdA==$" + ":".join(["QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="] * 2)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A source that says what the test has written down."""

    def __init__(self, says: str, keeps_s: float = inf) -> None:
        self.says = says
        self.keeps_s = keeps_s
        self.asked: list[str] = []

    async def ask(self, user: str) -> str:
        self.asked.append(user)
        await asyncio.sleep(0)
        if not self.says:
            raise SourceFailedError(NAMED, "it is closed")
        return self.says


@pytest.fixture
def clock() -> Clock:
    return Clock()


def vault(clock: Clock, desk: Desk | None = None, only_user: str | None = None, **secrets: str) -> Vault:
    asked = SourcedPasswords(NAMED, desk, only_user, clock) if desk is not None else None
    return Vault({user: SecretStr(secret) for user, secret in secrets.items()}, asked, clock)


async def test_who_is_listed_logs_in_with_that(clock: Clock) -> None:
    known = vault(clock, alice="hush", bob=MD5, carol=SCRAM, dave="")
    assert await known.fetch("alice", "shop") == Password("hush")
    assert await known.fetch("bob", "shop") == Md5Hash(MD5)
    assert isinstance(await known.fetch("carol", "shop"), ScramSecret)
    assert await known.fetch("dave", "shop") is None
    assert await known.fetch("eve", "shop") is None


async def test_the_keys_that_a_client_has_brought_go_before_the_secret_they_were_checked_against(clock: Clock) -> None:
    known = vault(clock, alice=SCRAM, bob="listed")
    known.learn("alice", "shop", KEYS)
    known.learn("bob", "shop", KEYS)
    assert await known.fetch("alice", "shop") == KEYS
    assert isinstance(await known.fetch("alice", "other"), ScramSecret), (
        "pg_hba.conf may ask for another password there"
    )
    assert await known.fetch("bob", "shop") == Password("listed")


async def test_what_clients_bring_counts_for_as_long_as_was_said(clock: Clock) -> None:
    known = vault(clock)
    known.learn("alice", "shop", Password("token 1"), until=clock() + 60)
    known.learn("alice", "shop", Password("token 2"), until=clock() + 600)
    clock.now += 100
    assert await known.fetch("alice", "shop") == Password("token 2")
    clock.now += 500
    assert await known.fetch("alice", "shop") is None
    known.learn("alice", "shop", KEYS)
    known.forget("alice", "shop")
    assert await known.fetch("alice", "shop") is None


async def test_endless_names_of_databases_do_not_fill_the_memory(clock: Clock) -> None:
    known = vault(clock)
    for number in range(MOST_PAIRS + 1):
        known.learn("alice", f"shop{number}", KEYS)
    assert known.credential("alice", "shop0") is None
    assert known.credential("alice", f"shop{MOST_PAIRS}") is KEYS


async def test_after_a_refusal_whatever_else_is_known_is_tried(clock: Clock) -> None:
    known = vault(clock, alice="old")
    assert await known.fetch("alice", "shop", Password("old")) == Password("old")
    known.learn("alice", "shop", Password("new"))
    assert await known.fetch("alice", "shop", Password("old")) == Password("new")


async def test_a_source_is_asked_for_the_user_that_the_url_names(clock: Clock) -> None:
    desk = Desk("from the desk")
    known = vault(clock, desk, "alice", alice="listed", bob="his own")
    assert await known.fetch("alice", "shop") == Password("from the desk")
    assert await known.fetch("bob", "shop") == Password("his own")
    assert await known.fetch("carol", "shop") is None
    assert desk.asked == ["alice"]


async def test_if_the_url_names_nobody_a_source_is_asked_for_whoever_is_not_listed(clock: Clock) -> None:
    desk = Desk("from the desk")
    known = vault(clock, desk, alice="listed")
    assert await known.fetch("alice", "shop") == Password("listed")
    assert await known.fetch("bob", "shop") == Password("from the desk")
    assert desk.asked == ["bob"]


async def test_a_crowd_of_logins_asks_once(clock: Clock) -> None:
    desk = Desk("hush")
    known = vault(clock, desk)
    first, *rest = await asyncio.gather(*(known.fetch("alice", "shop") for _ in range(20)))
    assert all(each is first for each in rest), "with the SCRAM keys that are derived from it"
    assert desk.asked == ["alice"]


async def test_an_answer_is_good_for_as_long_as_its_source_says(clock: Clock) -> None:
    desk = Desk("token 1", keeps_s=600)
    known = vault(clock, desk)
    await known.fetch("alice", "shop")
    desk.says = "token 2"
    clock.now += 599
    assert await known.fetch("alice", "shop") == Password("token 1")
    clock.now += 1
    assert await known.fetch("alice", "shop") == Password("token 2")


async def test_what_costs_nothing_is_asked_each_time(clock: Clock) -> None:
    desk = Desk("old", keeps_s=0)
    known = vault(clock, desk)
    old = await known.fetch("alice", "shop")
    assert await known.fetch("alice", "shop") is old
    desk.says = "new"
    assert await known.fetch("alice", "shop") == Password("new")


async def test_a_crowd_of_refusals_asks_once_more(clock: Clock) -> None:
    desk = Desk("old")
    known = vault(clock, desk)
    refused = await known.fetch("alice", "shop")
    desk.says = "rotated"
    answers = await asyncio.gather(*(known.fetch("alice", "shop", refused) for _ in range(20)))
    assert answers == [Password("rotated")] * 20
    assert len(desk.asked) == 2


async def test_a_source_that_is_wrong_is_asked_every_few_seconds(clock: Clock) -> None:
    desk = Desk("wrong")
    known = vault(clock, desk)
    refused: Credential | None = await known.fetch("alice", "shop")
    for _ in range(20):
        refused = await known.fetch("alice", "shop", refused)
    assert len(desk.asked) == 2
    clock.now += sourced.PAUSE_S
    await known.fetch("alice", "shop", refused)
    assert len(desk.asked) == 3


async def test_a_source_that_fails_is_named_and_asked_again_by_the_next(clock: Clock) -> None:
    desk = Desk("")
    known = vault(clock, desk)
    with pytest.raises(SourceFailedError, match="server_password_source env:DB_PASSWORD: it is closed"):
        await known.fetch("alice", "shop")
    desk.says = "hush"
    assert await known.fetch("alice", "shop") == Password("hush")


async def test_a_source_that_does_not_answer_is_given_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sourced, "ASK_S", 0.01)

    class Closed(Desk):
        async def ask(self, user: str) -> str:
            await asyncio.get_running_loop().create_future()
            return ""

    with pytest.raises(SourceFailedError, match=r"has not answered within 0\.01 s"):
        await vault(clock, Closed("")).fetch("alice", "shop")


async def test_a_reload_takes_the_new_list_and_asks_anew(clock: Clock) -> None:
    desk = Desk("old")
    known = vault(clock, desk, "alice", bob="1", carol="same")
    await known.fetch("alice", "shop")
    carols = await known.fetch("carol", "shop")
    desk.says = "new"
    known.reload({"bob": SecretStr("2"), "carol": SecretStr("same")})
    assert await known.fetch("alice", "shop") == Password("new")
    assert await known.fetch("bob", "shop") == Password("2")
    assert await known.fetch("carol", "shop") is carols, "with the SCRAM keys that were derived from it"


def test_a_malformed_secret_in_a_new_list_leaves_the_old_one(clock: Clock) -> None:
    known = vault(clock, alice="hush")
    with pytest.raises(ValueError, match='the secret of user "bob" is a malformed SCRAM secret'):
        known.reload({"alice": SecretStr("other"), "bob": SecretStr("SCRAM-SHA-256$secret")})
    assert known.credential("alice", "shop") == Password("hush")


async def test_a_passwords_keys_are_derived_once_for_each_salt() -> None:
    password = Password("hush")
    first = await password.keys(SALT, 4096)
    assert first == ScramKeys.of_password("hush", SALT, 4096)
    assert await password.keys(SALT, 4096) is first
    assert await password.keys(b"other", 4096) != first


@pytest.mark.parametrize(
    "credential", [Password("hush"), Md5Hash("hush"), KEYS, ScramSecret.of_password("hush", SALT, 1)]
)
def test_no_credential_shows_what_it_is(credential: Credential) -> None:
    shown = f"{credential!r} {credential!s} {[credential]}"
    assert "hush" not in shown
    assert "\\x" not in shown
