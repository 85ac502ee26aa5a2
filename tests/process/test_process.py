"""What the system sees of pgfunnel: its pidfile, its user, a daemon, a service that says how it goes."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pooler.demo.postgres import EmbeddedPostgres
from pooler.process.errors import StartError
from pooler.process.notify import ServiceManager
from pooler.process.pidfile import Pidfile
from pooler.process.privileges import become
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually, two_free_ports
from tests.support.wire import Wire

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


# --- pidfile


def test_a_pidfile_keeps_out_a_second_process_while_the_first_runs(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path
) -> None:
    pidfile = tmp_path / "pgfunnel.pid"
    first = pgfunnel(postgres.url(), pidfile=str(pidfile))
    second = Pgfunnel(postgres.url(), pidfile=str(pidfile))
    assert second.refuses_to_start() == 1
    second.wait_for_log(f"pidfile {pidfile} exists: process {first.process.pid} runs with it")
    assert pidfile.read_text() == f"{first.process.pid}\n"
    first.signal(signal.SIGTERM)
    first.wait_for_log("event=stopped")
    first.signal(signal.SIGTERM)  # too late to do harm
    assert first.wait() == 0
    assert not pidfile.exists()


def dead() -> str:
    """Return the number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return str(process.pid)


@pytest.mark.parametrize("stale", [dead, lambda: f"{os.getpid()}\n"], ids=["dead", "our own"])
def test_a_stale_pidfile_is_replaced(tmp_path: Path, stale: Callable[[], str]) -> None:
    pidfile = Pidfile(tmp_path / "pid")
    (tmp_path / "pid").write_text(stale())
    pidfile.check()
    pidfile.write()
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("text", ["", "no number", "\xff", "0", "-1", "1", str(os.getppid()), "9" * 30])
def test_a_file_that_may_be_somebodys_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "pid").write_text(text)
    with pytest.raises(StartError, match="exists"):
        Pidfile(tmp_path / "pid").check()
    with pytest.raises(StartError, match="File exists"):
        Pidfile(tmp_path / "pid").write()
    Pidfile(tmp_path / "pid").remove()
    assert (tmp_path / "pid").read_text() == text


def test_a_pidfile_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"can't write pidfile .*/nowhere/pid: No such file or directory"):
        Pidfile(tmp_path / "nowhere" / "pid").write()


# --- in the background, as another user


@pytest.fixture
def everybodys(postgres: EmbeddedPostgres) -> Iterator[Path]:
    """Make a directory that any user may write to."""
    with tempfile.TemporaryDirectory(prefix="pgf-") as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield directory


