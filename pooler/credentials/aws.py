"""Asking AWS for the password of Postgres: a secret of Secrets Manager, or a token signed for RDS IAM.

Region and credentials are found by botocore in its usual places. It is an extra, so it is imported when it is needed.
All of it may block, and runs in a thread.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from config.password_source import FromRdsIam, FromSecretsManager
from pooler.credentials.source import SourceFailedError

if TYPE_CHECKING:
    from botocore.session import Session

TOKEN_S: Final = 900
"""How long a token is good (15 minutes, the longest that RDS takes)."""
RENEW_S: Final = 600.0
"""The age at which a token is replaced."""
_TIMEOUT_S: Final = 3
_DEFAULT_KEY: Final = "password"
_RDS_HOST: Final = re.compile(r"\.([a-z0-9-]+)\.rds\.amazonaws\.com(\.cn)?\.?$")


class SecretsClient(Protocol):
    """What is used of botocore's client for Secrets Manager."""

    def get_secret_value(self, *, SecretId: str) -> Mapping[str, object]:  # noqa: N803 - AWS's name
        """Return the secret's current version."""


class SecretsManager:
    """A secret of AWS Secrets Manager, kept until Postgres refuses it."""

    keeps_s = inf

    def __init__(self, source: FromSecretsManager, client: SecretsClient | None = None) -> None:
        self._source = source
        self._client = client

    async def ask(self, user: str) -> str:
        """See Source."""
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> str:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            self._client = self._client or self._connect()
            answer = self._client.get_secret_value(SecretId=self._source.secret)
        except ClientError as error:
            # Not its text: AWS puts into it what it likes.
            code = error.response.get("Error", {}).get("Code", "an unknown error")
            raise SourceFailedError(self._source, f"AWS answers {code}: {_ADVICE.get(code, _CHECK)}") from None
        except BotoCoreError as error:
            raise SourceFailedError(self._source, f"AWS can't be asked: {error}") from None
        return self._password_in(answer.get("SecretString"))

    def _connect(self) -> SecretsClient:
        from botocore.config import Config  # noqa: PLC0415

        config = Config(connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": 2})
        client: SecretsClient = _session().create_client(
            "secretsmanager", region_name=self._source.region, config=config
        )
        return client

    def _password_in(self, secret: object) -> str:
        if not isinstance(secret, str):
            raise SourceFailedError(self._source, "the secret is binary: store it as text")
        try:
            entries = json.loads(secret)
        except ValueError:
            entries = None
        password: object = secret
        if isinstance(entries, dict):
            password = entries.get(self._source.key or _DEFAULT_KEY)
        elif self._source.key:
            raise SourceFailedError(self._source, "the secret is no JSON object: leave out # and what follows")
        if not isinstance(password, str) or not password:
            key = self._source.key or _DEFAULT_KEY
            raise SourceFailedError(self._source, f'the secret has no text under "{key}": name its key after a #')
        return password


_CHECK: Final = "see whether the secret and its region are right"
_ADVICE: Final = {
    "AccessDeniedException": "allow secretsmanager:GetSecretValue (and kms:Decrypt) to pgfunnel's role",
    "ExpiredTokenException": "renew the AWS credentials that pgfunnel runs with",
    "UnrecognizedClientException": "see whether the AWS credentials that pgfunnel runs with are right",
}


class RdsIam:
    """Tokens for RDS, signed here with the credentials of AWS that pgfunnel runs with."""

    keeps_s = RENEW_S

    def __init__(self, source: FromRdsIam, host: str, port: int, session: "Session | None" = None) -> None:
        self._source = source
        self._host = host
        self._port = port
        self._session = session

    async def ask(self, user: str) -> str:
        """See Source."""
        return await asyncio.to_thread(self._sign, user)

    def _sign(self, user: str) -> str:
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
        from botocore.model import ServiceId  # noqa: PLC0415
        from botocore.signers import RequestSigner  # noqa: PLC0415

        self._session = session = self._session or _session()
        region = self._source.region or session.get_config_variable("region") or self._region_of_host()
        try:
            credentials = session.get_credentials()
            if credentials is None:
                raise SourceFailedError(
                    self._source, "no AWS credentials were found: give pgfunnel a role, or a profile"
                )
            # What botocore's generate_db_auth_token() of its client for RDS does, without loading all that RDS can.
            signer = RequestSigner(
                ServiceId("RDS"), region, "rds-db", "v4", credentials, session.get_component("event_emitter")
            )
            url: str = signer.generate_presigned_url(
                {
                    "url_path": "/",
                    "query_string": "",
                    "headers": {},
                    "body": {"Action": "connect", "DBUser": user},
                    "url": f"https://{self._host}:{self._port}/",
                    "method": "GET",
                    "context": {},
                },
                operation_name="connect",
                expires_in=TOKEN_S,
                region_name=region,
                signing_name="rds-db",
            )
        except BotoCoreError as error:
            raise SourceFailedError(self._source, f"no token can be signed: {error}") from None
        return url.removeprefix("https://")

    def _region_of_host(self) -> str:
        found = _RDS_HOST.search(self._host)
        if found is None:
            raise SourceFailedError(self._source, "no region is known: write aws-rds-iam:REGION")
        return found[1]


def _session() -> "Session":
    from botocore.session import get_session  # noqa: PLC0415

    return get_session()
