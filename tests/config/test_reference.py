"""What people read about the settings: --help, --version and docs/settings.md."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from config.load import load
from config.reference import help_text, markdown
from config.settings import GROUPS, Settings


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as raised:
        load(argv, {})
    assert raised.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_shown_even_beside_mistakes(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert printed(capsys, "--nonsense", option) == help_text()


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_shown(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert printed(capsys, option) == f"pgfunnel {version('pgfunnel')}\n"


def test_help_fits_into_80_columns() -> None:
    assert max(map(len, help_text().splitlines())) <= 80


def test_help_has_every_setting_with_its_option_variable_and_default() -> None:
    text = re.sub(r"\s+", " ", help_text())
    for name in Settings.model_fields:
        assert f" --{name.replace('_', '-')} " in text
        assert f"(PGFUNNEL_{name.upper()}" in text
    assert "(PGFUNNEL_UNIX_SOCKET_MODE, default 0777)" in text
    assert "(PGFUNNEL_QUERY_WAIT_TIMEOUT, default 120)" in text
    assert "(PGFUNNEL_LOG_CONNECTIONS, default 1)" in text
    assert "(PGFUNNEL_UNIX_SOCKET_DIR, default empty)" in text
    assert "--log-connections [0|1], --no-log-connections" in text


def test_every_setting_stands_in_one_group() -> None:
    grouped = [name for group in GROUPS for name in group.model_fields]
    assert sorted(grouped) == sorted(Settings.model_fields)


def test_the_reference_is_in_step_with_the_settings() -> None:
    """If this fails: python -m config.reference > docs/settings.md."""
    assert (Path(__file__).parents[2] / "docs" / "settings.md").read_text() == markdown()
