"""A Postgres as the files of this folder expect it, and both poolers in front of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import VERSIONS
from tests.drop_in.side import NEWER, PASSWORDS, PGBOUNCER, Side
from tests.support.certificates import Certificates

LOOKUP = """
CREATE FUNCTION public.pgbouncer_lookup(name text) RETURNS TABLE (usename name, passwd text)
LANGUAGE sql SECURITY DEFINER AS 'SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = name';
REVOKE ALL ON FUNCTION public.pgbouncer_lookup FROM public;
GRANT EXECUTE ON FUNCTION public.pgbouncer_lookup TO gatekeeper;
"""

StartSide = Callable[..., Side]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """Start the Postgres of the shop: it asks everybody but its superuser for a password."""
    rules = ("local all postgres trust", "local all all scram-sha-256", "host all all 127.0.0.1/32 scram-sha-256")
    with EmbeddedPostgres(VERSIONS[-1], settings={"max_connections": "100"}, hba=rules) as server:
        for user, password in PASSWORDS.items():
            server.psql(f"CREATE ROLE {user} LOGIN PASSWORD $${password}$$")
        secret = next(
            line.split('"')[3] for line in Side.text("userlist.txt").splitlines() if line.startswith('"batch"')
        )
        server.psql(f"ALTER ROLE batch PASSWORD '{secret}'")
        server.psql("CREATE DATABASE shop")
        server.psql("CREATE DATABASE ledger")
        server.psql(LOOKUP, "ledger")
        yield server


@pytest.fixture(scope="module")
def side_of(server: EmbeddedPostgres, certificates: Certificates) -> Iterator[Callable[[str], Side]]:
    """Start the one pgfunnel or PgBouncer that the tests of a module share, with the files of this folder."""
    with ExitStack() as running:

        @cache
        def start(name: str) -> Side:
            if name == "pgbouncer" and PGBOUNCER is None:
                pytest.skip("PgBouncer is not installed (Debian: apt install pgbouncer)")
            return running.enter_context(Side(name, server, certificates, without=NEWER if name == "pgbouncer" else ()))

        yield start


@pytest.fixture(params=["pgfunnel", "pgbouncer"])
def side(request: pytest.FixtureRequest, side_of: Callable[[str], Side]) -> Side:
    """Run the test with each of them."""
    return side_of(request.param)
