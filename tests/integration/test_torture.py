"""No client ever sees what belongs to another, whatever all of them do at once."""

from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.torture import torture
from tests.support.torture_habits import HABITS


async def test_no_client_sees_what_belongs_to_another(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), default_pool_size=5)
    report = await torture(pooler.host, pooler.port, seconds=10, clients=40)
    assert not report.failures, str(report)
    assert set(report.habits) == {habit.__name__ for habit in HABITS}
    assert report.cancelled > 0
