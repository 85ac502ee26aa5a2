"""Logging in: at pgfunnel by each of its ways, at Postgres by each of its own, and in whose words a failure is told."""

import base64
import hashlib
import struct
from collections.abc import Iterator
from typing import Final

import psycopg
import pytest
from scramp import ScramMechanism

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import PASSWORD, StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import (
    GSSENC_REQUEST,
    PROTOCOL_3_0,
    PROTOCOL_3_2,
    SSL_REQUEST,
    Message,
    ServerError,
    Wire,
    kinds,
    message,
    password_message,
    query,
    sasl_initial_response,
    startup,
    terminate,
)

AUTH_TYPES: Final = ("trust", "plain", "md5", "scram-sha-256")
ROLES: Final = ("alice", "plain", "md5", "scram")  # which Postgres lets in by trust, password, md5, scram-sha-256
USERS: Final = dict.fromkeys((*ROLES, "rejected", "nobody"), PASSWORD)


@pytest.fixture(scope="module", params=AUTH_TYPES)
def pooler(request: pytest.FixtureRequest, any_postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(
        any_postgres.url(user="postgres", password=PASSWORD),
        userlist=USERS,
        auth_type=request.param,
        login_failure_delay=0,
    ) as pooler:
        yield pooler


@pytest.mark.parametrize("role", ROLES)
def test_every_way_to_log_in_here_goes_with_every_way_there(pooler: Pgfunnel, role: str) -> None:
    for _ in range(2):  # the pool's first client, and one that finds a server
        with pooler.login(role, "postgres", PASSWORD) as wire:
            assert wire.value("SELECT current_user") == role
    with psycopg.connect(pooler.url(user=role, password=PASSWORD)) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (role,)


def test_wrong_password_is_refused_unless_nobody_asks_for_it(pooler: Pgfunnel) -> None:
    if pooler.settings["auth_type"] == "trust":
        pooler.login("scram", password=PASSWORD + "x").terminate()
        return
    refused = refusal(pooler, "scram", "postgres", PASSWORD + "x")
    assert (refused.sqlstate, refused.severity) == ("28P01", "FATAL")
    assert refused.message == 'password authentication failed for user "scram"'
    assert refusal(pooler, "scram", "postgres", "").sqlstate == "28P01"


def test_unknown_user_is_told_the_same_as_for_a_wrong_password(pooler: Pgfunnel) -> None:
    refused = refusal(pooler, "mallory", "postgres", PASSWORD)
    assert refused.sqlstate == "28P01"
    assert refused.message == 'password authentication failed for user "mallory"'


@pytest.mark.parametrize(
    ("user", "dbname"),
    [
        pytest.param("scram", "nowhere", id="no such database"),
        pytest.param("nobody", "postgres", id="no such role"),
        pytest.param("rejected", "postgres", id="rejected by pg_hba.conf"),
        pytest.param("scram", "closed", id="no CONNECT privilege"),
    ],
)
def test_postgres_refusal_comes_in_its_own_words(
    pooler: Pgfunnel, any_postgres: EmbeddedPostgres, closed: str, user: str, dbname: str
) -> None:
    own = refusal(any_postgres, user, dbname, PASSWORD)
    for _ in range(2):
        told = refusal(pooler, user, dbname, PASSWORD)
        assert (told.sqlstate, told.severity) == (own.sqlstate, own.severity)
        assert told.message == own.message


@pytest.fixture(scope="module")
def closed(any_postgres: EmbeddedPostgres) -> Iterator[str]:
    """Make a database that only superusers may connect to."""
    any_postgres.psql("CREATE DATABASE closed")
    any_postgres.psql("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    yield "closed"
    any_postgres.psql("DROP DATABASE closed WITH (FORCE)")


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_password_may_be_kept_as_a_scram_secret(
    pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres, auth_type: str
) -> None:
    pooler = pgfunnel(postgres.url(), userlist={"alice": scram_secret(PASSWORD)}, auth_type=auth_type)
    with pooler.login("alice", password=PASSWORD) as wire:
        assert wire.value("SELECT current_user") == "alice"
    assert refusal(pooler, "alice", "postgres", PASSWORD + "x").sqlstate == "28P01"


def test_password_may_be_kept_as_an_md5_hash(pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres) -> None:
    pooler = pgfunnel(postgres.url(), userlist={"md5": md5_secret("md5", PASSWORD)}, auth_type="md5")
    with pooler.login("md5", password=PASSWORD) as wire:
        assert wire.value("SELECT current_user") == "md5"
    assert refusal(pooler, "md5", "postgres", PASSWORD + "x").sqlstate == "28P01"


def test_secret_that_is_not_enough_for_the_server_is_told_at_once(
    pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres
) -> None:
    pooler = pgfunnel(postgres.url(), userlist={"scram": scram_secret(PASSWORD)})
    refused = refusal(pooler, "scram", "postgres", PASSWORD)
    assert refused.sqlstate.startswith("28")
    assert "SCRAM secret" in refused.message


# --- before the login


@pytest.mark.parametrize("requests", [[SSL_REQUEST], [GSSENC_REQUEST], [GSSENC_REQUEST, SSL_REQUEST]])
def test_encryption_is_declined_and_the_login_goes_on(shared: Pgfunnel, requests: list[bytes]) -> None:
    with shared.connect() as wire:
        for request in requests:
            wire.send(request)
            assert wire.read_bytes(1) == b"N"
        wire.login("postgres", "postgres")
        assert wire.value("SELECT 1") == "1"


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
def test_bytes_behind_an_unanswered_encryption_request_are_not_taken(shared: Pgfunnel, request_: bytes) -> None:
    with shared.connect() as wire:
        wire.send(request_, startup({"user": "postgres", "database": "postgres"}))
        assert kinds(wire.read_to_end()) in ("E", "")


def test_psycopg_prefers_encryption_and_goes_on_without(shared: Pgfunnel) -> None:
    with psycopg.connect(shared.url(), sslmode="prefer", gssencmode="prefer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="server does not support SSL"):
        psycopg.connect(shared.url(), sslmode="require")


def test_libpq_speaks_protocol_3_2(shared: Pgfunnel) -> None:
    if psycopg.pq.version() < 180000:
        pytest.skip("needs libpq 18")
    conninfo = shared.url() + "?min_protocol_version=3.2&max_protocol_version=latest"
    with psycopg.connect(conninfo) as connection:
        assert connection.pgconn.socket >= 0
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(("protocol", "size"), [(PROTOCOL_3_0, 4), (PROTOCOL_3_2, 32)])
def test_cancel_key_has_the_length_of_the_protocol(shared: Pgfunnel, protocol: int, size: int) -> None:
    seen = greeting(shared, {"user": "postgres", "database": "postgres"}, protocol)
    assert "v" not in kinds(seen)
    (key,) = (each for each in seen if each.kind == "K")
    assert len(key.payload) == 4 + size


def test_newer_protocol_is_negotiated_down(shared: Pgfunnel) -> None:
    seen = greeting(shared, {"user": "postgres", "database": "postgres"}, 3 << 16 | 9999)
    assert seen[0] == Message("v", struct.pack("!II", PROTOCOL_3_2, 0))
    (key,) = (each for each in seen if each.kind == "K")
    assert len(key.payload) == 4 + 32


def test_unknown_protocol_options_are_negotiated_away(shared: Pgfunnel) -> None:
    options = {"_pq_.future": "on", "_pq_.other": "x"}
    seen = greeting(shared, {"user": "postgres", "database": "postgres", **options}, PROTOCOL_3_0)
    assert seen[0].kind == "v"
    newest, count = struct.unpack("!II", seen[0].payload[:8])
    assert newest in (PROTOCOL_3_0, PROTOCOL_3_2)
    assert count == 2
    assert seen[0].payload[8:] == b"_pq_.future\0_pq_.other\0"


@pytest.mark.parametrize("protocol", [2 << 16, 4 << 16, 0, 0xFFFFFFFF])
def test_other_major_protocols_are_refused(shared: Pgfunnel, protocol: int) -> None:
    with shared.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "postgres"}, protocol))
        assert wire.error().severity == "FATAL"
        assert wire.read_to_end() == []


