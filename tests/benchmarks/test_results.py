"""The statistics that turn samples into verdicts, and the file that keeps them."""

from pathlib import Path

import pytest

from benchmarks.figures import Against, Bound, Figure
from benchmarks.results import Cpu, Results, Row, Sample, Spread, compare, turns

CPU = Figure("cpu_us", "CPU", "us", Bound("<=", 1.25))


def results_of(**values: list[float]) -> Results:
    """Make rounds of the figure cpu_us for each pooler."""
    samples = [
        Sample("m", number, pooler.replace("_", " "), {"cpu_us": value, "user_us": value / 5})
        for pooler, rounds in values.items()
        for number, value in enumerate(rounds, 1)
    ]
    return Results("2025-01-01", {"cpu": "x"}, {"Python": "3"}, {"rounds": 3}, samples)


def row(figure: Figure, **values: list[float]) -> Row:
    return compare(results_of(**values), "m", figure)


def test_the_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_medians() -> None:
    compared = row(CPU, pgfunnel=[10, 30, 24], PgBouncer=[10, 20, 30])
    assert compared.ratio == Spread(1.0, 0.8, 1.5)
    assert compared.pgfunnel == Spread(24, 10, 30)
    assert compared.pgbouncer == Spread(20, 10, 30)


@pytest.mark.parametrize(("ours", "kept"), [(12.4, True), (12.5, True), (12.6, False)])
def test_a_bound_on_the_ratio_is_judged_by_the_ratio(ours: float, *, kept: bool) -> None:
    assert row(CPU, pgfunnel=[ours], PgBouncer=[10]).kept is kept


@pytest.mark.parametrize(("ours", "kept"), [(0.96, True), (0.94, False)])
def test_a_lower_bound_is_kept_from_above(ours: float, *, kept: bool) -> None:
    figure = Figure("cpu_us", "", "", Bound(">=", 0.95))
    assert row(figure, pgfunnel=[ours], PgBouncer=[1]).kept is kept


def test_an_absolute_bound_is_judged_by_pgfunnels_own_figure() -> None:
    figure = Figure("cpu_us", "", "", Bound("<=", 2.5, Against.NOTHING))
    assert row(figure, pgfunnel=[2.4], PgBouncer=[0.9]).kept is True
    assert row(figure, pgfunnel=[2.6]).kept is False


def test_without_pgbouncer_no_ratio_is_judged() -> None:
    alone = row(CPU, pgfunnel=[10])
    assert (alone.ratio, alone.kept) == (None, None)


def test_the_bare_loop_has_a_ratio_but_no_say() -> None:
    compared = row(CPU, pgfunnel=[10], PgBouncer=[10], bare_loop=[20])
    assert (compared.bare_ratio, compared.kept) == (Spread(2, 2, 2), True)


def test_cpu_is_told_apart_in_user_and_system_by_medians() -> None:
    cpu = Cpu.of(results_of(pgfunnel=[10, 40, 20]), "m", "pgfunnel")
    assert cpu == Cpu(total=20, user=4)
    assert cpu.system == 16


def test_where_no_cpu_was_measured_there_is_none() -> None:
    assert Cpu.of(results_of(), "m", "pgfunnel") is None


def test_a_round_that_only_one_pooler_finished_gives_no_ratio() -> None:
    assert row(CPU, pgfunnel=[10, 20], PgBouncer=[10]).ratio == Spread(1, 1, 1)


def test_what_could_not_be_measured_is_not_kept() -> None:
    assert row(CPU, PgBouncer=[10]).kept is False


def test_every_other_round_runs_backwards() -> None:
    assert [*turns("AB", 3)] == [(1, "A"), (1, "B"), (2, "B"), (2, "A"), (3, "A"), (3, "B")]


def test_a_saved_run_is_loaded_as_it_was(tmp_path: Path) -> None:
    saved = results_of(pgfunnel=[10.5, 2], PgBouncer=[9, 2])
    saved.save(tmp_path / "new folder" / "run.json")
    assert Results.load(tmp_path / "new folder" / "run.json") == saved


def test_a_saved_run_has_one_sample_per_line(tmp_path: Path) -> None:
    results_of(pgfunnel=[10.5, 2]).save(tmp_path / "run.json")
    lines = (tmp_path / "run.json").read_text().splitlines()
    assert sum('"pooler": "pgfunnel"' in line for line in lines) == 2


def test_figures_that_nobody_asked_for_stay_in_the_file_only() -> None:
    extra = {"cpu_us": 1.0, "tps": 5.0}
    results = Results("", {}, {}, {}, [Sample("m", 1, "pgfunnel", extra)])
    assert results.by_round("m", "pgfunnel", "cpu_us") == {1: 1.0}
