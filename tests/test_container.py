"""Dockerfile and compose.yaml agree with the settings, as far as that shows without a container engine."""

import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from config.load import load
from config.settings import Settings

ROOT = Path(__file__).parents[1]


def instructions() -> dict[str, list[str]]:
    """Return the arguments of the Dockerfile's instructions, by name, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, arguments = line.partition(" ")
        found.setdefault(name, []).append(arguments)
    return found


def probe() -> list[str]:
    command: list[str] = json.loads(instructions()["HEALTHCHECK"][0].partition("CMD ")[2])
    return [sys.executable, *command[1:]]


def test_every_variable_of_the_image_and_of_compose_is_a_setting() -> None:
    image = dict(re.findall(r"(PGFUNNEL_\w+)=(\S+)", instructions()["ENV"][0].replace("PGFUNNEL", " PGFUNNEL")))
    compose = dict(re.findall(r"(PGFUNNEL_\w+): \"?([^\s\"]+)", (ROOT / "compose.yaml").read_text()))
    settings = load([], image | compose).settings
    assert settings.listen_addr == ("0.0.0.0",)
    assert settings.metrics_addr == "0.0.0.0"
    assert str(settings.upstream) == "postgresql://app:***@postgres:5432/app"


def test_the_image_and_compose_open_the_default_ports() -> None:
    ports = {str(Settings.model_fields[name].default) for name in ("listen_port", "metrics_port")}
    assert set(instructions()["EXPOSE"][0].split()) == ports
    assert set(re.findall(r"127\.0\.0\.1:\d+:(\d+)", (ROOT / "compose.yaml").read_text())) == ports


def test_the_image_runs_as_a_numeric_user_who_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions()["USER"][0])


def test_signals_reach_pgfunnel_itself() -> None:
    assert json.loads(instructions()["ENTRYPOINT"][0]) == ["pgfunnel"]
    assert instructions()["STOPSIGNAL"] == ["SIGTERM"]


def test_the_build_context_holds_what_is_copied_from_it_and_nothing_else() -> None:
    copies = [arguments.split()[:-1] for arguments in instructions()["COPY"] if not arguments.startswith("--from")]
    wanted = {source for sources in copies for source in sources}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == wanted
    assert all((ROOT / source).exists() for source in wanted)


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_image_is_healthy_while_healthz_says_so(status: int, exit_code: int) -> None:
    asked: list[str] = []

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        # A proxy that is named in the environment must not be asked.
        environ = {"PGFUNNEL_METRICS_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:1"}
        assert subprocess.run(probe(), env=environ, check=False, timeout=30).returncode == exit_code
        thread.join()
    assert asked == ["/healthz"]


def test_the_image_is_unhealthy_when_nothing_answers() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port
    environ = {"PGFUNNEL_METRICS_PORT": str(port)}
    result = subprocess.run(probe(), env=environ, check=False, timeout=30, capture_output=True)
    assert result.returncode == 1
