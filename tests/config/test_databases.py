"""What is set for single databases, users and peers, in either form."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from config import databases, ini
from config.databases import Database, Directory, Peer, User
from config.ini import Ini, Item, Place
from config.percent import Percent


def an_ini(text: str) -> Ini:
    """Return what a file of that text says, without a file: [section] and name = value, one on each line."""
    result, section = Ini(), ""
    for number, line in enumerate(text.strip().splitlines(), start=1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals:
            result.sections[section][name] = Item(name, value, Place("p.ini", number))
        else:
            section = name.strip("[]")
    return result


def from_ini(text: str) -> Directory:
    directory, mistakes = databases.from_ini(an_ini(text))
    assert mistakes == []
    return directory


def from_toml(text: str) -> Directory:
    directory, mistakes = databases.from_toml(tomllib.loads(text), "p.toml")
    assert mistakes == []
    return directory


def mistakes(text: str) -> list[str]:
    return databases.from_ini(an_ini(text))[1]


def test_an_empty_entry_is_a_database_of_the_same_name_on_the_local_socket() -> None:
    assert from_ini("[databases]\nfoodb =") == Directory({"foodb": Database()})
    assert from_toml("[databases.foodb]") == Directory({"foodb": Database(dbname=None, host=(), port=5432)})


EVERY_KEY = {
    "dbname": ("it's", "it's"),
    "host": (
        "db1, 10.0.0.1,2001:db8::1,/run/postgresql,@pg",
        ("db1", "10.0.0.1", "2001:db8::1", "/run/postgresql", "@pg"),
    ),
    "port": ("6000", 6000),
    "user": ("app", "app"),
    "password": ("se cret", SecretStr("se cret")),
    "auth_user": ("finder", "finder"),
    "auth_query": ("SELECT * FROM find($1)", "SELECT * FROM find($1)"),
    "auth_dbname": ("postgres", "postgres"),
    "pool_size": ("90%", Percent(90)),
    "min_pool_size": ("2", 2),
    "reserve_pool_size": ("3", 3),
    "pool_mode": ("Statement", "statement"),
    "max_db_connections": ("12.5%", Percent(12.5)),
    "max_db_client_connections": ("200", 200),
    "query_wait_timeout": ("1.5", 1.5),
    "server_lifetime": ("0", 0.0),
    "load_balance_hosts": ("disable", "disable"),
    "target_session_attrs": ("prefer-standby", "prefer-standby"),
    "connect_query": ("SELECT 1", "SELECT 1"),
    "client_encoding": ("UNICODE", "UNICODE"),
    "datestyle": ("ISO", "ISO"),
    "timezone": ("Europe/Vienna", "Europe/Vienna"),
    "application_name": ("shop", "shop"),
}


@pytest.mark.parametrize("key", EVERY_KEY)
def test_a_database_takes_every_key_in_both_forms(key: str) -> None:
    text, value = EVERY_KEY[key]
    quoted = text.replace("'", "''")
    entry = from_ini(f"[databases]\na = {key}='{quoted}'").databases["a"]
    assert entry == from_toml(f'[databases.a]\n{key} = "{text}"').databases["a"]
    assert getattr(entry, key) == value
    assert getattr(entry, key) != getattr(Database(), key)


def test_every_key_of_a_database_is_tried() -> None:
    assert EVERY_KEY.keys() == Database.model_fields.keys()


def test_toml_takes_its_own_kinds_of_value() -> None:
    entry = from_toml('[databases.a]\nhost = ["db1", "db2"]\nport = 6000\npool_size = 5\nserver_lifetime = 60.5')
    assert entry.databases["a"] == Database(host=("db1", "db2"), port=6000, pool_size=5, server_lifetime=60.5)


def test_a_user_has_what_is_different_and_in_toml_a_password() -> None:
    keys = "pool_size=5 reserve_pool_size=1 pool_mode=session max_user_connections=9 max_user_client_connections=99"
    times = (
        "query_timeout=1 query_wait_timeout=2 idle_transaction_timeout=3 transaction_timeout=4 client_idle_timeout=5"
    )
    user = User(
        pool_size=5,
        reserve_pool_size=1,
        pool_mode="session",
        max_user_connections=9,
        max_user_client_connections=99,
        query_timeout=1,
        query_wait_timeout=2,
        idle_transaction_timeout=3,
        transaction_timeout=4,
        client_idle_timeout=5,
    )
    assert from_ini(f"[users]\nbob = {keys} {times}").users == {"bob": user}
    assert from_toml('[users]\nalice = "secret"\nbob = {password = "secret", pool_size = 5}').users == {
        "alice": User(password=SecretStr("secret")),
        "bob": User(password=SecretStr("secret"), pool_size=5),
    }
    assert mistakes("[users]\nbob = password=hunter") == ["[users] bob: there is no key password ('p.ini' line 2)"]


def test_peers_are_known_by_their_number() -> None:
    peers = {1: Peer(host="host1"), 2: Peer(host="/tmp/pg-2", port=5555, pool_size=7)}
    assert from_ini("[peers]\n1 = host=host1\n2 = host=/tmp/pg-2  port=5555 pool_size=7").peers == peers
    assert from_toml('[peers]\n1.host="host1"\n2={host="/tmp/pg-2", port=5555, pool_size=7}').peers == peers


@pytest.mark.parametrize("number", ["0", "16384", "one", "-1"])
def test_a_peer_has_a_number_that_fits(number: str) -> None:
    assert mistakes(f"[peers]\n{number} = host=a") == [
        f"[peers] {number}: it is not a peer_id, a whole number from 1 to 16383 ('p.ini' line 2)"
    ]


def test_a_peer_without_a_host_is_a_mistake() -> None:
    assert mistakes("[peers]\n1 = port=1") == ["[peers] 1: host is missing ('p.ini' line 2)"]


def test_the_star_is_for_every_database_without_an_entry() -> None:
    directory = from_ini("[databases]\na = host=x\n* = host=y")
    assert directory.database("a") == Database(host=("x",))
    assert directory.database("b") == directory.database("c") == Database(host=("y",))
    assert from_ini("[databases]\na = host=x").database("b") is None


@pytest.mark.parametrize("name", ["pgbouncer", "pgfunnel"])
def test_the_name_of_the_console_is_taken(name: str) -> None:
    assert mistakes(f"[databases]\n{name} = host=x") == [
        f"[databases] {name}: it is the console's name, which no database can have ('p.ini' line 2)"
    ]


def test_the_old_name_of_reserve_pool_size_is_taken() -> None:
    assert from_ini("[databases]\na = reserve_pool=2").databases["a"].reserve_pool_size == 2


def test_minus_one_is_not_set() -> None:
    assert from_ini("[databases]\na = pool_size=-1 query_wait_timeout=-1").databases["a"] == Database()


def test_an_unknown_key_is_a_mistake_with_the_nearest_right_one() -> None:
    assert mistakes("[databases]\na = host=x pool_sise=1 reserve_pools=2\nb = default_pool_size=50 nonsense=1") == [
        "[databases] a: there is no key pool_sise; did you mean pool_size? ('p.ini' line 2)",
        "[databases] a: there is no key reserve_pools; did you mean reserve_pool_size? ('p.ini' line 2)",
        "[databases] b: there is no key default_pool_size; did you mean pool_size? ('p.ini' line 3)",
        "[databases] b: there is no key nonsense ('p.ini' line 3)",
    ]
    # A setting of databases is none of users.
    assert mistakes("[users]\na = min_pool_size=1 reserve_pool=1")[0].startswith("[users] a: there is no key min_pool_")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("port=0", "port '0' is not a port number from 1 to 65535"),
        ("port=5x", "port '5x' is not a port number from 1 to 65535"),
        ("pool_size=-2", "pool_size '-2' is not a whole number, 0 or more, or a share such as 90%"),
        ("pool_size=101%", "pool_size '101%' is not a whole number, 0 or more, or a share such as 90%"),
        ("pool_size=0%", "pool_size '0%' is not a whole number, 0 or more, or a share such as 90%"),
        ("pool_mode=pooled", "pool_mode 'pooled' is not one of session, transaction, statement"),
        ("server_lifetime=nan", "server_lifetime 'nan' is not a number of seconds, 0 or more"),
        ("host=a,,b", "host 'a,,b' is not a comma-separated list of hosts or directories"),
        ("host=a\tport=5", "host 'a\\tport=5' is not a comma-separated list of hosts or directories"),
    ],
)
def test_an_impossible_value_is_a_mistake_that_says_what_is_possible(pair: str, message: str) -> None:
    assert mistakes(f"[databases]\na = {pair}") == [f"[databases] a: {message} ('p.ini' line 2)"]


def test_all_mistakes_are_found_at_once_in_toml_too() -> None:
    document = tomllib.loads(
        'users = 1\n[databases]\na = "host=x"\nb = {port = true, password = 5, dbname = ""}\n[peers.x]\nhost="x"'
    )
    assert databases.from_toml(document, "p.toml")[1] == [
        "[databases] a: it is not a table (p.toml)",
        "users: it is not a table (p.toml)",
        "[databases] b: password is not text (p.toml)",
        "[databases] b: port true is not a port number from 1 to 65535 (p.toml)",
        "[databases] b: dbname is empty (p.toml)",
        "[peers] x: it is not a peer_id, a whole number from 1 to 16383 (p.toml)",
    ]


def test_no_password_is_shown() -> None:
    directory, wrong = databases.from_ini(
        an_ini("[databases]\na = password=hunter2\nb = password='hunter2\nc = password='x'hunter2\nd = hunter2")
    )
    assert len(wrong) == 3
    assert "hunter2" not in repr(directory) + repr(wrong)


def test_entries_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Database().port = 1  # type: ignore[misc]


@given(st.dictionaries(st.sampled_from([*Database.model_fields, "x"]), st.text(min_size=1, max_size=6), max_size=4))
def test_both_forms_come_to_the_same_whatever_they_say(entry: dict[str, str]) -> None:
    text = " ".join(f"{key}='{value.replace(chr(39), chr(39) * 2)}'" for key, value in entry.items())
    file = Ini()
    file.sections["databases"]["a"] = Item("a", text, Place("here", 1))
    assert ini.pairs(text) == entry
    one, wrong = databases.from_ini(file)
    other, wrong_too = databases.from_toml({"databases": {"a": entry}}, "'here' line 1")
    assert one == other
    assert wrong == wrong_too
    assert bool(wrong) != ("a" in one.databases)
