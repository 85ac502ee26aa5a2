"""Databases with entries of their own: where they lead, as whom, and what is different about their pools."""

import signal
from collections.abc import Iterator

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import ServerError, query, startup

USERS = {"postgres": "", "clerk": "ledger"}
WHO = "SELECT current_user, current_database()"


@pytest.fixture(scope="module", autouse=True)
def people(postgres: EmbeddedPostgres) -> Iterator[None]:
    postgres.psql("CREATE ROLE clerk LOGIN PASSWORD 'ledger'")
    postgres.psql("CREATE DATABASE books")
    yield
    postgres.psql("DROP DATABASE books WITH (FORCE)")
    postgres.psql("DROP ROLE clerk")


def toml(postgres: EmbeddedPostgres, **entries: str) -> str:
    where = f'host = "{postgres.host}"\nport = {postgres.port}\n'
    return "".join(f'[databases."{name}"]\n{where}{keys}\n' for name, keys in entries.items())


def rewrite(pooler: Pgfunnel, text: str, event: str = "reloaded") -> str:
    """Give it another configuration, and wait until it has taken it."""
    assert pooler.config_file is not None
    pooler.config_file.write_text(text)
    seen = len(pooler.log)
    pooler.signal(signal.SIGHUP)
    eventually(lambda: any(f"event={event}" in line for line in pooler.log[seen:]))
    return next(line for line in pooler.log[seen:] if f"event={event}" in line)


def refused(pooler: Pgfunnel, **parameters: str) -> ServerError:
    with pooler.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "books", **parameters}))
        return wire.error()


