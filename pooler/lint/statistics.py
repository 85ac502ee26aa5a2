"""Statements out of pg_stat_statements."""

from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from config.upstream import mask
from pooler.lint.statements import InputError, Statement
from protocol.sql import clauses

_CONNECT_TIMEOUT_S: Final = 15.0
_WHERE: Final = """
SELECT pg_catalog.quote_ident(nspname)
FROM pg_catalog.pg_extension JOIN pg_catalog.pg_namespace ON pg_namespace.oid = extnamespace
WHERE extname = 'pg_stat_statements'
"""
_STATISTICS: Final = """
SELECT query, calls, queryid FROM {schema}.pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""


async def statistics(url: str) -> AsyncIterator[Statement]:
    """Yield what was run in the URL's database. Raises InputError, which shows no password."""
    try:
        # Without its cache of prepared statements it works through any pooler.
        connection = await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_S, statement_cache_size=0)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        raise InputError(f"{mask(url)}: no connection: {error}") from None
    try:
        schema = await connection.fetchval(_WHERE)
        if schema is None:
            raise InputError(f"{mask(url)}: pg_stat_statements is not installed in this database (CREATE EXTENSION)")
        async with connection.transaction(readonly=True):
            async for query, calls, queryid in connection.cursor(_STATISTICS.format(schema=schema)):
                for clause in clauses((query or "").encode()):
                    yield Statement(clause.text, clause.verdict, "pg_stat_statements", queryid, calls)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise InputError(f"{mask(url)}: {error}") from None
    finally:
        await connection.close()
