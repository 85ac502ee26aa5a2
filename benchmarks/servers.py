"""Starts the poolers that are compared, side by side and with equal settings, and reads what they cost.

One class per pooler; all take the same settings under the same names, because pgfunnel keeps PgBouncer's.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.support.certificates import Certificates

HOST = "127.0.0.1"
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_CPUCLOCK_SCHED = 2  # include/linux/posix-timers_types.h; clock_getcpuclockid(3) makes the id the same way


def free_port() -> int:
    """Find a port below the ephemeral range, so that none of the benchmark's own clients takes it meanwhile."""
    while True:
        port = random.randrange(10_240, 32_768)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


def clean_environment() -> dict[str, str]:
    """Return our environment without what libpq or pgfunnel would read from it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, finer than the 10 ms ticks of /proc/PID/stat."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def system_share(pid: int) -> tuple[int, int]:
    """User and system time of a process so far, in ticks: good for their proportion."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def resident_kib(pid: int) -> int:
    """VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no resident memory")


class Pooler(ABC):
    """A pooler between pgbench and Postgres, as a process of its own: started on enter, stopped on exit."""

    name: ClassVar[str]

    def __init__(
        self,
        settings: Mapping[str, str],
        upstream_port: int,
        database: str,
        users: Mapping[str, str],
        *,
        tls: bool = False,
    ) -> None:
        """Take settings by PgBouncer's names, and users with a password or its SCRAM secret."""
        self._settings = settings
        self._tls = tls
        self.upstream_port = upstream_port
        self.database = database
        self.users = users
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._files = contextlib.ExitStack()
        self.directory = Path()

    @classmethod
    def serves(cls, _auth_type: str, *, tls: bool) -> bool:  # noqa: ARG003
        """Say whether it knows this way to log in."""
        return True

    @classmethod
    @abstractmethod
    def version(cls) -> str | None:
        """Say which version would run, or None where it is not installed."""

    @abstractmethod
    def command(self) -> list[str]:
        """Write what the process needs into `directory` and return its command line."""

    @property
    def settings(self) -> dict[str, str]:
        """The settings by PgBouncer's names."""
        files = {"client_tls_cert_file": "server.crt", "client_tls_key_file": "server.key"} if self._tls else {}
        tls = {"client_tls_sslmode": "require" if self._tls else "disable"}
        return {**self._settings, **tls, **{name: str(self.directory / file) for name, file in files.items()}}

    def environment(self) -> dict[str, str]:
        """Give the process's environment."""
        return clean_environment()

    @property
    def pid(self) -> int:
        """The process that serves the clients."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it listens. Raises RuntimeError with its last words if it does not."""
        self.directory = Path(self._files.enter_context(tempfile.TemporaryDirectory(prefix=f"bench-{self.name}-")))
        self.directory.chmod(0o755)  # PgBouncer reads its files as another user when root starts it
        (self.directory / "userlist.txt").write_text("".join(f'"{u}" "{p}"\n' for u, p in self.users.items()))
        if self._tls:
            self._write_certificate()
        self.port = free_port()
        log = self._files.enter_context((self.directory / "log").open("wb"))
        command, environment = self.command(), self.environment()
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / "log").read_text(errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"{self.name} does not listen on port {self.port}; it said:\n{said}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process, politely at first, and remove its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        self._files.close()

    def restart(self) -> None:
        """Begin anew, with memory that nobody has used yet."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.stop()

    def _write_certificate(self) -> None:
        """Make an EC key, and a certificate that nobody asks who has signed it."""
        certificate, key = Certificates(self.directory).ec
        certificate.rename(self.directory / "server.crt")
        key.chmod(0o644)  # PgBouncer reads it as another user
        key.rename(self.directory / "server.key")

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False


class PgFunnel(Pooler):
    """This repository's pooler, under the interpreter that runs the benchmark."""

    name = "pgfunnel"

    @classmethod
    def version(cls) -> str:
        """Give the package's version."""
        from pooler import __version__  # noqa: PLC0415  # only the child process needs the rest

        return __version__

    def command(self) -> list[str]:
        """Everything is in the environment: see there."""
        return [sys.executable, "-m", "pooler.main"]

    def environment(self) -> dict[str, str]:
        """Spell the settings as PGFUNNEL_<NAME>."""
        user = next(iter(self.users))
        settings = {
            **self.settings,
            "upstream": f"postgresql://{user}@{HOST}:{self.upstream_port}/{self.database}",
            "auth_file": str(self.directory / "userlist.txt"),
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "metrics_port": "0",
        }
        return super().environment() | {f"PGFUNNEL_{name.upper()}": value for name, value in settings.items()}


class PgBouncer(Pooler):
    """PgBouncer from PATH or from where Debian puts it."""

    name = "PgBouncer"

    @staticmethod
    def executable() -> str | None:
        """Debian installs it in /usr/sbin, which an ordinary user's PATH may lack."""
        return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

    @classmethod
    def version(cls) -> str | None:
        """Ask the executable: its first line is `PgBouncer 1.18.0`."""
        executable = cls.executable()
        if executable is None:
            return None
        said = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True).stdout
        return said.splitlines()[0].removeprefix("PgBouncer ")

    def command(self) -> list[str]:
        """Write pgbouncer.ini. PgBouncer refuses to be root, so root lends it Postgres's user."""
        ini = self.directory / "pgbouncer.ini"
        ini.write_text(self.configuration())
        executable = self.executable()
        if executable is None:
            raise RuntimeError("PgBouncer is not installed")
        return [executable, *(["-u", "postgres"] if os.getuid() == 0 else []), str(ini)]

    def configuration(self) -> str:
        """Give the text of pgbouncer.ini."""
        settings = {
            **self.settings,
            "auth_file": str(self.directory / "userlist.txt"),
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
        }
        lines = [
            "[databases]",
            f"{self.database} = host={HOST} port={self.upstream_port}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        return "\n".join(lines) + "\n"


class BareLoop(Pooler):
    """benchmarks.bare: what a pooler on uvloop costs before it has a single feature."""

    name = "bare loop"

    @classmethod
    def serves(cls, auth_type: str, *, tls: bool) -> bool:
        """It never asks for a password, and knows no TLS."""
        return auth_type == "trust" and not tls

    @classmethod
    def version(cls) -> str:
        """Its version is the repository's."""
        return PgFunnel.version()

    def command(self) -> list[str]:
        """It has no configuration."""
        numbers = (str(self.port), str(self.upstream_port), self.settings["default_pool_size"])
        return [sys.executable, "-m", "benchmarks.bare", *numbers, next(iter(self.users)), self.database]
