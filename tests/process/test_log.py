"""The log goes where the settings say, and whatever becomes of that place, the pooler goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest

from config.settings import Settings
from pooler.demo.postgres import EmbeddedPostgres
from pooler.log import Journal, Log
from pooler.outlets import MOST_KEPT, Descriptor, Outlet, Syslog, log_file
from pooler.process.errors import StartError
from pooler.process.process import Process
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import eventually, two_free_ports
from tests.support.wire import Wire

Pipe = tuple[BinaryIO, BinaryIO]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", 0) as reader, os.fdopen(writing, "wb", 0) as writer:
        yield reader, writer


@contextmanager
def journal_to(*outlets: Outlet) -> Iterator[Log]:
    journal = Journal(outlets)
    journal.shape("json", "info")
    yield journal.log
    journal.close()


def events(lines: bytes) -> list[str]:
    return [json.loads(line)["event"] for line in lines.splitlines()]


# --- the program


def test_a_logfile_gets_what_standard_error_gets_and_sighup_opens_it_again(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path
) -> None:
    logfile, rotated = tmp_path / "pgfunnel.log", tmp_path / "pgfunnel.log.1"
    pooler = pgfunnel(postgres.url(), logfile=str(logfile))
    logfile.rename(rotated)
    pooler.login().terminate()
    pooler.wait_for_log("event=client_closed")
    assert rotated.read_text().splitlines() == pooler.log
    assert not logfile.exists()
    pooler.signal(signal.SIGHUP)
    pooler.wait_for_log("event=reloaded")
    assert logfile.read_text().splitlines() == pooler.log[-1:]
    assert "event=reloaded" not in rotated.read_text()


def test_whatever_becomes_of_the_logfile_and_the_configuration_lines_are_logged(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path
) -> None:
    logfile = tmp_path / "pgfunnel.log"
    pooler = pgfunnel(postgres.url(), logfile=str(logfile), toml="[databases.shop]\n")
    Path(str(pooler.settings["config"])).write_text("no such thing")
    logfile.rename(tmp_path / "pgfunnel.log.1")
    pooler.signal(signal.SIGHUP)
    pooler.wait_for_log("event=reload_failed")
    assert "event=reload_failed" in logfile.read_text()
    logfile.unlink()
    logfile.mkdir()
    pooler.signal(signal.SIGHUP)
    pooler.wait_for_log(f"event=logfile_not_opened file={logfile} error=.Is a directory")


def test_a_logfile_that_cannot_be_opened_is_told_at_the_start(tmp_path: Path) -> None:
    process = Process(Settings(logfile=tmp_path / "nowhere" / "pgfunnel.log"))
    with pytest.raises(StartError, match=r"can't open logfile .*/pgfunnel.log: No such file or directory"):
        process.enter()


def test_a_full_disk_does_no_harm(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel) -> None:
    pooler = pgfunnel(postgres.url(), logfile="/dev/full")
    with pooler.login() as client:
        assert client.value("SELECT 'served'") == "served"


@contextmanager
def running(*arguments: str, stderr: BinaryIO | int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, which must end with 0 on SIGTERM."""
    process = subprocess.Popen(arguments, stderr=stderr)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(20) == 0


def command(postgres: EmbeddedPostgres, port: int, *more: str) -> tuple[str, ...]:
    settings = (f"--upstream={postgres.url()}", "--auth-type=trust", f"--listen-port={port}", "--metrics-addr=")
    return sys.executable, "-m", "pooler.main", *settings, *more


@pytest.mark.parametrize("how", ["nobody reads", "nobody can read"])
def test_standard_error_may_be_stuck_or_broken(postgres: EmbeddedPostgres, pipe: Pipe, how: str) -> None:
    reader, writer = pipe
    port, _ = two_free_ports()
    with running(*command(postgres, port), stderr=writer):
        writer.close()
        eventually(lambda: b"event=listening" in os.read(reader.fileno(), 65536))
        if how == "nobody can read":
            reader.close()
        for _ in range(300):  # each is two lines: together more than a pipe holds
            Wire("127.0.0.1", port).login("postgres", "postgres").terminate()
        with Wire("127.0.0.1", port).login("postgres", "postgres") as client:
            assert client.value("SELECT 'served'") == "served"


