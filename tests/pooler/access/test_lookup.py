"""How long what Postgres says of a user is good, and what happens while it says nothing."""

import asyncio
import io
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
from pydantic import SecretStr

from config.password_source import FromEnvironment
from config.settings import Settings
from config.tls import SslMode
from config.upstream import Upstream as Url
from pooler.access import lookup as module
from pooler.access.auth_query import CONNECTIONS, AuthQuery, Found, NoAnswerError, Server
from pooler.access.lookup import Lookup
from pooler.access.lookups import Lookups
from pooler.credentials.sourced import SourcedPasswords
from pooler.credentials.vault import Vault
from pooler.figures.tally import Tally
from pooler.log import make_log
from pooler.tls.watched import watch_server_context
from pooler.upstream.dial import ServerTls
from pooler.upstream.opening import Upstream
from protocol.scram import md5_secret
from tests.pooler.access.applicant import Applicant
from tests.support.configuration import current

ABSENT = NoAnswerError("connection refused", for_now=True)
BROKEN = NoAnswerError("42501: permission denied for table pg_authid")


class ScriptedPostgres:
    """Answers from `users`, or fails with `failure`, once it may: `answers` is set."""

    def __init__(self) -> None:
        self.users: dict[str, Found] = {}
        self.failure: NoAnswerError | None = None
        self.stuck: set[str] = set()
        """Users for whom the query fails each time."""
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked: list[str] = []
        self.closed = False

    async def ask(self, user: str) -> Found | None:
        self.asked.append(user)
        await self.answers.wait()
        if user in self.stuck:
            raise ABSENT
        if self.failure is not None:
            raise self.failure
        return self.users.get(user)

    async def close(self) -> None:
        self.closed = True


class House:
    def __init__(self) -> None:
        self.postgres = ScriptedPostgres()
        self.time = 1000.0
        self.printed = io.StringIO()
        log = make_log("text", "debug", self.printed)
        self.tally = Tally()
        self.upstream = Upstream()
        self.lookup = Lookup(self.postgres, "asker", 60.0, self.upstream, self.tally.auth_query, lambda: self.time, log)

    def asked_more_than(self, times: int) -> bool:
        return len(self.postgres.asked) > times

    def begin(self, user: str = "alice") -> "Visit":
        visit = Visit(user)
        self.lookup.find(visit, visit.secrets.append)
        return visit

    async def find(self, user: str = "alice") -> "Visit":
        visit = self.begin(user)
        await until(lambda: bool(visit.secrets or visit.ending))
        return visit


class Visit(Applicant):
    def __init__(self, user: str) -> None:
        super().__init__(user)
        self.secrets: list[str | None] = []


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - whatever it is that becomes true
            await asyncio.sleep(0)


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.0)
    monkeypatch.setattr(module, "LONGEST_RETRY_S", 0.0)
    house = House()
    yield house
    await house.lookup.close()
    assert house.postgres.closed


async def test_an_answer_is_good_for_a_second(house: House) -> None:
    house.postgres.users["alice"] = Found("old")
    assert (await house.find()).secrets == ["old"]
    house.postgres.users["alice"] = Found("new")
    house.time += 0.9
    assert (await house.find()).secrets == ["old"]
    house.time += 0.2
    assert (await house.find()).secrets == ["new"]
    assert house.tally.auth_query == {"found": 2, "remembered": 1, "unknown": 0, "outdated": 0, "failed": 0}


async def test_a_new_password_works_at_once_after_a_failed_login(house: House) -> None:
    house.postgres.users["alice"] = Found("old")
    house.lookup.forget(await house.find())
    house.postgres.users["alice"] = Found("new")
    assert (await house.find()).secrets == ["new"]


async def test_a_user_who_was_made_just_now_gets_in_after_a_failed_login(house: House) -> None:
    visit = await house.find()
    assert visit.secrets == [None]
    house.postgres.users["alice"] = Found("secret")
    assert (await house.find()).secrets == [None]
    house.lookup.forget(visit)
    assert (await house.find()).secrets == ["secret"]


