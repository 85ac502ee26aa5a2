"""`pgfunnel lint` as its users run it: on scripts, on logs that a real Postgres wrote, in CI."""

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg
import pytest

from config.session_state import DEFAULTS
from pooler.demo.postgres import EmbeddedPostgres
from pooler.lint import main
from pooler.lint.findings import MOST, OTHERS, Findings, Outcome
from pooler.lint.statements import LONGEST_LINE, Statement
from pooler.session_state.advice import ADVICE
from pooler.session_state.policy import Policy
from protocol.sql import State, classify
from tests.support.pgfunnel import eventually

COMMAND: Final = (sys.executable, "-m", "pooler.main", "lint")
SCRIPT: Final = """\
SELECT 1;
LISTEN jobs;
SELECT pg_advisory_lock(4711);
SELECT pg_advisory_lock(4712) WHERE 'secret' > '';
SET search_path = app;
SELECT nextval('orders_id');
DO $$BEGIN PERFORM 1; END$$;
LISTEN jobs;
"""

Lint = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lint(capsys: pytest.CaptureFixture[str]) -> Iterator[Lint]:
    """Run the command; returns its exit status, and what it printed to standard output and error."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE)}
    longest = csv.field_size_limit()

    def run(*argv: str | Path) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as wrong_usage:
            status = int(wrong_usage.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    yield run
    csv.field_size_limit(longest)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "app.sql"
    path.write_text(SCRIPT)
    return path


def found(out: str) -> dict[str, tuple[str, int, str]]:
    """Return the findings of --json by statement: outcome, how often, where first."""
    findings = json.loads(out)["findings"]
    return {each["statement"]: (each["outcome"], each["times"], each["first"]) for each in findings}


# What is reported


def test_a_table_says_what_would_happen_how_often_and_where(lint: Lint, script: Path) -> None:
    status, out, err = lint(script)
    table, advice, summary = out.rstrip("\n").split("\n\n")
    header, *rows = (re.split(r" {2,}", line) for line in table.splitlines())
    assert header == ["outcome", "class", "times", "first seen", "statement"]
    assert rows == [
        ["pinned", "listen", "2", f"{script}:2", "LISTEN jobs"],
        ["pinned", "advisory_lock", "1", f"{script}:3", "SELECT pg_advisory_lock(?)"],
        ["pinned", "advisory_lock", "1", f"{script}:4", "SELECT pg_advisory_lock(?) WHERE ? > ?"],
        ["asked", "unknown", "1", f"{script}:7", "DO ?"],
        ["tracked", "setting", "1", f"{script}:5", "SET search_path = app"],
    ]
    assert advice.splitlines() == [
        f"listen: {ADVICE[State.LISTEN]}",
        f"advisory_lock: {ADVICE[State.ADVISORY_LOCK]}",
        f"unknown: {ADVICE[State.UNKNOWN]}",
    ]
    assert summary == "8 statements: 0 refused, 4 pinned, 1 asked, 1 tracked, 1 ignored."
    assert (status, err) == (1, "")


def test_nothing_found_is_a_single_line(lint: Lint, tmp_path: Path) -> None:
    path = tmp_path / "harmless.sql"
    path.write_text("BEGIN; SET LOCAL search_path = app; INSERT INTO t VALUES (1); COMMIT;")
    assert lint(path) == (0, "4 statements: 0 refused, 0 pinned, 0 asked, 0 tracked, 0 ignored.\n", "")


def test_no_literal_is_shown(lint: Lint, script: Path) -> None:
    for option in ("--json", "--fail-on=never"):
        _, out, _ = lint(script, option)
        assert "pg_advisory_lock" in out
        assert "secret" not in out
        assert "4711" not in out


def test_json_has_everything_for_machines(lint: Lint, script: Path) -> None:
    _, out, _ = lint(script, "--json", "--session-state", "listen=reject")
    document = json.loads(out)
    assert document["statements"] == 8
    assert document["policy"] == {**DEFAULTS, "listen": "reject"}
    assert document["totals"] == {"refused": 2, "pinned": 2, "asked": 1, "tracked": 1, "ignored": 1}
    assert document["findings"][0] == {
        "outcome": "refused",
        "class": "listen",
        "times": 2,
        "first": f"{script}:2",
        "statement": "LISTEN jobs",
        "advice": ADVICE[State.LISTEN],
    }
    assert document["notes"] == []


def test_the_policy_in_force_decides(lint: Lint, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = "listen=reject, advisory_lock=ignore, setting=pin, sequence=pin, unknown=pin"
    expected = {"refused": 2, "pinned": 3, "asked": 0, "tracked": 0, "ignored": 2}
    _, out, _ = lint(script, "--json", "--session-state", everything)
    assert json.loads(out)["totals"] == expected
    monkeypatch.setenv("PGFUNNEL_SESSION_STATE", everything)
    _, out, _ = lint(script, "--json")
    assert json.loads(out)["totals"] == expected


def test_a_statement_counts_for_each_class_of_what_it_leaves(lint: Lint, tmp_path: Path) -> None:
    path = tmp_path / "both.sql"
    path.write_text("SELECT pg_advisory_lock(1), set_config('app.x', 'y', false)")
    _, out, _ = lint(path)
    assert "1 statements: 0 refused, 1 pinned, 0 asked, 1 tracked, 0 ignored." in out


def test_more_findings_than_anyone_could_read_are_summed_up() -> None:
    findings = Findings(Policy.of(DEFAULTS))
    for number in range(MOST + 500):
        text = b"LISTEN channel_%d" % number
        findings.add(Statement(text, classify(text), "app.sql", number, 2))
    *rows, others = findings.gravest_first()[1:], findings.gravest_first()[0]
    assert (others.statement, others.times) == (OTHERS, 1000)
    assert findings.totals == {Outcome.PINNED: 2 * (MOST + 500)}
    assert len(findings.gravest_first()) == MOST + 1
    assert rows


# What may be read


def test_several_files_are_read_one_after_the_other(lint: Lint, script: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sql"
    other.write_text("LISTEN jobs;\nLISTEN mail;")
    _, out, _ = lint(script, other, "--json")
    assert found(out)["LISTEN jobs"] == ("pinned", 3, f"{script}:2")
    assert found(out)["LISTEN mail"] == ("pinned", 1, f"{other}:2")


def test_the_standard_input_is_read_where_it_is_named(script: Path) -> None:
    lint = subprocess.run((*COMMAND, "-"), input=script.read_bytes(), capture_output=True, check=False)
    assert b" -:2 " in lint.stdout
    assert (lint.returncode, lint.stderr) == (1, b"")


def test_a_reader_that_has_seen_enough_is_no_error(script: Path) -> None:
    with subprocess.Popen((*COMMAND, script), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as lint:
        assert lint.stdout is not None
        assert lint.stderr is not None
        lint.stdout.close()
        assert lint.stderr.read() == b""
    assert lint.returncode == -signal.SIGPIPE


@pytest.fixture(scope="module", params=EmbeddedPostgres.available_versions())
def logs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which a Postgres of each version has logged the same statements in both formats."""
    folder = tmp_path_factory.mktemp("logs")
    settings = {
        "logging_collector": "on",
        "log_destination": "csvlog,jsonlog",
        "log_filename": "postgres.log",
        "log_statement": "none",
        "log_min_duration_statement": "0",
    }
    with EmbeddedPostgres(request.param, settings=settings) as postgres:
        with psycopg.connect(postgres.url(), autocommit=True, prepare_threshold=0) as client:
            # By the extended protocol: parse, bind and execute are three rows.
            client.execute("SELECT pg_advisory_lock(%s::int)", [4711])
            client.execute("SELECT generate_series(1, %s), 'LISTEN no'", [3])
        with psycopg.connect(postgres.url(), autocommit=True, cursor_factory=psycopg.ClientCursor) as client:
            client.execute("SET search_path = app; LISTEN\n  jobs")
            client.execute("SET log_min_duration_statement = -1")
            client.execute("SET log_statement = 'all'")
            client.execute("LISTEN mail")
            client.execute("SET log_statement = 'none'")
            with suppress(psycopg.Error):
                client.execute("CREATE TEMP TABLE t AS SELECT 1/0")
        for name in ("postgres.csv", "postgres.json"):
            log = postgres.data_dir / "log" / name
            eventually(lambda log=log: b"division by zero" in log.read_bytes())  # type: ignore[misc]
            (folder / name).write_bytes(log.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["postgres.csv", "postgres.json"])
