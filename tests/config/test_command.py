"""`pgfunnel config`, and SHOW CONFIG's rows."""

import stat
from pathlib import Path

import pytest

from config.command import main
from config.load import load
from config.pgbouncer import DEFAULTS
from config.settings import Settings
from config.shown import Row, shown

FILE = """
[databases]
shop = host=10.0.0.1,10.0.0.2 password=hush connect_query='SELECT 1'
[users]
bob = pool_mode=session
[peers]
1 = host=other
[pgbouncer]
auth_type = trust
listen_port = 7000
pkt_buf = 2048
admin_users = alice, bob
"""
PKT_BUF = "pkt_buf: it has no effect: buffers have the size of what arrives"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pgbouncer.ini"
    file.write_text(FILE)
    return file


def test_import_writes_toml_that_means_the_same(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["import", str(path)], {}) == 0
    written = capsys.readouterr()
    assert written.err == f"pgfunnel: {PKT_BUF} ('{path}' line 11)\n"
    output = tmp_path / "pgfunnel.toml"
    assert main(["import", str(path), "-o", str(output)], {}) == 0
    assert output.read_text() == written.out
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    toml, ini = load(["--config", str(output)], {}), load([str(path)], {})
    assert (toml.settings, toml.directory) == (ini.settings, ini.directory)


def test_import_refuses_what_pgfunnel_would(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text("[pgbouncer]\npool_mode = x\n")
    assert main(["import", str(path)], {}) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.endswith(f"pool_mode: 'x' is not one of session, transaction, statement ('{path}' line 2)\n")
    assert main(["import", str(path.with_name("none.ini"))], {}) == 2


def test_import_says_what_it_cannot_write_and_overwrites_nothing(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(path), "-o", str(path)], {}) == 1
    assert path.read_text() == FILE
    assert f"'{path}' cannot be written: File exists" in capsys.readouterr().err
    assert main(["import", str(path), "-o", "/none/such"], {}) == 1
    assert "'/none/such' cannot be written: No such file or directory" in capsys.readouterr().err


def test_show_prints_what_holds_and_where_it_came_from(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(path), "--query-timeout=5"], {"PGFUNNEL_POOL_MODE": "transaction"}) == 0
    written = capsys.readouterr().out
    lines = {line.split()[0]: line for line in written.splitlines() if line}
    assert lines.keys() > Settings.model_fields.keys()
    for name, value, place in (
        ("listen_port", "7000", f"'{path}' line 10"),
        ("pool_mode", "transaction", "PGFUNNEL_POOL_MODE, environment"),
        ("query_timeout", "5", "--query-timeout, command line"),
        ("default_pool_size", "20", "PgBouncer's default"),
        ("metrics_port", "9127", "default"),
        ("logfile", '""', "PgBouncer's default"),
    ):
        assert lines[name].split(maxsplit=2) == [name, value, f"# {place}"]
    assert "shop = host=10.0.0.1,10.0.0.2 password=*** connect_query='SELECT 1'\n" in written
    assert "[users]\nbob = pool_mode=session\n" in written
    assert "[peers]\n1 = host=other\n" in written
    assert "hush" not in written


def test_show_may_leave_out_defaults(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--changed", str(path)], {"PGFUNNEL_USERS": '{"app": "hush"}'}) == 0
    written = capsys.readouterr().out
    assert [line.split()[0] for line in written[: written.index("\n\n")].splitlines()] == [
        "admin_users",
        "auth_type",
        "listen_port",
        "users",
    ]
    assert f"# {PKT_BUF} (" in written
    assert "hush" not in written


def test_show_of_a_wrong_configuration_says_what_is_wrong(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(path), "--pool-mode=x"], {}) == 2
    assert "--pool-mode: 'x' is not one of" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["import", "--help"], ["show", "--help"]])
def test_help_is_given(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(argv, {})
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith("usage: pgfunnel config")


def test_the_rows_of_show_config_are_pgbouncers_and_ours(path: Path) -> None:
    loaded = load([str(path), "--upstream=postgresql://app:hush@db", "--unix-socket-mode=0700"], {})
    rows = {row.key: row for row in shown(loaded)}
    assert list(rows) == sorted(rows)
    assert rows.keys() == DEFAULTS.keys() | Settings.model_fields.keys()
    assert rows["listen_port"] == Row("listen_port", "7000", "6432", changeable=False)
    assert rows["pool_mode"] == Row("pool_mode", "session", "session", changeable=True)
    assert rows["log_stats"] == Row("log_stats", "1", "1", changeable=True)
    assert rows["server_lifetime"] == Row("server_lifetime", "3600", "3600", changeable=True)
    assert rows["admin_users"] == Row("admin_users", "alice,bob", "", changeable=True)
    assert rows["unix_socket_mode"] == Row("unix_socket_mode", "0700", "0777", changeable=False)
    assert rows["conffile"] == Row("conffile", str(path), "", changeable=True)
    assert rows["sbuf_loopcnt"] == Row("sbuf_loopcnt", "5", "5", changeable=True)
    assert rows["pkt_buf"] == Row("pkt_buf", "2048", "4096", changeable=True)
    assert rows["upstream"].value == "postgresql://app:***@db:5432/"
    ours = {row.key: row for row in shown(load(["--upstream=postgresql://app:hush@db"], {}))}
    assert (ours["pool_mode"].default, ours["logfile"].default) == ("transaction", "")
    assert "hush" not in str(rows) + str(ours)
