"""docs/console.md tells of every command, every table and every column, and of nothing else."""

import re
from pathlib import Path

from pooler.admin.interpreter import COMMANDS
from pooler.admin.show import TABLES

TEXT = (Path(__file__).parents[2] / "docs" / "console.md").read_text()


def test_every_column_of_every_table_is_explained() -> None:
    told: dict[str, set[str]] = {}
    for heading, body in re.findall(r"^### SHOW (.+)\n((?:(?!#).*\n)*)", TEXT, re.MULTILINE):
        cells = re.findall(r"^\| (`.*?) \|", body, re.MULTILINE)
        columns = {column for cell in cells for column in re.findall(r"`(\w+)`", cell)}
        told |= {table.lower(): columns for table in heading.split(", ")}
    buffers = {column.name for column in TABLES["sockets"].columns[len(TABLES["clients"].columns) :]}
    for name in ("clients", "servers"):
        told[name] = told[name] - buffers
    assert told == {name: {column.name for column in table.columns} for name, table in TABLES.items()}


def test_every_command_is_explained() -> None:
    (table,) = re.findall(r"^## Commands\n\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    told = set(re.findall(r"`([A-Z_]+)", "".join(line.split("|")[1] for line in table.splitlines())))
    assert told == {*map(str.upper, COMMANDS), "SET", "SHOW"}
