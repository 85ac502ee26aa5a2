"""Who may log in and how, as the settings say."""

import json
import socket
import time

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, StartPgfunnel
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


def test_a_failed_login_is_told_after_login_failure_delay(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), auth_type="plain", users='{"alice": "secret"}', login_failure_delay=0.5)
    began = time.monotonic()
    with pooler.connect() as wire, pytest.raises(ServerError):
        wire.login("alice", "postgres", "wrong")
    assert 0.5 <= time.monotonic() - began < 2


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
