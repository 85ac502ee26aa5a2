"""PAUSE and RESUME, KILL, RECONNECT and the like do what PgBouncer's documentation says, whatever goes on meanwhile."""

import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest

from pooler.admin.interpreter import COMMANDS
from pooler.admin.show import TABLES
from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.console import Console, refused
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import Wire, cancel_request, query, startup

KEYS = {"sales": "", "stock": "", "fresh": "", "crowd": "pool_size = 4", "kept": "pool_mode = 'session'"}
DATABASES = "".join(
    f"[databases.{name}]\nhost = '127.0.0.1'\nport = {{0}}\ndbname = 'postgres'\nuser = 'postgres'\n{keys}\n"
    for name, keys in KEYS.items()
)


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    """Start one with these databases."""
    toml = DATABASES.format(postgres.port)
    with Pgfunnel(toml=toml, auth_type="any", admin_users="admin") as shared:
        yield shared


@pytest.fixture
def own(shared: Pgfunnel) -> Iterator[Pgfunnel]:
    """Give it to a test, and undo what that leaves."""
    yield shared
    with Console(shared, "admin") as console:
        for undo in ("RESUME", "RESUME sales", "RESUME fresh", "ENABLE sales", "RELOAD"):
            with suppress(psycopg.Error):
                console.do(undo)


