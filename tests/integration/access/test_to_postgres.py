"""From pgfunnel to a Postgres with TLS: every mode, every way to log in, rotated secrets, cancels, certificates."""

import hashlib
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.certificates import Certificates
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.system_postgres import PASSWORD, ROLES, tls_postgres

MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
CANCEL_REQUEST: Final = (80877102).to_bytes(4, "big")
LONG: Final = "SELECT pg_sleep(600)"
ENCRYPTED: Final = "SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


def url(server: EmbeddedPostgres, user: str = "scram", password: str | None = PASSWORD, **options: str | Path) -> str:
    query = "&".join(f"{name}={quote(str(value), safe='/')}" for name, value in options.items())
    return f"{server.url(user=user, password=password)}?{query}"


def asks(
    pooler: Pgfunnel, user: str = "scram", password: str | None = None, sql: str = ENCRYPTED
) -> tuple[object, ...]:
    with psycopg.connect(pooler.url(user=user, password=password), connect_timeout=10) as connection:
        row = connection.execute(sql).fetchone()
    assert row is not None
    return tuple(row)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("role", ["scram", "md5", "plain", "trust"])
def test_every_way_to_log_in_there_goes_with_every_mode(
    tls_server: EmbeddedPostgres, certificates: Certificates, pgfunnel: StartPgfunnel, role: str, mode: str
) -> None:
    options = {"sslmode": mode, "sslrootcert": certificates.ca} if mode.startswith("verify") else {"sslmode": mode}
    pooler = pgfunnel(url(tls_server, role, **options))
    encrypted = mode not in ("disable", "allow")
    assert asks(pooler, role) == (role, encrypted)
    assert ("tls=TLSv1.3" in pooler.wait_for_log("event=server_login ")) is encrypted


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rules", ["hostssl", "hostnossl"])
def test_where_postgres_takes_one_kind_only_each_mode_does_what_libpq_does(
    server_of_one_kind: dict[str, EmbeddedPostgres],
    certificates: Certificates,
    pgfunnel: StartPgfunnel,
    mode: str,
    rules: str,
) -> None:
    server = server_of_one_kind[rules]
    options = {"sslmode": mode, "sslrootcert": certificates.ca} if mode.startswith("verify") else {"sslmode": mode}
    direct: tuple[object, ...] | None = None
    with (
        suppress(psycopg.OperationalError),
        psycopg.connect(url(server, **options)) as connection,
    ):
        direct = connection.execute(ENCRYPTED).fetchone()
    pooler = pgfunnel(url(server, **options))
    if direct is not None:
        assert asks(pooler) == direct
    else:
        with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
            asks(pooler)


@pytest.fixture(scope="module")
def server_of_one_kind(certificates: Certificates) -> Iterator[dict[str, EmbeddedPostgres]]:
    with ExitStack() as running:
        servers = {}
        for rules in ("hostssl", "hostnossl"):
            servers[rules] = running.enter_context(tls_postgres(certificates, tls=rules))
            servers[rules].psql(ROLES)
        yield servers


@pytest.mark.parametrize("pair", ["ec", "rsa", "sha384"])
def test_postgres_takes_the_proof_that_is_bound_to_its_certificate(
    certificates: Certificates, pgfunnel: StartPgfunnel, pair: str
) -> None:
    with tls_postgres(certificates, getattr(certificates, pair)) as server:
        server.psql(ROLES)
        pooler = pgfunnel(url(server, sslmode="require", channel_binding="require"))
        assert asks(pooler) == ("scram", True)
        refusing = pgfunnel(url(server, "md5", sslmode="require", channel_binding="require"))
        with pytest.raises(psycopg.OperationalError, match="no channel binding, and it is required"):
            asks(refusing, "md5")


def test_a_client_certificate_logs_in(
    tls_server: EmbeddedPostgres, certificates: Certificates, pgfunnel: StartPgfunnel
) -> None:
    certificate, key = certificates.client("cert")
    pooler = pgfunnel(url(tls_server, "cert", None, sslmode="require", sslcert=certificate, sslkey=key))
    assert asks(pooler, "cert") == ("cert", True)
    without = pgfunnel(url(tls_server, "cert", None, sslmode="require"))
    with pytest.raises(psycopg.OperationalError, match="connection requires a valid client certificate"):
        asks(without, "cert")


