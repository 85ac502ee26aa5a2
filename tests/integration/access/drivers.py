"""What drivers make of a login: each is given the same attempts, and tells who it was let in as, or why it was not.

Drivers that are no Python are processes that read an attempt per line, and answer each with a line.
"""

import asyncio
import os
import ssl
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, NamedTuple, Self

import asyncpg
import pg8000.core
import pg8000.native
import psycopg
from cryptography.hazmat.primitives import serialization
from psycopg.conninfo import make_conninfo

from tests.support.certificates import Pair
from tests.support.system_postgres import bin_dir

SSLMODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
HOST: Final = "127.0.0.1"
DATABASE: Final = "postgres"
HERE: Final = Path(__file__).parent
NODE: Final = HERE.parent / "node"
JDBC: Final = Path("/usr/share/java/postgresql.jar")
WHO: Final = "SELECT current_user"
_TIMEOUT: Final = 10


class Attempt(NamedTuple):
    """How a client tries to log in. `certificate` is its own, `ca` whom it trusts to sign the server's."""

    port: int
    user: str
    password: str
    sslmode: str
    ca: Path
    certificate: Pair | None = None
    options: tuple[tuple[str, str], ...] = ()
    """More of libpq's options; the other drivers have none of them."""

    @property
    def files(self) -> dict[str, str]:
        own = self.certificate
        return {"sslrootcert": str(self.ca)} | (
            {"sslcert": str(own.certificate), "sslkey": str(own.key)} if own else {}
        )


class Seen(NamedTuple):
    """What came of it. Without a user it was not let in; without a SQLSTATE the client itself gave up."""

    user: str = ""
    sqlstate: str = ""
    words: str = ""
    tls: bool | None = None
    """None: the driver doesn't tell."""


class Driver(AbstractContextManager["Driver"]):
    """A driver, with the modes that it knows."""

    name: ClassVar[str]
    sslmodes: ClassVar[Sequence[str]] = SSLMODES
    certificate_modes: ClassVar[Sequence[str]] = SSLMODES
    """Those in which it can show a certificate of its own."""

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    def attempt(self, attempts: Sequence[Attempt]) -> list[Seen]:
        """Try all of them."""


class Psycopg(Driver):
    """The newest libpq. It tells words, no SQLSTATE."""

    name = "psycopg"

    def attempt(self, attempts: Sequence[Attempt]) -> list[Seen]:
        return [self._one(attempt) for attempt in attempts]

    @staticmethod
    def _one(attempt: Attempt) -> Seen:
        # Else libpq would look for a certificate in the home directory of whoever runs the tests.
        own = {} if attempt.certificate else {"sslcert": "", "sslcertmode": "disable"}
        conninfo = make_conninfo(
            host=HOST,
            port=attempt.port,
            dbname=DATABASE,
            user=attempt.user,
            password=attempt.password or None,
            sslmode=attempt.sslmode,
            gssencmode="disable",
            connect_timeout=_TIMEOUT,
            **own,
            **attempt.files,
            **dict(attempt.options),
        )
        try:
            with psycopg.connect(conninfo, autocommit=True) as connection:
                tls = connection.pgconn.ssl_in_use
                row = connection.execute(WHO).fetchone()
                assert row is not None
                return Seen(row[0], tls=tls)
        except psycopg.OperationalError as error:
            return Seen(sqlstate=_sqlstate_of(str(error)), words=str(error))


