"""Asking AWS for a password, without AWS: botocore's own stand-in for Secrets Manager, and tokens signed here."""

import datetime as dt
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.session import Session, get_session
from botocore.stub import Stubber

from config.password_source import FromRdsIam, FromSecretsManager
from pooler.credentials import aws
from pooler.credentials.aws import RENEW_S, TOKEN_S, RdsIam, SecretsManager
from pooler.credentials.credential import Password
from pooler.credentials.source import SourceFailedError
from pooler.credentials.sourced import SourcedPasswords

HOST = "db.abcdef.eu-north-1.rds.amazonaws.com"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's own credentials, and no network."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the secret key")

    def refuse(*_: object) -> None:
        raise AssertionError("a test has gone to the network")

    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def stub() -> Iterator[Stubber]:
    client = get_session().create_client("secretsmanager", region_name="eu-north-1")
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


def secret(stub: Stubber, key: str = "") -> SecretsManager:
    return SecretsManager(FromSecretsManager("prod/db", key), stub.client)


def answer(stub: Stubber, **value: object) -> None:
    stub.add_response("get_secret_value", {"Name": "prod/db", **value}, {"SecretId": "prod/db"})


@pytest.mark.parametrize(
    ("stored", "key", "password"),
    [
        ("hush", "", "hush"),
        ("12345678", "", "12345678"),
        (json.dumps({"username": "app", "password": "hush"}), "", "hush"),
        (json.dumps({"password": "other", "pw": "hush"}), "pw", "hush"),
    ],
)
async def test_a_secret_is_a_text_or_an_entry_of_an_object(stub: Stubber, stored: str, key: str, password: str) -> None:
    answer(stub, SecretString=stored)
    assert await secret(stub, key).ask("app") == password


@pytest.mark.parametrize(
    ("stored", "key", "why"),
    [
        ({"SecretString": "hush"}, "pw", "aws-secretsmanager:prod/db#pw: the secret is no JSON object"),
        ({"SecretString": json.dumps({"pw": "hush"})}, "", 'no text under "password": name its key after a #'),
        ({"SecretString": json.dumps({"password": ["hush"]})}, "", 'no text under "password"'),
        ({"SecretBinary": b"hush"}, "", "the secret is binary"),
    ],
)
async def test_what_is_wrong_with_a_secret_is_said_without_it(
    stub: Stubber, stored: dict[str, object], key: str, why: str
) -> None:
    answer(stub, **stored)
    with pytest.raises(SourceFailedError, match=why) as caught:
        await secret(stub, key).ask("app")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("AccessDeniedException", "allow secretsmanager:GetSecretValue"),
        ("ResourceNotFoundException", "see whether the secret and its region are right"),
        ("ExpiredTokenException", "renew the AWS credentials"),
    ],
)
async def test_a_refusal_of_aws_says_what_to_do(stub: Stubber, code: str, advice: str) -> None:
    stub.add_client_error("get_secret_value", code, "about hush")
    with pytest.raises(SourceFailedError, match=f"AWS answers {code}: {advice}") as caught:
        await secret(stub).ask("app")
    assert "hush" not in str(caught.value)


async def test_a_rotated_secret_is_found_when_postgres_refuses_the_old_one(stub: Stubber) -> None:
    named = FromSecretsManager("prod/db", "")
    passwords = SourcedPasswords(named, SecretsManager(named, stub.client), "app", lambda: 0.0)
    answer(stub, SecretString="old")
    refused = await passwords.password("app", None)
    assert await passwords.password("app", None) is refused
    answer(stub, SecretString="new")
    assert await passwords.password("app", refused) == Password("new")


async def test_a_region_that_nobody_names_is_a_clear_error() -> None:
    with pytest.raises(
        SourceFailedError, match="aws-secretsmanager:prod/db: AWS can't be asked: You must specify a region"
    ):
        await SecretsManager(FromSecretsManager("prod/db", "")).ask("app")


async def test_a_token_is_the_one_that_botocore_signs_for_rds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Then":
            return cls(2026, 11, 21, 6, 30, tzinfo=tz)

    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda **_: Then(2026, 11, 21, 6, 30))
    token = await RdsIam(FromRdsIam("eu-north-1"), HOST, 5432).ask("app")
    client = get_session().create_client("rds", region_name="eu-north-1")
    assert token == client.generate_db_auth_token(DBHostname=HOST, Port=5432, DBUsername="app")


async def test_what_a_token_says() -> None:
    url = urlsplit("//" + await RdsIam(FromRdsIam("eu-north-1"), HOST, 6543).ask("app user"))
    words = {name: value for name, (value,) in parse_qs(url.query).items()}
    assert (url.hostname, url.port) == (HOST, 6543)
    assert (words["Action"], words["DBUser"]) == ("connect", "app user")
    assert words["X-Amz-Expires"] == str(TOKEN_S)
    assert words["X-Amz-Credential"].endswith("/eu-north-1/rds-db/aws4_request")


async def test_the_region_comes_from_the_setting_or_botocore_or_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def region_of(setting: str, host: str = HOST) -> bool | str:
        token = await RdsIam(FromRdsIam(setting), host, 5432).ask("app")
        return token.partition("rds-db")[0].rsplit("%2F", 2)[1]

    assert await region_of("") == "eu-north-1"
    with pytest.raises(SourceFailedError, match="no region is known: write aws-rds-iam:REGION"):
        await region_of("", "db.internal")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-2")
    assert await region_of("") == "us-east-2"
    assert await region_of("ap-south-1") == "ap-south-1"


async def test_a_token_is_renewed_before_it_expires() -> None:
    assert RENEW_S < TOKEN_S
    now = [0.0]
    named = FromRdsIam("eu-north-1")
    signed = iter(range(10))

    class Counted(RdsIam):
        def _sign(self, user: str) -> str:
            return f"token {next(signed)}"

    passwords = SourcedPasswords(named, Counted(named, HOST, 5432), None, lambda: now[0])
    given = []
    for now[0] in (0.0, RENEW_S - 1, RENEW_S, TOKEN_S):
        given.append((await passwords.password("app", None)).text)
    assert given == ["token 0", "token 0", "token 1", "token 1"]
    assert (await passwords.password("other", None)).text == "token 2", "each user's own"


async def test_without_credentials_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SourceFailedError, match="aws-rds-iam:eu-north-1: no AWS credentials were found"):
        await RdsIam(FromRdsIam("eu-north-1"), HOST, 5432).ask("app")


def test_one_session_of_botocore_signs_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[Session] = []

    def session() -> Session:
        sessions.append(get_session())
        return sessions[-1]

    monkeypatch.setattr(aws, "_session", session)
    tokens = RdsIam(FromRdsIam("eu-north-1"), HOST, 5432)
    tokens._sign("app")
    tokens._sign("app")
    assert len(sessions) == 1