def test_a_client_certificate_that_postgres_does_not_trust_is_named_in_the_log(
    tls_server: EmbeddedPostgres, certificates: Certificates, pgfunnel: StartPgfunnel
) -> None:
    certificate, key = certificates.other_authority.client("cert")
    pooler = pgfunnel(
        url(tls_server, "cert", None, sslmode="require", sslcert=certificate, sslkey=key), query_wait_timeout=0.5
    )
    with pytest.raises(psycopg.OperationalError, match="No connection to Postgres could be opened"):
        asks(pooler, "cert")
    pooler.wait_for_log("event=server_connect_failed .*(server_tls_failed.*unknown ca|closed the connection)")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sslmode": "verify-full", "pair": "wrong_name"}, "mismatch, certificate is not valid for '127.0.0.1'"),
        ({"sslmode": "verify-ca", "pair": "untrusted"}, "unable to get local issuer certificate"),
        ({"sslmode": "verify-ca", "pair": "expired"}, "certificate has expired"),
    ],
)
def test_who_waits_for_a_server_that_is_not_trusted_is_told_why(
    certificates: Certificates, pgfunnel: StartPgfunnel, options: dict[str, str], why: str
) -> None:
    with tls_postgres(certificates, getattr(certificates, options["pair"])) as server:
        pooler = pgfunnel(
            url(server, "trust", sslmode=options["sslmode"], sslrootcert=certificates.ca), query_wait_timeout=0.5
        )
        with pytest.raises(psycopg.OperationalError, match=why):
            asks(pooler, "trust")
        assert "reason=server_tls_failed" in pooler.wait_for_log("event=server_connect_failed")
        assert pooler.metric("pgfunnel_servers_ended_total", reason="server_tls_failed") >= 1


@pytest.mark.parametrize("by_signal", [True, False])
def test_clients_that_wait_are_served_once_the_right_authority_is_there(
    tls_server: EmbeddedPostgres, certificates: Certificates, pgfunnel: StartPgfunnel, tmp_path: Path, by_signal: bool
) -> None:
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes(certificates.other_authority.certificate.read_bytes())
    pooler = pgfunnel(url(tls_server, sslmode="verify-full", sslrootcert=trusted), server_login_retry=0.2)
    answers = []
    client = threading.Thread(target=lambda: answers.append(asks(pooler)))
    client.start()
    pooler.wait_for_log("event=server_connect_failed")
    trusted.write_bytes(certificates.ca.read_bytes())
    if by_signal:
        pooler.signal(signal.SIGHUP)
    client.join(10)
    assert answers == [("scram", True)]


# --- what the pooler knows to log in with


