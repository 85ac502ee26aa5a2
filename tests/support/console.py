"""A client of the console for tests: commands by name, tables as rows by column."""

from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.rows import dict_row

from tests.support.pgfunnel import Pgfunnel

Shown = dict[str, Any]


class Console:
    """Logged in to the console of a pgfunnel."""

    def __init__(self, pooler: Pgfunnel, user: str = "postgres", dbname: str = "pgbouncer") -> None:
        self.connection = psycopg.connect(pooler.url(dbname, user), autocommit=True, row_factory=dict_row)
        self.notices: list[str] = []
        self.connection.add_notice_handler(self._noticed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def do(self, command: str) -> str:
        """Return the command's tag; raises psycopg.Error."""
        return self.connection.execute(command.encode()).statusmessage or ""

    def show(self, table: str, **where: object) -> list[Shown]:
        """Return those rows of a table that have these values."""
        rows = self.connection.execute(f"SHOW {table}".encode()).fetchall()
        return [row for row in rows if where.items() <= row.items()]

    def one(self, table: str, **where: object) -> Shown:
        """Return the one row that there is."""
        (row,) = self.show(table, **where)
        return row

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        self.notices.append(f"{notice.message_primary}\n{notice.message_detail or ''}")


def refused(console: Console, command: str) -> psycopg.Error:
    """Return the error that a command ends with."""
    try:
        tag = console.do(command)
    except psycopg.Error as error:
        return error
    raise AssertionError(f"{command} was carried out: {tag}")