@pytest.fixture
def single(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> Pgfunnel:
    """Start another one, for what can't be undone."""
    return pgfunnel(toml=DATABASES.format(postgres.port), auth_type="any", admin_users="admin")


@pytest.fixture
def one(own: Pgfunnel) -> Iterator[Console]:
    with Console(own, "admin") as console:
        yield console


@pytest.fixture
def another(own: Pgfunnel) -> Iterator[Console]:
    with Console(own, "admin") as console:
        yield console


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Let the test do things that wait."""
    with ThreadPoolExecutor() as executor:
        yield executor


def answered(wire: Wire) -> bool:
    """Tell whether the answer to a query comes within a moment."""
    wire.socket.settimeout(0.15)
    try:
        wire.read_until()
    except TimeoutError:
        return False
    finally:
        wire.socket.settimeout(20)
    return True


def servers(console: Console, database: str) -> int:
    return int(console.one("DATABASES", name=database)["current_connections"])


def come(own: Pgfunnel, database: str) -> str | None:
    """Log in, and ask for something."""
    with own.login("postgres", database) as wire:
        return wire.value("SELECT 1")


def waits(console: Console, who: int) -> None:
    """Return once a session of the console waits for what it has asked for."""
    eventually(lambda: console.one("CLIENTS", id=who)["state"] == "active")


# --- PAUSE and RESUME


def test_pause_closes_all_server_connections_and_holds_up_queries_until_resume(own: Pgfunnel, one: Console) -> None:
    with own.login("postgres", "sales") as wire:
        wire.value("SELECT 1")
        assert servers(one, "sales") == 1
        assert one.do("PAUSE") == "PAUSE"
        assert servers(one, "sales") == 0
        assert one.one("STATE", key="paused")["value"] == "yes"
        wire.send(query("SELECT 2"))
        assert not answered(wire)
        assert one.one("POOLS", database="sales")["cl_waiting"] == 1
        assert one.do("RESUME") == "RESUME"
        assert wire.read_until()[1].columns == ["2"]
        assert one.one("STATE", key="active")["value"] == "yes"


def test_pause_of_one_database_leaves_the_others_alone(own: Pgfunnel, one: Console) -> None:
    with own.login("postgres", "sales") as paused, own.login("postgres", "stock") as other:
        one.do("PAUSE sales")
        assert one.one("DATABASES", name="sales")["paused"] == 1
        assert one.one("DATABASES", name="stock")["paused"] == 0
        paused.send(query("SELECT 1"))
        assert other.value("SELECT 2") == "2"
        assert not answered(paused)
        one.do("RESUME sales")
        assert paused.read_until()[1].columns == ["1"]


def test_pause_waits_for_transactions_to_end(own: Pgfunnel, one: Console, aside: ThreadPoolExecutor) -> None:
    with own.login("postgres", "sales") as wire:
        wire.query("BEGIN")
        done = aside.submit(one.do, "PAUSE")
        with Console(own, "admin") as looks:
            waits(looks, one.connection.info.backend_pid)
        assert wire.value("SELECT 1") == "1"
        assert not done.done()
        wire.query("COMMIT")
        assert done.result(10) == "PAUSE"
        one.do("RESUME")


def test_pause_in_session_mode_waits_for_the_client_to_leave(
    own: Pgfunnel, one: Console, another: Console, aside: ThreadPoolExecutor
) -> None:
    with own.login("postgres", "kept") as wire:
        wire.value("SELECT 1")
        done = aside.submit(one.do, "PAUSE")
        waits(another, one.connection.info.backend_pid)
        assert wire.value("SELECT 1") == "1"
        assert not done.done()
        wire.terminate()
        assert done.result(10) == "PAUSE"


def test_clients_that_come_during_a_pause_wait_until_resume(
    own: Pgfunnel, one: Console, aside: ThreadPoolExecutor
) -> None:
    one.do("PAUSE")
    value = aside.submit(come, own, "sales")
    eventually(lambda: bool(one.show("QUEUE", database="sales", waits_for="RESUME")))
    one.do("RESUME")
    assert value.result(10) == "1"


def test_who_waits_too_long_during_a_pause_is_told_of_it(own: Pgfunnel, one: Console) -> None:
    with own.login("postgres", "sales") as wire:
        wire.value("SELECT 1")
        one.do("SET query_wait_timeout = 0.1")
        one.do("PAUSE sales")
        wire.send(query("SELECT 1"))
        told = wire.read_until("E")[-1].fields
        assert (told["C"], "RESUME" in told["H"]) == ("57014", True)


def test_a_pause_outlives_the_console_that_asked_for_it(
    own: Pgfunnel, another: Console, aside: ThreadPoolExecutor
) -> None:
    with own.login("postgres", "sales") as wire:
        wire.query("BEGIN")
        with Console(own, "admin") as one:
            done = aside.submit(one.do, "PAUSE")
            waits(another, one.connection.info.backend_pid)
        with suppress(psycopg.Error):
            done.result(10)
        assert another.one("STATE", key="paused")["value"] == "yes"
        assert refused(another, "PAUSE").diag.message_primary == "already suspended/paused"


def test_a_pause_that_is_cancelled_is_undone(own: Pgfunnel, one: Console) -> None:
    with own.login("postgres", "sales") as wire, own.login("admin", "pgbouncer") as console:
        wire.query("BEGIN")
        console.send(query("PAUSE"))
        waits(one, console.backend_pid)
        with own.connect() as courier:
            courier.send(cancel_request(console.backend_pid, console.cancel_key))
            courier.read_to_end()
        assert console.error().sqlstate == "57014"
        assert one.one("STATE", key="paused")["value"] == "no"
        wire.query("COMMIT")
        assert wire.value("SELECT 1") == "1"


def test_a_pause_that_another_console_ends_tells_so(
    own: Pgfunnel, one: Console, another: Console, aside: ThreadPoolExecutor
) -> None:
    with own.login("postgres", "sales") as wire:
        wire.query("BEGIN")
        done: Future[str] = aside.submit(one.do, "PAUSE sales")
        waits(another, one.connection.info.backend_pid)
        another.do("RESUME sales")
        with pytest.raises(psycopg.Error, match="ended by RESUME") as error:
            done.result(10)
        assert error.value.sqlstate == "08P01"


def test_pause_and_resume_under_load_lose_no_transaction(
    postgres: EmbeddedPostgres, own: Pgfunnel, one: Console
) -> None:
    postgres.psql("CREATE TABLE paused (n int)")
    script = "BEGIN;\nINSERT INTO paused VALUES (1);\nSELECT 1;\nCOMMIT;\n"
    command = ["pgbench", "-n", "-c", "8", "-t", "100", "-f", "/dev/stdin", own.url("crowd")]

    def done() -> int:
        return sum(int(row["total_xact_count"]) for row in one.show("STATS", database="crowd"))

    bench = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert bench.stdin is not None
    with bench.stdin as pipe:
        pipe.write(script)
    rounds = 0
    while bench.poll() is None:
        one.do("PAUSE")
        assert one.one("LISTS", list="used_servers")["items"] == 0
        one.do("RELOAD")
        one.do("RESUME")
        one.do("RECONNECT")
        rounds, before = rounds + 1, done()
        eventually(lambda: done() > before + 25 or bench.poll() is not None)  # noqa: B023
    assert bench.wait() == 0
    assert rounds > 2
    assert postgres.psql("SELECT count(*) FROM paused").strip() == str(8 * 100)
    postgres.psql("DROP TABLE paused")


def test_signals_pause_and_resume(own: Pgfunnel, one: Console) -> None:
    own.signal(signal.SIGUSR1)
    own.wait_for_log("event=signal_handled signal=SIGUSR1")
    assert one.one("STATE", key="paused")["value"] == "yes"
    own.signal(signal.SIGUSR1)
    assert "already" in own.wait_for_log("event=signal_ignored signal=SIGUSR1")
    own.signal(signal.SIGUSR2)
    own.wait_for_log("event=signal_handled signal=SIGUSR2")
    assert one.one("STATE", key="paused")["value"] == "no"


# --- RECONNECT and WAIT_CLOSE


def test_reconnect_replaces_connections_as_they_come_back_and_wait_close_waits_for_it(
    own: Pgfunnel, one: Console, aside: ThreadPoolExecutor
) -> None:
    with own.login("postgres", "sales") as wire, Console(own, "admin") as looks:
        wire.query("BEGIN")
        before = wire.value("SELECT pg_backend_pid()")
        assert one.do("RECONNECT sales") == "RECONNECT"
        assert one.one("SERVERS", database="sales")["close_needed"] == 1
        done = aside.submit(one.do, "WAIT_CLOSE sales")
        waits(looks, one.connection.info.backend_pid)
        assert wire.value("SELECT pg_backend_pid()") == before
        wire.query("COMMIT")
        assert done.result(10) == "WAIT_CLOSE"
        assert wire.value("SELECT pg_backend_pid()") != before
        assert one.do("WAIT_CLOSE") == "WAIT_CLOSE"


# --- KILL


def test_kill_drops_all_connections_of_a_database_at_once(
    own: Pgfunnel, one: Console, aside: ThreadPoolExecutor
) -> None:
    with own.login("postgres", "sales") as wire, own.login("postgres", "stock") as other:
        wire.query("BEGIN")
        other.query("BEGIN")
        assert one.do("KILL sales") == "KILL"
        assert wire.error().sqlstate == "57P01"
        assert servers(one, "sales") == 0
        assert other.value("SELECT 1") == "1"
        value = aside.submit(come, own, "sales")
        eventually(lambda: bool(one.show("QUEUE", database="sales", waits_for="RESUME")))
        one.do("RESUME sales")
        assert value.result(10) == "1"


def test_kill_without_a_name_drops_those_of_all_databases(own: Pgfunnel, one: Console) -> None:
    with own.login("postgres", "sales") as wire, own.login("postgres", "stock") as other:
        other.query("BEGIN")
        assert one.do("KILL") == "KILL"
        assert wire.error().sqlstate == other.error().sqlstate == "57P01"
        assert refused(one, "KILL").diag.message_primary == "already suspended/paused"
        assert one.do("RESUME") == "RESUME"
    with own.login("postgres", "sales") as wire:
        assert wire.value("SELECT 1") == "1"


def test_kill_client_drops_one_client_and_its_server(own: Pgfunnel, one: Console) -> None:
    with own.login("postgres", "sales") as wire, own.login("postgres", "sales") as other:
        wire.query("BEGIN")
        assert one.do(f"KILL_CLIENT {wire.backend_pid}") == "KILL_CLIENT"
        error = wire.error()
        assert (error.sqlstate, error.message) == ("57P01", "admin forced disconnect")
        assert one.show("SERVERS", state="active", database="sales") == []
        assert other.value("SELECT 1") == "1"
    with own.login("admin", "pgbouncer") as console:
        one.do(f"KILL_CLIENT {console.backend_pid}")
        assert console.error().sqlstate == "57P01"


def test_kill_client_drops_one_who_waits_to_be_let_in(own: Pgfunnel, one: Console) -> None:
    one.do("PAUSE fresh")
    with own.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "fresh"}))
        eventually(lambda: bool(one.show("CLIENTS", database="fresh", state="waiting")))
        assert one.one("POOLS", database="fresh")["cl_waiting"] == 1
        assert one.one("QUEUE", database="fresh")["waits_for"] == "RESUME"
        one.do(f"KILL_CLIENT {one.one('CLIENTS', database='fresh')['id']}")
        assert wire.error().message == "admin forced disconnect"
    assert one.show("CLIENTS", database="fresh") == []


# --- DISABLE and ENABLE


def test_disable_refuses_new_clients_and_keeps_those_there_are(own: Pgfunnel, one: Console) -> None:
    with own.login("postgres", "sales") as wire:
        assert one.do("DISABLE sales") == "DISABLE"
        assert one.one("DATABASES", name="sales")["disabled"] == 1
        assert wire.value("SELECT 1") == "1"
        with pytest.raises(psycopg.OperationalError, match="does not allow connections"):
            psycopg.connect(own.url("sales"))
        assert one.do("ENABLE sales") == "ENABLE"
        psycopg.connect(own.url("sales")).close()


# --- RELOAD and SET


def test_reload_takes_over_what_the_file_says_or_tells_why_not(own: Pgfunnel, one: Console) -> None:
    assert own.config_file is not None
    text = own.config_file.read_text()
    own.config_file.write_text("default_pool_size = 3\n" + text)
    assert one.do("RELOAD") == "RELOAD"
    assert one.one("DATABASES", name="sales")["pool_size"] == 3
    own.config_file.write_text("default_pol_size = 4\n" + text)
    error = refused(one, "RELOAD")
    own.config_file.write_text(text)
    assert error.sqlstate == "F0000"
    assert error.diag.message_primary == "RELOAD failed, see logs for additional details"
    assert "default_pool_size" in (error.diag.message_detail or "")
    assert one.one("CONFIG", key="default_pool_size")["value"] == "3"


def test_set_changes_a_setting_at_once(own: Pgfunnel, one: Console) -> None:
    assert one.do("SET default_pool_size = 2") == "SET default_pool_size=2"
    assert one.one("DATABASES", name="stock")["pool_size"] == 2
    assert one.do("SET server_check_query='select ''x'''") == "SET server_check_query=select 'x'"
    assert one.one("CONFIG", key="server_check_query")["value"] == "select 'x'"
    for wrong in ("SET default_pool_size = many", "SET no_such_thing = 1", "SET listen_port = 1"):
        error = refused(one, wrong)
        assert (error.sqlstate, error.diag.message_primary) == ("08P01", "SET failed")
        assert error.diag.message_detail
    assert "console_command" in own.wait_for_log("SET default_pool_size")


# --- SHUTDOWN


def test_shutdown_ends_the_pooler_at_once_even_if_it_waits_already(single: Pgfunnel) -> None:
    with Console(single, "admin") as one, single.login("postgres", "sales") as wire:
        wire.query("BEGIN")
        one.do("SHUTDOWN WAIT_FOR_CLIENTS")
        assert wire.value("SELECT 1") == "1"
        with pytest.raises(psycopg.OperationalError):
            one.do("SHUTDOWN")
        assert wire.error().sqlstate == "57P01"
    assert single.wait() == 0


@pytest.mark.parametrize("mode", ["WAIT_FOR_SERVERS", "WAIT_FOR_CLIENTS"])
def test_shutdown_that_waits_lets_transactions_finish(single: Pgfunnel, mode: str) -> None:
    with Console(single, "admin") as one, single.login("postgres", "sales") as wire:
        wire.query("BEGIN")
        assert one.do(f"SHUTDOWN {mode}") == "SHUTDOWN"
        assert refused(one, "PAUSE").diag.message_primary == "pooler is shutting down"
        assert refused(one, "RESUME").diag.message_primary == "pooler is shutting down"
        assert wire.value("SELECT 1") == "1"
        wire.query("COMMIT")
    assert single.wait() == 0


def test_shutdown_while_paused_sends_away_who_could_never_be_served(single: Pgfunnel) -> None:
    with Console(single, "admin") as one, single.login("postgres", "sales") as wire:
        wire.value("SELECT 1")
        one.do("PAUSE")
        wire.send(query("SELECT 1"))
        eventually(lambda: one.one("POOLS", database="sales")["cl_waiting"] == 1)
        assert one.do("SHUTDOWN WAIT_FOR_CLIENTS") == "SHUTDOWN"
        assert wire.error().sqlstate == "57P01"
    assert single.wait() == 0


# --- errors


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("RESUME", "pooler is not paused/suspended"),
        ("RESUME sales", "database sales is not paused"),
        ("RESUME nope", "no such database: nope"),
        ("PAUSE nope", "no such database: nope"),
        ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"),
        ("RECONNECT nope", "no such database: nope"),
        ("RECONNECT pgfunnel", "cannot reconnect admin db: pgfunnel"),
        ("KILL nope", "no such database: nope"),
        ("KILL pgbouncer", "cannot kill admin db: pgbouncer"),
        ("WAIT_CLOSE nope", "no such database: nope"),
        ("DISABLE", "a database is required"),
        ("DISABLE pgbouncer", "cannot disable admin db: pgbouncer"),
        ("ENABLE", "a database is required"),
        ("ENABLE nope", "no such database: nope"),
        ("KILL_CLIENT", "invalid client pointer supplied"),
        ("KILL_CLIENT 12345678", "client not found"),
        ("SUSPEND", "SUSPEND is not supported"),
        ("SUSPEND now", "invalid command 'SUSPEND now', use SHOW HELP;"),
        ("SHUTDOWN NOW", "invalid command 'SHUTDOWN NOW', use SHOW HELP;"),
        ("SHOW nonsense", "invalid command 'SHOW nonsense', use SHOW HELP;"),
        ("one two three", "invalid command 'one two three', use SHOW HELP;"),
    ],
)
def test_what_can_not_be_done_is_refused_in_pgbouncer_s_words(own: Pgfunnel, command: str, message: str) -> None:
    with Console(own, "admin") as console:
        error = refused(console, command)
    assert (error.sqlstate, error.diag.message_primary) == ("08P01", message)


@pytest.mark.parametrize(
    ("command", "hint"),
    [("SHOW POLS", "SHOW POOLS"), ("PAUS", "PAUSE"), ("sohw pools", "SHOW"), ("SHOW ACTIVE_SOCKET", "ACTIVE_SOCKETS")],
)
def test_a_mistyped_command_is_told_the_right_one(console: Console, command: str, hint: str) -> None:
    assert hint in (refused(console, command).diag.message_hint or "")


def test_a_command_that_says_too_little_is_not_told_what_it_is(console: Console) -> None:
    assert refused(console, "SHOW").diag.message_hint is None


def test_help_has_a_line_for_each_command(console: Console) -> None:
    console.do("SHOW HELP")
    (text,) = console.notices
    assert text.startswith("Console usage")
    for name in (*(f"SHOW {table.upper()}" for table in TABLES), *map(str.upper, COMMANDS), "SET key = value"):
        assert f"\t{name}" in text