def test_the_log_of_a_postgres_is_read_in_either_format(lint: Lint, logs: Path, name: str) -> None:
    status, out, err = lint(logs / name, "--json")
    statements = found(out)
    assert {text: statements[text][:2] for text in statements if not text.startswith("SET log")} == {
        "SELECT pg_advisory_lock($1::int)": ("pinned", 1),
        "SET search_path = app": ("tracked", 1),
        "LISTEN jobs": ("pinned", 1),
        "LISTEN mail": ("pinned", 1),
        "CREATE TEMP TABLE t AS SELECT ?/?": ("pinned", 1),
    }
    lines = (logs / name).read_bytes().split(b"\n")
    place, line = statements["LISTEN jobs"][2].rsplit(":", 1)
    assert place == str(logs / name)
    assert b"SET search_path = app; LISTEN" in lines[int(line) - 1]
    assert (status, err) == (1, "")


def test_the_format_may_be_named_where_the_file_does_not_tell(lint: Lint, logs: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.old"
    log.write_bytes((logs / "postgres.csv").read_bytes())
    assert "LISTEN jobs" in lint(log, "--format", "csvlog")[1]


@pytest.mark.parametrize(("format_", "garbage"), [("csvlog", "a,b\n\n"), ("jsonlog", '["a"]\n{\n')])
def test_rows_that_are_none_of_the_log_are_left_out_and_told(
    lint: Lint, logs: Path, tmp_path: Path, format_: str, garbage: str
) -> None:
    log = tmp_path / "cut"
    log.write_text(garbage + (logs / f"postgres.{format_[:-3]}").read_text())
    status, out, err = lint(log, "--format", format_)
    assert "LISTEN jobs" in out
    assert err == f"pgfunnel lint: {log}: 2 rows are none of a {format_} and were left out\n"
    assert status == 1


def test_bytes_that_are_no_utf_8_do_no_harm(lint: Lint, tmp_path: Path) -> None:
    columns = [b""] * 26
    columns[13] = b"statement: LISTEN \xff\xfe"
    (tmp_path / "log.csv").write_bytes(b",".join(columns) + b"\n")
    (tmp_path / "log.json").write_bytes(b'{"message": "statement: LISTEN \xff"}\n{"statement": "LISTEN \\ud800"}\n')
    (tmp_path / "app.sql").write_bytes(b"SELECT '\xff'; LISTEN \xe4;\n")
    _, out, err = lint(*sorted(tmp_path.iterdir()))
    assert out.endswith("5 statements: 0 refused, 4 pinned, 0 asked, 0 tracked, 0 ignored.\n")
    assert err == ""


# An extension of this name for a Postgres that comes without it: what is read of it, and a statement text of each kind.
STATISTICS: Final = """
CREATE TABLE pg_stat_statements (dbid oid, queryid bigint, query text, calls bigint);
INSERT INTO pg_stat_statements SELECT oid, -17, 'LISTEN jobs', 40 FROM pg_database WHERE datname = current_database();
INSERT INTO pg_stat_statements SELECT oid, 18, 'SELECT $1', 2 FROM pg_database WHERE datname = current_database();
INSERT INTO pg_stat_statements SELECT oid, 19, NULL, 2 FROM pg_database WHERE datname = current_database();
INSERT INTO pg_stat_statements VALUES (1, 20, 'LISTEN elsewhere', 1);
"""


@pytest.fixture
def with_statistics() -> Iterator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="pgfunnel-test-") as share:
        Path(share).chmod(0o755)  # the server may run as another user
        folder = Path(share, "extension")
        folder.mkdir()
        (folder / "pg_stat_statements.control").write_text("default_version = '1'\n")
        (folder / "pg_stat_statements--1.sql").write_text(STATISTICS)
        with EmbeddedPostgres(18, settings={"extension_control_path": f"{share}:$system"}) as postgres:
            postgres.psql('CREATE SCHEMA "Stats"; CREATE EXTENSION pg_stat_statements SCHEMA "Stats"')
            yield postgres


