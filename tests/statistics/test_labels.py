"""Who asks for databases by the thousand gets no thousand metrics, and no counter ever falls."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pooler.figures.pool_metrics import MOST, Pairs, PoolPage, histogram_family
from pooler.figures.statistics import Histogram
from pooler.pool import Pool


def pool_of(database: str, user: str = "u", logins: int = 0) -> "Pool[Any]":
    pool: Pool[Any] = Pool(user, database, lambda _: None, size=1)
    pool.stats.client_login_count = logins
    return pool


class NoDatabases:
    is_paused: Callable[[str], bool] = staticmethod(lambda _: False)

    def __init__(self, *names: str) -> None:
        self.names = names

    def __iter__(self) -> Iterator[SimpleNamespace]:
        cap = SimpleNamespace(limit=2, count=1)
        return iter([SimpleNamespace(name=name, disabled=False, cap=cap) for name in self.names])


def logins(pools: "list[Pool[Any]]", pairs: Pairs, *databases: str) -> dict[str, float]:
    page = PoolPage(pools, cast("Any", NoDatabases(*databases)), {}, pairs, lambda: 0.0).render()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    for family in families.values():
        assert len({(*sample.labels.items(), sample.name) for sample in family.samples}) == len(family.samples)
    return {sample.labels["database"]: sample.value for sample in families["pgfunnel_client_logins"].samples}


def test_the_first_hundred_pools_have_labels_and_the_rest_is_counted_together() -> None:
    pools = [pool_of(f"db{number}", logins=number) for number in range(MOST + 10)]
    told = logins(pools, Pairs())
    assert len(told) == MOST + 1
    assert told["db7"] == 7
    assert told["other"] == sum(range(MOST, MOST + 10))


def test_what_the_rest_has_counted_stays_when_pools_go() -> None:
    pairs = Pairs()
    pools = [pool_of(f"db{number}", logins=1) for number in range(MOST + 3)]
    pools[-1].stats.waits.note(0.3)
    assert logins(pools, pairs)["other"] == 3
    assert logins(pools[:-1], pairs)["other"] == 3
    assert pairs.gone.waits.count == 1
    assert "other" not in logins(pools[:MOST], Pairs())


def test_a_pool_that_is_new_takes_the_labels_of_one_that_is_gone() -> None:
    pairs = Pairs()
    pools = [pool_of(f"db{number}") for number in range(MOST)]
    logins(pools, pairs)
    assert "newcomer" in logins([*pools[1:], pool_of("newcomer")], pairs)


def test_a_pool_that_is_among_the_rest_stays_there() -> None:
    """Else what it has counted would leave the rest, and that would fall."""
    pairs = Pairs()
    pools = [pool_of(f"db{number}") for number in range(MOST + 1)]
    logins(pools, pairs)
    assert f"db{MOST}" not in logins(pools[1:], pairs)


def test_names_are_quoted() -> None:
    name = 'a"b\\c\nd\udce9'
    assert logins([pool_of(name, logins=1)], Pairs(), name) == {'a"b\\c\nd\\udce9': 1}


def test_databases_beyond_the_hundredth_are_told_together() -> None:
    names = [f"db{number}" for number in range(MOST + 5)]
    page = PoolPage([], cast("Any", NoDatabases(*names)), {}, Pairs(), lambda: 0.0).render()
    (family,) = (each for each in text_string_to_metric_families(page) if each.name == "pgfunnel_database_connections")
    assert len(family.samples) == MOST + 1
    assert family.samples[-1].labels == {"database": "other"}
    assert family.samples[-1].value == 5


def test_a_histogram_is_what_prometheus_reads() -> None:
    histogram = Histogram()
    for seconds in (0.0001, 0.002, 0.002, 70):
        histogram.note(seconds)
    (family,) = text_string_to_metric_families(histogram_family("lag_seconds", "How late", histogram))
    buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name == "lag_seconds_bucket"}
    assert family.type == "histogram"
    assert (buckets["0.0001"], buckets["0.001"], buckets["0.0025"], buckets["50"], buckets["+Inf"]) == (1, 1, 3, 3, 4)
    plain = {sample.name: sample.value for sample in family.samples if not sample.labels}
    assert plain == {"lag_seconds_count": 4, "lag_seconds_sum": pytest.approx(70.0041)}
