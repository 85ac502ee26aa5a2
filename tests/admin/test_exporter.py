"""What monitoring asks of PgBouncer, as it asks: by simple queries over one connection, columns found by their names.

The queries and columns are those of prometheus-community/pgbouncer_exporter (collector.go), which dashboards stand on.
"""

from typing import Final

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support.pgfunnel import Pgfunnel

LABELS: Final = {
    "databases": ("name", "host", "port", "database", "force_user", "pool_mode"),
    "pools": ("database", "user"),
    "stats_totals": ("database",),
}
NUMBERS: Final = {
    "databases": ("pool_size", "max_connections", "current_connections", "paused", "disabled"),
    "stats_totals": (
        "query_count",
        "query_time",
        "bytes_received",
        "bytes_sent",
        "wait_time",
        "xact_count",
        "xact_time",
        "client_parse_count",
        "server_parse_count",
        "bind_count",
        "server_assignment_count",
    ),
    "pools": (
        "cl_active",
        "cl_active_cancel_req",
        "cl_waiting",
        "cl_waiting_cancel_req",
        "sv_active",
        "sv_active_cancel",
        "sv_being_canceled",
        "sv_idle",
        "sv_used",
        "sv_tested",
        "sv_login",
        "maxwait",
        "maxwait_us",
    ),
    "stats": (
        *("total_xact_count", "total_query_count", "total_received", "total_sent"),
        *("total_xact_time", "total_query_time", "total_wait_time"),
        *("avg_xact_count", "avg_query_count", "avg_recv", "avg_sent", "avg_xact_time", "avg_query_time"),
        "avg_wait_time",
    ),
}
LISTS: Final = {
    *("databases", "users", "pools", "free_clients", "used_clients", "login_clients", "free_servers", "used_servers"),
    *("dns_names", "dns_zones", "dns_queries"),
}

# Types by OID, in order: what a driver that reads by position counts on. Those of PgBouncer 1.26.
TYPES: Final = {
    "clients": "ssssssisissiiississii",
    "servers": "ssssssisissiiississii",
    "sockets": "ssssssisissiiississiiiiiiiii",
    "active_sockets": "ssssssisissiiississiiiiiiiii",
    "config": "ssss",
    "databases": "ssissiiiissiiiiii",
    "dns_hosts": "sqs",
    "dns_zones": "sqi",
    "fds": "issssiqisssssbb",
    "lists": "si",
    "mem": "siiii",
    "peers": "isii",
    "peer_pools": "iiiii",
    "pools": "ssiiiiiiiiiiiiiss",
    "state": "ss",
    "stats": "s" + "N" * 24,
    "stats_totals": "s" + "N" * 12,
    "stats_averages": "s" + "N" * 12,
    "totals": "sN",
    "users": "ssssiiii",
    "version": "s",
}
OIDS: Final = {"s": 25, "i": 23, "q": 20, "N": 1700, "b": 17}


@pytest.fixture
def scrape(pooler: Pgfunnel) -> psycopg.Connection[dict[str, object]]:
    """As lib/pq does where there are no arguments: simple queries."""
    return psycopg.connect(
        pooler.url("pgbouncer", "alice"), autocommit=True, row_factory=dict_row, cursor_factory=psycopg.ClientCursor
    )


def test_the_exporter_finds_what_it_looks_for(scrape: psycopg.Connection[dict[str, object]]) -> None:
    with scrape:
        version = scrape.execute("SHOW VERSION;").fetchall()
        assert [list(row) for row in version] == [["version"]]
        lists = {str(row["list"]): row["items"] for row in scrape.execute("SHOW LISTS;").fetchall()}
        assert lists.keys() >= LISTS
        config = {row["key"]: row["value"] for row in scrape.execute("SHOW CONFIG;").fetchall()}
        assert float(str(config["max_client_conn"])) > 0
        assert float(str(config["max_user_connections"])) >= 0
        for table, columns in NUMBERS.items():
            rows = scrape.execute(f"SHOW {table};".encode()).fetchall()
            assert rows
            for row in rows:
                assert all(row[label] is None or isinstance(row[label], (str, int)) for label in LABELS.get(table, ()))
                assert all(float(str(row[column])) >= 0 for column in columns)


@pytest.mark.parametrize("table", TYPES)
def test_columns_are_of_pgbouncer_s_types_in_its_order(pooler: Pgfunnel, table: str) -> None:
    with psycopg.connect(pooler.url("pgbouncer"), autocommit=True) as connection:
        description = connection.execute(f"SHOW {table}".encode()).description
    assert description is not None
    assert [column.type_code for column in description] == [OIDS[kind] for kind in TYPES[table]]


def test_the_version_that_monitoring_reads_is_that_of_pgbouncer(scrape: psycopg.Connection[dict[str, object]]) -> None:
    with scrape:
        (row,) = scrape.execute("SHOW VERSION").fetchall()
    assert str(row["version"]).startswith("PgBouncer 1.26.0 (pgfunnel ")
