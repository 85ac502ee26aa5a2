"""Started as PgBouncer is: a file without an option, its defaults, and its flags."""

from collections.abc import Callable
from pathlib import Path

import pytest

from config.databases import Database
from config.errors import ConfigurationError
from config.load import Loaded, load
from config.percent import Percent
from config.sources import Source

UPSTREAM = "postgresql://app:secret@db/orders"
FILE = """
[databases]
shop = host=10.0.0.1
[pgbouncer]
auth_type = trust
listen_port = 7000
pidfile = pgfunnel.pid
logfile = pgfunnel.log
"""
COUNT = "a whole number, 0 or more, or a share such as 90%"
MODES = "disable, allow, prefer, require, verify-ca, verify-full"
Start = Callable[..., Loaded]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return what starts with arguments in a directory that has pgbouncer.ini."""
    monkeypatch.chdir(tmp_path)
    Path("pgbouncer.ini").write_text(FILE)

    def run(*argv: str, **environ: str) -> Loaded:
        return load(argv, {f"PGFUNNEL_{name}": value for name, value in environ.items()})

    return run


def mistakes(start: Start, *argv: str) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        start(*argv)
    return list(raised.value.mistakes)


def test_from_its_ini_pgbouncers_defaults_hold_else_our_own(start: Start) -> None:
    loaded = start("pgbouncer.ini")
    settings = loaded.settings
    assert (settings.pool_mode, settings.default_pool_size, settings.listen_addr) == ("session", 20, ())
    assert (settings.metrics_port, settings.listen_port) == (9127, 7000)
    assert loaded.sources["pool_mode"].place == "PgBouncer's default"
    assert loaded.sources["listen_port"] == Source("listen_port", "'pgbouncer.ini' line 6")
    assert loaded.directory.databases == {"shop": Database(host=("10.0.0.1",))}
    ours = load(["--upstream", UPSTREAM], {})
    assert (ours.settings.pool_mode, ours.from_ini) == ("transaction", False)


def test_options_and_variables_go_before_the_ini(start: Start) -> None:
    settings = start("pgbouncer.ini", "--listen-port=1", POOL_MODE="statement", LISTEN_PORT="2").settings
    assert (settings.listen_port, settings.pool_mode) == (1, "statement")


def test_an_upstreams_options_go_before_pgbouncers_defaults(start: Start) -> None:
    loaded = start("pgbouncer.ini", "--upstream=postgresql://app@db?sslmode=require")
    assert loaded.settings.server_tls_sslmode == "require"


def test_a_file_is_taken_for_what_its_name_says_or_else_for_what_it_is_named_by(start: Start) -> None:
    Path("a.toml").write_text("[databases.a]\n[users]\nb='c'\n")
    Path("a.conf").write_text(FILE)
    assert start("a.conf").from_ini
    assert not start("a.toml").from_ini
    assert start("--config", "pgbouncer.ini").from_ini
    assert start(CONFIG="pgbouncer.ini").from_ini
    assert not start("a.toml", CONFIG="pgbouncer.ini").from_ini


def test_quiet_daemon_and_user_are_pgbouncers_flags(start: Start) -> None:
    for argv in (["-q", "-d", "-u", "nobody"], ["-qdunobody"], ["--quiet", "--daemon", "--user=nobody"]):
        loaded = start(*argv, "pgbouncer.ini")
        assert (loaded.quiet, loaded.daemon, loaded.settings.user) == (True, True, "nobody")
    loaded = start("pgbouncer.ini")
    assert (loaded.quiet, loaded.daemon, loaded.settings.user) == (False, False, "")


@pytest.mark.parametrize(
    ("argv", "verbose"),
    [("-v", 1), ("-vv", 2), ("-v -v -v", 3), ("--verbose", 1), ("--verbose --verbose=3 -v", 4), ("--verbose 2", 2)],
)
def test_verbose_may_be_said_several_times(start: Start, argv: str, verbose: int) -> None:
    assert start(*argv.split(), "pgbouncer.ini").settings.verbose == verbose


def test_what_is_wrong_on_the_command_line_is_said(start: Start) -> None:
    place = "(command line)"
    assert mistakes(start, "-R", "pgbouncer.ini")[0].startswith("-R: sockets are not handed over; give so_reuseport=1")
    assert mistakes(start, "pgbouncer.ini", "-u") == [f"-u: its value is missing {place}"]
    assert mistakes(start, "pgbouncer.ini", "-x") == [f"-x: there is no such setting {place}"]
    assert mistakes(start, "pgbouncer.ini", "--quiet=1") == [f"--quiet: it takes no value {place}"]
    assert mistakes(start, "pgbouncer.ini", "pgbouncer.ini") == [f"there are two files: give one {place}"]
    assert mistakes(start, "pgbouncer.ini", "--config=x") == [f"--config: there are two files: give one {place}"]
    assert mistakes(start, "none.ini") == ["'none.ini' cannot be read: No such file or directory"]
    assert mistakes(start, "none.toml") == [
        "FILE: 'none.toml' cannot be read: No such file or directory (command line)"
    ]


def test_the_background_takes_a_pidfile_and_somewhere_to_log_to(start: Start) -> None:
    nowhere = "-d: it takes a logfile or syslog, as nobody would read standard error (command line)"
    assert mistakes(start, "-d", "pgbouncer.ini", "--pidfile=", "--logfile=") == [
        "-d: it takes a pidfile (command line)",
        nowhere,
    ]
    assert start("-d", "pgbouncer.ini", "--logfile=", "--syslog").daemon


def test_all_mistakes_of_the_ini_come_at_once_with_file_line_name_and_the_nearest_right_name(start: Start) -> None:
    Path("pgbouncer.ini").write_text(
        "[pgbouncer]\npool_mod = session\nlisten_port = 70000\nserver_tls_sslmode = on\n%include users.ini\n"
        "[databases]\na = pool_sise=1\nb = port=x\n[user]\n"
    )
    Path("users.ini").write_text("max_client_con = 1\n[users]\nc = pool_mode=sesion\n")
    assert sorted(mistakes(start, "pgbouncer.ini")) == [
        "[databases] a: there is no key pool_sise; did you mean pool_size? ('pgbouncer.ini' line 7)",
        "[databases] b: port 'x' is not a port number from 1 to 65535 ('pgbouncer.ini' line 8)",
        "[users] c: pool_mode 'sesion' is not one of session, transaction, statement ('users.ini' line 3)",
        "listen_port: 70000 is not a port number from 0 to 65535 ('pgbouncer.ini' line 3)",
        "max_client_con: there is no such setting; did you mean max_client_conn? ('users.ini' line 1)",
        "pool_mod: there is no such setting; did you mean pool_mode? ('pgbouncer.ini' line 2)",
        f"server_tls_sslmode: 'on' is not one of {MODES} ('pgbouncer.ini' line 4)",
        "there is no section [user]; did you mean users? ('pgbouncer.ini' line 9)",
    ]


# Where Postgres is.


def test_it_takes_an_upstream_or_databases_and_an_entry_for_the_rest_is_only_one_of_them(start: Start) -> None:
    Path("a.toml").write_text("")
    assert mistakes(start, "a.toml")[0].startswith("upstream: it is missing, and so are [databases]; give")
    Path("pgbouncer.ini").write_text("[pgbouncer]\nauth_type = trust\n")
    assert start("pgbouncer.ini", "--upstream", UPSTREAM)
    Path("pgbouncer.ini").write_text("[pgbouncer]\nauth_type = trust\n[databases]\n* =\n")
    assert mistakes(start, "pgbouncer.ini", "--upstream", UPSTREAM) == [
        "--upstream: [databases] has an entry * too: leave out one (command line)"
    ]


def test_an_ini_without_databases_or_users_is_started_from_as_pgbouncer_does_and_the_log_says_so(start: Start) -> None:
    Path("pgbouncer.ini").write_text("[pgbouncer]\n[databases]\n")
    no_database, nobody = start("pgbouncer.ini").notes
    assert no_database == "[databases] is empty: clients get the console only ('pgbouncer.ini')"
    assert nobody.startswith("upstream, users, auth_file: none has a password, so auth_type md5 would let nobody in")


def test_any_takes_a_user_for_each_database(start: Start) -> None:
    Path("pgbouncer.ini").write_text("[pgbouncer]\nauth_type = any\n[databases]\na = user=x\nb =\n")
    assert mistakes(start, "pgbouncer.ini") == [
        "[databases] b: it names no user, as whom auth_type any serves everybody"
    ]
    assert start("pgbouncer.ini", "--upstream", UPSTREAM)


def test_who_looks_users_up_may_be_named_by_a_database(start: Start) -> None:
    Path("pgbouncer.ini").write_text("[databases]\na = auth_user=x\n")
    assert start("pgbouncer.ini").settings.auth_type == "md5"


# TOML has the same sections.


def test_a_toml_file_has_databases_users_and_peers(start: Start) -> None:
    Path("a.toml").write_text(
        '[databases.shop]\nhost = "db"\n[users]\nalice = "hush"\n[users.bob]\npassword = "hush"\npool_size = 5\n'
        '[peers.1]\nhost = "other"\n'
    )
    loaded = start("--config", "a.toml")
    assert {name: secret.get_secret_value() for name, secret in loaded.credentials.items()} == {
        "alice": "hush",
        "bob": "hush",
    }
    directory = loaded.directory
    assert (directory.databases["shop"].host, directory.users["bob"].pool_size) == (("db",), 5)
    assert directory.peers[1].host == "other"


def test_a_mistake_in_a_table_is_told_with_its_line(start: Start) -> None:
    Path("a.toml").write_text(
        'auth_type = "trust"\n[databases]\na = { pool_sise = 1 }\n"b c".port = "x"\n\n[databases."*"] # all others\n'
        "pool_size = -5\n[ users . bob ]\npool_mode = 1\n[peers]\n0.host = 'x'\n[peer.1]\nhost = 'x'\n"
    )
    said = [mistake.rpartition(" ")[2].rstrip(")") for mistake in mistakes(start, "a.toml")]
    assert sorted(said, key=int) == ["3", "4", "6", "8", "11", "12"]


def test_users_given_otherwise_go_before_those_of_the_file(start: Start) -> None:
    Path("a.toml").write_text('[databases.shop]\n[users]\nalice = "hush"\n')
    assert start("--config", "a.toml", USERS='{"bob": "hush"}').credentials.keys() == {"bob"}


# Where there is no file.


def test_entries_may_be_given_as_json_by_option_or_variable(start: Start) -> None:
    loaded = start(
        "--databases",
        '{"shop": {"host": "db", "pool_size": "50%"}}',
        USERS='{"alice": "hush", "bob": {"password": "hush", "pool_size": 5}, "carol": {"pool_mode": "session"}}',
        PEERS='{"1": {"host": "other"}}',
    )
    assert loaded.directory.databases == {"shop": Database(host=("db",), pool_size=Percent(50))}
    assert loaded.credentials.keys() == {"alice", "bob"}
    assert (loaded.directory.users["bob"].pool_size, loaded.directory.peers[1].host) == (5, "other")
    assert "hush" not in repr(loaded)


def test_entries_without_a_file_take_the_places_of_those_in_it(start: Start) -> None:
    assert start("pgbouncer.ini", DATABASES='{"hr": {}}').directory.databases.keys() == {"hr"}
    assert start("pgbouncer.ini", "--databases={}", "--upstream", UPSTREAM).directory.databases == {}


@pytest.mark.parametrize(
    ("argv", "mistake"),
    [
        ("--databases=shop", "--databases: its value is not JSON: Expecting value at character 1 (command line)"),
        ("--databases=[1]", "databases: it is not a table (--databases, command line)"),
        ('--databases={"a": 1}', "[databases] a: it is not a table (--databases, command line)"),
        (
            '--databases={"a": {"pool_sise": 1}}',
            "[databases] a: there is no key pool_sise; did you mean pool_size? (--databases, command line)",
        ),
        (
            '--users={"a": {"pool_size": -5}, "b": "hush"}',
            f"[users] a: pool_size -5 is not {COUNT} (--users, command line)",
        ),
        (
            '--peers={"a": {"host": "b"}}',
            "[peers] a: it is not a peer_id, a whole number from 1 to 16383 (--peers, command line)",
        ),
    ],
)
def test_a_mistake_in_entries_without_a_file_is_told_as_one_in_it(start: Start, argv: str, mistake: str) -> None:
    assert mistakes(start, "pgbouncer.ini", argv) == [mistake]