def test_pg_stat_statements_tells_how_often_each_statement_was_run(
    lint: Lint, with_statistics: EmbeddedPostgres
) -> None:
    status, out, err = lint("--pg-stat-statements", with_statistics.url(), "--json")
    assert found(out) == {"LISTEN jobs": ("pinned", 40, "pg_stat_statements:-17")}
    assert json.loads(out)["statements"] == 42
    assert (status, err) == (1, "")


def test_a_database_without_pg_stat_statements_is_told_so(lint: Lint, postgres: EmbeddedPostgres) -> None:
    status, _, err = lint("--pg-stat-statements", postgres.url(user="postgres", password="hush"))
    assert status == 2
    assert "pg_stat_statements is not installed in this database" in err
    assert "hush" not in err


def test_a_server_that_is_not_there_is_told_without_the_password(lint: Lint) -> None:
    status, _, err = lint("--pg-stat-statements", "postgresql://app:hush@127.0.0.1:1/app")
    assert status == 2
    assert err.startswith("pgfunnel lint: postgresql://app:***@127.0.0.1:1/app: no connection: ")
    assert "hush" not in err


# Exit status


@pytest.mark.parametrize(
    ("sql", "pinned", "refused", "never"),
    [
        ("SELECT 1", 0, 0, 0),
        ("SET a = b; DO ''; SELECT nextval('s')", 0, 0, 0),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", 1, 0, 0),
        ("LISTEN a", 1, 1, 0),
    ],
)
def test_the_exit_status_is_1_for_what_fail_on_names_and_worse(
    lint: Lint, tmp_path: Path, sql: str, pinned: int, refused: int, never: int
) -> None:
    path = tmp_path / "app.sql"
    path.write_text(sql)
    argv = (path, "--session-state", "listen=reject")
    assert lint(*argv)[0] == pinned
    assert lint(*argv, "--fail-on", "pinned")[0] == pinned
    assert lint(*argv, "--fail-on", "refused")[0] == refused
    assert lint(*argv, "--fail-on", "never")[0] == never


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "there is nothing to read: name a FILE, - for the standard input, or --pg-stat-statements URL"),
        (["--format", "xml", "-"], "argument --format: invalid choice: 'xml'"),
        (
            ["--session-state", "listen=track", "-"],
            "'listen=track' gives listen the policy 'track', which is not one of",
        ),
        (["--session-state", "x=pin", "-"], "'x=pin' names 'x', which is no class of session state"),
    ],
)
def test_a_wrong_command_is_2_and_says_what_is_wrong(lint: Lint, argv: list[str], message: str) -> None:
    status, _, err = lint(*argv)
    assert status == 2
    assert message in err


