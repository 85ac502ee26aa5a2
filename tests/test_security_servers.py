"""Never again, from the side of servers and of what is asked of them: a hostile Postgres, and a trusting auth_query.

Each test names the published hole that it stands for.
"""

import base64
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

import psutil
import psycopg
import pytest

from config.settings import Settings
from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel
from tests.support.scripted_server import Conversation, ScriptedServer
from tests.support.wire import ServerError, message, startup

Script = Callable[[Conversation], None]
CHALLENGE: Final = 11
SASL: Final = message("R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0")
AUTHENTICATED: Final = message("R", struct.pack("!I", 0))


class Hostile:
    """A pgfunnel in front of a server that plays the script of the moment."""

    pooler: Pgfunnel

    def __init__(self) -> None:
        self._script: Script = Conversation.wait_until_closed
        self._databases = (f"shop{number}" for number in count())

    def play(self, conversation: Conversation) -> None:
        self._script(conversation)

    def refusal(self, script: Script) -> ServerError:
        """Return what a client is told that needs a connection to such a server: the first one of its pool."""
        self._script = script
        return refusal(self.pooler, dbname=next(self._databases))


@contextmanager
def in_front_of_a_hostile_server(sslmode: str) -> Iterator[Hostile]:
    hostile = Hostile()
    with (
        ScriptedServer(hostile.play) as server,
        Pgfunnel(
            server.url(password="secret"),
            server_tls_sslmode=sslmode,
            query_wait_timeout=0.3,
            server_login_retry=0.1,
        ) as pooler,
    ):
        hostile.pooler = pooler
        yield hostile


@pytest.fixture(scope="module")
def in_clear() -> Iterator[Hostile]:
    with in_front_of_a_hostile_server("disable") as hostile:
        yield hostile


@pytest.fixture(scope="module")
def over_tls() -> Iterator[Hostile]:
    with in_front_of_a_hostile_server("require") as hostile:
        yield hostile


def refusal(
    pooler: Pgfunnel, user: str = "postgres", password: str = "", dbname: str = "postgres", **parameters: str
) -> ServerError:
    with pooler.connect() as wire, pytest.raises(ServerError) as refused:
        wire.login(user, dbname, password, **parameters)
    return refused.value


# --- a hostile server


def test_cve_2021_23222_what_is_slipped_in_behind_the_yes_to_tls_never_counts_as_encrypted(over_tls: Hostile) -> None:
    def script(conversation: Conversation) -> None:
        conversation.socket.recv(8)
        conversation.send(b"S", AUTHENTICATED, Conversation.ready())
        conversation.wait_until_closed()

    over_tls.refusal(script)
    over_tls.pooler.wait_for_log("event=server_connect_failed .*reason=server_protocol_violation .*data in clear")


def test_cve_2024_10977_an_error_from_before_the_handshake_is_nobodys_words(over_tls: Hostile) -> None:
    def script(conversation: Conversation) -> None:
        conversation.socket.recv(8)
        conversation.error("28000", "call this number to have your password reset")
        conversation.wait_until_closed()

    assert "this number" not in over_tls.refusal(script).message
    assert not any("this number" in line for line in over_tls.pooler.log)


def challenge(iterations: str, nonce: str = "{}server") -> Script:
    """Return the script of a server that asks for SCRAM; `nonce` has {} for the client's."""

    def script(conversation: Conversation) -> None:
        conversation.read_startup()
        conversation.send(SASL)
        first = conversation.read().payload.decode()
        said = nonce.format(first.rpartition("r=")[2])
        salt = base64.b64encode(b"salt" * 4).decode()
        text = f"r={said},s={salt},i={iterations}"
        conversation.send(message("R", struct.pack("!I", CHALLENGE) + text.encode()))
        conversation.wait_until_closed()

    return script


@pytest.mark.parametrize("iterations", ["2147483647", "100000000", "99999999999999999999", "0", "-1", "x", ""])
def test_cve_2026_6669_a_server_that_wants_endless_iterations_gets_none(in_clear: Hostile, iterations: str) -> None:
    """JDBC has had that, too (CVE-2026-42198)."""
    process = psutil.Process(in_clear.pooler.process.pid)
    before = sum(process.cpu_times()[:2])
    in_clear.refusal(challenge(iterations))
    assert sum(process.cpu_times()[:2]) - before < 2


def test_cve_2026_6669_nor_does_one_that_is_asked_for_a_users_secret(pgfunnel: StartPgfunnel) -> None:
    with ScriptedServer(challenge("2147483647")) as server:
        pooler = pgfunnel(
            server.url(user="asker", password="hush"),
            auth_type="scram-sha-256",
            auth_user="asker",
            server_tls_sslmode="disable",
        )
        with pooler.connect() as wire:
            wire.send(startup({"user": "alice", "database": "postgres"}))
            line = pooler.wait_for_log("event=auth_query_failed")
        assert "the server asks for 2147483647 SCRAM iterations" in line
        assert "hush" not in line


@pytest.mark.parametrize("nonce", ["{}" + "x" * 30_000, "another", "{}", ""])
def test_cve_2026_6665_a_server_with_a_strange_nonce_breaks_nothing(in_clear: Hostile, nonce: str) -> None:
    in_clear.refusal(challenge("4096", nonce))


