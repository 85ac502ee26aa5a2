"""What is read from processes, and what PgBouncer is told."""

import mmap
import os
import subprocess
import sys

import pytest

from benchmarks.servers import PgBouncer, PgFunnel, clean_environment, cpu_seconds, resident_kib, system_share

SETTINGS = {"pool_mode": "transaction", "default_pool_size": "20", "auth_type": "trust"}


def test_a_processs_cpu_is_what_it_used_and_not_what_time_passed() -> None:
    busy = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        used = cpu_seconds(process.pid)
        user, system = system_share(process.pid)
        process.communicate(b"\n")
    assert 0.2 <= used < 1.0
    assert (user + system) / os.sysconf("SC_CLK_TCK") == pytest.approx(used, abs=0.05)


def test_a_processs_memory_grows_with_what_it_holds() -> None:
    before = resident_kib(os.getpid())
    with mmap.mmap(-1, 32 << 20) as held:  # memory that the process cannot have had before
        for page in range(0, 32 << 20, 4096):
            held[page] = 1
        assert 31 << 10 <= resident_kib(os.getpid()) - before <= 40 << 10


def test_both_poolers_get_the_same_settings() -> None:
    users = {"bench": "secret"}
    bouncer = PgBouncer(SETTINGS, 5433, "bench", users).configuration().splitlines()
    funnel = PgFunnel(SETTINGS, 5433, "bench", users).environment()
    for name, value in SETTINGS.items():
        assert f"{name} = {value}" in bouncer
        assert funnel[f"PGFUNNEL_{name.upper()}"] == value
    assert "bench = host=127.0.0.1 port=5433" in bouncer
    assert funnel["PGFUNNEL_UPSTREAM"] == "postgresql://bench@127.0.0.1:5433/bench"


@pytest.mark.parametrize("tls", [False, True])
def test_both_poolers_speak_tls_or_neither(tls: bool) -> None:
    bouncer = PgBouncer(SETTINGS, 5433, "bench", {}, tls=tls).configuration()
    funnel = PgFunnel(SETTINGS, 5433, "bench", {"bench": ""}, tls=tls).environment()
    sslmode = "require" if tls else "disable"
    assert f"client_tls_sslmode = {sslmode}\n" in bouncer
    assert funnel["PGFUNNEL_CLIENT_TLS_SSLMODE"] == sslmode
    assert ("client_tls_key_file" in bouncer) == ("PGFUNNEL_CLIENT_TLS_KEY_FILE" in funnel) == tls


def test_what_the_user_has_set_for_libpq_does_not_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c jit=on")
    monkeypatch.setenv("PGFUNNEL_POOL_MODE", "session")
    assert not {"PGOPTIONS", "PGFUNNEL_POOL_MODE"} & {*clean_environment()}
