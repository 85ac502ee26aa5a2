"""Replication passes through: it gets a server connection of its own, and all that is said there is passed on."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, StartPgfunnel
from tests.support.certificates import Certificates
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.standby import StandbyPostgres
from tests.support.system_postgres import bin_dir
from tests.support.wire import ServerError, Wire, cancel_request, copy_data, kinds, query, startup

HBA: Final = (
    "host all scram all scram-sha-256",
    "host replication scram all scram-sha-256",
    "host all all all trust",
    "host replication all all trust",
)
LOGICAL: Final = {"replication": "database"}
POSTGRES: Final = {"postgres": ""}
PHYSICAL: Final = {"replication": "true"}


@pytest.fixture(scope="module")
def primary(certificates: Certificates) -> Iterator[EmbeddedPostgres]:
    """Start a Postgres that replicates, over TLS as ever if it can be; the module's tests leave it as it was."""
    binaries = bin_dir()
    certificate, key = certificates.ec
    settings = {"wal_level": "logical", "max_wal_senders": "8", "max_connections": "30"}
    tls = {"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}
    server = EmbeddedPostgres(
        int(binaries.parent.name),
        settings={**settings, **tls},
        hba=HBA,
        bin_dir=binaries,
        files={"server.crt": certificate, "server.key": key},
    )
    with server:
        server.psql("CREATE ROLE ordinary LOGIN")
        server.psql(f"CREATE ROLE scram LOGIN REPLICATION PASSWORD $${PASSWORD}$$")
        yield server


@pytest.fixture(scope="module")
def pooler(primary: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    """Start the pgfunnel of all tests that leave it running, and whose settings are the usual ones."""
    with Pgfunnel(primary.url(), default_pool_size=3) as pooler:
        yield pooler


@pytest.fixture
def own_pooler(primary: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    return pgfunnel(primary.url(), default_pool_size=3)


@pytest.fixture
def admin(primary: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(primary.url(), autocommit=True) as connection:
        yield connection


def replicate(pooler: Pgfunnel, kind: dict[str, str] = LOGICAL, user: str = "postgres", **parameters: str) -> Wire:
    return pooler.connect().login(user, "postgres", **kind, **parameters)


def startup_of(kind: dict[str, str], user: str = "postgres") -> bytes:
    return startup({"user": user, "database": "postgres", **kind})


def stream(pooler: Pgfunnel) -> Wire:
    """Replicate from where the primary is now, until somebody ends it."""
    wire = replicate(pooler, PHYSICAL)
    position = wire.rows("IDENTIFY_SYSTEM")[0][2]
    wire.send(query(f"START_REPLICATION PHYSICAL {position}"))
    assert wire.read().kind == "W"
    return wire


def walsenders(admin: psycopg.Connection) -> int:
    row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'").fetchone()
    assert row is not None
    return int(row[0])


def run(program: str, pooler: Pgfunnel, *arguments: str | Path) -> str:
    """Run one of Postgres's own programs against pgfunnel, and return what it has said on its standard output."""
    command = [bin_dir() / program, "-h", pooler.host, "-p", str(pooler.port), "-U", "postgres", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- Postgres's own programs


@pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
def test_psql(primary: EmbeddedPostgres, pgfunnel: StartPgfunnel, mode: str) -> None:
    pooler = pgfunnel(primary.url(), pool_mode=mode)
    database = "dbname=postgres replication=database"
    said = run("psql", pooler, "-At", "-d", database, "-c", "IDENTIFY_SYSTEM", "-c", "BEGIN", "-c", "SELECT 40 + 2")
    assert said.splitlines()[0].endswith("|postgres")
    assert said.splitlines()[1:] == ["BEGIN", "42"]


def test_pg_basebackup(pooler: Pgfunnel, tmp_path: Path) -> None:
    run("pg_basebackup", pooler, "-D", tmp_path / "backup", "-X", "stream", "-c", "fast")
    verify = subprocess.run(
        [bin_dir() / "pg_verifybackup", tmp_path / "backup"], capture_output=True, text=True, check=False
    )
    assert "successfully verified" in verify.stdout, verify.stderr


def test_pg_receivewal(pooler: Pgfunnel, admin: psycopg.Connection, tmp_path: Path) -> None:
    run("pg_receivewal", pooler, "--slot=wal", "--create-slot")
    try:
        admin.execute("SELECT pg_switch_wal()")
        row = admin.execute("SELECT pg_current_wal_lsn()").fetchone()
        assert row is not None
        admin.execute("CREATE TABLE IF NOT EXISTS grown AS SELECT 1")
        run("pg_receivewal", pooler, "--slot=wal", "-D", tmp_path, f"--endpos={row[0]}", "--no-loop")
    finally:
        run("pg_receivewal", pooler, "--slot=wal", "--drop-slot")
    assert [file.name[:8] for file in tmp_path.iterdir()] == ["00000001"]


def test_pg_recvlogical(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    slot = ("-d", "postgres", "--slot=changes")
    run("pg_recvlogical", pooler, *slot, "--create-slot", "-P", "test_decoding")
    try:
        admin.execute("CREATE TABLE counted AS SELECT generate_series(1, 3) AS number")
        row = admin.execute("SELECT pg_current_wal_lsn()").fetchone()
        assert row is not None
        said = run("pg_recvlogical", pooler, *slot, "--start", "-f", "-", "--no-loop", "-E", row[0])
    finally:
        run("pg_recvlogical", pooler, *slot, "--drop-slot")
        admin.execute("DROP TABLE counted")
    assert [line for line in said.splitlines() if "INSERT" in line] == [
        f"table public.counted: INSERT: number[integer]:{number}" for number in (1, 2, 3)
    ]


def test_a_subscription(pooler: Pgfunnel, primary: EmbeddedPostgres, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE stock (item text)")
    admin.execute("CREATE PUBLICATION goods FOR TABLE stock")
    admin.execute("SELECT pg_create_logical_replication_slot('goods', 'pgoutput')")
    admin.execute("CREATE DATABASE subscriber")
    with psycopg.connect(primary.url("subscriber"), autocommit=True) as subscriber:
        subscriber.execute("CREATE TABLE stock (item text)")
        where = f"host={pooler.host} port={pooler.port} user=postgres dbname=postgres"
        options = "create_slot = false, slot_name = 'goods', copy_data = false"
        subscriber.execute(f"CREATE SUBSCRIPTION goods CONNECTION '{where}' PUBLICATION goods WITH ({options})")
        admin.execute("INSERT INTO stock VALUES ('screws')")
        eventually(lambda: subscriber.execute("SELECT item FROM stock").fetchall() == [("screws",)])
        subscriber.execute("DROP SUBSCRIPTION goods")  # which drops the slot, by pgfunnel, too
    assert admin.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)
    admin.execute("DROP DATABASE subscriber")
    admin.execute("DROP PUBLICATION goods")
    admin.execute("DROP TABLE stock")


def test_a_standby(pooler: Pgfunnel, primary: EmbeddedPostgres, admin: psycopg.Connection) -> None:
    with StandbyPostgres(primary, via=pooler) as standby:
        admin.execute("CREATE TABLE followed AS SELECT 'screws' AS item")
        eventually(lambda: standby.psql("SELECT count(*) FROM pg_class WHERE relname = 'followed'").strip() == "1")
        assert standby.psql("SELECT item FROM followed").strip() == "screws"
    admin.execute("DROP TABLE followed")


def test_over_tls(
    primary: EmbeddedPostgres, pgfunnel: StartPgfunnel, certificates: Certificates, tmp_path: Path
) -> None:
    certificate, key = certificates.ec
    files = {"client_tls_cert_file": str(certificate), "client_tls_key_file": str(key)}
    pooler = pgfunnel(primary.url(), client_tls_sslmode="require", server_tls_sslmode="require", **files)
    run("pg_basebackup", pooler, "-D", tmp_path / "backup", "-X", "stream", "-c", "fast")
    for event in ("client_login", "server_login"):
        assert "tls=TLSv1.3" in pooler.wait_for_log(f"event={event} ")


# --- logging in


def test_startup_parameters_reach_the_server_as_they_are(pooler: Pgfunnel) -> None:
    with replicate(
        pooler, options="-c statement_timeout=5s -S 5120", application_name="copy", DateStyle="German"
    ) as wire:
        assert wire.parameters["application_name"] == "copy"
        assert wire.parameters["DateStyle"] == "German, DMY"
        assert wire.value("SHOW statement_timeout") == "5s"
        assert wire.value("SHOW work_mem") == "5MB"


def test_entries_parameters_are_for_who_has_none(primary: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    entry = f"[databases.shop]\nhost = '{primary.host}'\nport = {primary.port}\ndbname = 'postgres'\n"
    pooler = pgfunnel(
        toml=entry + "application_name = 'entry'\ntimezone = 'Asia/Tokyo'\nuser = 'scram'\n",
        userlist={"postgres": "", "scram": PASSWORD},
    )
    with pooler.connect().login("postgres", "shop", **LOGICAL, TimeZone="UTC") as wire:
        assert wire.rows("SELECT current_user, current_database()") == [["scram", "postgres"]]
        assert wire.parameters["application_name"] == "entry"
        assert wire.parameters["TimeZone"] == "UTC"


def test_passwords_are_asked_for_on_both_sides(primary: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(primary.url(), auth_type="scram-sha-256", userlist={"scram": PASSWORD})
    with pooler.connect() as wire:
        wire.login("scram", "postgres", PASSWORD, **PHYSICAL)
        assert len(wire.rows("IDENTIFY_SYSTEM")) == 1
    with pooler.connect() as wire, pytest.raises(ServerError, match="28P01"):
        wire.login("scram", "postgres", "wrong", **PHYSICAL)


def test_passthrough_asks_for_replication_where_there_is_no_such_database(
    primary: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(f"postgresql://{primary.host}:{primary.port}", auth_type="passthrough")
    for password, is_in in ((PASSWORD, True), ("wrong", False), (PASSWORD, True)):
        with pooler.connect() as wire:
            wire.send(startup({"user": "scram", "database": "replication", **PHYSICAL}))
            if is_in:
                wire.authenticate("scram", password)
                assert len(wire.rows("IDENTIFY_SYSTEM")) == 1
            else:
                with pytest.raises(ServerError, match="28P01"):
                    wire.authenticate("scram", password)


def test_who_may_not_replicate_is_told_so_in_postgres_words(primary: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(primary.url(), userlist={"ordinary": ""})
    with pooler.connect() as wire:
        wire.send(startup_of(LOGICAL, "ordinary"))
        error = wire.error()
        assert error.sqlstate == "42501"
        assert "replication" in error.message


def test_who_names_no_database_to_replicate_is_told_what_to_do(
    primary: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(toml=f"[databases.shop]\nhost = '{primary.host}'\nport = {primary.port}\n", userlist=POSTGRES)
    with pooler.connect() as wire:
        wire.send(startup_of(PHYSICAL))
        fields = wire.read_until("E")[-1].fields
    assert fields["C"] == "3D000"
    assert "entry" in fields["H"]


def test_a_false_value_is_no_replication(pooler: Pgfunnel) -> None:
    with replicate(pooler, {"replication": "off"}) as wire:
        assert wire.value("SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()") == "client backend"


def test_a_senseless_value_is_refused(pooler: Pgfunnel) -> None:
    with pooler.connect() as wire:
        wire.send(startup_of({"replication": "perhaps"}))
        assert wire.error().sqlstate == "22023"


def test_it_waits_for_a_postgres_that_is_not_there(own_postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    own_postgres.stop()
    pooler = pgfunnel(own_postgres.url(), auth_type="trust")
    with pooler.connect() as wire:
        wire.send(startup_of(LOGICAL))
        pooler.wait_for_log("event=server_connect_failed")
        own_postgres.start()
        wire.authenticate("postgres", "")
        assert wire.value("SELECT 1") == "1"


def test_it_waits_no_longer_than_query_wait_timeout(pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel("postgresql://postgres@127.0.0.1:1", query_wait_timeout=0.5)
    with pooler.connect() as wire:
        wire.send(startup_of(LOGICAL))
        fields = wire.read_until("E")[-1].fields
    assert (fields["C"], "query_wait_timeout" in fields["M"]) == ("57014", True)
    assert "can't connect to 127.0.0.1:1" in fields["H"]


# --- limits


def test_it_takes_a_place_of_its_pool(primary: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(primary.url(), default_pool_size=1)
    with pooler.login() as client, pooler.connect() as copy:
        client.query("BEGIN")
        copy.send(startup_of(LOGICAL))
        eventually(lambda: pooler.waiting() == 1)
        client.query("COMMIT")
        copy.authenticate("postgres", "")
        assert copy.value("SELECT 1") == "1"
        client.send(query("SELECT 2"))
        eventually(lambda: pooler.waiting() == 1)
        copy.terminate()
        assert kinds(client.read_until()) == "TDCZ"


@pytest.mark.parametrize("limit", ["max_db_connections", "max_user_connections"])
def test_it_counts_under_shared_limits(primary: EmbeddedPostgres, pgfunnel: StartPgfunnel, limit: str) -> None:
    pooler = pgfunnel(primary.url(), **{limit: 1})
    with pooler.login() as client, replicate(pooler) as copy:
        client.send(query("SELECT 1"))
        eventually(lambda: pooler.waiting() == 1)
        copy.terminate()
        assert kinds(client.read_until()) == "TDCZ"


def test_an_idle_connection_makes_room_for_it(primary: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(primary.url(), default_pool_size=1)
    with pooler.login() as client:
        client.query("SELECT 1")
        with replicate(pooler) as copy:
            assert copy.value("SELECT 1") == "1"
        pooler.wait_for_log("event=server_closed .*reason=made_room")


# --- while it lasts


def test_it_is_counted_exactly(own_pooler: Pgfunnel) -> None:
    with replicate(own_pooler) as wire:
        assert wire.rows("SELECT 1; SELECT 2") == [["1"], ["2"]]
        wire.query("IDENTIFY_SYSTEM")
        sent = len(query("SELECT 1; SELECT 2") + query("IDENTIFY_SYSTEM"))
        figures = {
            name: own_pooler.metric(f"pgfunnel_{name}_total") for name in ("queries", "received_bytes", "client_logins")
        }
        assert own_pooler.metric("pgfunnel_pool_servers", state="replication") == 1
        assert own_pooler.metric("pgfunnel_pool_clients") == 1
        assert figures == {"queries": 2, "received_bytes": sent, "client_logins": 1}
        before = own_pooler.metric("pgfunnel_sent_bytes_total")
        answer = sum(len(each.raw) for each in wire.query("SELECT 3"))
        assert own_pooler.metric("pgfunnel_sent_bytes_total") - before == answer
        wire.terminate()
    own_pooler.wait_for_log("event=client_closed")
    assert own_pooler.metric("pgfunnel_queries_total") == 3


def test_a_cancel_reaches_it(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    sleep = "SELECT pg_sleep(600)"
    with replicate(pooler) as wire, pooler.connect() as courier:
        wire.send(query(sleep))
        eventually(lambda: admin.execute("SELECT FROM pg_stat_activity WHERE query = %s", [sleep]).rowcount == 1)
        courier.send(cancel_request(wire.backend_pid, wire.cancel_key))
        assert courier.read_to_end() == []
        assert wire.error().sqlstate == "57014"
        assert wire.read().kind == "Z"
        assert wire.value("SELECT 1") == "1"


def test_both_ways_are_passed_on_while_it_streams(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with stream(pooler) as wire:
        # A status update that asks for an answer: message "r", five int64 in a row but for the last, a byte.
        wire.send(copy_data(b"r" + b"\0" * 32 + b"\1"))
        assert wire.read().payload[:1] == b"k"
        admin.execute("CREATE TABLE passing (value int)")
        admin.execute("DROP TABLE passing")
        while wire.read().payload[:1] != b"w":
            pass


def test_a_reader_that_is_slow_costs_no_memory(pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with replicate(pooler) as wire:
        assert wire.value("SELECT 1") == "1"
        before = pooler.rss()
        pooler.forget_peak_rss()
        wire.send(query("SELECT repeat('x', 10000) FROM generate_series(1, 20000)"))
        stuck = "SELECT FROM pg_stat_activity WHERE backend_type = 'walsender' AND wait_event = 'ClientWrite'"
        eventually(lambda: admin.execute(stuck).rowcount == 1)
        with pooler.login() as other:
            assert other.value("SELECT 1") == "1"
        rows = sum(each.kind == "D" for each in wire.read_until())
        assert rows == 20000
        assert pooler.peak_rss() - before < 16 << 20


# --- the end


def test_when_the_client_has_gone_so_has_its_connection(own_pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with stream(own_pooler) as wire:
        eventually(lambda: walsenders(admin) == 1)
        wire.reset()
    eventually(lambda: walsenders(admin) == 0)
    own_pooler.wait_for_log("event=client_closed .*reason=client_gone")
    own_pooler.wait_for_log("event=server_closed .*reason=replication_over")


def test_what_postgres_says_at_the_end_arrives(own_pooler: Pgfunnel, admin: psycopg.Connection) -> None:
    with stream(own_pooler) as wire:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'")
        *_, last = wire.read_to_end()
        assert (last.kind, last.fields["C"]) == ("E", "57P01")
    own_pooler.wait_for_log("event=server_closed .*reason=server_lost")


def breaks(conversation: Conversation) -> None:
    conversation.accept_login()
    conversation.read()
    conversation.reset()


def test_a_connection_that_breaks_is_told(pgfunnel: StartPgfunnel) -> None:
    with ScriptedServer(breaks) as server, replicate(pgfunnel(server.url())) as wire:
        wire.send(query("SELECT 1"))
        assert wire.error().sqlstate == "08006"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stream_ends_when_pgfunnel_does(
    own_pooler: Pgfunnel, admin: psycopg.Connection, number: signal.Signals
) -> None:
    with stream(own_pooler) as wire:
        own_pooler.signal(number)
        *_, last = wire.read_to_end()
        assert (last.kind, last.fields["C"]) == ("E", "57P01")
    assert own_pooler.wait() == 0
    eventually(lambda: walsenders(admin) == 0)


def test_a_command_under_way_is_finished_before_pgfunnel_ends(own_pooler: Pgfunnel) -> None:
    with replicate(own_pooler) as wire:
        wire.send(query("SELECT pg_sleep(0.5), 'whole'"))
        own_pooler.signal(signal.SIGTERM)
        own_pooler.wait_for_log("event=shutting_down")
        assert wire.read_until()[1].columns[1] == "whole"
        assert wire.error().sqlstate == "57P01"


def test_a_reload_that_leads_elsewhere_ends_it(
    primary: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path
) -> None:
    config = tmp_path / "pgfunnel.toml"
    entry = f"[databases.postgres]\nhost = '{primary.host}'\nport = {primary.port}\n"
    config.write_text(entry)
    pooler = pgfunnel(config=str(config), userlist=POSTGRES)
    with stream(pooler) as wire, replicate(pooler) as other:
        config.write_text(entry + "application_name = 'new'\n")
        pooler.signal(signal.SIGHUP)
        for each in (wire, other):
            *_, last = each.read_to_end()
            assert (last.kind, last.fields["C"]) == ("E", "57P01")
