"""What looking at a statement's text costs, with texts as applications send them: no rare ones, none made easy."""

import time
import timeit
from collections.abc import Callable, Mapping
from typing import Final

from benchmarks import clients
from benchmarks.figures import Figure
from benchmarks.measure import Measure
from benchmarks.servers import Pooler
from benchmarks.workload import Workload
from protocol.sql import State, classify
from protocol.statements import SHAPE, Library

_BY_HAND = """
BEGIN
;;
COMMIT
;;
SELECT 1
;;
SELECT abalance FROM pgbench_accounts WHERE aid = 817342;
;;
UPDATE pgbench_accounts SET abalance = abalance + 1531 WHERE aid = 993817;
;;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (81, 3, 993817, 1531, CURRENT_TIMESTAMP);
;;
SET client_min_messages TO warning
;;
SELECT set_config('TimeZone', 'UTC', false)
;;
DEALLOCATE pdo_stmt_0000001a
;;
SELECT id, status, payload FROM jobs WHERE status = 'ready' AND run_at <= now()
ORDER BY priority DESC, run_at FOR UPDATE SKIP LOCKED LIMIT 20
;;
INSERT INTO events (id, kind, payload, created_at) VALUES ($1, $2, $3::jsonb, $4)
ON CONFLICT (id) DO UPDATE SET payload = EXCLUDED.payload RETURNING id, created_at
;;
-- how much each warehouse still has, without what is promised already
WITH promised AS (
    SELECT fi.product_id, f.warehouse_id, sum(fi.quantity) AS quantity
    FROM fulfillments f JOIN fulfillment_items fi ON fi.fulfillment_id = f.id
    WHERE f.status IN ('created', 'packed') GROUP BY 1, 2
)
SELECT p.name, w.name, i.quantity - coalesce(promised.quantity, 0) AS free
FROM inventory i
JOIN products p ON p.id = i.product_id
JOIN warehouses w ON w.id = i.warehouse_id
LEFT JOIN promised USING (product_id, warehouse_id)
WHERE i.quantity > 0 /* and nothing that is being counted */ AND NOT i.frozen
ORDER BY p.name, w.name
;;
CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    NEW.updated_at := now();  -- in the server's own words
    IF NEW.name IS DISTINCT FROM OLD.name THEN
        PERFORM pg_notify('renamed', format('{"id": %s, "name": "%s"}', NEW.id, NEW.name));
    END IF;
    RETURN NEW;
END
$body$
"""


def _by_an_orm(tables: int) -> str:
    """Every column by name and alias, every name quoted."""
    aliases = [f"t{number}" for number in range(tables)]
    fields = ("id", "created_at", "updated_at", "name", "description", "price", "owner_id")
    columns = ", ".join(f'"{alias}"."{field}" AS "{alias}_{field}"' for alias in aliases for field in fields)
    joins = " ".join(
        f'LEFT OUTER JOIN "shop_{alias}" "{alias}" ON ("{alias}"."id" = "t0"."owner_id")' for alias in aliases
    )
    return f'SELECT {columns} FROM "shop_order" "t0" {joins} WHERE ("t0"."id" = %s AND NOT "t0"."deleted") LIMIT 21'


def _bulk(rows: int) -> str:
    values = ", ".join(
        f'({row}, \'item number {row}\', \'{{"size": "XL", "tags": ["a", "b"]}}\', 19.90, TRUE)' for row in range(rows)
    )
    return f'INSERT INTO "shop_item" ("id", "name", "details", "price", "active") VALUES {values} RETURNING "id"'


TEXTS: Final = [
    text.encode()
    for text in (
        *(text.strip() for text in _BY_HAND.split(";;\n")),
        _by_an_orm(1),
        _by_an_orm(6),
        _bulk(1),
        _bulk(20),
        # As sqlcommenter tells where a statement comes from.
        _by_an_orm(2) + " /*controller='orders',action='index',traceparent='00-5bd66ef5095369c7-00f067aa0ba902b7-01'*/",
    )
]


class Texts(Measure):
    """In this process, without a pooler."""

    name = "texts"
    beside_others = False
    most_rounds = 1
    operation = "statement"
    figures = (
        Figure("mb_per_second", "judging texts that nobody has sent before", "MB/s"),
        Figure("hit_ns", "recognising a prepared statement of 57 bytes", "ns"),
        Figure("verdict_ns", "recognising a query of 57 bytes that is not plain", "ns"),
        Figure("plain_ns", "seeing that a query of 57 bytes is plain", "ns"),
        Figure("shape_ns", "recognising one that differs from it in its numbers only", "ns"),
    )

    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        text = "SELECT abalance FROM pgbench_accounts WHERE aid = 817342;"
        query = clients.query_message(text)
        parse = b"P....\0" + text.encode() + b"\0\0\0"
        library = Library(limit=1 << 20, ignored=State.SEQUENCE)
        library.find(parse[6:])
        library.verdict(query[5:-1])
        size = sum(map(len, TEXTS))
        return {
            "mb_per_second": size / 1e6 / _seconds(100, lambda: [classify(text) for text in TEXTS]),
            # Each message is new to the hash, as it is when it has just come in.
            "hit_ns": 1e9 * _seconds(100_000, lambda: library.plain.get(parse[6:])),
            "verdict_ns": 1e9 * _seconds(100_000, lambda: library.verdict(query[5:-1])),
            "plain_ns": 1e9 * _seconds(100_000, lambda: library.is_plain_query(query)),
            "shape_ns": 1e9 * _seconds(100_000, lambda: query.translate(SHAPE) in library.shapes),
        }

    def expected_seconds(self, workload: Workload) -> float:
        return 1


def _seconds(count: int, work: Callable[[], object]) -> float:
    """CPU time of one call, as little as it ever was; calling alone, some 40 ns, is part of it."""
    return min(timeit.repeat(work, timer=time.process_time, repeat=5, number=count)) / count
