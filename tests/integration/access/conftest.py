"""Who gets in: Postgres servers with TLS, and certificates."""

from collections.abc import Iterator

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.certificates import Certificates
from tests.support.system_postgres import ROLES, tls_postgres


@pytest.fixture(scope="session")
def tls_server(certificates: Certificates) -> Iterator[EmbeddedPostgres]:
    """Start the one Postgres with TLS that all tests share: each of its roles logs in the way it is named after."""
    with tls_postgres(certificates) as server:
        server.psql(ROLES)
        yield server