class Psql(Driver):
    """The system's psql and libpq."""

    name = "psql"

    def attempt(self, attempts: Sequence[Attempt]) -> list[Seen]:
        running = [self._start(attempt) for attempt in attempts]
        return [self._result(process) for process in running]

    @staticmethod
    def _start(attempt: Attempt) -> "subprocess.Popen[str]":
        options = {
            "host": HOST,
            "port": attempt.port,
            "dbname": DATABASE,
            "user": attempt.user,
            "sslmode": attempt.sslmode,
            "gssencmode": "disable",
            "connect_timeout": _TIMEOUT,
            **({} if attempt.certificate else {"sslcert": "/none"}),
            **attempt.files,
            **dict(attempt.options),
        }
        conninfo = " ".join(f"{name}='{value}'" for name, value in options.items())
        environment = {"PGPASSWORD": attempt.password} if attempt.password else {}
        return subprocess.Popen(
            [bin_dir() / "psql", "-XAtw", conninfo, "-c", WHO, "-c", r"\conninfo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"LC_ALL": "C", "LANG": "C", "HOME": "/nonexistent", "PGCLIENTENCODING": "UTF8", **environment},
        )

    @staticmethod
    def _result(process: "subprocess.Popen[str]") -> Seen:
        out, errors = process.communicate(timeout=30)
        if process.returncode:
            return Seen(sqlstate=_sqlstate_of(errors), words=errors)
        return Seen(out.splitlines()[0], tls="SSL connection" in out)


class Asyncpg(Driver):
    name = "asyncpg"

    def attempt(self, attempts: Sequence[Attempt]) -> list[Seen]:
        async def all_of_them() -> list[Seen]:
            return await asyncio.gather(*map(self._one, attempts))

        return asyncio.run(all_of_them())

    @staticmethod
    async def _one(attempt: Attempt) -> Seen:
        files = "&".join(f"{name}={value}" for name, value in attempt.files.items())
        try:
            connection = await asyncpg.connect(
                f"postgresql://{HOST}:{attempt.port}/{DATABASE}?sslmode={attempt.sslmode}&{files}",
                user=attempt.user,
                password=attempt.password or None,
                timeout=_TIMEOUT,
            )
        except asyncpg.PostgresError as error:
            return Seen(sqlstate=error.sqlstate or "", words=str(error))
        except (OSError, asyncpg.InterfaceError) as error:
            return Seen(words=repr(error))
        try:
            return Seen(await connection.fetchval(WHO))
        finally:
            await connection.close()


class Pg8000(Driver):
    name = "pg8000"
    sslmodes = ("disable", "prefer", "require", "verify-full")
    certificate_modes = ("require", "verify-full")

    def attempt(self, attempts: Sequence[Attempt]) -> list[Seen]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> Seen:
        try:
            connection = pg8000.native.Connection(
                attempt.user,
                password=attempt.password or None,
                host=HOST,
                port=attempt.port,
                database=DATABASE,
                ssl_context=self._ssl(attempt),
                timeout=_TIMEOUT,
            )
        except pg8000.native.DatabaseError as error:
            fields = error.args[0]
            return Seen(sqlstate=fields["C"], words=fields["M"])
        except (pg8000.native.InterfaceError, pg8000.core.InterfaceError, OSError) as error:
            return Seen(words=repr(error))
        try:
            return Seen(connection.run(WHO)[0][0])
        finally:
            connection.close()

    @staticmethod
    def _ssl(attempt: Attempt) -> ssl.SSLContext | bool | None:
        if attempt.sslmode == "disable":
            return False
        if attempt.sslmode == "prefer":
            return None
        context = ssl.create_default_context(cafile=attempt.ca)
        if attempt.certificate:
            context.load_cert_chain(*attempt.certificate)
        if attempt.sslmode == "require":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass
class LineDriver(Driver):
    """A process that tries what it reads: an attempt per line, a line for each, fields apart by tabs."""

    _process: "subprocess.Popen[str]" = field(init=False)

    @abstractmethod
    def command(self) -> list[str]:
        """Return how it is started."""

    def key(self, pair: Pair) -> Path:
        """Return the private key as the driver takes it."""
        return pair.key

    def __enter__(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self.command(), stdin=pipe, stdout=pipe, text=True, env=environment)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate("", timeout=10)  # the end of its input is its end
        finally:
            self._process.kill()
            self._process.wait()

    def attempt(self, attempts: Sequence[Attempt]) -> list[Seen]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        seen = []
        for attempt in attempts:
            own = attempt.certificate
            files = [attempt.ca, own.certificate, self.key(own)] if own else [attempt.ca, "", ""]
            fields = [HOST, attempt.port, DATABASE, attempt.user, attempt.password, attempt.sslmode, *files]
            print(*fields, sep="\t", file=self._process.stdin, flush=True)
            user, sqlstate, words = self._process.stdout.readline().rstrip("\n").split("\t")
            seen.append(Seen(user, sqlstate, words))
        return seen


class Node(LineDriver):
    name = "node-postgres"
    sslmodes = ("disable", "require", "verify-full")

    def command(self) -> list[str]:
        return ["node", str(NODE / "attempts.js")]


class Jdbc(LineDriver):
    name = "JDBC"

    def command(self) -> list[str]:
        # What is compiled for each run had better be compiled quickly than well.
        quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Duser.home=/nonexistent"]
        return ["java", *quick, "-cp", str(JDBC), str(HERE / "Attempts.java")]

    def key(self, pair: Pair) -> Path:
        """Return it in the only form that JDBC reads."""
        der = pair.key.with_suffix(".pk8")
        if not der.exists():
            key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
            form, nothing = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            der.write_bytes(key.private_bytes(serialization.Encoding.DER, form, nothing))
        return der


def _sqlstate_of(words: str) -> str:
    """Say what libpq doesn't tell of an error while it connects. The first refusal counts: it may try twice."""
    for told, sqlstate in (("password authentication failed", "28P01"), ("FATAL:", "28000")):
        if told in words:
            return sqlstate
    return ""
