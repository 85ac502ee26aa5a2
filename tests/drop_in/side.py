"""A pooler as its operators have it: a pgbouncer.ini and its other files, and `pgfunnel FILE` or `pgbouncer FILE`."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.certificates import Certificates
from tests.support.pgfunnel import eventually, two_free_ports
from tests.support.wire import ServerError, Wire

HERE: Final = Path(__file__).parent
FILES: Final = ("pgbouncer.ini", "logging.ini", "userlist.txt", "pg_hba.conf")
PGBOUNCER: Final = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
# What Debian's PgBouncer, which is 1.18, does not know yet: lines that it is spared, as patterns.
NEWER: Final = (
    '"back office"',
    r"\[peers\]|2 =",
    "peer_id|auth_dbname|max_prepared_statements|track_extra_parameters|query_wait_notify|cancel_wait_timeout",
    "transaction_timeout",
)
PASSWORDS: Final = {
    "pooler_admin": "admin's own",
    "monitoring": "graphs",
    "gatekeeper": "keeper of keys",
    "shop_app": "it's a secret",
    "shop_reader": 'reads "all" of it',
    "batch": "all night long",
    "clerk": "sees the ledger",  # who is in no list
}


class Side:
    """One of the two, from `with` to its end. `files` are what to write instead of FILES, by name."""

    host: Final = "127.0.0.1"

    @staticmethod
    def text(file: str) -> str:
        """Return the text of one of FILES."""
        return (HERE / file).read_text()

    def __init__(
        self,
        name: str,
        postgres: EmbeddedPostgres,
        certificates: Certificates,
        files: Mapping[str, str] | None = None,
        without: Iterable[str] = (),
    ) -> None:
        """`without` are lines to leave out, as patterns."""
        self.name = name
        self.port, metrics_port = two_free_ports()
        # A name short enough for Unix sockets.
        self.directory = Path(tempfile.mkdtemp(prefix="pgf-"))
        self.ini = self.directory / "pgbouncer.ini"
        self.log_file = self.directory / "log"
        own = {
            "/etc/pgbouncer": str(self.directory),
            "/var/run/pgbouncer": str(self.directory),
            "/var/log/pgbouncer/pgbouncer.log": str(self.log_file),
            "/var/run/postgresql": str(postgres.socket_dir),
            "5432": str(postgres.port),
            "6432": str(self.port),
        }
        self._own = re.compile("|".join(map(re.escape, own))), own
        for file, text in (files or {each: self.text(each) for each in FILES}).items():
            self.write(file, text, without)
        for file, source in {
            "ca.crt": certificates.ca,
            "server.crt": certificates.ec.certificate,
            "server.key": certificates.ec.key,
        }.items():
            shutil.copy(source, self.directory / file)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
            # Two of them would be in each other's way on the default port; and those who fail have nothing to wait for.
            "PGFUNNEL_METRICS_PORT": str(metrics_port),
            "PGFUNNEL_LOGIN_FAILURE_DELAY": "0",
        }

    def write(self, file: str, text: str, without: Iterable[str] = ()) -> None:
        """Write a file with this machine's paths and ports."""
        pattern, own = self._own
        lines = pattern.sub(lambda found: own[found[0]], text).splitlines()
        kept = [line for line in lines if not any(re.match(each, line) for each in without)]
        (self.directory / file).write_text("\n".join(kept) + "\n")

    def __enter__(self) -> Self:
        self.launch()
        eventually(self.accepts, timeout=20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT if self.name == "pgfunnel" else signal.SIGTERM)
        self.said = self.process.communicate(timeout=20)[0]
        shutil.rmtree(self.directory)
        assert "Traceback" not in self.said, self.said

    def refuses(self) -> str:
        """Start it with what it should refuse; return what it has said."""
        self.launch()
        said = self.process.communicate(timeout=20)[0]
        shutil.rmtree(self.directory)
        assert self.process.returncode, said
        return said

    def launch(self) -> None:
        """Start it without waiting."""
        command = [sys.executable, "-m", "pooler.main"]
        if self.name == "pgbouncer":
            assert PGBOUNCER is not None
            command = [PGBOUNCER]
            if os.getuid() == 0:  # it refuses to be root
                account = pwd.getpwnam("postgres")
                for path in (self.directory, *self.directory.iterdir()):
                    os.chown(path, account.pw_uid, account.pw_gid)
                command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        self.process = subprocess.Popen(
            [*command, str(self.ini)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )

    def accepts(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} has ended:\n{self.process.communicate()[0]}")
        return self.log_file.exists() and "listening" in self.log_file.read_text()

    def login(self, user: str, dbname: str) -> Wire:
        return Wire(self.host, self.port).login(user, dbname, PASSWORDS[user])

    def refused(self, user: str, dbname: str, password: str) -> ServerError:
        with Wire(self.host, self.port) as wire:
            try:
                wire.login(user, dbname, password)
            except ServerError as error:
                return error
            raise AssertionError("it was let in")

    def console(self, user: str = "pooler_admin") -> Wire:
        return self.login(user, "pgbouncer")

    def psql(self, user: str, dbname: str, *commands: str) -> str:
        """Return what psql prints, a line for each row."""
        program = shutil.which("psql")
        if program is None:
            pytest.skip("psql is not installed (Debian: apt install postgresql-client)")
        where = {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": user, "PGDATABASE": dbname}
        said = subprocess.run(
            [program, "-XAt", *(f"--command={command}" for command in commands)],
            env={**os.environ, **where, "PGPASSWORD": PASSWORDS[user]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        return said.stdout
