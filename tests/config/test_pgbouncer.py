"""What becomes of PgBouncer's settings."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import databases, ini, pgbouncer, toml
from config.errors import ConfigurationError
from config.ini import Ini, Item, Place
from config.load import load
from config.pgbouncer import DEFAULTS, WITHOUT_EFFECT
from config.settings import Settings
from config.sources import Given, Source

UPSTREAM = "postgresql://app:secret@db/orders"

A_FILE = r"""
;; A pooler for the shop
[databases]
shop = host=10.0.0.1,10.0.0.2 port=5433 dbname=shop_production pool_size=50% connect_query='SELECT ''1'''
"old shop" = user=reader password='se"c\ret' pool_mode=session
* = host=/run/postgresql

[users]
bob = pool_mode=session max_user_connections=10 query_timeout=1.5

[peers]
1 = host=pooler-1
2 = host=/tmp/pooler-2 port=6433

[pgbouncer]
listen_addr = *
unix_socket_dir =
auth_type = MD5
max_client_conn = 0x100
server_idle_timeout = 1e2
server_round_robin = 1
client_tls_ciphers = HIGH:!"x"
pkt_buf = 2048
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pgbouncer.ini"


def read(path: Path, text: str) -> Ini:
    path.write_text(text)
    return ini.read(path)


def values(path: Path, text: str) -> dict[str, object]:
    reading = pgbouncer.read(read(path, "[pgbouncer]\n" + text))
    assert reading.mistakes == []
    return {name: each.value for name, each in reading.given.items()}


def test_a_setting_knows_its_file_and_line(path: Path) -> None:
    reading = pgbouncer.read(read(path, "[pgbouncer]\n\nlisten_port = 7000\n"))
    assert reading.given == {"listen_port": Given(7000, Source("listen_port", f"'{path}' line 3"))}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("listen_port = 0x10", 16),
        ("listen_port = 010", 8),
        ("listen_port = -1", -1),
        ("listen_port = 1_0", "1_0"),
        ("query_timeout = 1.5", 1.5),
        ("query_timeout = 1e2", 100.0),
        ("query_timeout = 5s", "5s"),
        ("query_timeout =", ""),
        ("server_round_robin = 1", True),
        ("server_round_robin = 0", False),
        ("server_round_robin = off", "off"),
        ("pool_mode = Session", "session"),
        ("unix_socket_mode = 0770", "0770"),
        ("server_check_query = <empty>", "<empty>"),
        ("server_check_query = select 1", "select 1"),
        ("auth_file = ~/users.txt", "/home/app/users.txt"),
        ("listen_addr = a, b", "a, b"),
    ],
)
def test_values_are_read_as_pgbouncer_reads_them(
    path: Path, monkeypatch: pytest.MonkeyPatch, line: str, value: object
) -> None:
    monkeypatch.setenv("HOME", "/home/app")
    (read_value,) = values(path, line).values()
    assert read_value == value
    assert type(read_value) is type(value)


def test_what_is_for_pgbouncers_insides_is_taken_with_a_line_that_says_why_nothing_comes_of_it(path: Path) -> None:
    reading = pgbouncer.read(read(path, "[pgbouncer]\npkt_buf = 2048\n"))
    assert reading.given == {}
    assert reading.mistakes == []
    assert reading.notes == [
        f"pkt_buf: it has no effect: buffers have the size of what arrives ('{path}' line 2)",
    ]


def test_an_unknown_setting_is_a_mistake_with_the_nearest_right_one(path: Path) -> None:
    assert pgbouncer.read(read(path, "[pgbouncer]\npool_mod = 1\nPOOL_MODE=session\nfoo = 1\n")).mistakes == [
        f"pool_mod: there is no such setting; did you mean pool_mode? ('{path}' line 2)",
        f"POOL_MODE: there is no such setting; did you mean pool_mode? ('{path}' line 3)",
        f"foo: there is no such setting ('{path}' line 4)",
    ]


