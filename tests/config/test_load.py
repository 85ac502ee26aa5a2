"""What an operator gets for what was typed: the settings, or one message with everything that is wrong."""

import contextlib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from config.authentication import AuthType
from config.errors import ConfigurationError
from config.fields import default_text
from config.load import Loaded, load
from config.percent import Percent
from config.pools import PoolMode
from config.session_state import CLASSES
from config.settings import Settings
from config.sources import Source

UPSTREAM = "postgresql://app:secret@db/orders"
NO_DATABASE = (
    "upstream: it is missing, and so are [databases]; give --upstream postgresql://... or PGFUNNEL_UPSTREAM, or a "
    "file that has them"
)
TABLES = "[databases], [users], [peers], [session_state_database], [session_state_user]"


def loaded(*argv: str, **environ: str) -> Loaded:
    return load(["--upstream", UPSTREAM, *argv], {f"PGFUNNEL_{name}": text for name, text in environ.items()})


def mistakes(*argv: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        loaded(*argv, **environ)
    return list(raised.value.mistakes)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "pgfunnel.toml"


def test_an_upstream_is_a_complete_configuration() -> None:
    by_option = load(["--upstream", UPSTREAM], {})
    by_variable = load([], {"PGFUNNEL_UPSTREAM": UPSTREAM})
    assert by_option.settings == by_variable.settings
    assert str(by_option.settings.upstream) == "postgresql://app:***@db:5432/orders"
    assert by_option.settings.pool_mode == "transaction"


def test_an_option_goes_before_a_variable_and_that_before_the_file(toml: Path) -> None:
    toml.write_text("listen_port = 1\nmetrics_port = 1\ndefault_pool_size = 1\n")
    result = loaded("--config", str(toml), "--listen-port", "3", LISTEN_PORT="2", METRICS_PORT="2")
    settings, sources = result.settings, result.sources
    assert (settings.listen_port, settings.metrics_port, settings.default_pool_size) == (3, 2, 1)
    assert sources["listen_port"] == Source("--listen-port", "command line")
    assert sources["metrics_port"] == Source("PGFUNNEL_METRICS_PORT", "environment")
    assert sources["default_pool_size"] == Source("default_pool_size", f"'{toml}' line 3")
    assert sources["min_pool_size"] == Source("min_pool_size", "default")
    assert str(sources["listen_port"]) == "--listen-port (command line)"


def test_every_setting_has_a_source() -> None:
    assert loaded().sources.keys() == Settings.model_fields.keys()


def test_the_file_may_be_named_by_a_variable_and_the_option_goes_before_it(toml: Path, tmp_path: Path) -> None:
    toml.write_text("listen_port = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("listen_port = 2\n")
    assert loaded(CONFIG=str(toml)).settings.listen_port == 1
    assert loaded("--config", str(other), CONFIG=str(toml)).settings.listen_port == 2
    assert loaded(CONFIG="").settings.listen_port == 6432


def test_an_option_and_its_value_may_be_one_argument_or_two_and_the_last_one_counts() -> None:
    assert loaded("--pool-mode=session").settings.pool_mode == "session"
    assert loaded("--pool-mode", "session", "--pool-mode", "statement").settings.pool_mode == "statement"
    assert loaded("--server-check-query=--ping=1").settings.server_check_query == "--ping=1"
    assert loaded("--server-reset-query", "").settings.server_reset_query == ""


@pytest.mark.parametrize("text", ["1", "true", "yes", "on", "True", "YES"])
def test_a_boolean_is_turned_on(text: str) -> None:
    assert loaded("--server-round-robin", text).settings.server_round_robin is True
    assert loaded(SERVER_ROUND_ROBIN=text).settings.server_round_robin is True


@pytest.mark.parametrize("text", ["0", "false", "no", "off", "False", "NO"])
def test_a_boolean_is_turned_off(text: str) -> None:
    assert loaded("--log-connections", text).settings.log_connections is False
    assert loaded(LOG_CONNECTIONS=text).settings.log_connections is False


def test_a_boolean_option_may_stand_alone_or_be_negated() -> None:
    settings = loaded("--server-round-robin", "--no-log-connections", "--pool-mode", "session").settings
    assert (settings.server_round_robin, settings.log_connections, settings.pool_mode) == (True, False, "session")
    assert loaded("--server-round-robin").settings.server_round_robin is True


def test_a_file_gives_its_own_types(toml: Path) -> None:
    toml.write_text(
        "query_timeout = 1.5\nserver_lifetime = 60\nlog_connections = false\ntcp_keepalive = 0\n"
        'listen_addr = ["127.0.0.1", "::1"]\nunix_socket_mode = "0750"\n[users]\nalice = "x"\n'
    )
    settings = loaded("--config", str(toml)).settings
    assert (settings.query_timeout, settings.server_lifetime) == (1.5, 60.0)
    assert (settings.log_connections, settings.tcp_keepalive) == (False, False)
    assert settings.listen_addr == ("127.0.0.1", "::1")
    assert settings.unix_socket_mode == 0o750
    assert settings.users["alice"].get_secret_value() == "x"


def test_addresses_are_a_list_with_commas() -> None:
    assert loaded("--listen-addr", "127.0.0.1, ::1,*").settings.listen_addr == ("127.0.0.1", "::1", "*")


def test_an_empty_variable_unsets_what_may_be_unset() -> None:
    settings = loaded(AUTH_FILE="", UNIX_SOCKET_DIR="", METRICS_ADDR="", USERS="", SERVER_RESET_QUERY="").settings
    assert (settings.auth_file, settings.unix_socket_dir, settings.metrics_addr) == (None, None, None)
    assert (settings.users, settings.server_reset_query) == ({}, "")


def test_only_a_unix_socket_may_be_listened_on(tmp_path: Path) -> None:
    settings = loaded("--listen-addr", "", "--unix-socket-dir", str(tmp_path)).settings
    assert (settings.listen_addr, settings.unix_socket_dir) == ((), tmp_path)


def test_a_unix_socket_may_be_in_no_directory() -> None:
    assert str(loaded("--listen-addr", "", "--unix-socket-dir", "@pgfunnel").settings.unix_socket_dir) == "@pgfunnel"


def test_session_state_changes_the_classes_it_names_and_leaves_the_others_alone() -> None:
    given = loaded("--session-state", " listen=reject,sequence = pin ").settings.session_state
    assert given == {**loaded().settings.session_state, "listen": "reject", "sequence": "pin"}
    assert loaded(SESSION_STATE="").settings.session_state == loaded().settings.session_state
    written = default_text(Settings.model_fields["session_state"])
    assert loaded(SESSION_STATE=written).settings.session_state == loaded().settings.session_state


def test_settings_and_identity_follow_their_client_and_what_cannot_pins_unless_told_otherwise() -> None:
    policies = loaded().settings.session_state
    assert {name for name, policy in policies.items() if policy == "track"} == {"setting", "identity"}
    assert {name for name, policy in policies.items() if policy == "ignore"} == {"sequence", "unknown"}
    assert {name for name, policy in policies.items() if policy == "reject"} == set()


def test_session_state_may_differ_by_database_and_by_user(toml: Path) -> None:
    toml.write_text('[session_state_database]\norders = "listen=reject, cursor=ignore"\n')
    settings = loaded("--config", str(toml), SESSION_STATE_USER='{"app": "listen=pin"}').settings
    assert settings.session_state_database == {"orders": {"listen": "reject", "cursor": "ignore"}}
    assert settings.session_state_user == {"app": {"listen": "pin"}}


# Who may log in


def credentials(result: Loaded) -> dict[str, str]:
    return {name: secret.get_secret_value() for name, secret in result.credentials.items()}


def test_the_users_of_all_sources_may_log_in(tmp_path: Path) -> None:
    file = tmp_path / "userlist.txt"
    file.write_text('"alice" "file"\n"bob" "file"\n"app" "file"\n')
    result = loaded("--auth-file", str(file), "--users", '{"bob": "users", "carol": "users", "app": "users"}')
    assert credentials(result) == {"alice": "file", "bob": "users", "carol": "users", "app": "secret"}


def test_a_user_without_a_password_in_the_upstream_keeps_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "userlist.txt"
    file.write_text('"app" "file"\n')
    assert credentials(load(["--upstream=postgresql://app@db", f"--auth-file={file}"], {})) == {"app": "file"}


def test_trust_needs_no_passwords_and_every_other_auth_type_does() -> None:
    assert credentials(load(["--upstream=postgresql://app@db", "--auth-type=trust"], {})) == {"app": ""}
    with pytest.raises(ConfigurationError, match="none has a password, so auth_type md5 would let nobody in"):
        load(["--upstream=postgresql://app@db", "--auth-type=md5"], {})


# What is wrong


def test_an_auth_dbname_that_names_no_database_is_noted(toml: Path) -> None:
    entry = "[databases.shop]\nhost = 'db'\nauth_user = 'keeper'\nauth_dbname = "
    toml.write_text(f"{entry}'shop'\n")
    assert load(["--config", str(toml)], {}).notes == ()
    toml.write_text(f"{entry}'other'\n")
    (note,) = load(["--config", str(toml)], {}).notes
    assert note.startswith("[databases] shop: auth_dbname: there is no entry for other in [databases]")


def test_all_mistakes_of_all_sources_come_in_one_message(toml: Path) -> None:
    toml.write_text('pool_mod = "session"\ndefault_pool_size = -1\n')
    with pytest.raises(ConfigurationError) as raised:
        load(
            ["--pool-mode", "transactoin", "--listen-prot", "6432", "--log-connections=2", "--config", str(toml)],
            {"PGFUNNEL_MAX_CLIENT_CON": "5", "PGFUNNEL_QUERY_TIMEOUT": "30s", "HOME": "/root"},
        )
    head, *lines = str(raised.value).split("\n")
    assert head == "8 mistakes in the settings (pgfunnel --help explains them)"
    assert sorted(lines) == sorted(
        [
            "  --listen-prot: there is no such setting; did you mean --listen-port? (command line)",
            "  --log-connections: '2' is not 0 or 1 (or false/true, no/yes, off/on) (command line)",
            "  --pool-mode: 'transactoin' is not one of session, transaction, statement (command line)",
            "  PGFUNNEL_MAX_CLIENT_CON: there is no such setting; did you mean PGFUNNEL_MAX_CLIENT_CONN? (environment)",
            "  PGFUNNEL_QUERY_TIMEOUT: '30s' is not a number of seconds, 0 or more (environment)",
            f"  default_pool_size: -1 is not a whole number, 0 or more, or a share such as 90% ('{toml}' line 2)",
            f"  pool_mod: there is no such setting; did you mean pool_mode? ('{toml}' line 1)",
            f"  {NO_DATABASE}",
        ]
    )


def test_a_single_mistake_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match=r"^a mistake in the settings"):
        load([], {})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--pool_mode", "session"], "--pool_mode: there is no such setting; did you mean --pool-mode?"),
        (["--xyz"], "--xyz: there is no such setting"),
        (["-p", "6432"], "-p: there is no such setting"),
        (["--no-pool-mode"], "--no-pool-mode: there is no such setting; did you mean --pool-mode?"),
        (["--no-log-conections"], "--no-log-conections: there is no such setting; did you mean --no-log-connections?"),
        (["--no-log-connections=1"], "--no-log-connections: it takes no value"),
        (["--pool-mode"], "--pool-mode: its value is missing"),
        (["--pool-mode", "--listen-port", "1"], "--pool-mode: its value is missing"),
        (["pgbouncer.init"], "an argument that is no file and has no option: a --name goes before each value"),
        (
            ["--no-log-connections", "1"],
            "an argument that is no file and has no option: a --name goes before each value",
        ),
        (["--"], "an argument that is no file and has no option: a --name goes before each value"),
        ([""], "an argument that is no file and has no option: a --name goes before each value"),
    ],
)
def test_what_is_no_option_is_refused(argv: list[str], message: str) -> None:
    assert message + " (command line)" in mistakes(*argv)


