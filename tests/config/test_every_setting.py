"""Every setting can be given in every way, and means the same."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from config import databases, ini, toml
from config.command_line import option_name
from config.errors import ConfigurationError
from config.fields import takes, text
from config.load import Loaded, load, with_setting
from config.pgbouncer import DEFAULTS, WITHOUT_EFFECT
from config.settings import RESTART, Settings

BY_KIND = {
    "ADDRESS": "10.0.0.1",
    "ADDRESS,...": "10.0.0.1,::1",
    "BYTES": "1000000",
    "CLASS=POLICY,...": "listen=reject",
    "COUNT": "7",
    "COUNT|SHARE": "37.5%",
    "FACILITY": "local7",
    "ID": "7",
    "JSON": '{"a": "listen=reject"}',
    "MILLISECONDS": "7",
    "NAME,...": "alice,bob",
    "PORT": "7000",
    "SECONDS": "1.5",
    "SHARE": "0.5",
    "SOURCE": "env:PASSWORD",
    "TEXT": "a text = b",
    "URL": "postgresql://app@db:7000/a",
    "VERSION,...": "tlsv1.2",
}
BY_NAME = {
    "auth_type": "plain",
    "client_tls13_ciphers": "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256",
    "client_tls_sslmode": "require",
    "log_format": "json",
    "log_level": "error",
    "pool_mode": "statement",
    "server_tls13_ciphers": "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256",
    "server_tls_sslmode": "require",
    "server_tls_sslnegotiation": "direct",
    "tcp_keepidle": "7",
    "tcp_keepintvl": "7",
    "unix_socket_mode": "0750",
    "users": '{"bob": "secret"}',
}
TOGETHER = {
    "client_tls_sslmode": ("client_tls_cert_file", "client_tls_key_file"),
    "server_tls_cert_file": ("server_tls_key_file",),
    "server_tls_key_file": ("server_tls_cert_file",),
    "server_tls_sslnegotiation": ("server_tls_sslmode",),
}
ONE_WITH_THE_OTHER = {"server_tls_cert_file", "server_tls_key_file"}
"""The console sets one at a time, which is a mistake here."""
WRITTEN_OTHERWISE = {"session_state", "upstream", "users"}
"""What is shown in another way than it was given, as some of it is secret or filled up."""

every_setting = pytest.mark.parametrize("name", Settings.model_fields)


def sample(name: str, tmp_path: Path) -> str:
    """Return a value that is not the default."""
    field = Settings.model_fields[name]
    if name in BY_NAME:
        return BY_NAME[name]
    match takes(field).metavar:
        case "0|1":
            return "0" if field.default else "1"
        case "FILE":
            file = tmp_path / name
            file.write_text("local all all trust" if name == "auth_hba_file" else "")
            return str(file)
        case "DIRECTORY":
            return str(tmp_path)
        case kind:
            return BY_KIND[kind]


def environ(name: str, tmp_path: Path) -> dict[str, str]:
    """Return what has to be set for the setting to be possible."""
    others = {other: sample(other, tmp_path) for other in TOGETHER.get(name, ())}
    others |= {"users": '{"app": "secret"}'} if name != "users" else {"auth_user": "asker"}
    return {f"PGFUNNEL_{other.upper()}": value for other, value in others.items()}


@every_setting
def test_it_may_be_an_option_a_variable_or_a_line_of_either_file_and_means_the_same(name: str, tmp_path: Path) -> None:
    value, others = sample(name, tmp_path), environ(name, tmp_path)
    base = tmp_path / "base.toml"
    base.write_text("[databases.a]\n")
    as_toml = tmp_path / "with.toml"
    as_toml.write_text(f"{name} = {json.dumps(value)}\n[databases.a]\n")
    as_ini = tmp_path / "with.ini"
    as_ini.write_text(f"[databases]\na =\n[pgbouncer]\nlisten_addr = localhost\n{name} = {value}\n")
    if name == "users":
        as_toml.write_text('[users]\nbob = "secret"\n[databases.a]\n')

    ways = [
        load([option_name(name), value, "--config", str(base)], others),
        load(["--config", str(base)], others | {f"PGFUNNEL_{name.upper()}": value}),
        load(["--config", str(as_toml)], others),
        load([str(as_ini)], others),
    ]
    for way in ways:
        assert getattr(way.settings, name) == getattr(ways[0].settings, name)
        assert way.settings.model_fields_set >= {name}
    assert getattr(ways[0].settings, name) != Settings.model_fields[name].get_default(call_default_factory=True)
    assert text(Settings.model_fields[name], getattr(ways[0].settings, name)) == value or name in WRITTEN_OTHERWISE
    assert {way.sources[name].place.split("'")[0] for way in ways} == {"command line", "environment", ""}


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in ONE_WITH_THE_OTHER])
def test_the_console_may_set_it_unless_it_takes_a_restart(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text("[databases.a]\n")
    loaded = load(["--config", str(base)], environ(name, tmp_path))
    if name in RESTART:
        with pytest.raises(ConfigurationError, match=f"{name}: it can only be changed by a restart"):
            with_setting(loaded, name, sample(name, tmp_path))
        return
    changed = with_setting(loaded, name, sample(name, tmp_path))
    assert getattr(changed.settings, name) != getattr(loaded.settings, name)
    assert (changed.sources[name].place, loaded.sources[name].place) == ("console", "default")


@pytest.mark.parametrize("name", DEFAULTS)
def test_pgbouncers_default_may_be_written_out(name: str, tmp_path: Path) -> None:
    file, same = tmp_path / "a.ini", tmp_path / "b.ini"
    file.write_text("[databases]\na =\n[pgbouncer]\nlisten_addr = *\nauth_type = trust\n")
    written = "" if name in ("listen_addr", "auth_type") else f"{name} = {DEFAULTS[name]}\n"
    same.write_text(file.read_text() + written)
    assert load([str(same)], {}).settings == load([str(file)], {}).settings


# A pgbouncer.ini, the TOML made of it, and what is loaded from both.

COUNTS = st.integers(0, 1000).map(str)
SECONDS = st.one_of(COUNTS, st.floats(0, 1e6).map("{:.3f}".format))
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\n\0,=", exclude_categories=["Z", "C"]), min_size=1)
VALUES = {
    "0|1": st.sampled_from(["0", "1"]),
    "COUNT": COUNTS.filter(lambda count: count != "0"),
    "COUNT|SHARE": st.one_of(COUNTS, st.integers(1, 100).map("{}%".format)),
    "NAME,...": st.lists(WORDS).map(", ".join),
    "SECONDS": SECONDS,
    "TEXT": st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), max_size=20),
    "MODE": st.sampled_from(["session", "Transaction", "STATEMENT"]),
    "HOST,...": st.lists(st.sampled_from(["db", "10.0.0.1", "::1", "/run/postgresql", "@x"]), min_size=1).map(",".join),
    "HOST": st.sampled_from(["peer", "10.0.0.1", "/tmp/peer"]),
    "PORT": st.integers(1, 65535).map(str),
}
APART = {"auth_type", "stats_period", "tcp_keepcnt", "tcp_keepidle", "tcp_keepintvl", "unix_socket_mode"}


def lines(model: type[BaseModel], but: frozenset[str] = frozenset()) -> st.SearchStrategy[Mapping[str, str]]:
    """Return a strategy for some of the model's fields, with values as text."""
    kinds = {name: takes(field).metavar for name, field in model.model_fields.items() if name not in but}
    possible = {name: VALUES[kind] for name, kind in kinds.items() if kind in VALUES}
    some = st.lists(st.sampled_from(list(possible)), unique=True, max_size=6)
    return some.flatmap(lambda names: st.fixed_dictionaries({name: possible[name] for name in names}))


