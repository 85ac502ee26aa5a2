"""Reading everything again, and changing one setting while running."""

from pathlib import Path

import pytest

from config.errors import ConfigurationError
from config.load import Loaded, changed, load, reload, with_setting
from config.settings import RESTART, Settings

FILE = "[databases]\nshop =\n[pgbouncer]\nauth_type = trust\nlisten_port = 7000\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pgbouncer.ini"
    file.write_text(FILE)
    return file


@pytest.fixture
def loaded(path: Path) -> Loaded:
    return load([str(path), "--max-client-conn=5"], {"PGFUNNEL_QUERY_TIMEOUT": "3"})


def test_nothing_changes_if_nothing_has_changed(loaded: Loaded) -> None:
    again = reload(loaded)
    assert changed(loaded, again) == frozenset()
    assert again == loaded


def test_settings_and_entries_are_read_again_and_options_and_variables_still_go_first(
    path: Path, loaded: Loaded
) -> None:
    path.write_text(
        f"{FILE}max_client_conn = 7\nquery_timeout = 7\nserver_lifetime = 7\n[databases]\nhr = pool_size=1\n"
    )
    again = reload(loaded)
    assert changed(loaded, again) == {"server_lifetime"}
    assert (again.settings.max_client_conn, again.settings.query_timeout) == (5, 3)
    assert again.directory.databases.keys() == {"shop", "hr"}


def test_a_broken_file_changes_nothing_and_says_why(path: Path, loaded: Loaded) -> None:
    path.write_text(f"{FILE}server_lifetime = soon\n")
    with pytest.raises(ConfigurationError) as raised:
        reload(loaded)
    assert raised.value.mistakes == (
        f"server_lifetime: 'soon' is not a number of seconds, 0 or more ('{path}' line 6)",
    )
    path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        reload(loaded)


def test_what_takes_a_restart_stays_and_a_line_says_so(path: Path, loaded: Loaded) -> None:
    path.write_text(FILE.replace("7000", "7001") + "server_lifetime = 7\n")
    again = reload(loaded)
    assert (again.settings.listen_port, again.settings.server_lifetime) == (7000, 7)
    assert again.notes == (f"listen_port: it stays as it was until a restart ('{path}' line 5)",)
    assert again.sources["listen_port"] == loaded.sources["listen_port"]
    assert reload(again).settings.listen_port == 7000


def test_every_setting_that_takes_a_restart_exists() -> None:
    assert Settings.model_fields.keys() > RESTART


def test_the_console_sets_one_until_the_next_reload(loaded: Loaded) -> None:
    now = with_setting(loaded, "server_lifetime", "7")
    assert changed(loaded, now) == {"server_lifetime"}
    assert now.sources["server_lifetime"].place == "console"
    assert changed(loaded, with_setting(now, "query_timeout", "9")) == {"server_lifetime", "query_timeout"}
    assert reload(now) == loaded


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pool_mod", "session", "pool_mod: there is no such setting; did you mean pool_mode? (console)"),
        ("pool_mode", "x", "pool_mode: 'x' is not one of session, transaction, statement (console)"),
        ("listen_port", "1", "listen_port: it can only be changed by a restart (console)"),
        ("auth_type", "cert", "auth_type: cert takes client_tls_ca_file, and a client_tls_sslmode other than disable"),
        ("upstream", "postgresql://app:hush@db:x", "has a port that is not a number from 1 to 65535 (console)"),
    ],
)
def test_a_wrong_set_changes_nothing_and_says_why(loaded: Loaded, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        with_setting(loaded, name, text)
    (told,) = raised.value.mistakes
    assert told.endswith(message)
    assert "hush" not in told


def test_set_of_what_has_no_effect_says_so(loaded: Loaded) -> None:
    now = with_setting(loaded, "sbuf_loopcnt", "7")
    assert (now.settings, now.access) == (loaded.settings, loaded.access)
    assert now.notes[0].startswith("sbuf_loopcnt: it has no effect: ")
    assert now.idle == {"sbuf_loopcnt": "7"}


def test_set_reads_numbers_as_pgbouncer_does_and_all_our_words_for_yes_and_no(loaded: Loaded) -> None:
    assert with_setting(loaded, "min_pool_size", "0x10").settings.min_pool_size == 16
    assert with_setting(loaded, "log_stats", "off").settings.log_stats is False
    assert with_setting(loaded, "pool_mode", "Transaction").settings.pool_mode == "transaction"


def test_conffile_names_what_is_read_from_the_next_reload_on(path: Path, loaded: Loaded, tmp_path: Path) -> None:
    other = tmp_path / "other.conf"
    other.write_text(f"{FILE}server_lifetime = 7\n")
    now = with_setting(loaded, "conffile", str(other))
    assert now.settings.server_lifetime == 3600
    again = reload(now)
    assert (again.settings.server_lifetime, again.file) == (7, other)
    assert reload(again).settings.server_lifetime == 7


def test_passwords_that_changed_in_the_file_are_taken_up(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[databases.a]\n[users]\nalice = "old"\n')
    loaded = load(["--config", str(file)], {})
    file.write_text('[databases.a]\n[users]\nalice = "new"\n')
    assert reload(loaded).credentials["alice"].get_secret_value() == "new"
    assert loaded.credentials["alice"].get_secret_value() == "old"
