"""`pgfunnel check`: what it says of databases that can be used, and of those that can't."""

from pathlib import Path

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD
from tests.support.certificates import Certificates
from tests.support.check import check, words
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.system_postgres import PASSWORD as SYSTEM_PASSWORD
from tests.support.system_postgres import ROLES, tls_postgres


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "pgfunnel.toml"
    path.touch(mode=0o600)
    return path


def test_it_tells_what_each_database_is(postgres: EmbeddedPostgres, toml: Path) -> None:
    toml.write_text(
        f"""
        default_pool_size = 20
        [users]
        scram = '''{PASSWORD}'''
        [databases.postgres]
        host = "127.0.0.1"
        port = {postgres.port}
        [databases.alias]
        host = "{postgres.socket_dir}"
        port = {postgres.port}
        dbname = "other"
        user = "postgres"
        """
    )
    status, out, err = check(f"--config={toml}")
    assert (status, err) == (0, "")
    (plain,), (alias,) = words(out, "postgres"), words(out, "alias")
    assert plain[1:3] == [f"127.0.0.1:{postgres.port}", "scram"]
    assert plain[3].startswith(f"{postgres.version}.")
    assert plain[4:10] == ["100", "(97", "to", "give)", "primary", "none"]
    assert plain[11] == plain[13] == "ms"
    assert alias[1:3] == [f"{postgres.socket_dir}/.s.PGSQL.{postgres.port}", "postgres"]
    assert "warning" not in out
    assert PASSWORD not in out


def test_it_fails_where_a_database_cannot_be_used_and_says_why(postgres: EmbeddedPostgres, toml: Path) -> None:
    toml.write_text(
        f"""
        auth_type = "trust"
        [users]
        scram = "a wrong secret"
        [databases.postgres]
        host = "127.0.0.1"
        port = {postgres.port}
        [databases.missing]
        host = "127.0.0.1"
        port = {postgres.port}
        user = "alice"
        [databases.elsewhere]
        host = "127.0.0.1:1,no.such.invalid"
        """
    )
    status, out, _ = check(f"--config={toml}")
    assert status == 1
    assert 'FAILED: FATAL: password authentication failed for user "scram" (28P01)' in out
    assert 'FAILED: FATAL: database "missing" does not exist (3D000)' in out
    assert "FAILED: can't connect to 127.0.0.1:1: Connection refused" in out
    assert "FAILED: can't resolve no.such.invalid" in out
    assert "secret" not in out


def test_it_says_which_databases_it_could_not_look_at(toml: Path) -> None:
    secret = f"SCRAM-SHA-256$4096:{'A' * 22}==${'A' * 43}=:{'A' * 43}="
    toml.write_text(f'[users]\ncarol = "{secret}"\n[databases.shop]\nhost = "127.0.0.1"\n')
    status, out, _ = check(f"--config={toml}")
    assert status == 0
    assert "warning: shop: not tried, as no user is known to log in with" in out


def test_a_wrong_configuration_is_told_from_a_wrong_database(toml: Path) -> None:
    toml.write_text("[databases.shop]\nhosts = 'a'\n")
    status, out, err = check(f"--config={toml}")
    assert (status, out) == (2, "")
    assert "hosts" in err


def test_it_warns_of_pools_that_are_larger_than_postgres(postgres: EmbeddedPostgres) -> None:
    status, out, _ = check(f"--upstream={postgres.url()}", "--auth-type=trust", "--default-pool-size=98")
    assert status == 0
    assert f"warning: 127.0.0.1:{postgres.port} has 97 connections to give, and the pools of * may open 98" in out
    _, out, _ = check(f"--upstream={postgres.url()}", "--auth-type=trust", "--default-pool-size=90%")
    assert "warning" not in out


def test_it_says_what_is_wrong_with_connect_query(postgres: EmbeddedPostgres, toml: Path) -> None:
    entry = f'host = "127.0.0.1"\nport = {postgres.port}\nuser = "alice"\nconnect_query = "SELECT 1/0"'
    toml.write_text(f'auth_type = "any"\ndefault_pool_size = 5\n[databases.postgres]\n{entry}\n')
    status, out, _ = check(f"--config={toml}")
    assert status == 0
    assert "warning: postgres: connect_query: ERROR: division by zero (22012)" in out


def test_it_tells_how_far_tls_is_verified(certificates: Certificates) -> None:
    with tls_postgres(certificates) as server:
        server.psql(ROLES)
        url = server.url(user="scram", password=SYSTEM_PASSWORD).replace("127.0.0.1", "localhost")
        for mode, verified in (("require", "not verified"), ("verify-full", "verified")):
            _, out, _ = check(
                f"--upstream={url}", f"--server-tls-sslmode={mode}", f"--server-tls-ca-file={certificates.ca}"
            )
            assert f"TLSv1.3, TLS_AES_256_GCM_SHA384, {verified} " in out


def test_who_only_seems_to_be_a_postgres_is_told() -> None:
    def script(peer: Conversation) -> None:
        peer.accept_login()
        peer.serve()

    with ScriptedServer(script) as server:
        status, out, _ = check(f"--upstream=postgresql://alice@127.0.0.1:{server.port}/shop", "--auth-type=trust")
    assert status == 1
    assert "FAILED: it lets us in, and does not answer as Postgres does" in out


def test_who_never_answers_does_not_keep_it_for_ever() -> None:
    with ScriptedServer(lambda peer: peer.wait_until_closed()) as server:
        url = f"postgresql://alice@127.0.0.1:{server.port}/shop"
        status, out, _ = check(f"--upstream={url}", "--auth-type=trust", "--server-connect-timeout=0.3")
    assert status == 1
    assert f"FAILED: no login at 127.0.0.1:{server.port} within 0.3 s" in out
