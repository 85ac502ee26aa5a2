"""PgBouncer's own settings, the section [pgbouncer]: their names, their defaults, and what becomes of them here.

Most are settings of pgfunnel under the same name, with a default of its own. Whoever starts from a pgbouncer.ini gets
PgBouncer's. The values are judged where all are, in config.load.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Final, Literal, get_origin

from config.fields import default_text, takes
from config.ini import Ini
from config.percent import Percent
from config.settings import Settings
from config.sources import Given, Reading, Source, unknown
from config.timeouts import EMPTY_QUERY

PLACE_OF_DEFAULTS: Final = "PgBouncer's default"

DEFAULTS: Final = {
    "admin_users": "",
    "application_name_add_host": "0",
    "auth_dbname": "",
    "auth_file": "",
    "auth_hba_file": "",
    "auth_ident_file": "",
    "auth_ldap_options": "",
    "auth_query": str(Settings.model_fields["auth_query"].default),  # differs in nothing that a user would see
    "auth_type": "md5",
    "auth_user": "",
    "autodb_idle_timeout": "3600",
    "cancel_wait_timeout": "10",
    "client_idle_timeout": "0",
    "client_login_timeout": "60",
    "client_tls13_ciphers": "",
    "client_tls_ca_file": "",
    "client_tls_cert_file": "",
    "client_tls_ciphers": "default",
    "client_tls_dheparams": "auto",
    "client_tls_ecdhcurve": "auto",
    "client_tls_key_file": "",
    "client_tls_protocols": "secure",
    "client_tls_sslmode": "disable",
    "conffile": "",
    "default_pool_size": "20",
    "disable_pqexec": "0",
    "dns_max_ttl": "15",
    "dns_nxdomain_ttl": "15",
    "dns_zone_check_period": "0",
    "idle_transaction_timeout": "0",
    "ignore_startup_parameters": "",
    "job_name": "pgbouncer",
    "listen_addr": "",
    "listen_backlog": "128",
    "listen_port": "6432",
    "log_connections": "1",
    "log_disconnections": "1",
    "log_pooler_errors": "1",
    "log_stats": "1",
    "logfile": "",
    "login_notify_message": "",
    "max_client_conn": "100",
    "max_db_client_connections": "0",
    "max_db_connections": "0",
    "max_packet_size": "2147483647",
    "max_prepared_statements": "200",
    "max_user_client_connections": "0",
    "max_user_connections": "0",
    "min_pool_size": "0",
    "peer_id": "0",
    "pidfile": "",
    "pkt_buf": "4096",
    "pool_idle_timeout": "0",
    "pool_mode": "session",
    "query_timeout": "0",
    "query_wait_notify": "5",
    "query_wait_timeout": "120",
    "reserve_pool_size": "0",
    "reserve_pool_timeout": "5",
    "resolv_conf": "",
    "sbuf_loopcnt": "5",
    "scram_iterations": "4096",
    "server_check_delay": "30",
    "server_check_query": EMPTY_QUERY,
    "server_connect_timeout": "15",
    "server_fast_close": "0",
    "server_idle_timeout": "600",
    "server_lifetime": "3600",
    "server_login_retry": "15",
    "server_reset_query": "DISCARD ALL",
    "server_reset_query_always": "0",
    "server_round_robin": "0",
    "server_tls13_ciphers": "",
    "server_tls_ca_file": "",
    "server_tls_cert_file": "",
    "server_tls_ciphers": "default",
    "server_tls_key_file": "",
    "server_tls_protocols": "secure",
    "server_tls_sslmode": "prefer",
    "service_name": "pgbouncer",
    "so_reuseport": "0",
    "stats_period": "60",
    "stats_users": "",
    "suspend_timeout": "10",
    "syslog": "0",
    "syslog_facility": "daemon",
    "syslog_ident": "pgbouncer",
    "tcp_defer_accept": "1",
    "tcp_keepalive": "1",
    "tcp_keepcnt": "0",
    "tcp_keepidle": "0",
    "tcp_keepintvl": "0",
    "tcp_socket_buffer": "0",
    "tcp_user_timeout": "0",
    "track_extra_parameters": "IntervalStyle",
    "transaction_timeout": "0",
    "unix_socket_dir": "/tmp",  # noqa: S108
    "unix_socket_group": "",
    "unix_socket_mode": "0777",
    "user": "",
    "verbose": "0",
}
"""All of PgBouncer's settings, and what holds where a pgbouncer.ini leaves them out, as one would write it there."""