def start_daemon(
    directory: Path, postgres: EmbeddedPostgres, *flags: str, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run `pgfunnel -d pgbouncer.ini`."""
    files = {"logfile": directory / "log", "pidfile": directory / "pid"}
    settings = {"listen_addr": "127.0.0.1", "auth_type": "any", **files, **settings}
    lines = [f"{name} = {value}" for name, value in settings.items()]
    entry = f"* = host=127.0.0.1 port={postgres.port} user=postgres"
    ini = directory / "pgbouncer.ini"
    ini.write_text("\n".join(("[databases]", entry, "[pgbouncer]", "unix_socket_dir =", *lines, "")))
    command = [sys.executable, "-m", "pooler.main", "-d", *flags, str(ini)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@contextmanager
def daemon(directory: Path, postgres: EmbeddedPostgres, *flags: str, **settings: object) -> Iterator[psutil.Process]:
    """Have a daemon; end it by SIGTERM."""
    done = start_daemon(directory, postgres, *flags, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    process = psutil.Process(int((directory / "pid").read_text()))
    try:
        yield process
    finally:
        process.terminate()
        eventually(lambda: not process.is_running())


def test_a_daemon_serves_once_the_command_returns(postgres: EmbeddedPostgres, everybodys: Path) -> None:
    port, metrics_port = two_free_ports()
    with daemon(everybodys, postgres, listen_port=port, metrics_port=metrics_port) as process:
        with Wire("127.0.0.1", port).login("postgres", "postgres") as client:
            assert client.value("SELECT 'served'") == "served"
        assert process.terminal() is None
        assert os.getsid(process.pid) not in (process.pid, os.getsid(0)), "it could get a terminal"
        assert {Path(f"/proc/{process.pid}/fd/{fd}").readlink() for fd in (0, 1, 2)} == {Path(os.devnull)}
        assert "event=listening" in (everybodys / "log").read_text()
    assert not (everybodys / "pid").exists()


def test_a_daemon_that_cannot_start_says_why(postgres: EmbeddedPostgres, everybodys: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start_daemon(everybodys, postgres, listen_port=port, metrics_port=0)
    assert done.returncode == 1
    assert done.stderr == f"pgfunnel: can't listen on 127.0.0.1 port {port}: Address already in use\n"
    assert "event=start_failed" in (everybodys / "log").read_text()
    assert not (everybodys / "pid").exists()


@needs_root
def test_root_becomes_the_user_for_good(postgres: EmbeddedPostgres, everybodys: Path) -> None:
    port, metrics_port = two_free_ports()
    nobody = pwd.getpwnam("nobody")
    secret = everybodys / "userlist.txt"
    secret.write_text('"alice" "secret"\n')
    secret.chmod(0o600)
    settings = {"listen_port": port, "metrics_port": metrics_port, "auth_file": secret}
    with daemon(everybodys, postgres, "-u", "nobody", **settings) as process:
        assert set(process.uids()) == {nobody.pw_uid}
        assert set(process.gids()) == {nobody.pw_gid}
        assert "Groups:\t65534 \n" in Path(f"/proc/{process.pid}/status").read_text()
        assert f"event=file_not_readable file={secret} user=nobody" in (everybodys / "log").read_text()
        for name in ("log", "pid"):
            assert (everybodys / name).owner() == "nobody"
        (everybodys / "log").rename(everybodys / "log.1")
        process.send_signal(signal.SIGHUP)
        eventually((everybodys / "log").exists)
        with Wire("127.0.0.1", port).login("postgres", "postgres") as client:
            assert client.value("SELECT 'served'") == "served"


@needs_root
def test_a_link_in_the_place_of_the_log_leads_nowhere(postgres: EmbeddedPostgres, everybodys: Path) -> None:
    treasure = everybodys / "treasure"
    treasure.write_text("root's")
    treasure.chmod(0o644)
    (everybodys / "log").symlink_to(treasure)
    done = start_daemon(everybodys, postgres, user="nobody", listen_port=two_free_ports()[0], metrics_port=0)
    assert done.returncode == 1
    assert done.stderr == f"pgfunnel: can't open logfile {everybodys}/log: Permission denied\n"
    assert (treasure.read_text(), treasure.owner()) == ("root's", "root")


def test_a_user_that_does_not_exist_is_told() -> None:
    with pytest.raises(StartError, match="user: there is no system user 'nobody-has-it'"):
        become("nobody-has-it")


def test_only_root_becomes_another_user(postgres: EmbeddedPostgres) -> None:
    pooler = Pgfunnel(postgres.url(), user="daemon")
    if os.getuid() == 0:
        # Python itself may be where only root can read; so root goes without its right to become another.
        pooler.command = ("setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-setuid,-setgid", *pooler.command)
    assert pooler.refuses_to_start() == 1
    pooler.wait_for_log("user: only root can become 'daemon'")


# --- a service


@pytest.fixture
def manager() -> Iterator[tuple[str, socket.socket]]:
    """Be a service manager: where it is to be told, and how it is."""
    with tempfile.TemporaryDirectory(prefix="pgf-") as name:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with sock:
            sock.settimeout(20)
            sock.bind(f"{name}/notify")
            yield f"{name}/notify", sock


def test_the_service_manager_is_told_how_it_goes(
    postgres: EmbeddedPostgres,
    pgfunnel: StartPgfunnel,
    manager: tuple[str, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, sock = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    pooler = pgfunnel(postgres.url())
    assert (pooler.log[0].find("event=running_as_root") > 0) is (os.getuid() == 0)
    ready = f"READY=1\nMAINPID={pooler.process.pid}"
    assert sock.recv(4096).decode() == ready
    pooler.signal(signal.SIGHUP)
    assert sock.recv(4096).decode().startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert sock.recv(4096).decode() == ready
    pooler.signal(signal.SIGTERM)
    assert sock.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "nonsense", "/nowhere/at/all", "@nobody-listens-there"])
def test_no_service_manager_is_no_trouble(address: str) -> None:
    ServiceManager({"NOTIFY_SOCKET": address}).ready()


def test_an_abstract_address_is_one_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0pgfunnel-test-notify")
        ServiceManager({"NOTIFY_SOCKET": "@pgfunnel-test-notify"}).stopping()
        assert sock.recv(100) == b"STOPPING=1"


def test_sockets_of_the_service_manager_outlive_a_restart(postgres: EmbeddedPostgres) -> None:
    settings = (f"--upstream={postgres.url()}", "--auth-type=trust", "--listen-addr=192.0.2.1", "--metrics-addr=")
    program = " ".join((sys.executable, "-m", "pooler.main", *settings))
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryFile() as log:
        port = listener.getsockname()[1]
        activation = f"LISTEN_FDS=1 LISTEN_PID=$$ exec {program} 3<&{listener.fileno()} {listener.fileno()}<&-"
        for _ in range(2):
            process = subprocess.Popen(["bash", "-c", activation], pass_fds=[listener.fileno()], stderr=log)
            try:
                # Nobody is refused: who comes before it is there waits.
                with Wire("127.0.0.1", port).login("postgres", "postgres") as client:
                    assert client.value("SELECT 'served'") == "served"
            finally:
                process.terminate()
                assert process.wait(20) == 0