def test_scram_secrets_suffice_where_clients_log_in_with_scram(
    tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    secret = tls_server.psql("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram'")
    pooler = pgfunnel(
        url(tls_server, "postgres", None, sslmode="require", channel_binding="require"),
        userlist={"scram": secret},
        auth_type="scram-sha-256",
    )
    assert asks(pooler, password=PASSWORD) == ("scram", True)
    assert PASSWORD not in "".join(pooler.log)


def test_an_md5_hash_suffices_where_postgres_asks_for_md5(
    tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    hashed = "md5" + hashlib.md5((PASSWORD + "md5").encode()).hexdigest()
    pooler = pgfunnel(tls_server.url(), userlist={"md5": hashed}, auth_type="md5")
    assert asks(pooler, "md5", PASSWORD) == ("md5", True)


@pytest.fixture
def rotated(tls_server: EmbeddedPostgres) -> Iterator[str]:
    """Let the test change the password of a role of its own."""
    tls_server.psql("CREATE ROLE rotated LOGIN PASSWORD 'old'")
    with rule(tls_server, "host all rotated all scram-sha-256"):
        yield "rotated"
    tls_server.psql("DROP ROLE rotated")


@contextmanager
def rule(server: EmbeddedPostgres, line: str) -> Iterator[None]:
    file = server.data_dir / "pg_hba.conf"
    before = file.read_text()
    file.write_text(f"{line}\n{before}")
    server.psql("SELECT pg_reload_conf()")
    eventually(lambda: line.split()[2] in server.psql("SELECT user_name FROM pg_hba_file_rules"))
    yield
    file.write_text(before)
    server.psql("SELECT pg_reload_conf()")


@pytest.mark.parametrize("kind", ["file", "command"])
def test_a_rotated_password_needs_no_restart_and_fails_nobody(
    tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path, rotated: str, kind: str
) -> None:
    kept = tmp_path / "password"
    kept.write_text("old\n")
    sources = {"file": f"file:{kept}", "command": f"command:{shlex.join(['cat', str(kept)])}"}
    pooler = pgfunnel(
        tls_server.url(user=rotated), server_password_source=sources[kind], default_pool_size=1, server_lifetime=0
    )
    assert asks(pooler, rotated, sql="SELECT 1") == (1,)
    tls_server.psql("ALTER ROLE rotated PASSWORD 'new'")
    kept.write_text("new\n")
    for _ in range(3):
        assert asks(pooler, rotated, sql="SELECT 1") == (1,)
    assert pooler.metric("pgfunnel_servers_ended_total", reason="server_login_failed") == 0
    assert not any("'new'" in line or "old" in line for line in pooler.log)


def test_a_rotated_password_in_the_auth_file_counts_from_sighup_on(
    tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel, rotated: str
) -> None:
    pooler = pgfunnel(tls_server.url(), userlist={rotated: "old"}, server_lifetime=0)
    assert asks(pooler, rotated, sql="SELECT 1") == (1,)
    tls_server.psql("ALTER ROLE rotated PASSWORD 'new'")
    Path(str(pooler.settings["auth_file"])).write_text('"rotated" "new"\n')
    pooler.signal(signal.SIGHUP)
    pooler.wait_for_log("event=reloaded")
    assert asks(pooler, rotated, sql="SELECT 1") == (1,)


def test_a_source_that_fails_is_waited_for_and_named(
    tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path, rotated: str
) -> None:
    kept = tmp_path / "password"
    pooler = pgfunnel(
        tls_server.url(user=rotated),
        server_password_source=f"file:{kept}",
        server_login_retry=0.2,
        query_wait_timeout=10,
    )
    answers = []
    client = threading.Thread(target=lambda: answers.append(asks(pooler, rotated, sql="SELECT 1")))
    client.start()
    failed = pooler.wait_for_log("event=server_connect_failed")
    assert "reason=server_password_failed" in failed
    assert f"file:{kept}: it can't be read: No such file or directory" in failed
    kept.write_text("old")
    client.join(10)
    assert answers == [(1,)]


def test_a_password_that_stays_wrong_is_postgres_refusal(
    tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel, rotated: str
) -> None:
    wrong = shlex.join([sys.executable, "-c", "print('wrong')"])
    pooler = pgfunnel(tls_server.url(user=rotated), server_password_source=f"command:{wrong}")
    with pytest.raises(psycopg.OperationalError, match='password authentication failed for user "rotated"'):
        asks(pooler, rotated)
    assert not any("wrong" in line for line in pooler.log)


# --- what flows


class Tap:
    """Stands between pgfunnel and Postgres, and keeps what each connection says to Postgres."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._target = (server.host, server.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self.said: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += near, far
                self.said.append(bytearray())
                for source, drain, heard in ((near, far, self.said[-1]), (far, near, bytearray())):
                    self._threads.append(threading.Thread(target=_pass_on, args=(source, drain, heard), daemon=True))
                    self._threads[-1].start()


def _pass_on(source: socket.socket, drain: socket.socket, heard: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            heard += data
            drain.sendall(data)
    for sock in (source, drain):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def test_a_probe_shows_the_password_to_nobody(tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    with Tap(tls_server) as tap:
        address = f"{tap.host}:{tap.port}/postgres?sslmode=require"
        pooler = pgfunnel(f"postgresql://plain:{quote(PASSWORD, safe='')}@{address}")
        status, text = pooler.http("/readyz")
        pooler.stop()
    assert (status, "the upstream answered" in text) == (200, True)
    assert [PASSWORD.encode() in said for said in tap.said] == [False]


def cancel_when_it_runs(connection: psycopg.Connection, server: EmbeddedPostgres) -> None:
    active = f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{LONG}'"
    eventually(lambda: server.psql(active) == "1")
    connection.cancel_safe()  # cancel() would keep the tap from running


@pytest.mark.parametrize("mode", ["disable", "prefer", "require"])
def test_a_cancel_takes_the_same_kind_of_way_as_what_it_cancels(
    tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel, mode: str
) -> None:
    with Tap(tls_server) as tap:
        pooler = pgfunnel(f"postgresql://trust@{tap.host}:{tap.port}/postgres?sslmode={mode}", default_pool_size=1)
        with psycopg.connect(pooler.url(user="trust"), autocommit=True) as connection:
            canceller = threading.Thread(target=cancel_when_it_runs, args=(connection, tls_server))
            canceller.start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute(LONG)
            canceller.join()
            assert connection.execute("SELECT 1").fetchone() == (1,)
        pooler.stop()
    assert len(tap.said) == 2, "the session and the cancel"
    assert [CANCEL_REQUEST in said for said in tap.said] == [False, mode == "disable"]


def test_much_flows_both_ways_over_tls(tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(url(tls_server, "trust", sslmode="require"), default_pool_size=1)
    with psycopg.connect(pooler.url(user="trust"), autocommit=True) as connection:
        long = "x" * 5_000_000
        assert connection.execute("SELECT length(%s)", [long]).fetchone() == (5_000_000,)
        rows = connection.execute("SELECT i, repeat('y', 100) FROM generate_series(1, 100000) i").fetchall()
        assert len(rows) == 100_000
        assert rows[-1] == (100_000, "y" * 100)


def test_a_server_that_is_ended_over_tls_is_told_as_ever(tls_server: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(url(tls_server, "trust", sslmode="require"), default_pool_size=1)
    with psycopg.connect(pooler.url(user="trust"), autocommit=True) as connection:
        connection.execute("BEGIN")
        pid = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert pid is not None
        tls_server.psql(f"SELECT pg_terminate_backend({pid[0]})")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert asks(pooler, "trust") == ("trust", True)