async def test_clients_of_one_user_share_one_question(house: House) -> None:
    house.postgres.users["alice"] = Found("secret")
    house.postgres.answers.clear()
    visits = [house.begin() for _ in range(100)]
    await until(lambda: house.postgres.asked)
    house.postgres.answers.set()
    await until(lambda: all(visit.secrets == ["secret"] for visit in visits))
    assert house.postgres.asked == ["alice"]


async def test_no_more_questions_at_once_than_connections(house: House) -> None:
    house.postgres.answers.clear()
    visits = [house.begin(f"user{number}") for number in range(50)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(house.postgres.asked) == CONNECTIONS
    house.postgres.answers.set()
    await until(lambda: all(visit.secrets == [None] for visit in visits))


async def test_the_one_who_asks_is_not_asked_for(house: House) -> None:
    house.postgres.users["asker"] = Found("secret")
    assert (await house.find("asker")).secrets == [None]
    assert house.postgres.asked == []


async def test_a_password_that_has_run_out_does_not_count_even_if_it_was_fresh(house: House) -> None:
    house.postgres.users["alice"] = Found("secret", lifetime=0.5)
    assert (await house.find()).secrets == ["secret"]
    house.time += 0.6
    assert (await house.find()).secrets == [""]


async def test_clients_wait_while_postgres_is_away(house: House) -> None:
    house.postgres.failure = ABSENT
    visit = house.begin()
    await until(lambda: len(house.postgres.asked) > 10)
    assert not visit.ended
    assert house.upstream.failure == "connection refused", "as clients are told, and /readyz"
    house.postgres.failure = None
    house.postgres.users["alice"] = Found("secret")
    await until(lambda: visit.secrets == ["secret"])
    assert house.printed.getvalue().count("event=auth_query_failed") == 1
    assert house.upstream.failing_since is None
    assert "event=auth_query_recovered" in house.printed.getvalue()


async def test_users_for_whom_the_query_fails_do_not_keep_out_others(house: House) -> None:
    house.postgres.stuck = {f"stuck {number}" for number in range(2 * CONNECTIONS)}
    for user in house.postgres.stuck:
        house.begin(user)
    await until(partial(house.asked_more_than, 10))
    house.postgres.users["alice"] = Found("secret")
    assert (await house.find()).secrets == ["secret"]


async def test_what_was_known_serves_while_postgres_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    house.postgres.users |= {"alice": Found("secret"), "bob": Found("short", lifetime=10)}
    await house.find("alice")
    await house.find("bob")
    house.postgres.failure = ABSENT
    house.time += 59
    assert (await house.find("alice")).secrets == ["secret"]
    assert (await house.find("alice")).secrets == ["secret"]  # while the first question is still open
    for user, seconds in (("bob", 0), ("alice", 2)):  # VALID UNTIL; auth_query_max_age
        house.time += seconds
        visit = house.begin(user)
        asked = len(house.postgres.asked)
        await until(partial(house.asked_more_than, asked + 5))
        assert not visit.secrets
        assert not visit.ended
        visit.ended = True
    assert house.tally.auth_query["outdated"] == 2


async def test_a_wrong_password_while_postgres_is_away_locks_nobody_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    house.postgres.users["alice"] = Found("secret")
    await house.find()
    house.postgres.failure = ABSENT
    house.lookup.forget(Visit("alice"))
    assert (await house.find()).secrets == ["secret"]


async def test_a_query_that_cannot_work_is_told_at_once(house: House) -> None:
    house.postgres.failure = BROKEN
    visit = await house.find()
    assert visit.ending is not None
    assert (visit.ending.sqlstate, visit.ending.reason) == ("08006", "auth_query_failed")
    assert "permission" not in visit.ending.message
    assert "permission denied for table pg_authid" in house.printed.getvalue()
    assert house.tally.auth_query["failed"] == 1


async def test_clients_who_leave_take_their_question_with_them(house: House) -> None:
    house.postgres.failure = ABSENT
    visit = house.begin()
    await until(lambda: house.postgres.asked)
    visit.ended = True
    await until(lambda: not house.lookup._inquiries)
    assert visit.secrets == []


async def test_memory_is_bounded_while_postgres_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 10)
    house.lookup._sweep_at = 10
    house.postgres.answers.clear()
    for number in range(1000):
        house.begin(f"user{number}").ended = True
        await asyncio.sleep(0)
        assert len(house.lookup._inquiries) <= 11