def test_parameters_learnt_are_those_of_the_server(shared: Pgfunnel, any_postgres: EmbeddedPostgres) -> None:
    with Wire(any_postgres.host, any_postgres.port).login("postgres", "postgres") as direct:
        assert direct.parameters
        for _ in range(2):
            with shared.login() as wire:
                assert wire.parameters == direct.parameters


def test_what_comes_with_the_login_is_served_after_it(shared: Pgfunnel) -> None:
    with shared.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "postgres"}), query("SELECT 'early'"))
        wire.authenticate("postgres", "")
        assert wire.read_until()[1].columns == ["early"]


def test_password_sent_before_it_was_asked_for_is_taken_when_it_is(
    pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres
) -> None:
    pooler = pgfunnel(postgres.url(password="secret"), auth_type="plain", max_client_conn=1)
    with pooler.connect() as wire:
        with pooler.login(password="secret"):
            wire.send(startup({"user": "postgres", "database": "postgres"}), password_message("secret"))
            eventually(lambda: pooler.metric("pgfunnel_logins", state="place") == 1)
        assert kinds(wire.read_until())[-2:] == "KZ"


def test_user_name_stands_for_the_database_where_none_is_given(
    pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres
) -> None:
    with pgfunnel(postgres.url()).connect() as wire:
        wire.send(startup({"user": "postgres"}))
        wire.authenticate("postgres", "")
        assert wire.value("SELECT current_database()") == "postgres"


