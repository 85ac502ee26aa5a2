"""The setting server_password_source: where the password for Postgres comes from, if not out of the settings.

What is asked for, and of whom, is read here; asking is the pooler's affair (pooler.credentials).
"""

import importlib.util
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, InstanceOf

from config.fields import Takes

FORMS = "env:NAME, file:/path, command:..., aws-secretsmanager:NAME, aws-rds-iam"


@dataclass(frozen=True, slots=True)
class FromEnvironment:
    """An environment variable."""

    variable: str

    def __str__(self) -> str:
        return f"env:{self.variable}"


@dataclass(frozen=True, slots=True)
class FromFile:
    """The first line of a file."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class FromCommand:
    """The first line that a program writes."""

    argv: tuple[str, ...]

    def __str__(self) -> str:
        """Return the program without its arguments, of which one could be a secret."""
        return f"command:{shlex.quote(self.argv[0])}"

    def __repr__(self) -> str:
        return f"FromCommand({self})"


@dataclass(frozen=True, slots=True)
class FromSecretsManager:
    """A secret of AWS Secrets Manager: all of it, or one entry of the JSON object that it is."""

    secret: str
    """Its name or ARN."""
    key: str
    """The entry; empty = "password" of an object, and all of what is none."""

    @property
    def region(self) -> str | None:
        """The region that the ARN names (arn:PARTITION:secretsmanager:REGION:ACCOUNT:secret:NAME)."""
        parts = self.secret.split(":")
        return parts[3] if parts[0] == "arn" else None

    def __str__(self) -> str:
        return f"aws-secretsmanager:{self.secret}{'#' if self.key else ''}{self.key}"


@dataclass(frozen=True, slots=True)
class FromRdsIam:
    """Tokens that IAM lets us sign for an RDS database, each good for 15 minutes."""

    region: str
    """Empty = that of botocore's configuration, or of the host's name."""

    def __str__(self) -> str:
        return f"aws-rds-iam{':' if self.region else ''}{self.region}"


PasswordSource = FromEnvironment | FromFile | FromCommand | FromSecretsManager | FromRdsIam
_Source = (
    InstanceOf[FromEnvironment]
    | InstanceOf[FromFile]
    | InstanceOf[FromCommand]
    | InstanceOf[FromSecretsManager]
    | InstanceOf[FromRdsIam]
)


def parse(text: str) -> PasswordSource | None:
    """Read the setting; None if it is empty. Raises ValueError, whose message quotes nothing of it."""
    kind, _, rest = text.strip().partition(":")
    if kind.startswith("aws-") and importlib.util.find_spec("botocore") is None:
        raise ValueError("takes botocore: pip install 'pgfunnel[aws]'")
    match kind:
        case "":
            if not rest:
                return None
        case "env":
            if rest and "=" not in rest:
                return FromEnvironment(rest)
        case "file":
            if not rest.startswith("/"):
                raise ValueError("names a file by something other than an absolute path (file:/path)")
            return FromFile(Path(rest))
        case "command":
            return FromCommand(_split(rest))
        case "aws-secretsmanager":
            return _secret(rest)
        case "aws-rds-iam":
            return FromRdsIam(rest)
    raise ValueError(f"is none of {FORMS}")


def _parse(value: object) -> object:
    return parse(value) if isinstance(value, str) else value


ServerPasswordSource = Annotated[_Source | None, BeforeValidator(_parse), Takes("SOURCE", f"one of {FORMS}")]


def _split(line: str) -> tuple[str, ...]:
    try:
        argv = tuple(shlex.split(line))
    except ValueError as error:
        raise ValueError(f"has a command that can't be split into words: {str(error).lower()}") from None
    if not argv:
        raise ValueError("has no command after command:")
    return argv


def _secret(text: str) -> FromSecretsManager:
    secret, hash_, key = text.partition("#")
    if not secret or (hash_ and not key):
        raise ValueError("is not of the form aws-secretsmanager:NAME or aws-secretsmanager:NAME#KEY")
    if secret.startswith("arn:") and len(secret.split(":")) != 7:
        raise ValueError("has an ARN that is not of the form arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME")
    return FromSecretsManager(secret, key)
