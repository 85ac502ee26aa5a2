"""No secret is in any message, whatever is wrong, nor in the text of what was loaded."""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from config.errors import ConfigurationError
from config.load import load


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "pgfunnel.toml"


SECRET = "hunter2"
WAYS_TO_FAIL: list[tuple[Sequence[str], Mapping[str, str]]] = [
    (["--upstream", f"postgresql://app:{SECRET}@db:port/x"], {}),
    (["--upstream", f"postgresql://app:{SECRET}@db?sslmode=on"], {}),
    (["--upstream", f"postgresql://app:{SECRET}@db?password={SECRET}"], {}),
    (["--upstream", f"postgresql://app:x{SECRET}", "--pool-mode", "x"], {}),
    (["--upstream", f"postgresql://app:{SECRET}@d b"], {}),
    (["--upstream", "postgresql://app:a", f"{SECRET}@db/x"], {}),
    (["--upstream", "postgresql://app:a", f"{SECRET}=@db/x"], {}),
    (["--upstream", "postgresql://app:a", f"-{SECRET}@db/x"], {}),
    (["--upstrem", f"postgresql://app:{SECRET}@db"], {}),
    ([f"--upstrem=postgresql://app:{SECRET}@db"], {}),
    ([f"postgresql://app:{SECRET}@db"], {}),
    (["--password", SECRET], {}),
    ([f"--password={SECRET}"], {}),
    ([f"--no-log-connections={SECRET}"], {}),
    (["--pool-mode", f"postgresql://app:{SECRET}@db"], {}),
    (["--listen-addr", f"app:{SECRET}@db"], {}),
    (["--users", f'{{"app": "{SECRET}"'], {}),
    (["--users", f'["{SECRET}"]'], {}),
    (["--users", f'{{"app": ["{SECRET}"]}}'], {}),
    (["--users", SECRET], {}),
    ([], {"PGFUNNEL_UPSTREAM": f"host=db password={SECRET}"}),
    ([], {"PGFUNNEL_UPSTREAM": f"postgresql://app:{SECRET}@"}),
    ([], {"PGFUNNEL_UPSTREEM": f"postgresql://app:{SECRET}@db"}),
    ([], {"PGFUNNEL_PASSWORD": SECRET}),
    ([], {"PGFUNNEL_UPSTREAM": f"postgresql://app:{SECRET}@db", "PGFUNNEL_POOL_MODE": "x"}),
    ([], {"PGFUNNEL_UPSTREAM": f"postgresql://app:{SECRET}@db", "PGFUNNEL_USERS": SECRET}),
    ([], {"PGFUNNEL_UPSTREAM": f"postgresql://app:{SECRET}@db", "PGFUNNEL_LISTEN_ADDR": ""}),
    ([], {"PGFUNNEL_UPSTREAM": f"postgresql://app:{SECRET}%@db"}),
    ([], {"PGFUNNEL_USERS": f'{{"app": "{SECRET}", "": "{SECRET}"}}'}),
    ([], {"PGFUNNEL_USERS": f'{{"app": "{SECRET}\\ud800"}}'}),
    (["--databases", f'{{"a": {{"password": "{SECRET}"'], {}),
    (["--databases", f'{{"a": {{"passwort": "{SECRET}"}}}}'], {}),
    (["--databases", f'{{"a": {{"password": "{SECRET}", "port": "x"}}}}', "--pool-mode=x"], {}),
    (["--databases", f'{{"a": {{"password": ["{SECRET}"]}}}}'], {}),
    (["--databases", f'["{SECRET}"]'], {}),
    (["--users", f'{{"a": {{"password": "{SECRET}", "pool_size": -1}}}}'], {}),
    (["--users", f'{{"a": {{"pool_size": 1}}, "b": ["{SECRET}"]}}'], {}),
    ([f"-{SECRET}"], {}),
    ([SECRET], {}),
    (["pgbouncer.ini", SECRET], {}),
]
FILES_TO_FAIL = [
    f'upstream = "postgresql://app:{SECRET}@db',
    f'upstream = "postgresql://app:{SECRET}@db:x"',
    f"upstream = postgresql://app:{SECRET}@db",
    f'upstream = ["postgresql://app:{SECRET}@db"]',
    f'upstream = {{ url = "postgresql://app:{SECRET}@db" }}',
    f'upstreem = "postgresql://app:{SECRET}@db"',
    f'[users]\napp = "{SECRET}\n',
    f'[users]\napp = ["{SECRET}"]',
    f'[users]\napp = {{ password = "{SECRET}" }}',
    f'[user]\napp = "{SECRET}"',
    f'users = "{SECRET}"',
    f'users = ["{SECRET}"]',
    f'[users]\napp = "{SECRET}"\napp = "{SECRET}"',
    f'[users]\napp = "{SECRET}"\n"" = "{SECRET}"',
    f'listen_addr = ["{SECRET} "]',
]


def assert_kept(error: ConfigurationError) -> None:
    told = str(error) + repr(error) + "".join(traceback.format_exception(error, chain=True))
    assert SECRET not in told
    assert error.__context__ is None  # which debuggers and error trackers show along with it
    assert error.__cause__ is None


@pytest.mark.parametrize(("argv", "environ"), WAYS_TO_FAIL)
def test_no_mistake_shows_a_secret(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(argv, environ)
    assert_kept(raised.value)


@pytest.mark.parametrize("text", FILES_TO_FAIL)
def test_no_mistake_in_the_file_shows_a_secret(toml: Path, text: str) -> None:
    toml.write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        load(["--config", str(toml)], {})
    assert_kept(raised.value)


@pytest.mark.parametrize(
    "line",
    [f"app {SECRET}", f'"app" "{SECRET}', f'"app" "x"{SECRET}"', f'"app" {SECRET}', f'"" "{SECRET}"', f"{SECRET}\xff"],
)
def test_no_mistake_in_the_auth_file_shows_a_secret(tmp_path: Path, line: str) -> None:
    file = tmp_path / "userlist.txt"
    file.write_text(line, encoding="latin-1")
    with pytest.raises(ConfigurationError) as raised:
        load(["--upstream", "postgresql://db", "--auth-file", str(file)], {})
    assert_kept(raised.value)


def test_no_secret_is_in_the_text_of_what_was_loaded() -> None:
    result = load(["--upstream", f"postgresql://app:{SECRET}@db", "--users", f'{{"alice": "{SECRET}"}}'], {})
    shown = f"{result} {result!r} {result.settings} {result.settings!r} {result.settings.model_dump()}"
    assert SECRET not in shown + result.settings.upstream.__repr__()