def test_login_given_up_half_way_leaves_nothing_behind(pgfunnel: StartPgfunnel, postgres: EmbeddedPostgres) -> None:
    pooler = pgfunnel(postgres.url(password=PASSWORD), auth_type="scram-sha-256", max_client_conn=1)
    for _ in range(5):
        with pooler.connect() as wire:
            wire.send(startup({"user": "postgres", "database": "postgres"}))
            wire.read()
        with pooler.connect() as wire:
            wire.send(startup({"user": "postgres", "database": "postgres"}))
            wire.read()
            wire.send(terminate())
            assert wire.read_to_end() == []
    with pooler.login(password=PASSWORD) as wire:  # the one place is free
        assert wire.value("SELECT 1") == "1"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(query("SELECT 1"), id="a query"),
        pytest.param(password_message("guess"), id="a password that is no SASL response"),
        pytest.param(sasl_initial_response("SCRAM-SHA-256-PLUS", b"p=x,,n=,r=x"), id="another mechanism"),
        pytest.param(sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r="), id="an empty nonce"),
        pytest.param(sasl_initial_response("SCRAM-SHA-256", b"\xff\0\xff"), id="garbage"),
        pytest.param(message("p", b""), id="nothing"),
        pytest.param(message("p", b"x" * 20_000), id="far too much"),
    ],
)
def test_nonsense_instead_of_proof_is_refused(proving: Pgfunnel, answer: bytes) -> None:
    with proving.connect() as wire:
        wire.send(startup({"user": "postgres", "database": "postgres"}))
        assert wire.read().kind == "R"
        wire.send(answer)
        seen = wire.read_to_end()
        assert "R" not in kinds(seen[1:])
        assert seen[-1].kind == "E"
        assert seen[-1].fields["C"] in ("28P01", "08P01")


@pytest.fixture(scope="module")
def proving(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(postgres.url(password=PASSWORD), auth_type="scram-sha-256", login_failure_delay=0) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def shared(any_postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    with Pgfunnel(any_postgres.url()) as pooler:
        yield pooler


def refusal(peer: Pgfunnel | EmbeddedPostgres, user: str, dbname: str, password: str) -> ServerError:
    with Wire(peer.host, peer.port) as wire, pytest.raises(ServerError) as refused:
        wire.login(user, dbname, password)
    return refused.value


def greeting(peer: Pgfunnel, parameters: dict[str, str], protocol: int) -> list[Message]:
    with peer.connect() as wire:
        wire.send(startup(parameters, protocol))
        seen = wire.authenticate("postgres", "")
        assert wire.value("SELECT 1") == "1"
        return seen


def md5_secret(user: str, password: str) -> str:
    return "md5" + hashlib.md5(password.encode() + user.encode()).hexdigest()


def scram_secret(password: str) -> str:
    salt, stored_key, server_key, iterations = ScramMechanism("SCRAM-SHA-256").make_auth_info(password)
    salt, stored_key, server_key = (b64(each) for each in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${iterations}:{salt}${stored_key}:{server_key}"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
