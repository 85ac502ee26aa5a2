"""What is set for a single database in [databases], or for a single user in [users], holds there and nowhere else."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, CountBackends, StartPgfunnel
from tests.support.console import Console
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import ServerError, Wire, query, startup

Keys = Mapping[str, str | int | float]

EVERYBODY = {"alice": "", "bob": ""}


def toml(tables: Mapping[str, Keys]) -> str:
    """Write tables such as databases.shop, with the values of their keys."""
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines)


@pytest.fixture
def entries(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> StartPgfunnel:
    """Let the test start a pgfunnel with the entry it gives for the database shop, and one for all others."""

    def start(
        shop: Keys | None = None,
        users: Mapping[str, Keys] | None = None,
        **settings: object,
    ) -> Pgfunnel:
        place: Keys = {"host": postgres.host, "port": postgres.port}
        tables = {"databases.shop": {**place, "dbname": "postgres", **(shop or {})}, 'databases."*"': place}
        tables |= {f"users.{name}": keys for name, keys in (users or {}).items()}
        return pgfunnel(toml=toml(tables), userlist=EVERYBODY, **settings)

    return start


def login(pooler: Pgfunnel, user: str = "alice", dbname: str = "shop", password: str = "") -> Wire:
    return pooler.login(user, dbname, password)


def refused(pooler: Pgfunnel, user: str, dbname: str) -> ServerError | None:
    with pooler.connect() as wire:
        try:
            wire.login(user, dbname)
        except ServerError as error:
            return error
    return None


# --- where it is, and who logs in there


def test_a_database_is_where_its_host_and_port_say_under_its_dbname(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    hosts = {"far": postgres.host, "near": str(postgres.socket_dir)}
    entries: dict[str, Keys] = {
        f"databases.{name}": {"host": host, "port": postgres.port, "dbname": "other"} for name, host in hosts.items()
    }
    pooler = pgfunnel(toml=toml(entries), userlist={"postgres": ""})
    where = "SELECT current_database(), inet_server_port()"
    with login(pooler, "postgres", "far") as wire:
        assert wire.rows(where) == [["other", str(postgres.port)]]
    with login(pooler, "postgres", "near") as wire:
        assert wire.rows(where) == [["other", None]]


def test_a_databases_user_and_password_log_in_for_everybody(entries: StartPgfunnel) -> None:
    pooler = entries({"user": "scram", "password": PASSWORD}, default_pool_size=1)
    with login(pooler, "alice") as alice, login(pooler, "bob") as bob:
        who = "SELECT session_user, pg_backend_pid()"
        assert alice.rows(who) == bob.rows(who)
        assert alice.value("SELECT session_user") == "scram"
    with login(pooler, dbname="postgres") as wire:
        assert wire.value("SELECT session_user") == "alice"


def test_a_databases_users_are_looked_up_by_its_own_auth_user_auth_query_and_auth_dbname(
    postgres: EmbeddedPostgres, entries: StartPgfunnel
) -> None:
    asks = "SELECT current_user || current_database() || 's'"
    pooler = entries(
        {"auth_user": "bob", "auth_query": f"{asks} WHERE $1 = 'postgres'", "auth_dbname": "other"}, auth_type="plain"
    )
    for dbname, password in (("postgres", "bobothers"), ("shop", "bobpostgress"), ("shop", "wrong")):
        with pooler.connect() as wire, pytest.raises(ServerError):
            wire.login("postgres", dbname, password)
    with login(pooler, "postgres", password="bobothers") as wire:
        assert wire.value("SELECT session_user") == "postgres"


def test_a_database_without_an_entry_is_forgotten_after_autodb_idle_timeout(entries: StartPgfunnel) -> None:
    pooler = entries(autodb_idle_timeout=0.5, server_idle_timeout=0.5, admin_users="alice")
    with Console(pooler, "alice") as console:
        with login(pooler, dbname="postgres") as wire:
            assert wire.value("SELECT 1") == "1"
            time.sleep(1.5)
            assert console.show("DATABASES", name="postgres") != []  # somebody is there
        eventually(lambda: console.show("DATABASES", name="postgres") == [])
        assert console.show("DATABASES", name="shop") != []


# --- how many


def waits(pooler: Pgfunnel, wire: Wire) -> bool:
    """Its query has to wait for a server connection, which it gets neither at once nor later by itself."""
    wire.send(query("SELECT 1"))
    eventually(lambda: pooler.waiting() == 1)
    time.sleep(0.3)  # nothing tells that nothing happens
    return pooler.waiting() == 1


@pytest.mark.parametrize("whose", ["databases", "users"])
def test_pool_size_holds_for_the_pools_of_a_database_or_a_user(entries: StartPgfunnel, whose: str) -> None:
    own = {"pool_size": 1}
    pooler = entries(own) if whose == "databases" else entries(users={"alice": own})
    with login(pooler) as holder, login(pooler) as other:
        holder.query("BEGIN")
        assert waits(pooler, other)
        with ExitStack() as open_:
            outside = {"dbname": "postgres"} if whose == "databases" else {"user": "bob"}
            for _ in range(2):
                open_.enter_context(login(pooler, **outside)).query("BEGIN")


def test_min_pool_size_holds_for_the_pools_of_a_database(entries: StartPgfunnel, backends: CountBackends) -> None:
    pooler = entries({"min_pool_size": 2})
    with login(pooler, dbname="postgres") as outside, login(pooler) as wire:
        assert outside.value("SELECT 1") == wire.value("SELECT 1") == "1"
        eventually(lambda: backends() == 1 + 2)


def test_min_pool_size_holds_for_a_database_with_a_forced_user_before_anybody_comes(
    entries: StartPgfunnel, backends: CountBackends
) -> None:
    entries({"min_pool_size": 2, "user": "alice"})
    eventually(lambda: backends() == 2)


@pytest.mark.parametrize("whose", ["databases", "users"])
def test_reserve_pool_size_holds_for_the_pools_of_a_database_or_a_user(entries: StartPgfunnel, whose: str) -> None:
    own = {"reserve_pool_size": 1}
    settings = {"default_pool_size": 1, "reserve_pool_timeout": 0.2}
    pooler = entries(own, **settings) if whose == "databases" else entries(users={"alice": own}, **settings)
    outside = {"dbname": "postgres"} if whose == "databases" else {"user": "bob"}
    with login(pooler) as holder, login(pooler) as other:
        holder.query("BEGIN")
        assert other.value("SELECT 1") == "1"
        with login(pooler, **outside) as third, login(pooler, **outside) as fourth:
            third.query("BEGIN")
            assert waits(pooler, fourth)


@pytest.mark.parametrize("whose", ["databases", "users"])
def test_pool_mode_holds_for_the_pools_of_a_database_or_a_user(entries: StartPgfunnel, whose: str) -> None:
    own = {"pool_mode": "session"}
    settings = {"default_pool_size": 1}
    pooler = entries(own, **settings) if whose == "databases" else entries(users={"alice": own}, **settings)
    outside = {"dbname": "postgres"} if whose == "databases" else {"user": "bob"}
    with login(pooler, **outside) as wire, login(pooler, **outside) as other:
        assert wire.value("SELECT 1") == other.value("SELECT 1") == "1"
    with login(pooler) as holder, login(pooler) as other:
        holder.query("SELECT 1")
        assert waits(pooler, other)


def test_max_db_connections_holds_for_all_pools_of_a_database(entries: StartPgfunnel) -> None:
    pooler = entries({"max_db_connections": 1})
    with login(pooler, "alice") as holder, login(pooler, "bob", "postgres") as outside:
        holder.query("BEGIN")
        outside.query("BEGIN")
        with pooler.connect() as other:
            other.send(startup({"user": "bob", "database": "shop"}))
            eventually(lambda: pooler.waiting() == 1)
            holder.query("COMMIT")
            other.authenticate("bob", "")


def test_max_user_connections_holds_for_all_pools_of_a_user(entries: StartPgfunnel) -> None:
    pooler = entries(users={"alice": {"max_user_connections": 1}})
    with login(pooler, "alice") as holder, login(pooler, "bob") as bob, login(pooler, "bob", "postgres") as outside:
        for wire in (holder, bob, outside):
            wire.query("BEGIN")
        with pooler.connect() as other:
            other.send(startup({"user": "alice", "database": "postgres"}))
            eventually(lambda: pooler.waiting() == 1)
            holder.query("COMMIT")
            other.authenticate("alice", "")


@pytest.mark.parametrize(
    ("key", "outside"),
    [("max_db_client_connections", ("alice", "postgres")), ("max_user_client_connections", ("bob", "shop"))],
)
def test_a_client_more_than_every_database_or_user_may_have_waits_for_a_place(
    entries: StartPgfunnel, key: str, outside: tuple[str, str]
) -> None:
    pooler = entries(client_login_timeout=1, **{key: 1})
    with login(pooler), login(pooler, *outside):
        error = refused(pooler, "alice", "shop")
        assert error is not None
        assert error.sqlstate == "53300"
        assert key in error.message
    assert refused(pooler, "alice", "shop") is None


# --- how long


@pytest.mark.parametrize("whose", ["databases", "users"])
def test_query_wait_timeout_holds_for_a_database_or_a_user(entries: StartPgfunnel, whose: str) -> None:
    own = {"query_wait_timeout": 0.5}
    settings = {"default_pool_size": 1}
    pooler = entries(own, **settings) if whose == "databases" else entries(users={"alice": own}, **settings)
    with login(pooler) as holder, login(pooler) as other:
        holder.query("BEGIN")
        other.send(query("SELECT 1"))
        assert "query_wait_timeout" in other.error().message


def test_server_lifetime_holds_for_a_database(entries: StartPgfunnel) -> None:
    pooler = entries({"server_lifetime": 0}, default_pool_size=1)
    for dbname, fresh in (("shop", True), ("postgres", False)):
        with login(pooler, dbname=dbname) as wire:
            seen = {wire.value("SELECT pg_backend_pid()") for _ in range(3)}
            assert (len(seen) == 3) is fresh


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("query_timeout", "SELECT pg_sleep(60)"),
        ("idle_transaction_timeout", "BEGIN"),
        ("transaction_timeout", "BEGIN"),
        ("client_idle_timeout", "SELECT 1"),
    ],
)
def test_a_timeout_holds_for_a_user(entries: StartPgfunnel, key: str, first: str) -> None:
    pooler = entries(users={"alice": {key: 0.5}})
    with login(pooler, "alice") as alice, login(pooler, "bob") as bob:
        if key == "query_timeout":
            bob.send(query("SELECT pg_sleep(1)"))
        else:
            bob.query(first)
        alice.send(query(first))
        assert key in alice.error().message
        if key == "query_timeout":
            assert bob.read_until()[-1].kind == "Z"
        else:
            assert bob.value("SELECT 1") == "1"


# --- what a session begins with


def test_the_parameters_of_a_database_are_those_of_its_servers(
    entries: StartPgfunnel, admin: psycopg.Connection
) -> None:
    own = {
        "client_encoding": "LATIN1",
        "datestyle": "German, DMY",
        "timezone": "Asia/Tokyo",
        "application_name": "the shop",
    }
    pooler = entries(own)
    shown = "SELECT " + ", ".join(f"current_setting('{name}')" for name in own)
    with login(pooler) as wire:
        assert wire.rows(shown) == [list(own.values())]
        assert wire.parameters["TimeZone"] == "Asia/Tokyo"
    with login(pooler, dbname="postgres") as wire:
        assert wire.value("SHOW application_name") == ""


def test_a_user_has_the_password_of_its_entry(entries: StartPgfunnel) -> None:
    pooler = entries(users={"md5": {"password": PASSWORD}}, auth_type="plain")
    with login(pooler, "md5", password=PASSWORD) as wire:
        assert wire.value("SELECT session_user") == "md5"
    with pooler.connect() as wire, pytest.raises(ServerError):
        wire.login("md5", "shop", "wrong")
