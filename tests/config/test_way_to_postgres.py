"""The settings of the way to Postgres: the URL's options and the settings have to agree, and one has the password."""

from collections.abc import Mapping

import pytest

from config.errors import ConfigurationError
from config.load import load
from config.password_source import FromEnvironment

URL = "postgresql://app@db"


def mistakes(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(argv, environ)
    return "\n".join(caught.value.mistakes)


@pytest.mark.parametrize("environ", [{}, {"PGFUNNEL_SERVER_TLS_SSLMODE": "require"}])
def test_the_urls_sslmode_is_the_setting(environ: Mapping[str, str]) -> None:
    loaded = load(["--upstream", f"{URL}?sslmode=require", "--auth-type", "trust"], environ)
    assert loaded.settings.server_tls_sslmode == "require"
    assert loaded.sources["server_tls_sslmode"].name == "--upstream"


def test_without_options_the_settings_count() -> None:
    loaded = load(["--upstream", URL, "--auth-type", "trust", "--server-tls-sslmode", "require"], {})
    assert loaded.settings.server_tls_sslmode == "require"


def test_a_url_and_a_setting_that_contradict_each_other_are_refused() -> None:
    said = mistakes("--upstream", f"{URL}?sslmode=require", PGFUNNEL_SERVER_TLS_SSLMODE="disable")
    assert said == "PGFUNNEL_SERVER_TLS_SSLMODE: it is not what the options of --upstream say (environment)"


def test_direct_tls_takes_a_mode_that_requires_it() -> None:
    assert "server_tls_sslmode is prefer" in mistakes("--upstream", f"{URL}?sslnegotiation=direct")


def test_a_password_source_is_the_only_password() -> None:
    source = "env:DB_PASSWORD"
    loaded = load(["--upstream", URL, "--server-password-source", source, "--auth-type", "trust"], {})
    assert loaded.settings.server_password_source == FromEnvironment("DB_PASSWORD")
    said = mistakes("--upstream", "postgresql://app:hush@db", "--server-password-source", source)
    assert "the upstream URL has a password: leave out one of them" in said
    assert "hush" not in said


def test_a_mistake_in_a_password_source_does_not_show_it() -> None:
    said = mistakes("--upstream", URL, "--server-password-source", "command:curl -H 'token hush")
    assert said == (
        "--server-password-source: its value has a command that can't be split into words: no closing quotation "
        "(command line)"
    )


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_tokens_for_rds_are_sent_over_tls_only(mode: str) -> None:
    said = mistakes("--upstream", f"{URL}?sslmode={mode}", "--server-password-source", "aws-rds-iam")
    assert f"is aws-rds-iam, and server_tls_sslmode is {mode}" in said


def test_tokens_of_rds_are_for_one_host() -> None:
    url = "postgresql://app@a.rds.amazonaws.com,b.rds.amazonaws.com/shop?sslmode=verify-full"
    said = mistakes("--upstream", url, "--server-password-source", "aws-rds-iam")
    assert "signs its tokens for one host, and the upstream URL has several" in said