def test_a_variable_that_is_no_setting_is_refused_in_whatever_case() -> None:
    assert mistakes(POOLMODE="session") == [
        "PGFUNNEL_POOLMODE: there is no such setting; did you mean PGFUNNEL_POOL_MODE? (environment)"
    ]
    with pytest.raises(ConfigurationError, match=r"pgfunnel_pool_mode: .* did you mean PGFUNNEL_POOL_MODE"):
        load(["--upstream", UPSTREAM], {"pgfunnel_pool_mode": "session"})


def test_variables_that_kubernetes_sets_for_services_named_after_us_are_passed_over() -> None:
    environ = {
        "PGFUNNEL_SERVICE_HOST": "10.0.0.11",
        "PGFUNNEL_SERVICE_PORT": "6432",
        "PGFUNNEL_SERVICE_PORT_POSTGRES": "6432",
        "PGFUNNEL_PORT": "tcp://10.0.0.11:6432",
        "PGFUNNEL_PORT_6432_TCP": "tcp://10.0.0.11:6432",
        "PGFUNNEL_PORT_6432_TCP_PROTO": "tcp",
        "PGFUNNEL_PORT_6432_TCP_PORT": "6432",
        "PGFUNNEL_PORT_6432_TCP_ADDR": "10.0.0.11",
        "PGFUNNEL_METRICS_SERVICE_HOST": "10.0.0.12",
        "PGFUNNEL_METRICS_PORT": "tcp://10.0.0.12:9127",
    }
    assert load(["--upstream", UPSTREAM], environ).settings.metrics_port == 9127


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("listen_port", "65536", "'65536' is not a port number from 0 to 65535"),
        ("listen_port", "", "'' is not a port number from 0 to 65535"),
        ("listen_addr", "a b", "'a b' is not a comma-separated list of addresses, host names or *"),
        ("listen_addr", "127.0.0.1,", "'127.0.0.1,' is not a comma-separated list of addresses, host names or *"),
        ("metrics_addr", "*", "'*' is not an address or a host name"),
        ("metrics_addr", "127.0.0.1,::1", "'127.0.0.1,::1' is not an address or a host name"),
        ("unix_socket_dir", "/none/such", "'/none/such' is not the path of a directory that exists, or @ and a name"),
        ("unix_socket_mode", "0888", "'0888' is not a file mode in octal digits, as text, such as 0777"),
        ("max_client_conn", "0", "'0' is not a whole number, 1 or more"),
        ("default_pool_size", "many", "'many' is not a whole number, 0 or more, or a share such as 90%"),
        ("default_pool_size", "1e99", "'1e99' is not a whole number, 0 or more, or a share such as 90%"),
        ("query_timeout", "-1", "'-1' is not a number of seconds, 0 or more"),
        ("query_timeout", "inf", "'inf' is not a number of seconds, 0 or more"),
        ("query_timeout", "nan", "'nan' is not a number of seconds, 0 or more"),
        ("tcp_keepcnt", "128", "'128' is not a whole number from 0 to 127"),
        ("tcp_user_timeout", "0.5", "'0.5' is not a whole number of milliseconds, 0 or more"),
        ("max_packet_size", "2147483648", "'2147483648' is not a whole number of bytes from 1024 to 2147483647"),
        (
            "auth_type",
            "pam",
            "'pam' is not one of trust, any, plain, md5, scram-sha-256, cert, peer, hba, passthrough",
        ),
        ("log_level", "verbose", "'verbose' is not one of debug, info, warning, error"),
        ("users", "alice:secret", "its value is not JSON: Expecting value at character 1"),
        ("users", '["alice"]', "its value is not a TOML table, or a JSON object, of user names and passwords"),
        ("users", '{"": "secret"}', "its value has an empty name"),
        ("users", '{"alice": 17}', "the password of alice is not text"),
        ("upstream", "db:5432", "'***' does not begin with postgresql://"),
        ("pool_mode", UPSTREAM, "'postgresql://app:***@db/orders' is not one of session, transaction, statement"),
        ("pool_mode", "x" * 5000, f"'{'x' * 100}...' is not one of session, transaction, statement"),
        ("pin_audit", "1.5", "'1.5' is not a share from 0 to 1"),
        ("pin_audit", "nan", "'nan' is not a share from 0 to 1"),
        ("max_statement_memory", "1000", "'1000' is not a whole number of bytes, 65536 or more"),
        ("session_state", "listen", "'listen' has 'listen' where class=policy should be"),
        ("session_state", "listen=pin,", "'listen=pin,' has '' where class=policy should be"),
        ("session_state", "cursor=pin, cursor=pin", "'cursor=pin, cursor=pin' names cursor twice"),
        (
            "session_state",
            "locks=pin",
            f"'locks=pin' names 'locks', which is no class of session state (one of {', '.join(CLASSES)})",
        ),
        (
            "session_state",
            "setting=keep",
            "'setting=keep' gives setting the policy 'keep', which is not one of track, pin, reject, ignore",
        ),
        (
            "session_state",
            "listen=track",
            "'listen=track' gives listen the policy 'track', which is not one of pin, reject, ignore",
        ),
        (
            "session_state_user",
            '{"app": "listen=track"}',
            "its value for 'app' gives listen the policy 'track', which is not one of pin, reject, ignore",
        ),
        ("session_state_database", "listen=pin", "its value is not JSON: Expecting value at character 1"),
        (
            "session_state_database",
            '{"orders": 1}',
            "its value is not a TOML table, or a JSON object, of names and their session_state",
        ),
        ("session_state_database", '{"": "listen=pin"}', "its value has an empty name"),
        ("log_format", "js\non", r"'js\non' is not one of text, json"),
    ],
)
def test_an_impossible_value_is_refused_by_name_value_and_source(name: str, text: str, message: str) -> None:
    option, variable = "--" + name.replace("_", "-"), "PGFUNNEL_" + name.upper()
    assert mistakes(f"{option}={text}") == [f"{option}: {message} (command line)"]
    if name != "upstream":
        assert mistakes(**{name.upper(): text}) == [f"{variable}: {message} (environment)"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("listen_port = true", "listen_port: true is not a port number from 0 to 65535"),
        ("query_timeout = true", "query_timeout: true is not a number of seconds, 0 or more"),
        ("query_timeout = inf", "query_timeout: inf is not a number of seconds, 0 or more"),
        ("log_format = 1", "log_format: 1 is not one of text, json"),
        ("log_connections = 2", "log_connections: 2 is not 0 or 1 (or false/true, no/yes, off/on)"),
        ("server_check_query = 1", "server_check_query: 1 is not text"),
        ('server_check_query = "\\u0000"', r"server_check_query: '\x00' has a zero byte in it"),
        ("unix_socket_mode = 777", "unix_socket_mode: 777 is not a file mode in octal digits, as text, such as 0777"),
        ("listen_addr = [1]", "listen_addr: its value is not a comma-separated list of addresses, host names or *"),
        ("listen_addr = 1", "listen_addr: 1 is not a comma-separated list of addresses, host names or *"),
        ("upstream = 5", "upstream: 5 is not a URL of the form postgresql://user:password@host:port/dbname"),
        ('auth_file = "\\u0000"', r"auth_file: '\x00' cannot be read: it has a character that no path can have"),
        ("auth_file = false", "auth_file: false is not the path of a file"),
        ("metrics_addr = false", "metrics_addr: false is not an address or a host name"),
        ("auth_file = 5", "auth_file: 5 is not the path of a file"),
        ("pin_audit = true", "pin_audit: true is not a share from 0 to 1"),
        ("session_state = 5", "session_state: 5 is not a comma-separated list of class=policy"),
        (
            "session_state_user = 5",
            "session_state_user: its value is not a TOML table, or a JSON object, of names and their session_state",
        ),
        (
            "[session_state_database]\norders = 'listen'",
            "session_state_database: its value for 'orders' has 'listen' where class=policy should be",
        ),
        ("users = 5", "users: it is not a table"),
        ("users = { alice = 5 }", "[users] alice: it is not a table"),
        (
            "[pools]\npool_mode = 'session'",
            f"pools: settings stand in no table but {TABLES}",
        ),
        ("config = 'x'", "config: there is no such setting"),
    ],
)
def test_an_impossible_value_in_the_file_is_refused(toml: Path, line: str, message: str) -> None:
    toml.write_text(line)
    argv = ["--config", str(toml)]
    with pytest.raises(ConfigurationError) as raised:
        load(argv if line.startswith("upstream") else [*argv, "--upstream", UPSTREAM], {})
    assert raised.value.mistakes == (f"{message} ('{toml}' line 1)",)


