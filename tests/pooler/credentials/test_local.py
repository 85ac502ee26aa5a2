"""Asking for a password on this machine: what is taken, what is not, and what is said of it."""

import shlex
import sys
from pathlib import Path

import psutil
import pytest

from config.password_source import parse
from pooler.credentials import sourced
from pooler.credentials.source import Source, SourceFailedError
from pooler.credentials.sourced import SourcedPasswords, source_for
from tests.support.pgfunnel import eventually


def source(text: str, **environ: str) -> Source:
    named = parse(text)
    assert named is not None
    return source_for(named, "localhost", 5432, environ)


def program(script: str) -> str:
    return f"command:{shlex.join([sys.executable, '-c', script])}"


async def test_a_variable_of_the_environment() -> None:
    assert await source("env:DB_PASSWORD", DB_PASSWORD="hush").ask("alice") == "hush"
    with pytest.raises(SourceFailedError, match="env:DB_PASSWORD: the variable is not set"):
        await source("env:DB_PASSWORD").ask("alice")


async def test_a_file_is_read_again_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    kept = source(f"file:{file}")
    file.write_text("old\n")
    assert await kept.ask("alice") == "old"
    file.write_text("new")
    assert await kept.ask("alice") == "new"
    file.unlink()
    with pytest.raises(SourceFailedError, match=f"file:{file}: it can't be read: No such file or directory"):
        await kept.ask("alice")


async def test_a_command_says_it_in_its_first_line() -> None:
    assert await source(program("print('hush'); print('and more')")).ask("alice") == "hush"


async def test_a_command_is_run_without_a_shell() -> None:
    assert await source("command:echo $HOME; $(id) > /nowhere").ask("alice") == "$HOME; $(id) > /nowhere"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("command:/nowhere/program hush", "command:/nowhere/program: it can't be run: No such file or directory"),
        (program("import sys; print('hush'); sys.exit(3)"), "it ended with status 3: run it by hand"),
        (program("while True: print('hush' * 1000)"), "it writes more than 65536 bytes"),
        (program("print()"), "is empty"),
        (program("pass"), "is empty"),
        (program(r"print('hu\0sh')"), "zero byte"),
        (program(r"import os; os.write(1, b'hush\xff')"), "not UTF-8"),
    ],
)
async def test_a_command_that_gives_no_password_is_explained(text: str, why: str) -> None:
    with pytest.raises(SourceFailedError, match=why) as caught:
        await source(text).ask("alice")
    assert "hush" not in str(caught.value)


async def test_a_command_that_takes_too_long_is_killed_with_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sourced, "ASK_S", 1.0)
    pids = tmp_path / "pids"
    named = parse(f"command:sh -c {shlex.quote(f'sleep 600 & echo $! $$ > {pids}; wait')}")
    assert named is not None
    passwords = SourcedPasswords(named, source_for(named, "localhost", 5432), None, lambda: 0.0)
    with pytest.raises(SourceFailedError, match="command:sh: it has not answered within 1 s"):
        await passwords.password("alice", None)
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    eventually(lambda: not any(_runs(pid) for pid in started))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