def entry(pairs: Mapping[str, str]) -> str:
    quoted = {key: value.replace("'", "''") for key, value in pairs.items() if value}
    return " ".join(f"{key}='{value}'" for key, value in quoted.items())


def section(name: str, entries: Mapping[str, str]) -> str:
    written = [f'"{key.replace(chr(34), chr(34) * 2)}" = {value}' for key, value in entries.items()]
    return "\n".join([f"[{name}]", *written, ""])


@st.composite
def files(draw: st.DrawFn) -> str:
    names = WORDS.filter(lambda name: name not in ("pgbouncer", "pgfunnel"))
    passwordless = frozenset({"password"})
    parts = {
        "databases": draw(st.dictionaries(names, lines(databases.Database).map(entry), min_size=1, max_size=3)),
        "users": draw(st.dictionaries(WORDS, lines(databases.User, passwordless).map(entry), max_size=3)),
        "peers": draw(st.dictionaries(st.integers(1, 16383).map(str), st.just("host=a"), max_size=2)),
        "pgbouncer": {**draw(lines(Settings, frozenset(APART))), "auth_type": "trust", "metrics_addr": ""},
    }
    order = draw(st.permutations(list(parts)))
    return "".join(section(name, parts[name]) for name in order)


def held(loaded: Loaded) -> object:
    return loaded.settings, loaded.directory, loaded.access


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=files())
def test_a_pgbouncer_ini_and_the_toml_made_of_it_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    folder = tmp_path_factory.mktemp("same")
    file, imported = folder / "pgbouncer.ini", folder / "pgfunnel.toml"
    file.write_text(content)
    imported.write_text(toml.from_pgbouncer(ini.read(file)))
    loaded = load([str(file)], {})
    assert held(load(["--config", str(imported)], {})) == held(loaded)
    assert all(name in WITHOUT_EFFECT for name in tomllib.loads(imported.read_text()).keys() & WITHOUT_EFFECT.keys())
    assert [note for note in loaded.notes if "auth_dbname: there is no entry for" not in note] == []
