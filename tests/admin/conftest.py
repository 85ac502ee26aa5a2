"""One pgfunnel with a console for all tests that leave it as it was."""

from collections.abc import Iterator

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.console import Console
from tests.support.pgfunnel import Pgfunnel


@pytest.fixture(scope="session")
def pooler(postgres: EmbeddedPostgres) -> Iterator[Pgfunnel]:
    """Start one whose admin is postgres, while alice may look, and bob may not."""
    with Pgfunnel(postgres.url(), auth_type="any", admin_users="postgres", stats_users="alice") as pooler:
        yield pooler


@pytest.fixture
def console(pooler: Pgfunnel) -> Iterator[Console]:
    """Log in as the admin."""
    with Console(pooler) as console:
        yield console
