"""Who may log in and how, as the settings say."""

import json
import socket
import time

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, StartPgfunnel
from tests.support.proxy import FaultProxy
from tests.support.wire import ServerError, Wire, startup


def test_users_of_the_settings_log_in_with_as_many_scram_iterations_as_they_say(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(
        postgres.url(), auth_type="scram-sha-256", users=json.dumps({"alice": "secret"}), scram_iterations=5001
    )
    with pooler.connect() as wire:
        wire.send(startup({"user": "alice", "database": "postgres"}))
        asked = wire.authenticate("alice", "secret")
        assert b",i=5001" in asked[1].payload
        assert wire.value("SELECT current_user") == "alice"
    with pooler.connect() as wire, pytest.raises(ServerError) as refused:
        wire.login("bob", "postgres", "secret")
    assert refused.value.sqlstate == "28P01"


@pytest.mark.parametrize(
    ("auth_type", "asks_for"), [("trust", 0), ("plain", 3), ("md5", 5), ("scram-sha-256", 10), ("any", 0)]
)
def test_clients_are_asked_for_the_proof_that_auth_type_says(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, auth_type: str, asks_for: int
) -> None:
    pooler = pgfunnel(postgres.url(), auth_type=auth_type, users='{"alice": "secret"}')
    with pooler.connect() as wire:
        wire.send(startup({"user": "alice", "database": "postgres"}))
        assert wire.authenticate("alice", "secret")[0].payload[:4] == asks_for.to_bytes(4, "big")
        assert wire.value("SELECT current_user") == ("postgres" if auth_type == "any" else "alice")


def test_auth_query_runs_in_auth_dbname(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    postgres.psql(f"CREATE FUNCTION public.secret(text) RETURNS text LANGUAGE sql RETURN $${PASSWORD}$$", "other")
    pooler = pgfunnel(
        postgres.url(),
        auth_type="plain",
        auth_user="postgres",
        auth_query="SELECT public.secret($1)",
        auth_dbname="other",
    )
    with pooler.login("alice", password=PASSWORD) as wire:
        assert wire.rows("SELECT current_user, current_database()") == [["alice", "postgres"]]
    postgres.psql("DROP FUNCTION public.secret", "other")


@pytest.mark.parametrize("auth_query_max_age", [0, 60])
def test_what_auth_query_has_answered_serves_for_auth_query_max_age_while_postgres_is_away(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, auth_query_max_age: int
) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        pooler = pgfunnel(
            proxy.url(),
            auth_type="plain",
            auth_user="postgres",
            auth_query_max_age=auth_query_max_age,
            client_login_timeout=1.5,
        )
        pooler.login("plain", password=PASSWORD).terminate()
        proxy.refuse()
        proxy.cut()
        time.sleep(1.1)  # for so long, any answer is good
        with pooler.connect() as wire:
            wire.send(startup({"user": "plain", "database": "postgres"}))
            assert wire.read().kind == ("R" if auth_query_max_age else "E")  # asks for the password, or gives up


def test_a_failed_login_is_told_after_login_failure_delay(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), auth_type="plain", users='{"alice": "secret"}', login_failure_delay=1.7)
    began = time.monotonic()
    with pooler.connect() as wire, pytest.raises(ServerError):
        wire.login("alice", "postgres", "wrong")
    assert time.monotonic() - began >= 1.7


def own_address() -> str:
    """Return an address of this machine that others could reach it by."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(sock.getsockname()[0])


@pytest.mark.parametrize("passthrough_cleartext", [0, 1])
def test_without_passthrough_cleartext_nobody_is_asked_for_a_password_that_others_could_read(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, passthrough_cleartext: int
) -> None:
    pooler = pgfunnel(
        f"postgresql://{postgres.host}:{postgres.port}/postgres",
        auth_type="passthrough",
        listen_addr="*",
        passthrough_cleartext=passthrough_cleartext,
    )
    with Wire(own_address(), pooler.port) as wire:
        wire.send(startup({"user": "scram", "database": "postgres"}))
        if passthrough_cleartext:
            wire.authenticate("scram", PASSWORD)
            assert wire.value("SELECT current_user") == "scram"
        else:
            assert wire.error().sqlstate == "28000"
