"""SHOW PINS and STATEMENTS: who keeps a server connection and why, and what is prepared. Values stay hidden."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from pooler.admin.office import Office
from pooler.admin.results import Row, columns
from pooler.admin.show.table import Table
from pooler.session_state.advice import advise
from protocol.console import Kind
from protocol.fingerprint import fingerprint
from protocol.statements import Statement
from protocol.verdict import words

_TEXT, _INT4, _INT8 = Kind.TEXT, Kind.INT4, Kind.INT8
_LONGEST: Final = 200

_PINS: Final = columns(
    database=_TEXT,
    user=_TEXT,
    client=_INT4,
    server=_INT4,
    remote_pid=_INT4,
    application_name=_TEXT,
    since=_TEXT,
    seconds=_INT8,
    classes=_TEXT,
    statement=_TEXT,
    advice=_TEXT,
)
_STATEMENTS: Final = columns(clients=_INT4, servers=_INT4, bytes=_INT8, settings=_TEXT, statement=_TEXT)


def _pins(office: Office) -> Iterator[Row]:
    servers = {
        server.client.id: server for pool in office.pools for server in pool.servers if server.client is not None
    }
    for pin in office.ledger.pins:
        server = servers.get(pin.client)
        yield (
            pin.database,
            pin.user,
            pin.client,
            server.id if server is not None else None,
            int.from_bytes(server.key[:4], "big") if server is not None else None,
            pin.application,
            time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(office.wall_clock(pin.since))),
            int(office.now() - pin.since),
            ",".join(words(pin.states)),
            pin.statement,
            advise(pin.states),
        )


def _statements(office: Office) -> Iterator[Row]:
    """Yield those that most clients have first."""
    servers: Counter[Statement] = Counter()
    for pool in office.pools:
        for server in pool.servers:
            servers.update(server.state.statements)
    clients: Counter[Statement] = Counter()
    for client in list(office.clients.values()):
        clients.update(set((client.statements or {}).values()))
    known = sorted(office.library, key=lambda statement: -clients[statement])
    for statement in known:
        yield (
            clients[statement],
            servers[statement],
            statement.size,
            ", ".join(sorted(name for name, _ in statement.dialect)) or None,
            fingerprint(statement.text)[:_LONGEST],
        )


TABLES: Final = {
    "pins": Table(
        "Clients that keep their server connection: since when, by which statement, and what to do", _PINS, _pins
    ),
    "statements": Table(
        "Prepared statements, without constants: how many clients and servers have each, and its size",
        _STATEMENTS,
        _statements,
    ),
}
