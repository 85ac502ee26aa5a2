"""What clients bring to their login, what they are told there, and what a new connection to Postgres runs first."""

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel
from tests.support.wire import Message, ServerError, Wire, extended, kinds, query, startup, sync


def log_in(pooler: Pgfunnel, **parameters: str) -> tuple[Wire, list[Message]]:
    """Log in; return the connection, and what it was told."""
    wire = pooler.connect()
    wire.send(startup({"user": "postgres", "database": "postgres", **parameters}))
    return wire, wire.authenticate("postgres", "")


def refusal(pooler: Pgfunnel, **parameters: str) -> ServerError:
    with pooler.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "postgres", **parameters}))
        return wire.error()


# --- startup parameters


def test_parameters_in_ignore_startup_parameters_have_no_effect(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    asked = {"Extra_Float_Digits": "-3", "options": "-c extra_float_digits=-2 -c work_mem=9MB"}
    for ignored, digits in (("", "-3"), ("extra_float_digits,no_such_thing", "1")):
        wire, _ = log_in(pgfunnel(postgres.url(), ignore_startup_parameters=ignored), **asked)
        with wire:
            assert wire.value("SHOW extra_float_digits") == digits
            assert wire.value("SHOW work_mem") == "9MB"


def test_parameters_that_postgres_does_not_know_can_be_ignored(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    assert refusal(pgfunnel(postgres.url()), no_such_thing="1").sqlstate == "42704"
    wire, _ = log_in(pgfunnel(postgres.url(), ignore_startup_parameters="no_such_thing"), no_such_thing="1")
    with wire:
        assert wire.value("SELECT 1") == "1"


def test_options_in_ignore_startup_parameters_are_those_that_are_not_tracked(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    settings = {"ignore_startup_parameters": "options,TimeZone", "track_extra_parameters": "lock_timeout"}
    wire, _ = log_in(
        pgfunnel(postgres.url(), **settings),
        options="-c statement_timeout=1s -c lock_timeout=2s -c TimeZone=Asia/Tokyo",
        idle_session_timeout="3s",
    )
    with wire:
        shown = [wire.value(f"SHOW {name}") for name in ("statement_timeout", "lock_timeout", "TimeZone")]
        assert shown == ["0", "2s", "Asia/Tokyo"]
        assert wire.value("SHOW idle_session_timeout") == "3s"


@pytest.mark.parametrize(("tracked", "found"), [("IntervalStyle", "iso_8601"), ("search_path", "postgres")])
def test_parameters_in_track_extra_parameters_follow_their_client_where_others_do_not(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tracked: str, found: str
) -> None:
    pooler = pgfunnel(
        postgres.url(), default_pool_size=1, session_state="setting=ignore", track_extra_parameters=tracked
    )
    with pooler.login() as client, pooler.login() as other:
        client.query("SET IntervalStyle TO iso_8601")
        other.query("SET TimeZone TO 'Asia/Tokyo'")
        assert other.value("SHOW IntervalStyle") == "postgres"
        assert other.value("SHOW TimeZone") == "Asia/Tokyo"
        assert client.value("SHOW IntervalStyle") == found


# --- application_name_add_host


def test_application_name_add_host_says_where_a_client_comes_from(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path
) -> None:
    pooler = pgfunnel(postgres.url(), application_name_add_host=1, unix_socket_dir=str(tmp_path))
    wire, _ = log_in(pooler, application_name="shop")
    nameless, _ = log_in(pooler)
    local = Wire(str(tmp_path), pooler.port)
    long = "an application whose name is so long that nothing would be left"
    lengthy, _ = log_in(pooler, application_name=long)
    with wire, nameless, local, lengthy:
        local.login("postgres", "postgres", application_name="shop")
        by_socket = f"unix({os.getpid()}@{socket.gethostname()}):{pooler.port}"
        shop, app, here = (f"shop - 127.0.0.1:{port_of(wire)}", f"app - 127.0.0.1:{port_of(nameless)}", "shop - ")
        assert [wire.value("SHOW application_name"), wire.parameters["application_name"]] == [shop, shop]
        assert nameless.value("SHOW application_name") == app
        assert local.value("SHOW application_name") == (here + by_socket)[:63]
        cut = lengthy.value("SHOW application_name") or ""
        assert len(cut) == 63
        assert cut.endswith(f" - 127.0.0.1:{port_of(lengthy)}")


def test_a_name_that_is_set_later_stays_as_it_is(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    wire, _ = log_in(pgfunnel(postgres.url(), application_name_add_host=1), application_name="shop")
    with wire:
        wire.query("SET application_name TO 'later'")
        assert wire.value("SHOW application_name") == "later"


def port_of(wire: Wire) -> int:
    port: int = wire.socket.getsockname()[1]
    return port


# --- what clients are told


def test_login_notify_message_comes_with_each_login(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), login_notify_message="this is no Postgres")
    for _ in range(2):
        wire, told = log_in(pooler)
        with wire:
            (notice,) = [each.fields for each in told if each.kind == "N"]
            assert (notice["S"], notice["C"], notice["M"]) == ("NOTICE", "00000", "this is no Postgres")
            assert kinds(wire.query("SELECT 1")) == "TDCZ"


def test_query_wait_notify_tells_who_waits_that_it_does(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=1, query_wait_notify=0.3)
    with pooler.login() as busy, pooler.login() as waiting:
        busy.query("BEGIN")
        waiting.send(query("SELECT 1"))
        waiting.socket.settimeout(4)  # by default it would take longer
        notice = waiting.read()
        assert (notice.kind, notice.fields["C"]) == ("N", "00000")
        assert notice.fields["M"] == "No server connection available in postgres backend, client being queued"
        assert notice.fields["D"] == "Clients that came earlier: 0. Connections of the pool: 1."
        busy.query("COMMIT")
        assert kinds(waiting.read_until()) == "TDCZ"


def test_disable_pqexec_refuses_simple_queries(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), disable_pqexec=1)
    with psycopg.connect(pooler.url(), autocommit=True) as connection:
        assert connection.execute("SELECT %s::int + 1", [41]).fetchone() == (42,)
    with pooler.login() as wire:
        wire.send(extended("SELECT 1"), sync())
        assert kinds(wire.read_until()) == "12TDCZ"
        wire.send(query("SELECT 1; DROP TABLE kept"))
        *_, told = wire.read_to_end()
        assert (told.fields["S"], told.fields["C"], told.fields["M"]) == ("FATAL", "08P01", "PQexec disallowed")
    assert refusal(pooler, replication="database").sqlstate == "0A000"


def test_a_reload_of_disable_pqexec_counts_for_those_who_are_there(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path
) -> None:
    config = tmp_path / "pgfunnel.toml"
    config.write_text("disable_pqexec = false\n")
    pooler = pgfunnel(postgres.url(), config=str(config))
    with pooler.login() as idle, pooler.login() as halfway:
        request = extended("SELECT length($1)", "Q" * 30_000) + sync()
        halfway.send(request[:20_000])
        assert idle.value("SELECT 1") == "1"
        config.write_text("disable_pqexec = true\n")
        pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=reloaded")
        halfway.send(request[20_000:])
        assert [each.columns for each in halfway.read_until() if each.kind == "D"] == [["30000"]]
        for client in (idle, halfway):
            client.send(query("SELECT 1"))
            assert client.error().sqlstate == "08P01"


# --- server_fast_close


@pytest.mark.parametrize("fast", [0, 1])
def test_server_fast_close_ends_sessions_whose_connections_are_outdated(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path, fast: int
) -> None:
    config = tmp_path / "pgfunnel.toml"
    entry = f"[databases.postgres]\nhost = '{postgres.host}'\nport = {postgres.port}\n"
    config.write_text(entry)
    pooler = pgfunnel(config=str(config), pool_mode="session", server_fast_close=fast, userlist={"postgres": ""})
    with pooler.login() as idle, pooler.login() as busy:
        idle.query("SELECT 1")
        busy.query("BEGIN")
        config.write_text(entry + "application_name = 'new'\n")
        pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=reloaded")
        if fast:
            assert idle.error().sqlstate == "57P01"
        assert busy.value("SHOW application_name") == ""
        busy.query("COMMIT")
        if fast:
            assert busy.error().sqlstate == "57P01"
        else:
            assert [wire.value("SHOW application_name") for wire in (idle, busy)] == ["", ""]
    with pooler.login() as new:
        assert new.value("SHOW application_name") == "new"


# --- connect_query


def by_connect_query(
    pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres, *, connect_query: str, **settings: str | float
) -> Pgfunnel:
    place = f"[databases.postgres]\nhost = '{postgres.host}'\nport = {postgres.port}\n"
    entry = f'{place}connect_query = """{connect_query}"""\n'
    return pgfunnel(toml=entry, userlist={"postgres": ""}, **settings)


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_what_connect_query_sets_every_client_has(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, mode: str
) -> None:
    sql = "SET search_path TO shop, public; SELECT set_config('app.tenant', 'all', false); SET TimeZone TO 'Asia/Tokyo'"
    pooler = by_connect_query(pgfunnel, postgres, connect_query=sql, default_pool_size=1, pool_mode=mode)
    plain, _ = log_in(pooler)
    with plain:
        assert plain.parameters["TimeZone"] == "Asia/Tokyo"
        assert plain.value("SHOW search_path") == "shop, public"
        assert plain.value("SELECT current_setting('app.tenant')") == "all"
        plain.query("SET search_path TO mine")
        plain.query("DISCARD ALL")
        plain.query("SELECT 1")
        if mode == "transaction":
            assert plain.value("SHOW search_path") == "shop, public"
        plain.terminate()
    other, _ = log_in(pooler, TimeZone="UTC", work_mem="9MB")
    with other:
        assert other.parameters["TimeZone"] == "UTC"
        assert [other.value(f"SHOW {name}") for name in ("search_path", "TimeZone", "work_mem")] == [
            "shop, public",
            "UTC",
            "9MB",
        ]


def test_what_connect_query_sets_is_nobodys_own(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    sql = "SET search_path TO shop; PREPARE ready AS SELECT 'ready'"
    pooler = by_connect_query(pgfunnel, postgres, connect_query=sql, default_pool_size=1)
    with pooler.login() as first, pooler.login() as second:
        for client in (first, second, first):
            client.query("SET work_mem TO '8MB'")
            assert client.value("EXECUTE ready") == "ready"
            assert client.value("SHOW search_path") == "shop"
        assert not [line for line in pooler.log if "event=pinned" in line]
        first.query("LISTEN news")
        first.reset()  # what it has left is not discarded, for what connect_query has left would be, too
        assert second.value("EXECUTE ready") == "ready"
        assert second.value("SHOW search_path") == "shop"


def test_an_error_in_connect_query_is_logged_and_no_more(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = by_connect_query(pgfunnel, postgres, connect_query="SET TimeZone TO 'Asia/Tokyo'; SELECT no_such_thing")
    with pooler.login() as client:
        assert client.value("SELECT 1") == "1"
    pooler.wait_for_log("level=warning event=connect_query_failed .*sqlstate=42703")


def test_a_connection_that_connect_query_makes_useless_is_not_used(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    useless = {
        "begins": ("BEGIN", "leaves a transaction open"),
        "copies": ("COPY pg_class FROM STDIN", "waits for data to copy"),
        "dies": ("SELECT pg_terminate_backend(pg_backend_pid())", "57P01"),
        "sleeps": ("SELECT pg_sleep(60)", "took more than 0.4 s"),
    }
    place = f"host = '{postgres.host}'\nport = {postgres.port}\ndbname = 'postgres'\n"
    toml = "".join(f"[databases.{name}]\n{place}connect_query = '{sql}'\n" for name, (sql, _) in useless.items())
    users = {"postgres": ""}
    pooler = pgfunnel(toml=toml, userlist=users, query_wait_timeout=0.5, server_connect_timeout=0.4)
    with ExitStack() as open_:
        waiting = [open_.enter_context(pooler.connect()) for _ in useless]
        for wire, name in zip(waiting, useless, strict=True):
            wire.send(startup({"user": "postgres", "database": name}))
        for wire, (name, (_, why)) in zip(waiting, useless.items(), strict=True):
            assert wire.error().sqlstate == "57014"
            assert why in pooler.wait_for_log(f"event=server_connect_failed .*database={name} .*connect_query")


def test_connect_query_runs_once_for_each_connection(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute("CREATE TABLE opened (pid int)")
        try:
            pooler = by_connect_query(pgfunnel, postgres, connect_query="INSERT INTO opened SELECT pg_backend_pid()")
            with pooler.login() as client, pooler.login() as other:
                for _ in range(3):
                    client.query("SELECT 1")
                client.query("BEGIN")
                other.query("SELECT 1")
                pids = {client.value("SELECT pg_backend_pid()"), other.value("SELECT pg_backend_pid()")}
                assert {str(pid) for (pid,) in admin.execute("SELECT pid FROM opened")} == pids
                assert admin.execute("SELECT count(*) FROM opened").fetchone() == (2,)
        finally:
            admin.execute("DROP TABLE opened")