def test_a_file_that_is_not_toml_is_refused_with_the_line(toml: Path) -> None:
    toml.write_text("listen_port = 1\npool_mode = session\n")
    assert mistakes("--config", str(toml)) == [f"{toml}: not TOML: Invalid value (at line 2, column 13)"]
    toml.write_bytes(b"\n\xff")
    assert mistakes(CONFIG=str(toml)) == [f"PGFUNNEL_CONFIG: '{toml}' line 2 is not UTF-8 (environment)"]


def test_a_file_that_is_missing_is_refused(toml: Path) -> None:
    assert mistakes("--config", str(toml)) == [
        f"--config: '{toml}' cannot be read: No such file or directory (command line)"
    ]


def test_a_malformed_auth_file_is_refused_with_all_its_lines(toml: Path, tmp_path: Path) -> None:
    file = tmp_path / "userlist.txt"
    file.write_text('alice secret\n"bob" "x"\n"carol"\n')
    toml.write_text(f'auth_file = "{file}"')
    form = 'is not in the form "user" "password" (a " inside is written "")'
    assert mistakes("--pool-mode=x", "--config", str(toml)) == [
        "--pool-mode: 'x' is not one of session, transaction, statement (command line)",
        f"auth_file: '{file}' line 1 {form} ('{toml}' line 1)",
        f"auth_file: '{file}' line 3 {form} ('{toml}' line 1)",
    ]