def test_what_can_be_read_is_reported_beside_what_cannot(lint: Lint, script: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.sql"
    broken.write_text("LISTEN before;\nSELECT 'never ends")
    status, out, err = lint(tmp_path / "missing.sql", broken, tmp_path, script, "--json")
    assert {"LISTEN jobs", "LISTEN before"} <= found(out).keys()
    assert err.splitlines() == [
        f"pgfunnel lint: {tmp_path}/missing.sql: No such file or directory",
        f"pgfunnel lint: {broken}:2: a quote or comment begins in this statement and never ends",
        f"pgfunnel lint: {tmp_path}: Is a directory",
    ]
    assert status == 2


def test_what_is_no_text_is_refused_before_it_fills_the_memory(lint: Lint, tmp_path: Path) -> None:
    path = tmp_path / "zeros.sql"
    with path.open("wb") as file:
        file.truncate(4 * LONGEST_LINE)
    status, _, err = lint(path)
    assert (status, err) == (2, f"pgfunnel lint: {path}:1: a line of more than 64 MiB\n")


# On a terminal


def test_a_terminal_shows_how_far_it_is_and_keeps_nothing_of_that(tmp_path: Path) -> None:
    long = tmp_path / "long.sql"
    long.write_text("LISTEN jobs;\n" * 10_000)
    terminal, end = pty.openpty()
    try:
        with subprocess.Popen((*COMMAND, long), stdout=subprocess.DEVNULL, stderr=end) as lint:
            os.close(end)
            seen = b""
            with suppress(OSError):  # that is how a terminal ends
                while chunk := os.read(terminal, 65536):
                    seen += chunk
        assert lint.returncode == 1
    finally:
        os.close(terminal)
    assert re.search(rb"\r\x1b\[K\S+long\.sql: \d+ % of 0 MiB, [\d,]+ found", seen)
    assert seen.endswith(b"\r\x1b[K")


def test_no_progress_is_shown_where_nobody_looks(lint: Lint, script: Path) -> None:
    assert lint(script)[2] == ""


def test_the_command_is_part_of_pgfunnel_and_explains_itself() -> None:
    out = subprocess.run((*COMMAND, "--help"), env={"COLUMNS": "80"}, check=True, capture_output=True, text=True).stdout
    assert out.startswith("usage: pgfunnel lint ")
    assert "examples:" in out
    assert max(map(len, out.splitlines())) <= 80
