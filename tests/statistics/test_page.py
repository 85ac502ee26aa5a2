"""The page follows Prometheus's conventions: names, units, and histograms that a reader can trust."""

import re
from collections import defaultdict
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.pgfunnel import Pgfunnel
from tests.support.wire import bind, execute, parse, sync

UNITS = ("seconds", "bytes")
NO_BASE_UNITS = ("milliseconds", "microseconds", "minutes", "kilobytes", "percent")


@pytest.fixture(scope="module")
def families(postgres: EmbeddedPostgres) -> Iterator[list[Metric]]:
    with Pgfunnel(postgres.url()) as pooler, pooler.login() as client:
        client.query("SELECT 1")
        client.query("SET work_mem = '1MB'")
        client.send(parse("SELECT 1", "s"), bind(statement="s"), execute(), sync())
        client.read_until()
        _, page = pooler.http("/metrics")
        yield [family for family in text_string_to_metric_families(page) if family.name.startswith("pgfunnel")]


def test_names_say_kind_and_unit(families: list[Metric]) -> None:
    for family in families:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family.name), family.name
        assert family.documentation, family.name
        assert not any(unit in family.name for unit in NO_BASE_UNITS), family.name
        if family.type == "counter":
            assert all(sample.name == f"{family.name}_total" for sample in family.samples)
        else:
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket")), family.name
        if family.type == "histogram":
            assert family.name.endswith(UNITS), family.name
        for sample in family.samples:
            assert all(re.fullmatch("[a-z]+", label) for label in sample.labels), sample


def test_no_metric_is_told_twice(families: list[Metric]) -> None:
    assert len({family.name for family in families}) == len(families)
    for family in families:
        samples = [(sample.name, *sorted(sample.labels.items())) for sample in family.samples]
        assert len(set(samples)) == len(samples), family.name


def test_histograms_add_up(families: list[Metric]) -> None:
    histograms = [family for family in families if family.type == "histogram"]
    assert len(histograms) == 6
    for family in histograms:
        series: defaultdict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
        counts = {}
        for sample in family.samples:
            labels = tuple(value for name, value in sample.labels.items() if name != "le")
            if sample.name.endswith("_bucket"):
                series[labels].append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[labels] = sample.value
        for labels, buckets in series.items():
            assert buckets == sorted(buckets), family.name
            assert [count for _, count in buckets] == sorted(count for _, count in buckets), family.name
            assert buckets[-1] == (float("inf"), counts[labels])
