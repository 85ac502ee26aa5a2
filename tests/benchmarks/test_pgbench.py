"""What is read from pgbench's output."""

import pytest

from benchmarks.pgbench import PgbenchReport, parse_log, parse_report, percentile

SELECT_ONLY = """\
pgbench (18.1)
transaction type: <builtin: select only>
scaling factor: 10
query mode: simple
number of clients: 16
number of threads: 2
maximum number of tries: 1
duration: 6 s
number of transactions actually processed: 221124
number of failed transactions: 0 (0.000%)
latency average = 0.434 ms
initial connection time = 5.041 ms
tps = 36854.101 (without initial connection time)
"""


def test_a_report_gives_transactions_tps_and_latency() -> None:
    assert parse_report(SELECT_ONLY) == PgbenchReport(221124, 36854.101, 0.434)


def test_a_report_with_reconnections_is_read_alike() -> None:
    output = SELECT_ONLY.replace(
        "tps = 36854.101 (without initial connection time)", "tps = 8.5 (including reconnection times)"
    )
    assert parse_report(output).tps == 8.5


def test_a_failed_transaction_is_no_result() -> None:
    with pytest.raises(ValueError, match="3 transactions failed"):
        parse_report(SELECT_ONLY.replace("failed transactions: 0", "failed transactions: 3"))


def test_output_without_figures_is_shown_in_the_error() -> None:
    with pytest.raises(ValueError, match="pgbench: error: no such thing"):
        parse_report("pgbench: error: no such thing")


def test_a_transaction_log_gives_latencies_in_microseconds() -> None:
    log = ["0 199 2241 0 1175850568 995598\n", "1 200 98 0 1175850568 998079\n"]
    assert parse_log(log) == [2241, 98]


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_a_percentile_is_a_value_that_occurred(percent: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), percent) == expected


def test_the_99th_percentile_of_few_values_is_their_largest() -> None:
    assert percentile([3, 1, 2], 99) == 3
