"""What is set for a single database in [databases], or for a single user in [users], holds there and nowhere else."""

import json
import time
from collections.abc import Iterator, Mapping

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, StartPgfunnel
from tests.support.console import Console
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import ServerError, Wire, query, startup

Keys = Mapping[str, str | int | float]

DRESS: Keys = {
    "client_encoding": "LATIN1",
    "datestyle": "German, DMY",
    "timezone": "Asia/Tokyo",
    "application_name": "the shop",
}
DATABASES: Mapping[str, Keys] = {
    "plain": {},
    "elsewhere": {"dbname": "other"},
    "forced": {"user": "scram", "password": PASSWORD},
    "sized": {"pool_size": 1},
    "minimal": {"min_pool_size": 2},
    "ahead": {"min_pool_size": 2, "user": "ahead"},
    "reserved": {"pool_size": 1, "reserve_pool_size": 1},
    "sessions": {"pool_size": 1, "pool_mode": "session"},
    "capped": {"max_db_connections": 1},
    "hasty": {"pool_size": 1, "query_wait_timeout": 0.5},
    "fresh": {"pool_size": 1, "server_lifetime": 0},
    "dressed": DRESS,
}
USERS: Mapping[str, Keys] = {
    "ahead": {},
    "minimal": {},
    "sized": {"pool_size": 1},
    "reserved": {"pool_size": 1, "reserve_pool_size": 1},
    "sessions": {"pool_size": 1, "pool_mode": "session"},
    "capped": {"max_user_connections": 1},
    "hasty": {"pool_size": 1, "query_wait_timeout": 0.5},
    "slow": {"query_timeout": 0.5},
    "pensive": {"idle_transaction_timeout": 0.5},
    "long": {"transaction_timeout": 0.5},
    "lazy": {"client_idle_timeout": 0.5},
}
EVERYBODY = dict.fromkeys(("postgres", "alice", *USERS), "")