def test_nothing_to_listen_on_is_refused() -> None:
    assert mistakes("--listen-addr=") == [
        "unix_socket_dir: it is empty, and so is listen_addr: there would be nothing to listen on (default)"
    ]


def test_a_minimum_above_a_limit_is_no_mistake() -> None:
    settings = loaded("--min-pool-size=65", "--max-db-connections=4", "--max-user-connections=3").settings
    assert (settings.min_pool_size, settings.default_pool_size, settings.max_db_connections) == (65, 64, 4)


def test_sizes_may_be_shares_of_what_the_server_has(toml: Path) -> None:
    toml.write_text('max_db_connections = "37.5%"\n')
    settings = loaded("--default-pool-size=90%", "--config", str(toml)).settings
    assert (settings.default_pool_size, settings.max_db_connections) == (Percent(90), Percent(37.5))


def test_an_empty_upstream_is_none() -> None:
    with pytest.raises(ConfigurationError, match="upstream: it is missing"):
        load(["--upstream="], {})


# Settings made by hand


def test_settings_are_frozen_and_take_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGFUNNEL_POOL_MODE", "session")
    settings = Settings.model_validate({"upstream": UPSTREAM})
    assert settings.pool_mode == "transaction"
    with pytest.raises(ValidationError):
        settings.pool_mode = "session"  # type: ignore[misc]


