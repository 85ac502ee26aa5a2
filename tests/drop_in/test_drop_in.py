"""A realistic pgbouncer.ini, with all that belongs to it, does the same with pgfunnel as with PgBouncer."""

import psycopg
import pytest

from tests.drop_in.side import PASSWORDS, Side
from tests.support.pgfunnel import eventually
from tests.support.wire import Wire

ANSWERS = {
    # (user, database): what is different about it, and the answer
    ("shop_reader", "shop"): ("current_user, current_setting('shop.opened')", ("shop_app", "yes")),
    ("shop_reader", "shop_reports"): ("current_user, current_setting('TimeZone')", ("shop_reader", "Europe/Berlin")),
    ("clerk", "ledger"): ("current_user, current_database(), inet_server_addr()::text", ("clerk", "ledger", None)),
    ("batch", "archive"): ("current_user, current_database()", ("batch", "ledger")),
    ("clerk", "back office"): ("current_user, current_database()", ("clerk", "ledger")),
    ("shop_reader", "postgres"): ("current_user, current_database()", ("shop_reader", "postgres")),
}


@pytest.mark.parametrize(("user", "dbname"), ANSWERS)
def test_clients_of_every_database_are_served(side: Side, user: str, dbname: str) -> None:
    if side.name == "pgbouncer" and dbname == "back office":
        pytest.skip("PgBouncer takes such names since 1.24")
    what, answer = ANSWERS[user, dbname]
    with psycopg.connect(
        host=side.host, port=side.port, user=user, dbname=dbname, password=PASSWORDS[user], sslmode="prefer"
    ) as connection:
        assert connection.execute(f"SELECT {what}").fetchone() == answer
        assert connection.execute(f"SELECT {what}").fetchone() == answer
    assert side.psql(user, dbname, f"SELECT {what}") == "|".join(each or "" for each in answer) + "\n"


def test_intruders_and_wrong_passwords_are_refused(side: Side) -> None:
    assert side.refused("shop_reader", "shop", "wrong").severity == "FATAL"
    assert side.refused("intruder", "shop", "whatever").severity == "FATAL"
    assert side.refused("clerk", "ledger", "wrong").severity == "FATAL"


@pytest.mark.parametrize("user", ["pooler_admin", "monitoring"])
def test_the_console_answers_psql(side: Side, user: str) -> None:
    said = side.psql(user, "pgbouncer", "SHOW VERSION", "SHOW DATABASES", "SHOW STATS", "SHOW LISTS")
    assert said.startswith("PgBouncer 1.")
    assert "\nshop|127.0.0.1|" in said


def test_a_reload_takes_what_has_changed_in_the_file(side: Side) -> None:
    before = side.ini.read_text()
    shop = next(line for line in before.splitlines() if line.startswith("shop = "))
    changed = before.replace(shop, f"{shop}\n{shop.replace('shop = ', 'market = ', 1)}")
    with side.login("gatekeeper", "shop_reports") as client, side.console() as console:
        pid = client.value("SELECT pg_backend_pid()")
        side.ini.write_text(changed.replace("default_pool_size = 10", "default_pool_size = 11"))
        console.rows("RELOAD")
        eventually(lambda: config(console)["default_pool_size"] == "11")
        with side.login("shop_reader", "market") as market:
            assert market.value("SELECT current_database()") == "shop"
        assert client.value("SELECT pg_backend_pid()") == pid
        side.ini.write_text(before)
        console.rows("RELOAD")
        eventually(lambda: config(console)["default_pool_size"] == "10")


def config(console: Wire) -> dict[str | None, str | None]:
    return {key: value for key, value, *_ in console.rows("SHOW CONFIG")}
