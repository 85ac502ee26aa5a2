"""The table that readers of docs/benchmarks.md see."""

from collections.abc import Mapping

import pytest

from benchmarks.figures import Bound, Figure
from benchmarks.measure import Measure
from benchmarks.report import BEGIN, END, explanation, replaced, section, table
from benchmarks.results import Results, Sample
from benchmarks.servers import Pooler
from benchmarks.workload import Workload


class Speed(Measure):
    name = "speed"
    figures = (Figure("tps", "transactions per second", "/s", Bound(">=", 0.95)), Figure("cpu_us", "CPU", "us"))

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        raise NotImplementedError


def results_of(**tps: float) -> Results:
    samples = [
        Sample("speed", 1, pooler.replace("_", " "), {"tps": value, "cpu_us": 10.55, "user_us": 100 / value})
        for pooler, value in tps.items()
    ]
    return Results("2025-01-01", {"cpu": "Example 9000"}, {"Postgres": "18.1"}, {"rounds": 3}, samples)


def rendered(**tps: float) -> list[str]:
    return table(results_of(**tps), [Speed()]).splitlines()


def test_a_row_shows_all_poolers_the_ratio_its_spread_and_the_verdict() -> None:
    lines = rendered(pgfunnel=20000, PgBouncer=20000, bare_loop=18000)
    ours = "| transactions per second | 20,000/s | 20,000/s | 1.00 (1.00 to 1.00) | >= 0.95 | met |"
    assert lines[2] == f"{ours} 18,000/s (0.90) |"


def test_a_missed_bound_stands_out() -> None:
    assert rendered(pgfunnel=18000, PgBouncer=20000)[2].endswith("| 0.90 (0.90 to 0.90) | >= 0.95 | **missed** | - |")


def test_a_figure_without_a_bound_is_not_judged() -> None:
    assert rendered(pgfunnel=1, PgBouncer=1)[3] == "| CPU | 10.6 us | 10.6 us | 1.00 (1.00 to 1.00) |  |  | - |"


def test_a_measure_that_failed_says_so() -> None:
    assert rendered()[2] == "| transactions per second | - | - | - | >= 0.95 | **failed** | - |"


def test_a_missed_row_is_followed_by_where_the_time_goes() -> None:
    cpu = explanation(results_of(pgfunnel=20, PgBouncer=50, bare_loop=25), [Speed()]).splitlines()[-1]
    assert cpu == (
        "| speed | transaction "
        "| 10.6 (user 5.0, system 5.6) | 10.6 (user 2.0, system 8.6) | 10.6 (user 4.0, system 6.6) "
        "| +0.0 (user +3.0, system -3.0) | +0.0 (user +2.0, system -2.0) |"
    )


def test_where_no_row_is_missed_nothing_is_explained() -> None:
    assert explanation(results_of(pgfunnel=50, PgBouncer=50), [Speed()]) == ""


def test_without_pgbouncer_the_section_says_so() -> None:
    assert "PgBouncer is not installed" in section(results_of(pgfunnel=1), [Speed()])
    assert "PgBouncer is not installed" not in section(results_of(pgfunnel=1, PgBouncer=1), [Speed()])


def test_where_pgfunnel_is_measured_alone_nobody_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speed, "beside_others", False)
    assert "PgBouncer is not installed" not in section(results_of(pgfunnel=1), [Speed()])


def test_the_section_says_machine_versions_and_date() -> None:
    text = section(results_of(pgfunnel=1, PgBouncer=1), [Speed()])
    assert all(fact in text for fact in ("Example 9000", "18.1", "2025-01-01"))


def test_a_new_section_replaces_the_old_one_and_leaves_the_prose() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(document, f"{BEGIN}\nnew\n{END}") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


@pytest.mark.parametrize("document", ["", BEGIN, f"{END}"])
def test_a_document_without_a_place_for_the_section_is_left_alone(document: str) -> None:
    with pytest.raises(ValueError, match="lacks"):
        replaced(document, "new")