def test_standard_error_may_be_closed(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    port, _ = two_free_ports()
    logfile = tmp_path / "log"
    program = " ".join(command(postgres, port, f"--logfile={logfile}"))
    with running("sh", "-c", f"exec {program} 2>&-") as process:
        eventually(lambda: logfile.exists() and "event=listening" in logfile.read_text())
        assert {sock.fd for sock in psutil.Process(process.pid).net_connections()}.isdisjoint((0, 1, 2))


def test_q_keeps_standard_error_quiet(postgres: EmbeddedPostgres, pipe: Pipe, tmp_path: Path) -> None:
    reader, writer = pipe
    port, _ = two_free_ports()
    logfile = tmp_path / "log"
    with running(*command(postgres, port, f"--logfile={logfile}", "-q"), stderr=writer):
        writer.close()
        eventually(lambda: logfile.exists() and "event=listening" in logfile.read_text())
    assert reader.read() == b""


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_v_logs_more(tmp_path: Path, verbose: int) -> None:
    journal = Journal()
    journal.open(Settings(verbose=verbose, logfile=tmp_path / "log"), quiet=True)
    journal.log.debug("detail")
    journal.close()
    assert ("event=detail" in (tmp_path / "log").read_text()) is (verbose > 0)


# --- outlets


def test_what_a_stuck_pipe_does_not_take_comes_when_it_does(pipe: Pipe) -> None:
    reader, writer = pipe
    heard = b""
    with journal_to(Descriptor(os.dup(writer.fileno()))) as log:
        for _ in range(1000):
            log.info("told", text="x" * 100)
        while heard.count(b"\n") < 1000:
            heard += os.read(reader.fileno(), 1 << 20)
            log.info("told")
    assert set(events(heard[: heard.rfind(b"\n")])) == {"told"}


def test_what_is_lost_is_counted_and_told(pipe: Pipe) -> None:
    reader, writer = pipe
    lines = 3 * MOST_KEPT // 1000
    heard = b""
    with journal_to(Descriptor(os.dup(writer.fileno()))) as log:
        for number in range(lines):
            log.info("told", number=number, text="x" * 1000)
        while b"log_lines_lost" not in heard:
            heard += os.read(reader.fileno(), 1 << 20)
            log.info("later")
    told = [json.loads(line) for line in heard.splitlines() if line.endswith(b"}")]
    numbers = [line["number"] for line in told if line["event"] == "told"]
    assert numbers == list(range(len(numbers)))
    (lost,) = (line["lines"] for line in told if line["event"] == "log_lines_lost")
    assert len(numbers) + lost >= lines
    assert len(numbers) * 1000 > MOST_KEPT // 2


def test_a_disk_that_is_no_longer_full_gets_whole_lines(tmp_path: Path) -> None:
    small, process = tmp_path / "small", psutil.Process()
    limit = process.rlimit(psutil.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with journal_to(log_file(small)) as log:
        log.info("first")
        size = small.stat().st_size
        try:
            process.rlimit(psutil.RLIMIT_FSIZE, (size + 10, limit[1]))
            log.info("second")
            assert small.stat().st_size == size + 10
        finally:
            process.rlimit(psutil.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, ignored)
        log.info("third")
    assert events(small.read_bytes()) == ["first", "second", "third"]


# --- syslog


@pytest.fixture
def syslog() -> Iterator[tuple[Path, socket.socket]]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with tempfile.TemporaryDirectory(prefix="pgf-") as directory, sock:
        sock.settimeout(10)
        sock.bind(f"{directory}/log")
        yield Path(directory, "log"), sock


def test_syslog_gets_priority_name_and_line(syslog: tuple[Path, socket.socket]) -> None:
    path, sock = syslog
    with journal_to(Syslog("pooler-1", "local3", path)) as log:
        for write, severity in ((log.info, 6), (log.warning, 4), (log.error, 3)):
            write("told")
            header, _, line = sock.recv(65536).decode().partition(": ")
            assert header.startswith(f"<{19 * 8 + severity}>")
            assert header.endswith(f" pooler-1[{os.getpid()}]")
            assert json.loads(line)["event"] == "told"


def test_syslog_may_be_away_full_or_started_again(syslog: tuple[Path, socket.socket]) -> None:
    path, sock = syslog
    outlet = Syslog("pgfunnel", "daemon", path)
    while not outlet.lost:
        outlet.write("info", "nobody reads it")
    outlet.lost = 0
    sock.close()
    path.unlink()
    outlet.write("info", "nobody is there")
    assert outlet.lost == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(path))
        outlet.write("info", "here it is")
        assert again.recv(65536).endswith(b": here it is")
    outlet.close()