@given(
    st.lists(
        st.sampled_from([*("--" + name.replace("_", "-") for name in Settings.model_fields), "--config"]) | st.text()
    ),
    st.dictionaries(st.sampled_from([f"PGFUNNEL_{name.upper()}" for name in Settings.model_fields]), st.text()),
)
def test_whatever_is_typed_gives_settings_or_a_configuration_error(argv: list[str], environ: dict[str, str]) -> None:
    argv = [argument for argument in argv if argument not in ("-h", "-V")]
    with contextlib.suppress(ConfigurationError):
        load(argv, environ)


PIECES = [
    *("[pgbouncer]", "[databases]", "[users.x]", "[", "]", "{", "}", "=", "'", '"', "%include x", ";", "#", "*", "%"),
    *("\n", " ", ".", ",", "\0", "\\", "\ufeff", "\ud800", "-1", "0", "90%", "true", "host", "password", "x"),
    *Settings.model_fields,
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30), st.sampled_from(["toml", "ini"]))
def test_whatever_is_in_a_file_gives_settings_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], form: str
) -> None:
    file = tmp_path_factory.getbasetemp() / f"any.{form}"
    file.write_bytes("".join(pieces).encode(errors="surrogatepass"))
    with contextlib.suppress(ConfigurationError):
        load([str(file), "--users", '{"app": "secret"}'], {})


@given(
    mode=st.sampled_from(get_args(PoolMode)),
    # The others take files, or a socket.
    auth=st.sampled_from([each for each in get_args(AuthType) if each not in ("hba", "cert", "peer")]),
    size=st.integers(0, 2**31 - 1),
    seconds=st.floats(0, 1e9),
)
def test_possible_values_are_taken_alike_from_every_source(mode: str, auth: str, size: int, seconds: float) -> None:
    values = {"pool_mode": mode, "auth_type": auth, "default_pool_size": str(size), "query_timeout": repr(seconds)}
    by_option = loaded(*(f"--{name.replace('_', '-')}={value}" for name, value in values.items())).settings
    by_variable = loaded(**{name.upper(): value for name, value in values.items()}).settings
    assert by_option == by_variable
    assert (by_option.default_pool_size, by_option.query_timeout) == (size, seconds)
