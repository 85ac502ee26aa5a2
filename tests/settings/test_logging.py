"""What is logged, and in which form, as the settings say."""

import json
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from config.settings import Settings
from pooler.demo.postgres import EmbeddedPostgres
from pooler.log import Journal
from pooler.outlets import Syslog
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import Pgfunnel, eventually
from tests.support.wire import ServerError

EVENTS = {
    "log_connections": "client_login",
    "log_disconnections": "client_closed",
    "log_pooler_errors": "login_failed",
}


@pytest.mark.parametrize("off", [None, *EVENTS])
def test_an_event_is_logged_unless_its_setting_is_off(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, off: str | None
) -> None:
    pooler = pgfunnel(postgres.url(), **({off: 0} if off is not None else {}))
    with pooler.connect() as wire, suppress(ServerError):
        wire.login("nobody", "postgres")
    pooler.login().terminate()
    eventually(lambda: pooler.metric("pgfunnel_clients_ended_total") == 2)
    pooler.stop()
    logged = {setting for setting, event in EVENTS.items() if f"event={event} " in str(pooler.log)}
    assert logged == EVENTS.keys() - {off}


@contextmanager
def launched(upstream: str, *, log_format: str = "text", log_level: str = "info") -> Iterator[Pgfunnel]:
    """Start a pgfunnel whose log is not of the usual form, or silent."""
    pooler = Pgfunnel(upstream, log_format=log_format, log_level=log_level)

    def listens() -> bool:
        with suppress(ConnectionRefusedError), pooler.connect():
            return True
        return False

    with pooler._directory:
        pooler.launch()
        try:
            eventually(listens, timeout=20)
            yield pooler
        finally:
            pooler.stop()


def test_lines_are_objects_with_log_format_json(postgres: EmbeddedPostgres) -> None:
    with launched(postgres.url(), log_format="json") as pooler:
        pooler.login().terminate()
    lines = [json.loads(line) for line in pooler.log]
    (login,) = (line for line in lines if line["event"] == "client_login")
    assert (login["user"], login["database"], login["level"]) == ("postgres", "postgres", "info")


def test_less_severe_events_than_log_level_are_not_logged(postgres: EmbeddedPostgres) -> None:
    with launched(postgres.url(), log_level="warning") as pooler:
        pooler.login().terminate()
        with pooler.connect() as wire, pytest.raises(ServerError):
            wire.login("nobody", "postgres")
    assert any("level=warning event=login_failed" in line for line in pooler.log)
    assert not any("level=info" in line for line in pooler.log)


@pytest.mark.parametrize("on", [True, False])
def test_syslog_gets_lines_of_syslog_ident_and_syslog_facility(monkeypatch: pytest.MonkeyPatch, *, on: bool) -> None:
    settings = Settings.model_validate({"syslog": on, "syslog_ident": "shop", "syslog_facility": "local3"})
    with (
        tempfile.TemporaryDirectory(prefix="pgf-") as directory,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as system,
        closing(Journal()) as journal,
    ):
        system.bind(f"{directory}/log")
        system.settimeout(0)
        monkeypatch.setattr("pooler.log.Syslog", partial(Syslog, path=Path(directory, "log")))
        journal.open(settings, quiet=True)
        journal.log.warning("told")
        if on:
            assert re.match(rf"<{19 * 8 + 4}>.* shop\[\d+\]: .*event=told", system.recv(65536).decode())
        else:
            with pytest.raises(BlockingIOError):
                system.recv(65536)
