"""Which files are read, and what of them has no effect."""

import re
import signal
from pathlib import Path

from config.pgbouncer import WITHOUT_EFFECT
from pooler.demo.postgres import EmbeddedPostgres
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import eventually


def test_a_reload_reads_the_file_that_conffile_names(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, tmp_path: Path
) -> None:
    place = f"host={postgres.host} port={postgres.port}"
    other = tmp_path / "other.ini"
    other.write_text(f"[databases]\nshop = {place} dbname=other\n[pgbouncer]\nconffile = {other}\n")
    pooler = pgfunnel(
        ini=f"[databases]\nshop = {place} dbname=postgres\n[pgbouncer]\nconffile = {other}\n",
        userlist={"postgres": ""},
        listen_addr="127.0.0.1",
        pool_mode="transaction",
    )
    with pooler.login(dbname="shop") as wire:
        assert wire.value("SELECT current_database()") == "postgres"
        pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=reloaded")
        eventually(lambda: wire.value("SELECT current_database()") == "other")


OF_NO_EFFECT = {
    "auth_ldap_options": "ldapserver=ldap.test",
    "job_name": "pooler",
    "pkt_buf": "8192",
    "sbuf_loopcnt": "0",
    "service_name": "pooler",
    "suspend_timeout": "5",
    "tcp_defer_accept": "45",
    "tcp_socket_buffer": "65536",
}


def test_a_setting_that_has_no_effect_is_named_in_the_log_with_the_reason(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    assert OF_NO_EFFECT.keys() == WITHOUT_EFFECT.keys()
    lines = "\n".join(f"{name} = {value}" for name, value in OF_NO_EFFECT.items())
    entry = f"[databases]\n* = host={postgres.host} port={postgres.port}"
    pooler = pgfunnel(ini=f"{entry}\n[pgbouncer]\n{lines}\n", userlist={"postgres": ""}, listen_addr="127.0.0.1")
    with pooler.login() as wire:
        assert wire.value("SELECT 1") == "1"
    for line, name in enumerate(OF_NO_EFFECT, start=4):
        why = re.escape(WITHOUT_EFFECT[name])
        pooler.wait_for_log(rf"event=setting_note note=\"{name}: it has no effect: {why} .* line {line}\)\"")