def test_a_database_may_have_another_name_at_postgres(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(toml=toml(postgres, shop='dbname = "books"', books=""), userlist=USERS)
    with pooler.login(dbname="shop") as shop, pooler.login(dbname="books") as books:
        assert shop.rows(WHO) == books.rows(WHO) == [["postgres", "books"]]


def test_whoever_comes_is_served_as_the_user_of_the_entry(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(
        toml=toml(postgres, books='user = "clerk"\npassword = "ledger"\npool_size = 1'), userlist={"a": "", "b": ""}
    )
    with pooler.login(user="a", dbname="books") as one, pooler.login(user="b", dbname="books") as other:
        assert one.rows(WHO) == [["clerk", "books"]]
        assert one.value("SELECT pg_backend_pid()") == other.value("SELECT pg_backend_pid()")


def test_what_has_no_entry_is_no_database(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(toml=toml(postgres, books=""), userlist=USERS)
    error = refused(pooler, database="shop")
    assert (error.sqlstate, error.message) == ("3D000", 'no such database: "shop"')


def test_the_entry_of_the_asterisk_is_for_all_that_have_none(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(toml=toml(postgres, **{"*": "pool_size = 1", "ledger": 'dbname = "books"'}), userlist=USERS)
    with pooler.login(dbname="books") as books, pooler.login(dbname="ledger") as ledger:
        assert books.rows(WHO) == ledger.rows(WHO)
        assert books.value("SELECT pg_backend_pid()") != ledger.value("SELECT pg_backend_pid()")
    assert pooler.metric("pgfunnel_pool_size", database="books", user="postgres") == 1
    assert pooler.metric("pgfunnel_pool_size", database="ledger", user="postgres") == 64


def test_a_database_may_be_in_another_mode(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(
        toml=toml(postgres, books="", old='dbname = "books"\npool_mode = "session"\npool_size = 2'),
        userlist=USERS,
    )
    with pooler.login(dbname="old") as wire, pooler.login(dbname="old") as other:
        wire.rows("SET work_mem = '7MB'; CREATE TEMP TABLE mine ()")
        assert other.value("SHOW work_mem") == "4MB"
        assert wire.value("SELECT to_regclass('mine')") == "mine"
    with pooler.login(dbname="books") as wire, pooler.login(dbname="books") as other:
        assert wire.value("SELECT pg_backend_pid()") == other.value("SELECT pg_backend_pid()")


def test_a_users_entry_goes_before_the_databases(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    entries = toml(postgres, books="pool_size = 5\nquery_wait_timeout = 60")
    pooler = pgfunnel(toml=f"{entries}[users.clerk]\npool_size = 2\nquery_timeout = 0.5\n", userlist=USERS)
    with pooler.login(user="clerk", dbname="books") as wire:
        wire.send(query("SELECT pg_sleep(20)"))
        assert wire.error().sqlstate == "57014"
    assert pooler.metric("pgfunnel_pool_size", database="books", user="clerk") == 2


@pytest.mark.parametrize("limit", ["max_db_client_connections", "max_user_client_connections"])
def test_clients_over_the_limit_of_their_database_or_user_wait(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, limit: str
) -> None:
    if limit.startswith("max_db"):
        text = toml(postgres, books=f"{limit} = 1", other='dbname = "books"')
        free = {"user": "postgres", "dbname": "other"}
    else:
        text = toml(postgres, books="") + f"[users.postgres]\n{limit} = 1\n"
        free = {"user": "clerk", "dbname": "books"}
    pooler = pgfunnel(toml=text, userlist=USERS)
    with pooler.login(dbname="books") as first, pooler.connect() as second:
        second.send(startup({"user": "postgres", "database": "books"}))
        with pooler.login(**free) as unharmed:
            assert unharmed.value("SELECT 1") == "1"
        eventually(lambda: pooler.metric("pgfunnel_logins", state="place") == 1)
        first.terminate()
        second.read_until()
        assert second.value("SELECT 1") == "1"


def test_clients_over_the_limit_are_told_which_it_is(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(
        toml=toml(postgres, books="max_db_client_connections = 1"), client_login_timeout=1, userlist=USERS
    )
    with pooler.login(dbname="books"):
        error = refused(pooler)
    assert error.sqlstate == "53300"
    assert 'all 1 places of database "books" (max_db_client_connections) are taken' in error.message


def test_a_database_has_no_more_connections_than_its_entry_says(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(toml=toml(postgres, books="max_db_connections = 1"), userlist=USERS)
    with pooler.login(user="postgres", dbname="books") as one, pooler.login(user="clerk", dbname="books") as other:
        assert one.rows(WHO) == [["postgres", "books"]]
        assert other.rows(WHO) == [["clerk", "books"]]
    sizes = [
        pooler.metric("pgfunnel_pool_servers", database="books", user=user, state="idle")
        for user in ("postgres", "clerk")
    ]
    assert sum(sizes) <= 1


# --- while running


def test_a_reload_brings_databases_and_takes_them_away(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(toml=toml(postgres, books=""), userlist=USERS)
    with pooler.login(dbname="books") as wire:
        rewrite(pooler, toml(postgres, shop='dbname = "books"'))
        assert wire.error().sqlstate == "57P01"
    assert refused(pooler).sqlstate == "3D000"
    with pooler.login(dbname="shop") as wire:
        assert wire.rows(WHO) == [["postgres", "books"]]


@pytest.mark.parametrize("parameters", [{}, {"work_mem": "1MB"}, {"replication": "database"}], ids=str)
def test_who_is_logging_in_when_a_database_is_taken_away_is_told_so(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, parameters: dict[str, str]
) -> None:
    pooler = pgfunnel(toml=toml(postgres, books=""), userlist=USERS, admin_users="postgres")
    with pooler.login(dbname="pgbouncer") as console, pooler.connect() as wire:
        console.query("PAUSE books")
        wire.send(startup({"user": "postgres", "database": "books", **parameters}))
        eventually(lambda: len(console.rows("SHOW QUEUE")) == 1)
        rewrite(pooler, toml(postgres, shop='dbname = "books"'))
        assert wire.error().sqlstate == "57P01"


def test_only_connections_that_lead_elsewhere_now_are_closed_and_not_before_their_transaction_is_over(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(toml=toml(postgres, moved='dbname = "books"', stays='dbname = "books"'), userlist=USERS)
    with pooler.login(dbname="moved") as moved, pooler.login(dbname="stays") as stays:
        moved.rows("BEGIN")
        before = moved.value("SELECT pg_backend_pid()")
        kept = stays.value("SELECT pg_backend_pid()")
        rewrite(pooler, toml(postgres, moved='dbname = "books"\ntimezone = "Asia/Tokyo"', stays='dbname = "books"'))
        assert moved.value("SELECT pg_backend_pid()") == before
        moved.rows("COMMIT")
        assert moved.value("SELECT pg_backend_pid()") != before
        assert moved.value("SHOW timezone") == "Asia/Tokyo"
        assert stays.value("SELECT pg_backend_pid()") == kept
    pooler.wait_for_log("event=server_closed .*reason=reconnect")


def test_a_broken_file_changes_nothing_and_says_why(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(toml=toml(postgres, books="pool_size = 3"), userlist=USERS)
    told = rewrite(pooler, toml(postgres, books="pool_size = 4\npol_mode = 'session'"), "reload_failed")
    assert "pol_mode" in told
    assert "pool_mode" in told
    with pooler.login(dbname="books") as wire:
        assert wire.rows(WHO) == [["postgres", "books"]]
    assert pooler.metric("pgfunnel_pool_size", database="books", user="postgres") == 3


def test_sizes_modes_and_timeouts_change_while_clients_stay(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(toml=toml(postgres, books="pool_size = 1"), userlist=USERS)
    with pooler.login(dbname="books") as one, pooler.login(dbname="books") as other:
        one.rows("BEGIN")
        other.send(query("SELECT 'served'"))
        eventually(lambda: pooler.waiting() == 1)
        rewrite(pooler, toml(postgres, books="pool_size = 2\npool_mode = 'session'"))
        assert other.read_until()[1].columns == ["served"], "there is room for it now"
        one.rows("COMMIT")
        assert one.value("SELECT pg_backend_pid()") == other.value("SELECT pg_backend_pid()"), "the mode they came in"
        with pooler.login(dbname="books") as third:
            third.rows("CREATE TEMP TABLE mine ()")
            assert third.value("SELECT to_regclass('mine')") == "mine"
        rewrite(pooler, "query_timeout = 0.5\n" + toml(postgres, books="pool_size = 2"))
        one.send(query("SELECT pg_sleep(20)"))
        assert one.error().sqlstate == "57014"


def test_users_and_limits_change_too(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(toml="max_client_conn = 1\n" + toml(postgres, books=""), userlist=USERS)
    with pooler.login(dbname="books") as first, pooler.connect() as second:
        second.send(startup({"user": "postgres", "database": "books"}))
        eventually(lambda: pooler.metric("pgfunnel_logins", state="place") == 1)
        rewrite(pooler, "max_client_conn = 2\n" + toml(postgres, books=""))
        second.read_until()
        assert first.value("SELECT 1") == second.value("SELECT 1") == "1"


def test_databases_that_nobody_uses_any_more_are_forgotten(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(
        toml=toml(postgres, **{"*": ""}),
        userlist=USERS,
        autodb_idle_timeout=1,
        pool_idle_timeout=1,
        server_idle_timeout=0,
    )
    with pooler.login(dbname="books") as wire:
        assert wire.value("SELECT 1") == "1"
        assert pooler.metric("pgfunnel_pool_size", database="books", user="postgres") == 64
    eventually(lambda: not pooler.metric("pgfunnel_pool_size", database="books", user="postgres"))
    pooler.wait_for_log("reason=pool_idle_timeout")