@pytest.mark.parametrize(
    "fields", [b"", b"\0", b"SFATAL\0\0", b"SFATAL\0MWhy not\0\0", b"C\0M\0\0", b"C28P01", b"\xff\xfe\0\0"]
)
def test_cve_2026_6666_an_error_without_a_sqlstate_breaks_nothing(in_clear: Hostile, fields: bytes) -> None:
    def script(conversation: Conversation) -> None:
        conversation.read_startup()
        conversation.send(message("E", fields))

    assert len(in_clear.refusal(script).sqlstate) == 5


@pytest.mark.parametrize("length", [0, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_cve_2026_6664_an_impossible_length_in_a_servers_login_breaks_nothing(in_clear: Hostile, length: int) -> None:
    def script(conversation: Conversation) -> None:
        conversation.read_startup()
        conversation.send(b"R" + struct.pack("!I", length) + bytes(100))
        conversation.wait_until_closed()

    in_clear.refusal(script)


def test_a_server_that_lets_in_without_having_proven_itself_is_not_used(in_clear: Hostile) -> None:
    """AuthenticationOk in the middle of SCRAM: whoever says so may know nothing of the password."""

    def script(conversation: Conversation) -> None:
        conversation.read_startup()
        conversation.send(SASL)
        conversation.read()
        conversation.log_in()
        conversation.serve()

    in_clear.refusal(script)


# --- auth_query


@pytest.fixture(scope="module")
def town(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """A Postgres with users in it that pgfunnel has not been told of, and a schema to mislead it by."""
    postgres.psql(
        """
        CREATE ROLE asker LOGIN SUPERUSER PASSWORD 'asking';
        CREATE ROLE lasting LOGIN PASSWORD 'good' VALID UNTIL '2100-01-01';
        CREATE ROLE expired LOGIN PASSWORD 'good' VALID UNTIL '2020-01-01';
        CREATE ROLE rogue LOGIN PASSWORD 'good';
        CREATE SCHEMA evil;
        CREATE TABLE evil.pg_authid (rolname, rolpassword, rolvaliduntil, rolcanlogin) AS
            SELECT 'asker'::text, 'chosen'::text, NULL::timestamptz, true
            UNION SELECT 'lasting', 'chosen', NULL, true;
        CREATE TABLE evil.pg_shadow (usename, passwd) AS SELECT rolname, rolpassword FROM evil.pg_authid;
        CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''2000-01-01''';
        GRANT USAGE ON SCHEMA evil TO public;
        GRANT SELECT ON ALL TABLES IN SCHEMA evil TO public;
        """
    )
    yield postgres
    postgres.psql("DROP SCHEMA evil CASCADE; DROP ROLE asker, lasting, expired, rogue")


@pytest.fixture(scope="module")
def asking(town: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(
        town.url(user="asker", password="asking"),
        auth_type="scram-sha-256",
        auth_user="asker",
        login_failure_delay=0,
    ) as pooler:
        yield pooler


def test_cve_2025_2291_an_expired_password_is_none(asking: Pgfunnel) -> None:
    assert refusal(asking, "expired", "good").sqlstate == "28P01"
    with asking.login("lasting", password="good") as wire:
        assert wire.value("SELECT current_user") == "lasting"


@pytest.fixture(scope="module", params=["", "SELECT usename, passwd FROM pg_shadow WHERE usename = $1"])
def asking_each_time(town: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[Pgfunnel]:
    query = request.param or Settings.model_fields["auth_query"].default
    with Pgfunnel(
        town.url(user="asker", password="asking"),
        auth_type="scram-sha-256",
        auth_user="asker",
        auth_query=query,
        auth_query_max_age=0,
        login_failure_delay=0,
    ) as pooler:
        yield pooler


@pytest.mark.parametrize(
    "parameters",
    [
        {"search_path": "evil, pg_catalog"},
        {"options": "-c search_path=evil,pg_catalog"},
        {"options": "--search-path=evil,pg_catalog"},
    ],
)
def test_cve_2025_12819_a_search_path_of_the_clients_does_not_steer_the_query(
    asking_each_time: Pgfunnel, parameters: dict[str, str]
) -> None:
    pooler = asking_each_time
    assert refusal(pooler, "lasting", "chosen", **parameters).sqlstate == "28P01"
    with pooler.connect() as wire:
        wire.login("lasting", "postgres", "good", **parameters)
        assert wire.value("SELECT count(*) FROM pg_authid") == "2", "it is misled itself, as it has asked to be"
    # Nor is a session that this client has misled the one that the query is asked on later.
    assert refusal(pooler, "lasting", "chosen").sqlstate == "28P01"


def test_cve_2015_6817_an_unknown_user_is_not_let_in_as_the_one_who_asks(asking: Pgfunnel) -> None:
    for password in ("", "asking", "good"):
        assert refusal(asking, "nobody", password or "x").sqlstate == "28P01"
    assert refusal(asking, "nobody' OR rolname = 'asker", "asking").sqlstate == "28P01"


def test_what_a_client_says_stays_data_in_the_query(asking: Pgfunnel) -> None:
    for user in ("x'; DROP ROLE rogue; --", "$1", "%s", '"lasting"', "u" * 64):
        assert refusal(asking, user, "good").sqlstate == "28P01"
    with psycopg.connect(asking.url(user="rogue", password="good")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