def toml(postgres: EmbeddedPostgres, databases: Mapping[str, Keys], users: Mapping[str, Keys]) -> str:
    place: Keys = {"host": postgres.host, "port": postgres.port, "dbname": "postgres"}
    tables = {f"databases.{name}": {**place, **keys} for name, keys in databases.items()}
    tables |= {f"users.{name}": dict(keys) for name, keys in users.items() if keys}
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def pooler(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    """Start one with all DATABASES and USERS."""
    postgres.psql("".join(f"CREATE ROLE {name} LOGIN;" for name in USERS))
    near: Keys = {"host": str(postgres.socket_dir), "dbname": "other"}
    text = toml(postgres, {**DATABASES, "near": near}, USERS)
    with Pgfunnel(toml=text, userlist=EVERYBODY, reserve_pool_timeout=0.2) as pooler:
        yield pooler
    postgres.psql("".join(f"DROP ROLE {name};" for name in USERS))


def login(pooler: Pgfunnel, name: str = "plain", user: str = "alice") -> Wire:
    return pooler.login(user, name)


def own(pooler: Pgfunnel, name: str, whose: str) -> Wire:
    """Log in at the database of that name, or as the user."""
    return login(pooler, name) if whose == "databases" else login(pooler, user=name)


def waits(pooler: Pgfunnel) -> bool:
    """A client waits for a server connection, and gets none by itself."""
    eventually(lambda: pooler.waiting() == 1)
    time.sleep(0.3)  # nothing tells that nothing happens
    return pooler.waiting() == 1


both = pytest.mark.parametrize("whose", ["databases", "users"])


# --- where it is, and who logs in there


def test_a_database_is_where_its_host_and_port_say_under_its_dbname(
    pooler: Pgfunnel, postgres: EmbeddedPostgres
) -> None:
    where = "SELECT current_database(), inet_server_port()"
    for name, port in (("elsewhere", str(postgres.port)), ("near", None)):
        with login(pooler, name, "postgres") as wire:
            assert wire.rows(where) == [["other", port]]


def test_a_databases_user_and_password_log_in_for_everybody(pooler: Pgfunnel) -> None:
    with login(pooler, "forced") as one, login(pooler, "forced", "sized") as other:
        who = "SELECT session_user, pg_backend_pid()"
        assert one.rows(who) == other.rows(who)
        assert one.value("SELECT session_user") == "scram"


# --- how many


@both
def test_pool_size_holds_for_the_pools_of_a_database_or_a_user(pooler: Pgfunnel, whose: str) -> None:
    with own(pooler, "sized", whose) as holder, own(pooler, "sized", whose) as other:
        holder.query("BEGIN")
        other.send(query("SELECT 1"))
        assert waits(pooler)


def test_min_pool_size_holds_for_the_pools_of_a_database(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with login(pooler, "minimal", "minimal") as wire:
        assert wire.value("SELECT 1") == "1"
        eventually(lambda: servers_of("minimal", admin) == 2)


def test_min_pool_size_holds_for_a_database_with_a_forced_user_before_anybody_comes(
    pooler: Pgfunnel, admin: psycopg.Connection
) -> None:
    eventually(lambda: servers_of("ahead", admin) == 2)


def servers_of(user: str, admin: psycopg.Connection) -> int:
    row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [user]).fetchone()
    assert row is not None
    return int(row[0])


@both
def test_reserve_pool_size_holds_for_the_pools_of_a_database_or_a_user(pooler: Pgfunnel, whose: str) -> None:
    with own(pooler, "reserved", whose) as holder, own(pooler, "reserved", whose) as other:
        holder.query("BEGIN")
        assert other.value("SELECT 1") == "1"


@both
def test_pool_mode_holds_for_the_pools_of_a_database_or_a_user(pooler: Pgfunnel, whose: str) -> None:
    with own(pooler, "sessions", whose) as holder, own(pooler, "sessions", whose) as other:
        holder.query("SELECT 1")
        other.send(query("SELECT 1"))
        assert waits(pooler)


def test_max_db_connections_holds_for_all_pools_of_a_database(pooler: Pgfunnel) -> None:
    with login(pooler, "capped") as holder, pooler.connect() as other:
        holder.query("BEGIN")
        other.send(startup({"user": "sized", "database": "capped"}))
        assert waits(pooler)


def test_max_user_connections_holds_for_all_pools_of_a_user(pooler: Pgfunnel) -> None:
    with login(pooler, user="capped") as holder, pooler.connect() as other:
        holder.query("BEGIN")
        other.send(startup({"user": "capped", "database": "elsewhere"}))
        assert waits(pooler)


def test_nothing_of_all_that_holds_for_others(pooler: Pgfunnel) -> None:
    with login(pooler) as one, login(pooler) as other, login(pooler) as third:
        for wire in (one, other):
            assert wire.query("BEGIN")[-1].payload == b"T"
        asks = "SELECT session_user, current_setting('timezone') = 'Asia/Tokyo', pg_backend_pid()"
        first = third.rows(asks)
        assert first[0][:2] == ["alice", "f"]
        time.sleep(1)  # twice the timeouts of others
        assert third.rows(asks) == first
        assert one.query("COMMIT")[-1].payload == other.query("COMMIT")[-1].payload == b"I"


@pytest.mark.parametrize(
    ("key", "outside"),
    [("max_db_client_connections", ("alice", "postgres")), ("max_user_client_connections", ("postgres", "plain"))],
)
def test_a_client_more_than_every_database_or_user_may_have_waits_for_a_place(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, key: str, outside: tuple[str, str]
) -> None:
    text = toml(postgres, {"plain": {}, "postgres": {}}, {})
    pooler = pgfunnel(toml=text, userlist=EVERYBODY, client_login_timeout=1, **{key: 1})
    with login(pooler), pooler.login(*outside), pooler.connect() as late:
        late.send(startup({"user": "alice", "database": "plain"}))
        error = late.error()
        assert error.sqlstate == "53300"
        assert key in error.message
    with login(pooler) as wire:
        assert wire.value("SELECT 1") == "1"


def test_a_database_without_an_entry_is_forgotten_after_autodb_idle_timeout(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    text = toml(postgres, {"plain": {}, '"*"': {}}, {})
    times = {"autodb_idle_timeout": 0.5, "server_idle_timeout": 0.5}
    pooler = pgfunnel(toml=text, userlist=EVERYBODY, admin_users="alice", **times)
    with Console(pooler, "alice") as console:
        with login(pooler, "unknown") as wire:
            assert wire.value("SELECT 1") == "1"
            time.sleep(1.5)
            assert console.show("DATABASES", name="unknown") != []  # somebody is there
        eventually(lambda: console.show("DATABASES", name="unknown") == [])
        assert console.show("DATABASES", name="plain") != []


# --- how long


@both
def test_query_wait_timeout_holds_for_a_database_or_a_user(pooler: Pgfunnel, whose: str) -> None:
    with own(pooler, "hasty", whose) as holder, own(pooler, "hasty", whose) as other:
        holder.query("BEGIN")
        other.send(query("SELECT 1"))
        assert "query_wait_timeout" in other.error().message


def test_server_lifetime_holds_for_a_database(pooler: Pgfunnel) -> None:
    with login(pooler, "fresh") as wire:
        assert len({wire.value("SELECT pg_backend_pid()") for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("key", "user", "first"),
    [
        ("query_timeout", "slow", "SELECT pg_sleep(60)"),
        ("idle_transaction_timeout", "pensive", "BEGIN"),
        ("transaction_timeout", "long", "BEGIN"),
        ("client_idle_timeout", "lazy", "SELECT 1"),
    ],
)
def test_a_timeout_holds_for_a_user(pooler: Pgfunnel, key: str, user: str, first: str) -> None:
    assert key in USERS[user]
    with login(pooler, user=user) as wire:
        wire.send(query(first))
        assert key in wire.error().message


# --- what a session begins with


def test_the_parameters_of_a_database_are_those_of_its_servers(pooler: Pgfunnel) -> None:
    """client_encoding, datestyle, timezone and application_name."""
    with login(pooler, "dressed") as wire:
        shown = ", ".join(f"current_setting('{name}')" for name in DRESS)
        assert wire.rows(f"SELECT {shown}") == [list(DRESS.values())]
        assert wire.parameters["TimeZone"] == "Asia/Tokyo"


# --- who may log in


@pytest.fixture(scope="module")
def asking(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    """Start one that asks for passwords."""
    looked_up: Keys = {
        "auth_user": "bob",
        "auth_query": "SELECT current_user || current_database() || 's' WHERE $1 = 'postgres'",
        "auth_dbname": "other",
    }
    databases: dict[str, Keys] = {"plain": {}, "other": {"dbname": "other"}, "shop": looked_up}
    text = toml(postgres, databases, {"md5": {"password": PASSWORD}})
    with Pgfunnel(toml=text, userlist={"bob": ""}, auth_type="plain") as asking:
        yield asking


def lets_in(asking: Pgfunnel, user: str, dbname: str, password: str) -> bool:
    with asking.connect() as wire:
        try:
            wire.login(user, dbname, password)
        except ServerError:
            return False
        return wire.value("SELECT session_user") == user


def test_a_databases_users_are_looked_up_by_its_own_auth_user_auth_query_and_auth_dbname(asking: Pgfunnel) -> None:
    assert lets_in(asking, "postgres", "shop", "bobothers")
    for dbname, password in (("plain", "bobothers"), ("shop", "bobpostgress"), ("shop", "wrong")):
        assert not lets_in(asking, "postgres", dbname, password)


def test_a_user_has_the_password_of_its_entry(asking: Pgfunnel) -> None:
    assert lets_in(asking, "md5", "plain", PASSWORD)
    assert not lets_in(asking, "md5", "plain", "wrong")
