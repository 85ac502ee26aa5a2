"""Logging in through pgfunnel as a user who is in no list: auth_query, and the server login that follows from it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, VERSIONS, StartPgfunnel, start_postgres
from tests.support.certificates import Certificates
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.system_postgres import ROLES, tls_postgres
from tests.support.wire import ServerError, startup

NEW: Final = "a new password"


@pytest.fixture(scope="module")
def town() -> Iterator[EmbeddedPostgres]:
    """Start a Postgres whose users' passwords tests may change."""
    with start_postgres(VERSIONS[-1]) as server:
        yield server


@pytest.fixture(autouse=True)
def same_as_before(town: EmbeddedPostgres) -> Iterator[None]:
    yield
    town.start()
    town.psql(f"ALTER ROLE scram PASSWORD $${PASSWORD}$$ VALID UNTIL 'infinity'")


def attempt(pooler: Pgfunnel, user: str, password: str) -> ServerError | None:
    with pooler.connect() as wire:
        try:
            wire.login(user, "postgres", password)
        except ServerError as error:
            return error
        return None


def refusal(pooler: Pgfunnel, user: str, password: str = PASSWORD) -> ServerError:
    refused = attempt(pooler, user, password)
    assert refused is not None
    return refused


def lets_in(pooler: Pgfunnel, password: str, user: str = "scram") -> bool:
    refused = attempt(pooler, user, password)
    assert refused is None or refused.sqlstate == "28P01"
    return refused is None


def reveals_nothing(pooler: Pgfunnel, town: EmbeddedPostgres) -> bool:
    stored = town.psql("SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL").splitlines()
    secrets = [PASSWORD, NEW, "SCRAM-SHA-256$", *stored]
    shown = "\n".join(pooler.log) + pooler.http("/metrics")[1]
    return not any(secret in shown for secret in secrets)


@pytest.mark.parametrize(
    ("auth_type", "user"),
    [("scram-sha-256", "scram"), ("md5", "scram"), ("md5", "md5"), ("plain", "scram"), ("plain", "md5")],
)
def test_a_user_who_is_in_no_list_logs_in_here_and_at_postgres(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres, auth_type: str, user: str
) -> None:
    pooler = pgfunnel(town.url(), auth_type=auth_type, auth_user="postgres", login_failure_delay=0, server_lifetime=0)
    for _ in range(2):
        with psycopg.connect(pooler.url(user=user, password=PASSWORD)) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (user,)
    wrong, unknown = refusal(pooler, user, "wrong"), refusal(pooler, "mallory")
    assert (wrong.sqlstate, unknown.sqlstate) == ("28P01", "28P01")
    assert wrong.message.replace(user, "mallory") == unknown.message
    assert pooler.metric("pgfunnel_auth_query_lookups_total", outcome="unknown") == 1
    assert reveals_nothing(pooler, town)


@pytest.mark.parametrize("auth_type", ["scram-sha-256", "plain"])
def test_a_new_password_works_at_the_second_attempt_at_the_latest(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres, auth_type: str
) -> None:
    pooler = pgfunnel(town.url(), auth_type=auth_type, auth_user="postgres", login_failure_delay=0, server_lifetime=0)
    with pooler.login("scram", password=PASSWORD) as old:
        assert old.value("SELECT 1") == "1"
        town.psql(f"ALTER ROLE scram PASSWORD '{NEW}'")
        assert lets_in(pooler, NEW) or lets_in(pooler, NEW)
        assert not lets_in(pooler, PASSWORD)
        with pooler.login("scram", password=NEW) as new:
            assert new.value("SELECT current_user") == "scram", "at Postgres it has logged in with the new one, too"
        assert old.value("SELECT 2") == "2", "who was in before goes on, with what the other has brought"
    assert reveals_nothing(pooler, town)


def test_users_are_looked_up_at_the_next_host_where_one_is_away(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres
) -> None:
    url = f"postgresql://postgres@127.0.0.1:1,127.0.0.1:{town.port}/postgres"
    pooler = pgfunnel(url, auth_type="plain", auth_user="postgres", login_failure_delay=0)
    assert lets_in(pooler, PASSWORD)


def test_a_password_whose_time_is_up_counts_no_more(pgfunnel: StartPgfunnel, town: EmbeddedPostgres) -> None:
    pooler = pgfunnel(town.url(), auth_type="plain", auth_user="postgres", login_failure_delay=0)
    assert lets_in(pooler, PASSWORD)
    town.psql("ALTER ROLE scram VALID UNTIL '2001-01-01'")
    eventually(lambda: not lets_in(pooler, PASSWORD))


