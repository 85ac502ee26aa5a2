"""Who gets in by rules, and that SIGHUP changes that for those who come from then on: all of it, or nothing."""

import os
import pwd
import signal
import socket
import struct
import time
from pathlib import Path

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.certificates import Certificates
from tests.support.pgfunnel import Pgfunnel
from tests.support.wire import query, sasl_initial_response, startup

ME = pwd.getpwuid(os.getuid()).pw_name


class Files:
    """The files of one pgfunnel, to be changed while it runs."""

    def __init__(self, directory: Path) -> None:
        self.users = directory / "users"
        self.rules = directory / "rules"
        self.maps = directory / "maps"
        self.users.write_text('"alice" "hush"\n"bob" "hush"\n')
        self.rules.write_text("host all all 127.0.0.1/32 scram-sha-256\nlocal all all peer map=here\n")
        self.maps.write_text(f"here {ME} alice\n")

    def start(self, pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres, **settings: str | float) -> Pgfunnel:
        return pgfunnel(
            postgres.url(user="postgres"),
            auth_type="hba",
            auth_file=str(self.users),
            auth_hba_file=str(self.rules),
            auth_ident_file=str(self.maps),
            **settings,
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def user_of(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_user").fetchone()
        assert row is not None
        return str(row[0])


def reload(pooler: Pgfunnel, event: str) -> str:
    pooler.log.clear()
    pooler.signal(signal.SIGHUP)
    return pooler.wait_for_log(f"event={event}")


def test_new_users_and_rules_count_from_a_reload_on(
    files: Files, postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = files.start(pgfunnel, postgres)
    with psycopg.connect(pooler.url(user="alice", password="hush")) as connection:
        files.users.write_text('"alice" "new"\n')
        files.rules.write_text("host all bob all trust\nhost all all all scram-sha-256")
        assert "users=2 rules=2" in reload(pooler, "reloaded")
        assert connection.execute("SELECT 1").fetchone() == (1,), "who is in stays in"
    assert user_of(pooler.url(user="alice", password="new")) == "alice"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        user_of(pooler.url(user="alice", password="hush"))


def test_files_with_mistakes_change_nothing_and_the_log_says_where_they_are(
    files: Files, postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = files.start(pgfunnel, postgres)
    files.users.write_text('"alice" "new"\n"bob"\n')
    files.rules.write_text("host all all all ldap\nhost all all all trust")
    told = reload(pooler, "reload_failed")
    assert f"'{files.users}' line 2" in told
    assert f"'{files.rules}' line 1" in told
    assert user_of(pooler.url(user="alice", password="hush")) == "alice"


def test_a_secret_with_mistakes_changes_nothing_and_is_not_logged(
    files: Files, postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = files.start(pgfunnel, postgres)
    files.users.write_text('"alice" "SCRAM-SHA-256$secret"\n')
    told = reload(pooler, "reload_failed")
    assert "alice" in told
    assert "$secret" not in told
    assert user_of(pooler.url(user="alice", password="hush")) == "alice"


def test_on_a_unix_socket_a_system_user_is_who_the_map_says(
    files: Files, postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path
) -> None:
    pooler = files.start(pgfunnel, postgres, unix_socket_dir=str(tmp_path), login_failure_delay=0)
    pooler.wait_for_log(r"event=listening on=.*\.s\.PGSQL")
    url = f"postgresql://{{}}@/postgres?host={tmp_path}&port={pooler.port}"
    assert user_of(url.format("alice")) == "alice"
    assert f"rule=\"'{files.rules}' line 2\"" in pooler.wait_for_log("event=client_login .*addr=unix")
    with pytest.raises(psycopg.OperationalError, match='Peer authentication failed for user "bob"'):
        user_of(url.format("bob"))
    assert ME in pooler.wait_for_log("event=login_failed")


def test_who_no_rule_is_for_is_told_so_at_once(
    files: Files, postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    files.rules.write_text("host other all all trust\nhost all all 10.0.0.0/8 trust")
    pooler = files.start(pgfunnel, postgres, login_failure_delay=60)
    words = 'no pg_hba.conf entry for host "127.0.0.1", user "alice", database "postgres", no encryption'
    with pytest.raises(psycopg.OperationalError, match=words):
        user_of(pooler.url(user="alice", password="hush"))
    assert pooler.metric("pgfunnel_errors_sent_total", sqlstate="28000") == 1


def test_a_failure_takes_its_time_and_delays_nobody_else(
    files: Files, postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = files.start(pgfunnel, postgres, login_failure_delay=0.7, max_client_conn=1)
    began = time.monotonic()
    with pooler.connect() as wrong:
        wrong.send(startup({"user": "alice", "database": "postgres"}))
        assert wrong.read().kind == "R"
        wrong.send(sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r="))
        pooler.wait_for_log("event=login_failed")
        assert user_of(pooler.url(user="alice", password="hush")) == "alice", "it takes the only place"
        assert wrong.error().sqlstate == "28P01"
    assert time.monotonic() - began >= 0.7


def test_some_clients_need_a_certificate_and_others_a_password(
    files: Files, postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, certificates: Certificates
) -> None:
    files.rules.write_text(
        "hostssl all alice all cert map=shop\n"
        "hostssl all bob all scram-sha-256 clientcert=verify-full\n"
        "hostssl all all all scram-sha-256\n"
    )
    files.maps.write_text(r"shop /^(\w+)\.shop$ \1")
    files.users.write_text('"bob" "hush"\n"postgres" "hush"\n')
    pooler = files.start(
        pgfunnel,
        postgres,
        client_tls_sslmode="prefer",
        client_tls_cert_file=str(certificates.ec.certificate),
        client_tls_key_file=str(certificates.ec.key),
        client_tls_ca_file=str(certificates.ca),
        login_failure_delay=0,
    )

    def log_in(user: str, certificate: str = "", password: str = "", channel_binding: str = "prefer") -> str:
        pair = certificates.client(certificate) if certificate else None
        shown = f"&sslcert={pair.certificate}&sslkey={pair.key}" if pair else "&sslcertmode=disable"
        url = pooler.url(user=user, password=password or None)
        return user_of(f"{url}?sslmode=require&channel_binding={channel_binding}{shown}")

    assert log_in("alice", "alice.shop") == "alice"
    assert log_in("bob", "bob", "hush", "require") == "bob"
    assert log_in("postgres", "", "hush", "require") == "postgres"
    for user, certificate in (("alice", "bob.shop"), ("alice", "alice"), ("alice", "")):
        with pytest.raises(psycopg.OperationalError, match='certificate authentication failed for user "alice"'):
            log_in(user, certificate)
    with pytest.raises(psycopg.OperationalError, match='certificate authentication failed for user "bob"'):
        log_in("bob", "alice.shop", "hush")
    with pytest.raises(psycopg.OperationalError, match="connection requires a valid client certificate"):
        log_in("bob", "", "hush")
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        user_of(pooler.url(user="bob", password="hush") + "?sslmode=disable")


def test_who_is_gone_before_it_was_accepted_is_not_taken_for_local(
    files: Files, postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    files.rules.write_text("local all all trust\nhost all all all reject\n")
    pooler = files.start(pgfunnel, postgres, unix_socket_dir=str(files.rules.parent))
    pooler.signal(signal.SIGSTOP)
    with socket.create_connection((pooler.host, pooler.port)) as sock:
        sock.sendall(startup({"user": "alice", "database": "postgres"}) + query("CREATE TABLE not_ours ()"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets it
    pooler.signal(signal.SIGCONT)
    pooler.wait_for_log("event=login_failed")
    assert postgres.psql("SELECT to_regclass('not_ours') IS NULL") == "t"