async def test_made_up_names_drive_out_no_answer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 10)
    house.postgres.users["alice"] = Found("secret")
    await house.find()
    for number in range(100):
        await house.find(f"user{number}")
    assert len(house.lookup._unknown) == 10
    assert (await house.find()).secrets == ["secret"]
    assert house.postgres.asked.count("alice") == 1


async def test_secrets_are_not_shown(house: House) -> None:
    house.postgres.users["alice"] = Found("hunter2")
    await house.find()
    house.postgres.failure = BROKEN
    await house.find("bob")
    shown = repr(house.lookup._known) + repr(house.postgres.users) + house.printed.getvalue()
    assert "hunter2" not in shown


# --- as the settings describe it


def lookups_of(settings: Settings, vault: Vault, tls: ServerTls | None) -> Lookups:
    log = make_log("text", "debug", io.StringIO())
    return Lookups(current(settings), vault, Upstream(), lambda: tls, Counter(), time.monotonic, log)


def server_of(
    vault: Vault | None = None,
    tls: ServerTls | None = None,
    *,
    upstream: str = "postgresql://db.example/shop",
    auth_dbname: str = "",
) -> Server:
    given = Settings(upstream=Url.parse(upstream), auth_user="asker", auth_dbname=auth_dbname)
    lookup = lookups_of(given, vault or Vault({}), tls)._lookup("anything")
    assert lookup is not None
    assert isinstance(lookup._query, AuthQuery)
    return lookup._query._server


async def test_without_an_auth_user_nobody_is_looked_up() -> None:
    settings = Settings(upstream="postgresql://db.example/shop")
    assert lookups_of(settings, Vault({}), None)._lookup("shop") is None


@pytest.mark.parametrize(
    ("url", "auth_dbname", "database"),
    [
        ("postgresql://db.example/shop", "", "shop"),
        ("postgresql://db.example/shop", "people", "people"),
        ("postgresql://db.example", "", "asker"),
    ],
)
async def test_the_database_is_that_of_the_settings(url: str, auth_dbname: str, database: str) -> None:
    assert server_of(upstream=url, auth_dbname=auth_dbname).database == database


async def test_its_password_is_asked_for_where_all_others_are() -> None:
    class Desk:
        keeps_s = 60.0
        says = "old"

        async def ask(self, user: str) -> str:
            return self.says

    desk = Desk()
    vault = Vault({}, SourcedPasswords(FromEnvironment("PASSWORD"), desk, "asker", time.monotonic))
    server = server_of(vault)
    assert await server.password(None) == "old"
    desk.says = "rotated"
    assert await server.password(None) == "old"
    assert await server.password("old") == "rotated"
    assert await server_of(Vault({"asker": SecretStr("listed")})).password("listed") == "listed"
    assert await server_of().password(None) == "", "which is enough for trust"


async def test_a_hash_of_its_password_is_not_enough() -> None:
    with pytest.raises(NoAnswerError, match="has to be known in clear"):
        await server_of(Vault({"asker": SecretStr(md5_secret("asker", "hush"))})).password(None)


@pytest.mark.parametrize(
    ("mode", "host", "encrypted"),
    [
        ("allow", "db.example", [False, True]),
        ("prefer", "db.example", [True, False]),
        ("require", "db.example", [True]),
        ("verify-full", "db.example", [True]),
        ("require", "/run/postgresql", [False]),
    ],
)
async def test_it_is_asked_over_tls_as_server_tls_sslmode_says(mode: SslMode, host: str, encrypted: list[bool]) -> None:
    settings = Settings(upstream=f"postgresql://x/shop?host={host}", server_tls_sslmode=mode)
    context = watch_server_context(settings, make_log("text", "debug", io.StringIO()))
    server = server_of(tls=ServerTls(mode, context), upstream=f"postgresql://x/shop?host={host}")
    assert [way.context is context.context for way in server.ways()] == encrypted
    assert [way.context is not None for way in server.ways()] == encrypted
