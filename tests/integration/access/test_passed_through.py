"""Logging in through pgfunnel with no list of users at all: passthrough, and the server logins that follow from it."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, VERSIONS, StartPgfunnel, start_postgres
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import ServerError, Wire, password_message, query, startup

NEW: Final = "a new password"
ROLES: Final = ("scram", "md5", "plain")
DIRECT: Final = {"auth_type": "passthrough", "login_failure_delay": 0}


@pytest.fixture(scope="module")
def town() -> Iterator[EmbeddedPostgres]:
    """Start a Postgres whose users' passwords tests may change."""
    with start_postgres(VERSIONS[-1], max_connections="12", superuser_reserved_connections="3") as server:
        yield server


@pytest.fixture(autouse=True)
def same_as_before(town: EmbeddedPostgres) -> Iterator[None]:
    yield
    town.start()
    for role in ROLES:
        give(town, role, PASSWORD)


def give(town: EmbeddedPostgres, role: str, password: str) -> None:
    encryption = "md5" if role == "md5" else "scram-sha-256"
    town.psql(
        f"SET password_encryption = '{encryption}'; ALTER ROLE {role} PASSWORD $${password}$$ VALID UNTIL 'infinity'"
    )


def address(town: EmbeddedPostgres) -> str:
    """Return an upstream URL that names no user."""
    return f"postgresql://{town.host}:{town.port}/postgres"


def attempt(
    pooler: Pgfunnel | EmbeddedPostgres, user: str, password: str, dbname: str = "postgres"
) -> ServerError | None:
    with Wire(pooler.host, pooler.port) as wire:
        try:
            wire.login(user, dbname, password)
        except ServerError as error:
            return error
        return None


def reveals_nothing(pooler: Pgfunnel, town: EmbeddedPostgres) -> bool:
    stored = town.psql("SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL").splitlines()
    shown = "\n".join(pooler.log) + pooler.http("/metrics")[1]
    return not any(secret in shown for secret in [PASSWORD, NEW, "SCRAM-SHA-256$", *stored])


def proofs(pooler: Pgfunnel, outcome: str) -> float:
    return pooler.metric("pgfunnel_passthrough_logins_total", outcome=outcome)


@pytest.mark.parametrize("role", ROLES)
def test_no_list_is_needed_whatever_postgres_asks_for(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres, role: str
) -> None:
    pooler = pgfunnel(address(town), **DIRECT)
    for _ in range(3):
        with psycopg.connect(pooler.url(user=role, password=PASSWORD)) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (role,)
    assert (proofs(pooler, "proven"), proofs(pooler, "remembered")) == (1, 2)
    assert pooler.metric("pgfunnel_server_logins_total") == 1, "the connection that proved it serves"
    assert reveals_nothing(pooler, town)


@pytest.mark.parametrize("role", ROLES)
def test_what_is_remembered_is_enough_for_further_server_logins(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres, role: str
) -> None:
    pooler = pgfunnel(address(town), **DIRECT, server_lifetime=0)
    with pooler.login(role, password=PASSWORD) as wire:
        assert {wire.value("SELECT current_user") for _ in range(3)} == {role}
    assert proofs(pooler, "proven") == 1


@pytest.mark.parametrize(
    ("user", "password", "dbname"),
    [
        ("scram", "wrong", "postgres"),
        ("md5", "wrong", "postgres"),
        ("scram", PASSWORD, "nowhere"),
        ("mallory", PASSWORD, "postgres"),
        ("rejected", PASSWORD, "postgres"),
    ],
)
def test_a_refusal_is_told_in_postgres_words(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres, user: str, password: str, dbname: str
) -> None:
    pooler = pgfunnel(address(town), **DIRECT, server_tls_sslmode="disable")
    own, told = attempt(town, user, password, dbname), attempt(pooler, user, password, dbname)
    assert own is not None
    assert told is not None
    assert (told.sqlstate, told.message, told.severity) == (own.sqlstate, own.message, own.severity)
    assert proofs(pooler, "refused") == 1
    assert reveals_nothing(pooler, town)


def test_where_postgres_asks_for_nothing_nobody_is_let_in(pgfunnel: StartPgfunnel, town: EmbeddedPostgres) -> None:
    pooler = pgfunnel(address(town), **DIRECT)
    refused = attempt(pooler, "alice", "anything")
    assert refused is not None
    assert refused.sqlstate == "28000"
    assert "without asking for one" in refused.message


@pytest.mark.parametrize("role", ROLES)
def test_a_new_password_works_at_once_and_carries_those_who_came_with_the_old_one(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres, role: str
) -> None:
    pooler = pgfunnel(address(town), **DIRECT, server_lifetime=0)
    with pooler.login(role, password=PASSWORD) as old:
        assert old.value("SELECT 1") == "1"
        give(town, role, NEW)
        with pooler.login(role, password=NEW) as new:
            assert new.value("SELECT 2") == "2"
        for _ in range(3):
            assert old.value("SELECT current_user") == role
        eventually(lambda: attempt(pooler, role, NEW) is None)
    assert reveals_nothing(pooler, town)


