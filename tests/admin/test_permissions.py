"""Who may come to the console, and what each may do there."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pooler.admin.interpreter import COMMANDS
from pooler.admin.show import TABLES
from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, StartPgfunnel
from tests.support.console import Console, refused
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import ServerError, Wire, startup

SECRETS = {"alice": "alice's", "bob": "bob's", "md5": "md5's"}


@pytest.fixture(scope="module")
def guarded(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    """Start one that asks everybody for a password, and holds two clients."""
    settings: dict[str, Any] = {"admin_users": "alice", "stats_users": "bob", "max_client_conn": 2}
    with (
        tempfile.TemporaryDirectory(prefix="pgfunnel-test-") as directory,
        Pgfunnel(
            postgres.url(), auth_type="scram-sha-256", userlist=SECRETS, unix_socket_dir=directory, **settings
        ) as guarded,
    ):
        yield guarded


def log_in(guarded: Pgfunnel, user: str) -> Wire:
    return guarded.login(user, "pgbouncer", SECRETS[user])


def log_in_at(guarded: Pgfunnel, user: str) -> Wire:
    return guarded.login(user, "postgres", SECRETS[user])


def test_admin_users_may_do_everything(guarded: Pgfunnel) -> None:
    with log_in(guarded, "alice") as admin_users:
        for table in TABLES:
            assert admin_users.query(f"SHOW {table}")[-2].kind == "C"
        for command in ("PAUSE", "RESUME", "RECONNECT", "WAIT_CLOSE", "RELOAD", "SET server_idle_timeout = 601"):
            assert admin_users.query(command)[-2].kind == "C"


def test_stats_users_may_look_and_touch_nothing(guarded: Pgfunnel) -> None:
    with log_in(guarded, "bob") as stats_users:
        for table, about in TABLES.items():
            assert stats_users.query(f"SHOW {table}")[-2].kind == ("E" if about.for_admins else "C")
        assert stats_users.query("SHOW HELP")[-2].kind == "C"
        for command in COMMANDS:
            error = stats_users.query(command)[0]
            assert (error.fields["C"], error.fields["M"]) == ("08P01", "admin access needed")
        assert stats_users.query("SET log_connections = 0")[0].fields["M"] == "admin access needed"
        assert stats_users.query("SET extra_float_digits = 3")[-2].kind == "C"


def refusal(wire: Wire, user: str, password: str, dbname: str = "pgbouncer") -> ServerError:
    with wire, pytest.raises(ServerError) as refused:
        wire.login(user, dbname, password)
    return refused.value


def test_others_may_not_come_even_if_they_prove_who_they_are(guarded: Pgfunnel) -> None:
    told = refusal(guarded.connect(), "md5", SECRETS["md5"])
    assert (told.severity, told.sqlstate) == ("FATAL", "28000")
    assert told.message.startswith("not allowed")


@pytest.mark.parametrize("user", ["alice", "bob", "md5", "stranger", "pgbouncer"])
def test_nobody_comes_without_a_password(guarded: Pgfunnel, user: str) -> None:
    assert refusal(guarded.connect(), user, "wrong").sqlstate == "28P01"


def test_the_pooler_s_own_system_user_is_admin_without_a_password(guarded: Pgfunnel) -> None:
    directory = str(guarded.settings["unix_socket_dir"])
    with Wire(directory, guarded.port) as wire:
        wire.login("pgbouncer", "pgbouncer")
        assert wire.query("RELOAD")[-2].kind == "C"
        row = next(row for row in wire.rows("SHOW CLIENTS") if row[1] == "pgbouncer")
        assert (row[5], row[16]) == ("unix", str(os.getpid()))
    # At a database it is nobody, and so it is under another name.
    assert refusal(Wire(directory, guarded.port), "pgbouncer", "wrong", "postgres").sqlstate == "28P01"
    assert refusal(Wire(directory, guarded.port), "alice", "wrong").sqlstate == "28P01"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to become another user")
def test_another_system_user_is_not(guarded: Pgfunnel) -> None:
    directory = str(guarded.settings["unix_socket_dir"])
    Path(directory).chmod(0o755)
    os.seteuid(65534)
    try:
        wire = Wire(directory, guarded.port)
    finally:
        os.seteuid(0)
    assert refusal(wire, "pgbouncer", "wrong").sqlstate == "28P01"


def test_an_operator_gets_in_when_all_places_are_taken(guarded: Pgfunnel) -> None:
    with log_in_at(guarded, "alice"), log_in_at(guarded, "alice"), guarded.connect() as waits:
        waits.send(startup({"user": "alice", "database": "postgres"}))
        with log_in(guarded, "alice") as first, log_in(guarded, "bob") as second:
            eventually(lambda: sum(row[2] == "pgbouncer" for row in first.rows("SHOW CLIENTS")) == 2)
            (queued,) = second.rows("SHOW QUEUE")
            assert queued[:4] == ["postgres", "alice", "max_client_conn", "0"]


def test_with_auth_type_any_everybody_may_look(pooler: Pgfunnel) -> None:
    with Console(pooler, "bob") as bob:
        assert bob.show("POOLS")
        assert refused(bob, "PAUSE").sqlstate == "08P01"
    with Console(pooler, "alice") as alice:
        assert refused(alice, "RELOAD").sqlstate == "08P01"


def test_who_may_come_changes_with_a_reload(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), toml='admin_users = "alice"', userlist={"alice": "", "bob": ""})
    assert refusal(pooler.connect(), "bob", "").sqlstate == "28000"
    assert pooler.config_file is not None
    pooler.config_file.write_text('admin_users = "alice, bob"')
    with pooler.login("alice", "pgbouncer") as alice:
        alice.query("RELOAD")
    with pooler.login("bob", "pgbouncer") as bob:
        assert bob.query("PAUSE")[-2].kind == "C"


def test_a_password_that_is_passed_through_is_proven_at_a_database(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), auth_type="passthrough", passthrough_cleartext=1, admin_users="plain")
    with psycopg.connect(pooler.url("pgbouncer", "plain", PASSWORD), autocommit=True) as connection:
        assert connection.execute("RELOAD").statusmessage == "RELOAD"
        rows = connection.execute("SHOW DATABASES").fetchall()
    assert [row[0] for row in rows] == ["pgbouncer"]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(pooler.url("pgbouncer", "plain", "wrong"))


def test_no_secret_is_shown(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    secret = "s3cret-of-all"
    pooler = pgfunnel(
        postgres.url(password=secret),
        toml=f"[databases.sales]\nhost = '127.0.0.1'\npassword = '{secret}'\n[users]\nbob = '{secret}'\n",
        userlist={"alice": secret},
        auth_type="scram-sha-256",
        admin_users="alice",
    )
    with pooler.login("alice", "pgbouncer", secret) as alice:
        shown = [row for table in TABLES for row in alice.rows(f"SHOW {table}")]
        alice.query(f"SET server_password_source = 'file:{secret}'")
        alice.query(f"SET nonsense = '{secret}'")
    assert secret not in str(shown)
    assert secret not in "\n".join(pooler.log)
