"""SHOW DATABASES, USERS, PEERS and CONFIG show what is configured, and how much of it is used."""

from tests.columns.conftest import StartShop
from tests.support.console import Console

TABLES = """
[databases.plain]
host = "127.0.0.1"
port = {port}

[users.alice]
pool_size = 3
reserve_pool_size = 2
pool_mode = "session"
max_user_connections = 9
max_user_client_connections = 8

[peers.2]
host = "127.0.0.2"
port = 6433
pool_size = 7

[peers.3]
host = "/run/other"
"""
KEYS = """
user = "bob"
pool_size = 5
min_pool_size = 1
reserve_pool_size = 4
server_lifetime = 60
pool_mode = "statement"
load_balance_hosts = "disable"
max_db_connections = 6
max_db_client_connections = 11
"""


def test_databases_shows_what_is_set_for_them_and_how_much_is_used(shop: StartShop) -> None:
    pooler = shop(KEYS, TABLES.format(port=1), host="127.0.0.1,localhost", default_pool_size=20)
    with Console(pooler) as console, pooler.login("alice", "shop") as one, pooler.login("alice", "shop"):
        assert one.value("SELECT 1") == "1"
        row = console.one("DATABASES", name="shop")
        assert row.pop("port") == int(str(one.value("SELECT inet_server_port()")))
        assert row == {
            "name": "shop",
            "host": "127.0.0.1,localhost",
            "database": "postgres",
            "force_user": "bob",
            "pool_size": 5,
            "min_pool_size": 1,
            "reserve_pool_size": 4,
            "server_lifetime": 60,
            "pool_mode": "statement",
            "load_balance_hosts": "disable",
            "max_connections": 6,
            "current_connections": 1,
            "max_client_connections": 11,
            "current_client_connections": 2,
            "paused": 0,
            "disabled": 0,
        }
        console.do("PAUSE shop")
        console.do("DISABLE shop")
        row = console.one("DATABASES", name="shop")
        assert (row["paused"], row["disabled"], row["current_connections"]) == (1, 1, 0)
        assert console.one("DATABASES", name="plain") == {
            "name": "plain",
            "host": "127.0.0.1",
            "port": 1,
            "database": "plain",
            "force_user": None,
            "pool_size": 20,
            "min_pool_size": 0,
            "reserve_pool_size": 0,
            "server_lifetime": 3600,
            "pool_mode": None,
            "load_balance_hosts": None,
            "max_connections": 0,
            "current_connections": 0,
            "max_client_connections": 0,
            "current_client_connections": 0,
            "paused": 0,
            "disabled": 0,
        }


def test_users_shows_what_is_set_for_them_and_how_much_is_used(shop: StartShop) -> None:
    pooler = shop(tables=TABLES.format(port=1), max_user_connections=4, max_user_client_connections=5)
    with Console(pooler) as console, pooler.login("alice", "shop") as one, pooler.login("alice", "shop"):
        one.query("SELECT 1")
        assert console.one("USERS", name="alice") == {
            "name": "alice",
            "pool_size": "3",
            "reserve_pool_size": "2",
            "pool_mode": "session",
            "max_user_connections": 9,
            "current_connections": 1,
            "max_user_client_connections": 8,
            "current_client_connections": 2,
        }
        assert console.one("USERS", name="bob") == {
            "name": "bob",
            "pool_size": None,
            "reserve_pool_size": None,
            "pool_mode": None,
            "max_user_connections": 4,
            "current_connections": 0,
            "max_user_client_connections": 5,
            "current_client_connections": 0,
        }


def test_peers_shows_them(shop: StartShop) -> None:
    with Console(shop(tables=TABLES.format(port=1), peer_id=1, default_pool_size=20)) as console:
        assert console.show("PEERS") == [
            {"peer_id": 2, "host": "127.0.0.2", "port": 6433, "pool_size": 7},
            {"peer_id": 3, "host": "/run/other", "port": 6432, "pool_size": 20},
        ]


def test_config_shows_values_defaults_and_what_can_be_changed(shop: StartShop) -> None:
    pooler = shop(query_wait_timeout=7)
    with Console(pooler) as console:
        assert console.one("CONFIG", key="query_wait_timeout") == {
            "key": "query_wait_timeout",
            "value": "7",
            "default": "120",
            "changeable": "yes",
        }
        assert console.one("CONFIG", key="listen_port") == {
            "key": "listen_port",
            "value": str(pooler.port),
            "default": "6432",
            "changeable": "no",
        }
        console.do("SET query_wait_timeout = 9")
        assert console.one("CONFIG", key="query_wait_timeout")["value"] == "9"
