"""The certificates that are shown: when they expire, and what is said once they have."""

import io
import shutil
import time
from pathlib import Path

import pytest

from config.settings import Settings
from pooler.log import make_log
from pooler.tls.watched import WatchedContext, watch_client_context, watch_server_context
from tests.support.certificates import Certificates, Pair

DAY = 86_400


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def watched(pair: Pair, log: io.StringIO, side: str = "client") -> WatchedContext:
    files = {f"{side}_tls_cert_file": pair.certificate, f"{side}_tls_key_file": pair.key}
    settings = Settings.model_validate(
        {"upstream": "postgresql://localhost", **files, f"{side}_tls_sslmode": "require"}
    )
    watch = watch_client_context if side == "client" else watch_server_context
    return watch(settings, make_log("text", "info", log))


@pytest.mark.parametrize("side", ["client", "server"])
def test_it_is_known_when_a_certificate_expires(certificates: Certificates, log: io.StringIO, side: str) -> None:
    identity = watched(certificates.ec, log, side)
    assert identity.side == side
    assert identity.expires is not None
    assert identity.expires > time.time() + DAY / 2
    assert not log.getvalue()


def test_nothing_expires_where_nothing_is_shown(log: io.StringIO) -> None:
    settings = Settings.model_validate({"upstream": "postgresql://localhost"})
    assert watch_server_context(settings, make_log("text", "info", log)).expires is None


def test_an_expired_certificate_is_named_in_the_log(certificates: Certificates, log: io.StringIO) -> None:
    identity = watched(certificates.expired, log)
    assert identity.expires is not None
    assert identity.expires < time.time()
    assert "event=tls_certificate_expired" in log.getvalue()
    assert "side=client" in log.getvalue()


def test_so_is_one_that_takes_the_place_of_another(
    certificates: Certificates, log: io.StringIO, tmp_path: Path
) -> None:
    def put(pair: Pair) -> Pair:
        return Pair(
            Path(shutil.copy(pair.certificate, tmp_path / "tls.crt")), Path(shutil.copy(pair.key, tmp_path / "tls.key"))
        )

    identity = watched(put(certificates.ec), log)
    put(certificates.expired)
    identity.reload()
    assert identity.expires is not None
    assert identity.expires < time.time()
    assert "event=tls_certificate_expired" in log.getvalue()
