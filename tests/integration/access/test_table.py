"""Every auth_type at every client_tls_sslmode, tried by every driver in all its modes: who gets in, and who does not.

What has to come of it is computed from the rules of the settings (rules.py), not written down case by case.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.integration.access.drivers import (
    JDBC,
    SSLMODES,
    Asyncpg,
    Attempt,
    Driver,
    Jdbc,
    Node,
    Pg8000,
    Psql,
    Psycopg,
)
from tests.integration.access.rules import AUTH_TYPES, HBA, USER, Client, Pooler, expected
from tests.support.certificates import Certificates, Pair
from tests.support.pgfunnel import Pgfunnel
from tests.support.system_postgres import PASSWORD

# Not ours: what drivers leave open after a login that has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def drivers(node_modules: None) -> Iterator[list[Driver]]:
    """Start the drivers that there are."""
    kinds: list[type[Driver]] = [Psycopg, Psql, Asyncpg, Pg8000, Node]
    if JDBC.exists() and shutil.which("javac"):
        kinds.append(Jdbc)
    with ExitStack() as stack:
        yield [stack.enter_context(kind()) for kind in kinds]


@pytest.fixture
def how(auth_type: str, sslmode: str) -> Pooler:
    return Pooler(auth_type, sslmode)


@pytest.fixture
def pgfunnel(how: Pooler, tls_server: EmbeddedPostgres, certificates: Certificates, tmp_path: Path) -> Pgfunnel:
    return pooler(how, tls_server, certificates, tmp_path)


# Two classes, so that two processes may share them.
@pytest.mark.parametrize("sslmode", SSLMODES)
@pytest.mark.parametrize("auth_type", AUTH_TYPES[:4])
class TestLoginsByPassword:
    def test_who_gets_in(
        self, how: Pooler, pgfunnel: Pgfunnel, drivers: Sequence[Driver], certificates: Certificates
    ) -> None:
        check(how, pgfunnel, drivers, certificates)


@pytest.mark.parametrize("sslmode", SSLMODES)
@pytest.mark.parametrize("auth_type", AUTH_TYPES[4:])
class TestLoginsByOtherMeans:
    def test_who_gets_in(
        self, how: Pooler, pgfunnel: Pgfunnel, drivers: Sequence[Driver], certificates: Certificates
    ) -> None:
        if how == Pooler("cert", "disable"):
            assert pgfunnel.refuses_to_start() != 0
        else:
            check(how, pgfunnel, drivers, certificates)


def check(how: Pooler, pgfunnel: Pgfunnel, drivers: Sequence[Driver], certificates: Certificates) -> None:
    with pgfunnel:
        for driver in drivers:
            crowd = list(clients(driver, how, pgfunnel.port, certificates))
            outcomes = driver.attempt([client.attempt for client in crowd])
            for client, seen in zip(crowd, outcomes, strict=True):
                due = expected(how, client)
                case = f"{driver.name}, {told(client)}: {seen}, and not {due}"
                assert seen.user == due.user, case
                assert seen.user or seen.sqlstate in due.sqlstates, case
                assert not seen.user or seen.tls in (None, due.tls), case


def pooler(how: Pooler, server: EmbeddedPostgres, certificates: Certificates, directory: Path) -> Pgfunnel:
    certificate, key = certificates.ec
    rules = directory / "pg_hba.conf"
    rules.write_text(HBA)
    return Pgfunnel(
        server.url(user=USER, password=PASSWORD if how.auth_type != "passthrough" else None),
        auth_type=how.auth_type,
        auth_hba_file=str(rules),
        client_tls_sslmode=how.sslmode,
        client_tls_cert_file=str(certificate),
        client_tls_key_file=str(key),
        client_tls_ca_file=str(certificates.ca),
        login_failure_delay=0,
        log_connections=0,
    )


def clients(driver: Driver, how: Pooler, port: int, certificates: Certificates) -> Iterator[Client]:
    """Yield who tries to get in by this driver: everybody by the newest libpq, by the others the common cases."""

    def client(
        sslmode: str, user: str = USER, password: str = PASSWORD, pair: Pair | None = None, **options: str
    ) -> Client:
        attempt = Attempt(port, user, password, sslmode, certificates.ca, pair, tuple(options.items()))
        trusted = pair in (own, others)
        name = {own: USER, others: "somebody"}.get(pair, "") if pair else ""
        return Client(attempt, password == PASSWORD, trusted, name)

    own, others = certificates.client(USER), certificates.client("somebody")
    common = own if how.requires_certificate else None
    for sslmode in driver.sslmodes:
        shown = common if sslmode in driver.certificate_modes else None
        yield client(sslmode, pair=shown)
        yield client(sslmode, password="wrong", pair=shown)
    if not isinstance(driver, Psycopg):
        return
    for sslmode in SSLMODES:
        yield client(sslmode, user="nobody", pair=common)
        yield client(sslmode, pair=None if common else own)
        yield client(sslmode, pair=others)
        yield client(sslmode, pair=certificates.stranger(USER))
    for sslmode in ("disable", "require"):
        yield client(sslmode, pair=common, channel_binding="require")
        for method in ("none", "password", "md5", "scram-sha-256"):
            yield client(sslmode, pair=common, require_auth=method)
    yield client("require", pair=common, sslnegotiation="direct")
    yield client("verify-full", pair=common, sslnegotiation="direct", channel_binding="require")


def told(client: Client) -> str:
    attempt = client.attempt
    words = [
        f"sslmode={attempt.sslmode}",
        f"user={attempt.user}",
        *(f"{name}={value}" for name, value in attempt.options),
    ]
    if attempt.certificate:
        words.append(f"certificate={attempt.certificate.certificate.name}")
    return " ".join([*words, "right password" if client.right_password else "wrong password"])
