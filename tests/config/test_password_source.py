"""The setting server_password_source: what it may say, and what messages show of it."""

import importlib.util
from pathlib import Path

import pytest

from config.password_source import (
    FromCommand,
    FromEnvironment,
    FromFile,
    FromRdsIam,
    FromSecretsManager,
    PasswordSource,
    parse,
)

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod/db-AbCdEf"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("", None),
        ("env:DB_PASSWORD", FromEnvironment("DB_PASSWORD")),
        ("file:/run/secrets/db password", FromFile(Path("/run/secrets/db password"))),
        ("command:vault read -field=password 'my db'", FromCommand(("vault", "read", "-field=password", "my db"))),
        ("aws-secretsmanager:prod/db", FromSecretsManager("prod/db", "")),
        ("aws-secretsmanager:prod/db#pw", FromSecretsManager("prod/db", "pw")),
        (f"aws-secretsmanager:{ARN}#pw", FromSecretsManager(ARN, "pw")),
        ("aws-rds-iam", FromRdsIam("")),
        ("aws-rds-iam:eu-west-1", FromRdsIam("eu-west-1")),
    ],
)
def test_what_it_may_say(text: str, source: PasswordSource | None) -> None:
    assert parse(text) == source
    if source is not None and not isinstance(source, FromCommand):
        assert str(source) == text


def test_an_arn_names_its_region() -> None:
    assert FromSecretsManager(ARN, "").region == "eu-central-1"
    assert FromSecretsManager("prod/db", "").region is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hush", "is none of env:NAME"),
        ("env:", "is none of env:NAME"),
        ("env:A=hush", "is none of env:NAME"),
        (":hush", "is none of env:NAME"),
        ("file:hush", "absolute path"),
        ("command:", "no command"),
        ("command:echo 'hush", "can't be split into words: no closing quotation"),
        ("aws-secretsmanager:", "not of the form"),
        ("aws-secretsmanager:hush#", "not of the form"),
        ("aws-secretsmanager:arn:aws:hush", "has an ARN that is not"),
    ],
)
def test_what_is_wrong_with_it_is_said_and_nothing_of_it_shown(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "hush" not in str(caught.value)


def test_a_commands_arguments_are_not_shown() -> None:
    source = parse("command:curl -H 'Authorization: hush' https://vault")
    assert "hush" not in f"{source} {source!r}"
    assert str(source) == "command:curl"


def test_aws_without_the_extra_is_a_mistake_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'pgfunnel\[aws\]'"):
        parse("aws-rds-iam")