WITHOUT_EFFECT: Final = {
    "auth_ldap_options": "there is no auth_type ldap, which alone would use them",
    "job_name": "there is no service of Windows to name",
    "pkt_buf": "buffers have the size of what arrives",
    "sbuf_loopcnt": "each chunk that arrives is passed on by itself, so that nobody can hold up others",
    "service_name": "there is no service of Windows to name",
    "suspend_timeout": "there is no SUSPEND; so_reuseport lets a second process take over",
    "tcp_defer_accept": "connections are accepted at once, and end after client_login_timeout if nothing comes",
    "tcp_socket_buffer": "the system sizes the buffers of sockets",
}
"""What exists for PgBouncer's insides only, each with the reason for which nothing comes of it."""


def defaults() -> dict[str, Given]:
    """Return PgBouncer's defaults for the settings that pgfunnel has too."""
    return {
        name: Given(plain(name, text), Source(name, PLACE_OF_DEFAULTS))
        for name, text in DEFAULTS.items()
        if name in Settings.model_fields
    }


def differs(name: str) -> bool:
    """Tell whether a setting of both has another default in PgBouncer."""
    text = "empty" if plain(name, DEFAULTS[name]) == "" else DEFAULTS[name]
    return text != default_text(Settings.model_fields[name])


@dataclass(slots=True)
class PgBouncerReading(Reading):
    """A Reading of the section [pgbouncer], without defaults."""

    idle: dict[str, str] = field(default_factory=dict)
    """What was given and has no effect, as it was given."""
    notes: list[str] = field(default_factory=list)
    """Lines for the log."""


def read(ini: Ini) -> PgBouncerReading:
    """Read the section [pgbouncer], which may have settings that only pgfunnel knows as well."""
    reading = PgBouncerReading(notes=[*ini.notes], mistakes=[*ini.mistakes])
    for name, item in ini.sections["pgbouncer"].items():
        source = Source(name, str(item.place))
        if name in Settings.model_fields:
            reading.given[name] = Given(plain(name, item.value), source)
        elif name in WITHOUT_EFFECT:
            reading.idle[name] = item.value
            reading.notes.append(f"{name}: it has no effect: {WITHOUT_EFFECT[name]} ({source.place})")
        else:
            reading.mistakes.append(unknown(source, (*DEFAULTS, *Settings.model_fields)))
    return reading


def plain(name: str, text: str) -> object:
    """Return what a setting's text in a pgbouncer.ini means, written as in TOML; what means nothing stays as it is."""
    setting = Settings.model_fields[name]
    if setting.annotation in (int, int | Percent) and takes(setting).metavar != "MODE":
        return _whole_number(text)
    if setting.annotation is float:
        return _number(text)
    if setting.annotation is bool:
        return {"0": False, "1": True}.get(text, text)
    if get_origin(setting.annotation) is Literal:
        return text.lower()
    if takes(setting).metavar == "FILE":
        # Path has such a method too, which raises where there is no such home.
        return os.path.expanduser(text)  # noqa: PTH111
    return text


def _whole_number(text: str) -> int | str:
    """Read a number as C does: 0x10 is 16, and 010 is 8."""
    match = re.fullmatch(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|0([0-7]+)|([1-9][0-9]*|0))", text)
    if match is None:
        return text
    sign, hexadecimal, octal, decimal = match.groups()
    number = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return -number if sign == "-" else number


def _number(text: str) -> float | str:
    try:
        return float(text) if re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", text) else text
    except ValueError:
        return text