def test_an_old_password_is_good_no_longer_than_postgres_takes_it_for_a_server_login(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres
) -> None:
    pooler = pgfunnel(address(town), **DIRECT, server_lifetime=0)
    with pooler.login("scram", password=PASSWORD) as wire:
        assert wire.value("SELECT 1") == "1"
        give(town, "scram", NEW)
        wire.send(query("SELECT 2"))
        assert wire.error().sqlstate == "28000", "nobody has brought anything else: it is told to log in anew"
    refused = attempt(pooler, "scram", PASSWORD)
    assert refused is not None, "what was remembered is not believed any more"
    assert refused.sqlstate == "28P01"
    assert attempt(pooler, "scram", NEW) is None


def test_one_clients_token_that_has_run_out_does_not_fail_another(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres
) -> None:
    """As with RDS IAM: each client comes with a token of its own, and those who are in stay in."""
    pooler = pgfunnel(address(town), **DIRECT, server_lifetime=0)
    with ExitStack() as all_of_them:
        clients = []
        for number in range(5):
            token = f"token {number}"
            give(town, "plain", token)  # from now on those before are no good
            clients.append(all_of_them.enter_context(pooler.login("plain", password=token)))
            for client in clients:
                assert client.value("SELECT current_user") == "plain"
    assert not any("token" in line for line in pooler.log)


def test_a_password_whose_time_is_up_is_not_taken_for_longer_than_it_is_remembered(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres
) -> None:
    pooler = pgfunnel(address(town), **DIRECT, passthrough_max_age=1)
    assert attempt(pooler, "scram", PASSWORD) is None
    town.psql("ALTER ROLE scram VALID UNTIL '2001-01-01'")
    eventually(lambda: attempt(pooler, "scram", PASSWORD) is not None)


def test_what_a_client_has_brought_is_kept_for_as_long_as_it_is_there(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres
) -> None:
    pooler = pgfunnel(address(town), **DIRECT, passthrough_max_age=0.2, server_lifetime=0)
    with pooler.login("scram", password=PASSWORD) as wire:
        assert wire.value("SELECT 1") == "1"
        time.sleep(0.5)  # its time is up
        assert wire.value("SELECT 2") == "2"
    assert proofs(pooler, "proven") == 1


def test_clients_wait_while_postgres_has_no_connection_to_spare(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres
) -> None:
    pooler = pgfunnel(address(town), **DIRECT)
    with ExitStack() as others:
        for _ in range(9):
            others.enter_context(psycopg.connect(town.url(user="alice")))
        wire = pooler.connect()
        wire.send(startup({"user": "scram", "database": "postgres"}))
        assert wire.read().kind == "R"
        wire.send(password_message(PASSWORD))
        assert "53300" in pooler.wait_for_log("event=passthrough_waits")
    with wire:
        wire.read_until()
        assert wire.value("SELECT current_user") == "scram"


def test_clients_wait_while_postgres_is_away(pgfunnel: StartPgfunnel, town: EmbeddedPostgres) -> None:
    pooler = pgfunnel(address(town), **DIRECT)
    town.stop()
    with pooler.connect() as wire:
        wire.send(startup({"user": "md5", "database": "postgres"}))
        assert wire.read().kind == "R"
        wire.send(password_message(PASSWORD))
        pooler.wait_for_log("event=passthrough_waits")
        town.start()
        wire.read_until()
        assert wire.value("SELECT current_user") == "md5"


def test_a_storm_of_clients_is_one_login_at_postgres(pgfunnel: StartPgfunnel, town: EmbeddedPostgres) -> None:
    pooler = pgfunnel(address(town), **DIRECT)
    with ExitStack() as storm:
        wires = [storm.enter_context(pooler.connect()) for _ in range(100)]
        for wire in wires:
            wire.send(startup({"user": "scram", "database": "postgres"}))
        for wire in wires:
            wire.authenticate("scram", PASSWORD)
    assert pooler.metric("pgfunnel_server_logins_total") == 1
    assert pooler.metric("pgfunnel_client_logins_total") == 100


@pytest.mark.parametrize(
    ("password", "dbname", "held_back"), [("wrong", "postgres", True), (PASSWORD, "nowhere", False)]
)
def test_a_wrong_password_is_told_after_a_while_and_nothing_else_is(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres, password: str, dbname: str, held_back: bool
) -> None:
    pooler = pgfunnel(address(town), auth_type="passthrough", login_failure_delay=1)
    begin = time.monotonic()
    assert attempt(pooler, "scram", password, dbname) is not None
    assert (time.monotonic() - begin >= 1) is held_back
