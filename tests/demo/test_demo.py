"""`pgfunnel demo` as its users run it."""

import os
import re
import resource
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Self

import psycopg
import pytest

from pooler import demo
from pooler.demo.demonstration import Demonstration, FileLimitError, _raise_file_limit
from pooler.demo.storm import Storm


@contextmanager
def running_demo(*options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "pooler.main", "demo", *options]
    environment = os.environ | {"PGFUNNEL_POOL_MODE": "the user's own settings are not the demo's"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def lines_until(process: subprocess.Popen[str], beginning: str) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.lstrip().startswith(beginning):
            break
    return "".join(lines)


def test_once_shows_both_storms_and_exits_with_0_as_pgfunnel_failed_nothing() -> None:
    with running_demo("--once", "--clients", "60", "--own-work", "0.1", "--pool-size", "3") as process:
        screen, _ = process.communicate()
    assert process.returncode == 0, screen
    assert re.search(r"straight at Postgres .* 60/60 ", screen)
    assert re.search(r"through pgfunnel .* 60/60 ", screen)
    assert re.search(r"│ requests +│ +300 │ +300 │", screen)
    assert re.search(r"│ +success rate +│ +100.0 % │ +100.0 % │", screen)
    assert re.search(r"│ most server connections at once │ +\d+ │ +[123] │", screen)


class DeadFunnel:
    """In pgfunnel's place, a port where nobody listens."""

    def __init__(self, settings: dict[str, object], *, metrics_port: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_once_exits_with_1_if_pgfunnel_failed_a_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pooler.demo.demonstration.Funnel", DeadFunnel)
    demonstration = Demonstration(
        storm=Storm(clients=2, own_work=0, start_within=0),
        pool_size=1,
        max_connections=100,
        once=True,
        listen_port=None,
        metrics_port=None,
        postgres_version=None,
    )
    assert demonstration.run() == 1
    assert re.search(r"- connection refused +│ +0 │ +2 │", capsys.readouterr().out)


def test_without_once_both_stay_up_until_ctrl_c_and_nothing_is_left_behind() -> None:
    with running_demo("--clients", "1", "--own-work", "0") as process:
        screen = lines_until(process, "curl")
        url = re.search(r"DATABASE_URL=(\S+)", screen)
        metrics = re.search(r"metrics +(\S+)", screen)
        assert url is not None, screen
        assert metrics is not None, screen
        with psycopg.connect(url[1]) as connection:
            assert connection.execute("select count(*) from fulfillments").fetchone() == (1,)
        with urllib.request.urlopen(metrics[1]) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate()
    assert rest.strip() == "Stopping pgfunnel and Postgres."
    assert process.returncode == 0
    with pytest.raises(psycopg.OperationalError, match="Connection refused"):
        psycopg.connect(url[1])


def test_ctrl_c_during_a_storm_ends_it_without_a_traceback() -> None:
    with running_demo("--clients", "5") as process:
        lines_until(process, "Postgres")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in rest


def test_without_the_extra_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_spec(_name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    assert demo.main([]) == 1
    assert "pip install 'pgfunnel[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--clients", "0"], ["--pool-size", "99"], ["--clients", "many"]])
def test_impossible_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        demo.main(options)
    assert refusal.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_the_soft_limit_of_open_files_is_raised_and_the_hard_one_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, new: limits.append(new))
    _raise_file_limit(1000)
    assert limits == [(1024, 4096)]
    _raise_file_limit(2000)
    assert limits[-1] == (4096, 4096)
    with pytest.raises(FileLimitError, match=r"hard limit is 4096.*--clients"):
        _raise_file_limit(5000)