def test_pgfunnels_own_settings_may_stand_in_the_file(path: Path) -> None:
    assert values(path, "metrics_port = 9000\nlog_format = json") == {"metrics_port": 9000, "log_format": "json"}


def test_every_setting_is_one_of_ours_or_has_no_effect() -> None:
    assert DEFAULTS.keys() - Settings.model_fields.keys() == WITHOUT_EFFECT.keys()


def test_pgbouncers_defaults_are_possible_here() -> None:
    settings = Settings.model_validate(
        {"upstream": UPSTREAM} | {name: given.value for name, given in pgbouncer.defaults().items()}
    )
    assert (settings.pool_mode, settings.default_pool_size, settings.auth_type) == ("session", 20, "md5")
    assert (settings.listen_addr, str(settings.unix_socket_dir), settings.max_client_conn) == ((), "/tmp", 100)
    assert settings.server_check_query == "<empty>"


def test_our_documentation_is_right_about_pgbouncers_defaults() -> None:
    told = {
        name for name, setting in Settings.model_fields.items() if "PgBouncer's default" in str(setting.description)
    }
    differing = {name for name in pgbouncer.defaults() if pgbouncer.differs(name)}
    assert told == differing - {"listen_addr"}


# As TOML.


def test_a_file_and_its_toml_mean_the_same(path: Path, tmp_path: Path) -> None:
    file = read(path, A_FILE)
    document = tomllib.loads(toml.from_pgbouncer(file))
    directory, mistakes = databases.from_toml(document, "p.toml")
    assert mistakes == []
    assert directory == databases.from_ini(file)[0]
    for table in ("databases", "users", "peers"):
        del document[table]
    expected = pgbouncer.defaults() | pgbouncer.read(file).given
    for name, value in document.items():
        assert expected[name].value == value
    for name in expected.keys() - document.keys():
        assert not pgbouncer.differs(name)

    settings = Settings.model_validate({"upstream": UPSTREAM} | document)
    assert settings == Settings.model_validate(
        {"upstream": UPSTREAM} | {name: given.value for name, given in expected.items()}
    )
    assert (settings.max_client_conn, settings.server_idle_timeout, settings.auth_type) == (256, 100, "md5")


def test_the_toml_says_what_was_left_out(path: Path) -> None:
    text = toml.from_pgbouncer(read(path, A_FILE))
    assert '# pkt_buf = "2048" has no effect: buffers have the size of what arrives\n' in text


def test_the_toml_is_one_that_pgfunnel_takes(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "pgfunnel.toml"
    file.write_text(toml.from_pgbouncer(read(path, f"[pgbouncer]\nlisten_port = 7000\nunix_socket_dir = {tmp_path}\n")))
    settings = load(["--upstream", UPSTREAM, "--config", str(file)], {}).settings
    assert (settings.listen_port, settings.unix_socket_dir, settings.default_pool_size) == (7000, tmp_path, 20)


def test_a_file_with_mistakes_becomes_no_toml_and_says_them_all(path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        toml.from_pgbouncer(read(path, "[pgbouncer]\nfoo = 1\nbar\n[databases]\na = x\n"))
    assert len(raised.value.mistakes) == 3


TEXTS = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(TEXTS.filter(lambda name: name not in ("pgbouncer", "pgfunnel")), TEXTS)
def test_any_name_and_any_text_survive_the_way_to_toml(name: str, text: str) -> None:
    here = Place("p.ini", 1)
    quoted = text.replace("'", "''")
    file = Ini()
    file.sections["databases"][name] = Item(name, f"password='{quoted}'", here)
    file.sections["users"][name] = Item(name, "pool_size=1", here)
    file.sections["pgbouncer"]["server_reset_query"] = Item("server_reset_query", text, here)
    file.sections["pgbouncer"]["login_notify_message"] = Item("login_notify_message", text, here)
    document = tomllib.loads(toml.from_pgbouncer(file))
    assert databases.from_toml(document, "p.toml") == databases.from_ini(file)
    assert document["server_reset_query"] == text
