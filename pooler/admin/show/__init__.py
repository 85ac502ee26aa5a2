"""What SHOW can show: tables by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pooler.admin.show import entries, pools, process, session_state, sockets, stats
from pooler.admin.show.table import Table

TABLES: Final[Mapping[str, Table]] = MappingProxyType(
    {
        name: table
        for module in (pools, sockets, stats, entries, session_state, process)
        for name, table in module.TABLES.items()
    }
)
"""All but SHOW HELP, which is no table."""
