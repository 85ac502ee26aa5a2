"""A primary and its standby: who gets which, and what happens when they change places. And names that move."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import VERSIONS, StartPgfunnel
from tests.support.check import check, words
from tests.support.dns import DnsServer
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.standby import StandbyPostgres
from tests.support.wire import query

EVERYBODY = {"postgres": ""}
HBA = ("host replication all 127.0.0.1/32 trust", "host all all 127.0.0.1/32 trust")
IN_RECOVERY = "SELECT pg_is_in_recovery()"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[EmbeddedPostgres, StandbyPostgres]]:
    """Start a primary, and a standby."""
    settings = {"max_connections": "20", "hot_standby_feedback": "on"}
    with EmbeddedPostgres(VERSIONS[-1], settings=settings, hba=HBA) as primary, StandbyPostgres(primary) as standby:
        yield primary, standby


def entry(*servers: EmbeddedPostgres, database: str = "postgres", **keys: str) -> str:
    hosts = ",".join(f"{server.host}:{server.port}" for server in servers)
    lines = "".join(f'\n{key} = "{value}"' for key, value in keys.items())
    return f'[databases.{database}]\ndbname = "postgres"\nhost = "{hosts}"{lines}\n'


def hosts_of(pooler: Pgfunnel, count: int, database: str = "postgres") -> list[bool]:
    """Let as many clients have a server at the same time, and return whether each is a standby."""
    with ExitStack() as open_:
        clients = [open_.enter_context(psycopg.connect(pooler.url(database))) for _ in range(count)]
        rows = [client.execute(IN_RECOVERY).fetchone() for client in clients]
    return [row is not None and row[0] for row in rows]


def test_clients_get_the_hosts_that_they_want(
    pair: tuple[EmbeddedPostgres, StandbyPostgres], pgfunnel: StartPgfunnel
) -> None:
    wanted = {
        "any": [False, True, False, True],
        "read-write": [False] * 4,
        "primary": [False] * 4,
        "read-only": [True] * 4,
        "standby": [True] * 4,
        "prefer-standby": [True] * 4,
    }
    toml = "".join(entry(*pair, database=attrs, target_session_attrs=attrs) for attrs in wanted)
    pooler = pgfunnel(toml=toml, userlist=EVERYBODY)
    assert {attrs: sorted(hosts_of(pooler, 4, attrs)) for attrs in wanted} == {
        attrs: sorted(standbys) for attrs, standbys in wanted.items()
    }


def test_the_url_may_name_them_as_for_libpq(
    pair: tuple[EmbeddedPostgres, StandbyPostgres], pgfunnel: StartPgfunnel
) -> None:
    primary, standby = pair
    hosts = f"{standby.host}:{standby.port},{primary.host}:{primary.port}"
    for options, expected in (("", True), ("?target_session_attrs=read-write", False)):
        pooler = pgfunnel(f"postgresql://postgres@{hosts}/postgres{options}")
        assert hosts_of(pooler, 3) == [expected] * 3


def test_a_cancel_goes_to_the_host_on_which_the_query_runs(
    pair: tuple[EmbeddedPostgres, StandbyPostgres], pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(toml=entry(*pair), userlist=EVERYBODY)
    with ExitStack() as open_:
        clients = [open_.enter_context(psycopg.connect(pooler.url(), autocommit=True)) for _ in range(2)]
        for client in clients:
            client.execute(IN_RECOVERY)
        for client in clients:
            threading.Timer(0.2, client.cancel).start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                client.execute("SELECT pg_sleep(20)")


def test_check_tells_the_primary_from_its_standby_and_whether_they_are_what_is_wanted(
    pair: tuple[EmbeddedPostgres, StandbyPostgres], tmp_path: Path
) -> None:
    toml = tmp_path / "pgfunnel.toml"
    for hosts, roles, expected in ((pair, ["primary", "standby"], 0), (pair[:1], ["primary"], 1)):
        toml.write_text(
            'auth_type = "any"\ndefault_pool_size = 5\n'
            + entry(*hosts, target_session_attrs="standby", user="postgres")
        )
        status, out, _ = check(f"--config={toml}")
        assert status == expected
        assert [line[8] for line in words(out, "postgres")] == roles
    assert "FAILED: postgres: target_session_attrs is standby, and no host is a standby" in out


def test_clients_wait_through_a_failover_and_go_on_with_the_new_primary(pgfunnel: StartPgfunnel) -> None:
    settings = {"max_connections": "20"}
    with EmbeddedPostgres(VERSIONS[-1], settings=settings, hba=HBA) as old, StandbyPostgres(old) as new:
        old.psql("CREATE TABLE kept (value int)")
        toml = entry(old, new, target_session_attrs="read-write")
        toml += entry(old, new, database="reading", target_session_attrs="standby")
        pooler = pgfunnel(toml=toml, userlist=EVERYBODY, server_login_retry=0.2)
        with pooler.login() as client, pooler.login() as waiting, pooler.login(dbname="reading") as reading:
            client.query("INSERT INTO kept VALUES (1)")
            assert reading.value(IN_RECOVERY) == "t"
            eventually(lambda: new.psql("SELECT count(*) FROM kept") == "1")
            old.stop("fast")
            waiting.send(query("INSERT INTO kept VALUES (2)"))
            pooler.wait_for_log("event=server_connect_failed .*is read-only, and target_session_attrs is read-write")
            new.promote()
            assert waiting.read_until()[-1].kind == "Z"
            client.query("INSERT INTO kept VALUES (3)")
            reading.query("SELECT 1")  # with whose answer Postgres tells
            pooler.wait_for_log("event=server_closed .*reason=target_session_attrs .*database=reading")
        assert new.psql("SELECT count(*) FROM kept") == "3"
        pooler.wait_for_log(rf"event=server_login .*database=postgres host=127\.0\.0\.1 port={new.port}")


# --- names


def answer(peer: Conversation) -> None:
    peer.accept_login()
    peer.serve()


@pytest.fixture
def moving() -> Iterator[tuple[DnsServer, int]]:
    """Serve the name db.test at 127.0.0.1, and something at 127.0.0.2, on the same port."""
    with (
        ScriptedServer(answer) as here,
        ScriptedServer(answer, host="127.0.0.2", port=here.port),
        DnsServer(db_test=["127.0.0.1"]) as dns,
    ):
        yield dns, here.port


def start(
    pgfunnel: StartPgfunnel, moving: tuple[DnsServer, int], tmp_path: Path, pool_mode: str = "transaction"
) -> Pgfunnel:
    dns, port = moving
    url = f"postgresql://postgres@db.test:{port}/postgres"
    return pgfunnel(url, resolv_conf=str(dns.resolv_conf(tmp_path)), dns_max_ttl=1, pool_mode=pool_mode)


def test_idle_connections_to_an_address_that_a_name_has_lost_are_closed(
    pgfunnel: StartPgfunnel, moving: tuple[DnsServer, int], tmp_path: Path
) -> None:
    pooler = start(pgfunnel, moving, tmp_path)
    with pooler.login() as client:
        client.query("SELECT 1")
        moving[0].names["db.test"] = ["127.0.0.2"]
        pooler.wait_for_log("event=server_closed .*reason=address_gone")
        pooler.wait_for_log(r"event=dns_changed host=db\.test addresses=127\.0\.0\.2 lost=127\.0\.0\.1")
        client.query("SELECT 1")  # from the new one


def test_who_has_a_connection_to_such_an_address_keeps_it_as_long_as_it_is_needed(
    pgfunnel: StartPgfunnel, moving: tuple[DnsServer, int], tmp_path: Path
) -> None:
    pooler = start(pgfunnel, moving, tmp_path, "session")
    with pooler.login() as client:
        client.query("SELECT 1")
        moving[0].names["db.test"] = ["127.0.0.2"]
        pooler.wait_for_log("event=dns_changed")
        client.query("SELECT 1")
        assert not any("event=server_closed" in line for line in pooler.log)
        client.terminate()
    pooler.wait_for_log("event=server_closed .*reason=address_gone")


def test_old_addresses_serve_while_the_dns_does_not(
    pgfunnel: StartPgfunnel, moving: tuple[DnsServer, int], tmp_path: Path
) -> None:
    pooler = start(pgfunnel, moving, tmp_path)
    with pooler.login() as client:
        client.query("SELECT 1")
        moving[0].broken = True
        pooler.wait_for_log(r"event=dns_failed host=db\.test .*still_used=127\.0\.0\.1")
        client.query("SELECT 1")
    assert not any("address_gone" in line for line in pooler.log)
