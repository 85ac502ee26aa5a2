"""`python -m benchmarks`: runs the measures, prints the table, and writes what a whole run found."""

import argparse
import datetime as dt
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, measures, profile, report, run
from benchmarks.measure import Measure
from benchmarks.results import Results
from benchmarks.servers import PgBouncer
from benchmarks.workload import Workload, prepared_postgres

RESULTS = Path(__file__).parent / "results"
ROUNDS = 9
SECONDS = 4
DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a bound was missed."""
    options = _options(arguments)
    everything = {measure.name: measure for measure in measures.all_measures()}
    if options.list:
        for name, measure in everything.items():
            print(f"{name:<22} {'; '.join(figure.title for figure in measure.figures)}")
        return 0
    names = [options.profile] if options.profile else options.only or [*everything]
    if unknown := sorted({*names} - {*everything}):
        print(f"no such measure: {', '.join(unknown)}; --list shows them", file=sys.stderr)
        return 2
    chosen = [everything[name] for name in names]
    _raise_file_limit()
    others = machine.OthersMeter()
    with prepared_postgres() as postgres:
        workload = Workload(postgres, options.seconds, options.scale)
        if options.profile:
            profile.profile(chosen[0], workload, _say)
            return 0
        results = _measure(chosen, workload, options.rounds)
    results.machine["used by others"] = f"{others.share():.0%} of the cores"
    print(report.section(results, chosen))
    whole = not options.only and not options.quick and options.rounds >= 3  # fewer have no median
    if whole and not options.no_write:
        _write(results, chosen)
    missed = any(row.kept is False for row in report.rows(results, chosen))
    return 1 if missed else 0


def _measure(chosen: Sequence[Measure], workload: Workload, rounds: int) -> Results:
    results = Results(
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        machine=machine.machine(),
        versions=machine.versions(workload.postgres),
        options={"rounds": rounds, "seconds": workload.seconds},
    )
    if PgBouncer not in run.contenders():
        _say("PgBouncer is not installed (apt install pgbouncer): no ratio is judged")
    _say(f"about {run.clock(run.expected_seconds(chosen, workload, rounds))} in all")
    results.samples += run.run_all(chosen, workload, rounds, _say)
    return results


def _write(results: Results, chosen: Sequence[Measure]) -> None:
    path = RESULTS / f"{results.date}-{machine.label(results.machine)}.json"
    results.save(path)
    DOCUMENT.write_text(report.replaced(DOCUMENT.read_text(), report.section(results, chosen)))
    _say(f"written: {path} and {DOCUMENT}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure pgfunnel beside PgBouncer.")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this measure (may be repeated)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"samples of each pooler (default {ROUNDS})")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"length of a pgbench sample (default {SECONDS})"
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds, short and small: a first look, not written")
    parser.add_argument("--no-write", action="store_true", help="print the table and leave the files alone")
    parser.add_argument("--list", action="store_true", help="list the measures")
    parser.add_argument("--profile", metavar="NAME", help="load pgfunnel alone and print where its CPU time goes")
    options = parser.parse_args(arguments)
    options.scale = 1.0
    if options.quick:
        options.rounds, options.seconds, options.scale = 3, 2.0, 0.2
    return options


def _raise_file_limit() -> None:
    """Allow 9,000 clients here and in the poolers, which inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