def test_one_whose_time_runs_out_is_not_outlived_by_what_is_remembered(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres
) -> None:
    pooler = pgfunnel(
        town.url(), auth_type="plain", auth_user="postgres", login_failure_delay=0, client_login_timeout=4
    )
    soon = town.psql("SELECT clock_timestamp() + interval '2 seconds'")
    town.psql(f"ALTER ROLE scram VALID UNTIL '{soon}'")
    assert lets_in(pooler, PASSWORD)
    town.stop()
    assert lets_in(pooler, PASSWORD), "while Postgres is away, by what it has said before"

    def waits_in_vain() -> bool:
        refused = attempt(pooler, "scram", PASSWORD)
        assert refused is None or "client_login_timeout" in refused.message
        return refused is not None

    eventually(waits_in_vain)


def test_nothing_that_a_client_asks_for_reaches_the_query(pgfunnel: StartPgfunnel, town: EmbeddedPostgres) -> None:
    town.psql(
        "CREATE SCHEMA trap; CREATE TABLE trap.pg_authid AS SELECT 'scram'::name rolname, 'trap'::text rolpassword; "
        "GRANT ALL ON SCHEMA trap TO PUBLIC"
    )
    query = (
        "SELECT rolname, CASE WHEN current_setting('search_path') = 'pg_catalog' AND current_database() = 'postgres' "
        "AND current_setting('application_name') = 'pgfunnel' AND current_setting('work_mem') = '4MB' "
        "THEN rolpassword END FROM pg_authid WHERE rolname = $1"
    )
    pooler = pgfunnel(town.url(), auth_type="scram-sha-256", auth_user="postgres", auth_query=query)
    options = "-c search_path=trap,pg_catalog -c work_mem=5MB"
    for _ in range(2):
        with psycopg.connect(
            pooler.url("other", "scram", PASSWORD), options=options, application_name="trap"
        ) as connection:
            assert connection.execute("SHOW search_path").fetchone() == ("trap,pg_catalog",)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(pooler.url("other", "scram", "trap"), options=options)
    town.psql("DROP SCHEMA trap CASCADE")


def test_clients_wait_for_a_postgres_that_is_away(pgfunnel: StartPgfunnel, town: EmbeddedPostgres) -> None:
    pooler = pgfunnel(town.url(), auth_type="scram-sha-256", auth_user="postgres")
    town.stop()
    with pooler.connect() as wire:
        wire.send(startup({"user": "scram", "database": "postgres"}))
        pooler.wait_for_log("event=auth_query_failed")
        town.start()
        wire.authenticate("scram", PASSWORD)
        assert wire.value("SELECT current_user") == "scram"
    pooler.wait_for_log("event=auth_query_recovered")


def test_a_query_that_may_not_be_run_is_told_in_the_log(pgfunnel: StartPgfunnel, town: EmbeddedPostgres) -> None:
    pooler = pgfunnel(town.url(), auth_type="scram-sha-256", auth_user="alice")
    refused = refusal(pooler, "scram")
    assert refused.sqlstate == "08006"
    assert "pg_authid" not in refused.message
    assert "permission denied for table pg_authid" in pooler.wait_for_log("event=auth_query_failed auth_user=alice")
    assert "reason=auth_query_failed" in pooler.wait_for_log("event=login_failed")


def test_the_user_who_asks_needs_no_right_but_that_to_a_function(
    pgfunnel: StartPgfunnel, town: EmbeddedPostgres
) -> None:
    operations = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    (statements,) = re.findall(r"```sql\n(CREATE ROLE pgfunnel .*?)```", operations, flags=re.DOTALL)
    town.psql(statements.replace("...", "its own"))
    pooler = pgfunnel(
        town.url(),
        auth_type="scram-sha-256",
        userlist={"pgfunnel": "its own"},
        auth_user="pgfunnel",
        auth_query="SELECT * FROM public.find_secret($1)",
        login_failure_delay=0,
    )
    with pooler.login("scram", password=PASSWORD) as wire:
        assert wire.value("SELECT current_user") == "scram"
    with pooler.login("pgfunnel", password="its own") as wire:  # by the list, which goes before
        assert wire.value("SELECT current_user") == "pgfunnel"
    for nobody in ("mallory", "postgres"):
        assert refusal(pooler, nobody).sqlstate == "28P01"
    assert pooler.metric("pgfunnel_auth_query_lookups_total", outcome="found") == 1


@pytest.fixture(scope="module")
def tls_only(certificates: Certificates) -> Iterator[EmbeddedPostgres]:
    """Start a Postgres that lets nobody in without TLS."""
    with tls_postgres(certificates, tls="hostssl") as server:
        server.psql(ROLES)
        yield server


@pytest.mark.parametrize("sslmode", ["prefer", "require", "verify-full"])
def test_the_query_goes_over_tls(
    pgfunnel: StartPgfunnel, certificates: Certificates, tls_only: EmbeddedPostgres, sslmode: str
) -> None:
    pooler = pgfunnel(
        tls_only.url(),
        auth_type="scram-sha-256",
        auth_user="postgres",
        server_tls_sslmode=sslmode,
        server_tls_ca_file=str(certificates.ca),
    )
    with pooler.login("scram", password=PASSWORD) as wire:
        assert wire.value("SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == "true"
