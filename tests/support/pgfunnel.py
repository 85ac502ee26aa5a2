"""Runs pgfunnel as its users do: a process of its own, settings on the command line, a log on stderr.

Leaving it is a test too: it must end with status 0 on SIGTERM, and must never have logged a traceback.
"""

import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.support.wire import Wire

Setting = str | int | float

START_TIMEOUT: Final = 20.0
STOP_TIMEOUT: Final = 20.0
PIDFD_GETFD: Final = 438  # the system call's number on Linux, for which Python has no name


class Pgfunnel:
    """One pgfunnel in front of `upstream`. Settings are given by their names: default_pool_size=3.

    `userlist` are the users and secrets of an auth_file, `toml` is the text of a --config file, `ini` that of a
    pgbouncer.ini; either may be rewritten in `config_file` while it runs, and makes an upstream ("" for none) needless.
    `open_files` are limits as prlimit takes them: "300", or "100:300" for the soft and the hard one.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "pooler.main")
    host: Final = "127.0.0.1"

    def __init__(
        self,
        upstream: str = "",
        *,
        userlist: dict[str, str] | None = None,
        toml: str = "",
        ini: str = "",
        open_files: str | None = None,
        **settings: Setting,
    ) -> None:
        self.port, self.metrics_port = two_free_ports()
        self.log: list[str] = []
        self._directory = tempfile.TemporaryDirectory(prefix="pgfunnel-test-")
        # Logins that fail on purpose have nothing to wait for.
        defaults: dict[str, Setting] = {"auth_type": "trust", "login_failure_delay": 0}
        if upstream:
            defaults["upstream"] = upstream
        ports: dict[str, Setting] = {"listen_port": self.port, "metrics_port": self.metrics_port}
        files: dict[str, Setting] = {}
        if userlist is not None:
            lines = (f"{_quoted(user)} {_quoted(secret)}\n" for user, secret in userlist.items())
            files["auth_file"] = self._file("userlist.txt", "".join(lines))
        self.config_file: Path | None = None
        if toml:
            self.config_file = Path(self._file("pgfunnel.toml", toml))
            files["config"] = str(self.config_file)
        self._file_arguments: list[str] = []
        if ini:
            self._file_arguments = [self._file("pgbouncer.ini", ini)]
            self.config_file = Path(self._file_arguments[0])
        self.settings = {**defaults, **ports, **files, **settings}
        self._open_files = open_files
        self._logged = threading.Condition()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            status = self.stop()
        finally:
            self._directory.cleanup()
        log = "\n".join(self.log)
        assert "Traceback" not in log, log
        if kind is None:
            assert status == 0, f"pgfunnel ended with {status}:\n{log}"

    def start(self) -> None:
        """Start it and return once it accepts clients."""
        self.launch()
        self.wait_for_log("event=listening")

    def refuses_to_start(self) -> int:
        """Start it with what it should refuse, and return its exit status; for use without `with`."""
        with self._directory:
            self.launch()
            return self.wait()

    def launch(self) -> None:
        """Start it without waiting."""
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in self.settings.items()]
        command = [*self.command, *self._file_arguments, *arguments]
        if self._open_files is not None:
            command = ["prlimit", f"--nofile={self._open_files}", *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def stop(self) -> int:
        """End it with SIGTERM, if it still runs, and return its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait(STOP_TIMEOUT)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Return the exit status; killed, and a failure, if it does not end by itself."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not end within {timeout} s:\n" + "\n".join(self.log)) from None
        finally:
            self._reader.join()
        return status

    def url(self, dbname: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{user}{secret}@{self.host}:{self.port}/{dbname}"

    def connect(self) -> Wire:
        """Open a raw connection that has said nothing yet."""
        return Wire(self.host, self.port)

    def login(self, user: str = "postgres", dbname: str = "postgres", password: str = "") -> Wire:
        """Open a raw connection and log in."""
        return self.connect().login(user, dbname, password)

    def wait_for_log(self, pattern: str, timeout: float = START_TIMEOUT) -> str:
        """Return the first line that `pattern` is found in, once there is one."""
        with self._logged:
            self._logged.wait_for(lambda: self._find(pattern) or not self._reader.is_alive(), timeout)
            line = self._find(pattern)
        if line is None:
            raise AssertionError(f"no {pattern!r} in the log:\n" + "\n".join(self.log))
        return line

    def http(self, path: str) -> tuple[int, str]:
        """GET a path of the metrics port: the status and the body."""
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.metrics_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Read /metrics: the sum of the samples with this name and these labels."""
        _, text = self.http("/metrics")
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def waiting(self) -> int:
        """How many clients wait for a server."""
        return int(self.metric("pgfunnel_pool_clients_waiting"))

    def rss(self) -> int:
        """Resident memory in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def forget_peak_rss(self) -> None:
        """Let peak_rss() begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak_rss(self) -> int:
        """Return the most resident memory, in bytes, that it has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(kib) * 1024

    def open_sockets(self) -> int:
        """TCP connections it has open, of clients and of servers, in any state."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return sum(each.status != psutil.CONN_LISTEN for each in connections)

    def socket_to(self, port: int) -> socket.socket:
        """Return a duplicate of its socket whose peer has this port, to read options off."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        (fd,) = (each.fd for each in connections if each.raddr and each.raddr.port == port)
        return self.duplicate(fd)

    def duplicate(self, fd: int) -> socket.socket:
        """Return a duplicate of one of its sockets."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            duplicate = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, fd, 0)
        finally:
            os.close(pidfd)
        if duplicate < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return socket.socket(fileno=duplicate)

    def _find(self, pattern: str) -> str | None:
        return next((line for line in self.log if re.search(pattern, line)), None)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                with self._logged:
                    self.log.append(line.rstrip("\n"))
                    self._logged.notify_all()
        with self._logged:
            self._logged.notify_all()

    def _file(self, name: str, text: str) -> str:
        path = Path(self._directory.name, name)
        path.write_text(text)
        return str(path)


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def two_free_ports() -> tuple[int, int]:
    """Return two free ports that nobody else takes meanwhile.

    They are below the ephemeral range, for the sake of outgoing connections, above those of EmbeddedPostgres, and in a
    range of this test process's own.
    """
    for port in _ports():
        with suppress(OSError), socket.socket() as probe, socket.socket() as other:
            probe.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port, port + 1
    raise AssertionError("all ports of this test process are in use")


@cache
def _ports() -> Iterator[int]:
    """Yield each port of this test process in turn: what was handed out may not be listened on yet."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    first = 20_000 + worker * 1_500
    ports = list(range(first, first + 1_500, 2))
    random.shuffle(ports)
    return cycle(ports)


def eventually(check: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait for something that announces itself nowhere, such as another session's end in pg_stat_activity."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
