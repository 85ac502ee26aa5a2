"""What clients have brought: the newest goes first, and what Postgres has refused goes."""

import pytest
from pydantic import SecretStr

from pooler.credentials.brought import MOST_EACH, MOST_PAIRS, Brought
from pooler.credentials.credential import Password
from pooler.credentials.vault import Vault

OLD, NEW = Password("old token"), Password("new token")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def brought(clock: Clock) -> Brought:
    return Brought(clock)


async def test_one_clients_expired_token_does_not_take_away_anothers(clock: Clock) -> None:
    vault = Vault({}, now=clock)
    vault.learn("alice", "shop", OLD)
    vault.learn("alice", "shop", NEW)
    assert await vault.fetch("alice", "shop") == NEW
    assert await vault.fetch("alice", "shop", refused=NEW) == OLD
    assert await vault.fetch("alice", "shop") == OLD
    vault.learn("alice", "shop", NEW)
    assert await vault.fetch("alice", "shop", refused=OLD) == NEW
    assert await vault.fetch("alice", "shop", refused=NEW) == NEW, "there is nothing else"
    assert await vault.fetch("alice", "shop") is None


def test_what_is_brought_again_is_the_newest(brought: Brought) -> None:
    brought.keep("alice", "shop", OLD)
    brought.keep("alice", "shop", NEW)
    brought.keep("alice", "shop", Password("old token"))
    assert brought.of("alice", "shop") == [OLD, NEW]
    assert brought.of("alice", "other") == []


def test_it_is_kept_beyond_its_time_for_clients_who_are_logged_in(brought: Brought, clock: Clock) -> None:
    brought.keep("alice", "shop", OLD, until=clock() + 60)
    brought.keep("bob", "shop", OLD, until=clock() + 60)
    brought.needed = lambda user, _: user == "alice"
    clock.now += 61
    brought.sweep()
    assert brought.of("alice", "shop") == [OLD]
    assert "bob" not in str(brought._kept)
    brought.needed = lambda _user, _database: False
    brought.sweep()
    assert not brought._kept


def test_endless_tokens_do_not_fill_the_memory(brought: Brought) -> None:
    for number in range(100):
        brought.keep("alice", "shop", Password(f"token {number}"))
    assert brought.of("alice", "shop")[0] == Password("token 99")
    assert len(brought.of("alice", "shop")) == MOST_EACH
    for number in range(MOST_PAIRS + 1):
        brought.keep("bob", f"shop{number}", OLD)
    assert brought.of("alice", "shop") == []
    assert len(brought._kept) == MOST_PAIRS


def test_it_shows_nothing_of_them(brought: Brought) -> None:
    brought.keep("alice", "shop", OLD)
    assert "token" not in repr(brought) + repr(brought._kept)


async def test_what_is_listed_is_no_news(clock: Clock) -> None:
    vault = Vault({"alice": SecretStr("old token")}, now=clock)
    vault.learn("alice", "shop", OLD)
    assert vault.brought.of("alice", "shop") == []


def test_who_names_many_databases_drives_out_nothing_that_others_need(brought: Brought) -> None:
    brought.needed = lambda user, _database: user == "alice"
    brought.keep("alice", "shop", OLD)
    for number in range(MOST_PAIRS + 1):
        brought.keep("mallory", f"database {number}", NEW)
    assert brought.of("alice", "shop") == [OLD]
    assert not brought.of("mallory", "database 0")
    assert brought.of("mallory", f"database {MOST_PAIRS}") == [NEW]
