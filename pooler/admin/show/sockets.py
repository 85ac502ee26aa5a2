"""SHOW CLIENTS, SERVERS, SOCKETS, ACTIVE_SOCKETS and FDS: single connections."""

import asyncio
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pooler.admin.office import Office
from pooler.admin.results import Row, columns
from pooler.admin.session import ConsoleSession
from pooler.admin.show.table import Table, microseconds
from pooler.client import ClientSession
from pooler.entrance.login import ClientLogin
from pooler.hold import CANCELLING
from pooler.replication import Passage
from pooler.server import ServerSession
from pooler.tls.connection import encryption
from pooler.upstream.opening import ServerPool
from protocol.console import Kind
from protocol.messages import text_of

_TEXT, _INT4, _INT8, _BYTES = Kind.TEXT, Kind.INT4, Kind.INT8, Kind.BYTES

_COLUMNS: Final = columns(
    type=_TEXT,
    user=_TEXT,
    database=_TEXT,
    replication=_TEXT,
    state=_TEXT,
    addr=_TEXT,
    port=_INT4,
    local_addr=_TEXT,
    local_port=_INT4,
    connect_time=_TEXT,
    request_time=_TEXT,
    wait=_INT4,
    wait_us=_INT4,
    close_needed=_INT4,
    ptr=_TEXT,
    link=_TEXT,
    remote_pid=_INT4,
    tls=_TEXT,
    application_name=_TEXT,
    prepared_statements=_INT4,
    id=_INT4,
)
_BUFFERS: Final = columns(
    recv_pos=_INT4,
    pkt_pos=_INT4,
    pkt_remain=_INT4,
    send_pos=_INT4,
    send_remain=_INT4,
    pkt_avail=_INT4,
    send_avail=_INT4,
)
_FDS: Final = columns(
    fd=_INT4,
    task=_TEXT,
    user=_TEXT,
    database=_TEXT,
    addr=_TEXT,
    port=_INT4,
    cancel=_INT8,
    link=_INT4,
    client_encoding=_TEXT,
    std_strings=_TEXT,
    datestyle=_TEXT,
    timezone=_TEXT,
    password=_TEXT,
    scram_client_key=_BYTES,
    scram_server_key=_BYTES,
)

_UCRED: Final = struct.Struct("iII")
_APPLICATION_NAME: Final = "application_name"


class _Ends(NamedTuple):
    """The two ends of a connection."""

    addr: str
    port: int
    local_addr: str
    local_port: int


class _Kept(NamedTuple):
    """What of a connection is kept in buffers, in bytes."""

    pending: int
    """Received, and not sent on."""
    remain: int
    """Of a message whose beginning was sent on."""
    unsent: int
    """Written, and not taken by the peer."""

    @property
    def row(self) -> Row:
        """The columns of _BUFFERS."""
        return (self.pending, 0, self.remain, 0, 0, self.pending, self.unsent)


class _Socket(NamedTuple):
    """One row, with what SHOW SOCKETS has in addition."""

    row: Row
    kept: _Kept
    long_state: str
    """The state as SHOW SOCKETS calls it."""


# --- what there is to say of one


def _ends(transport: asyncio.Transport, office: Office) -> _Ends:
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if isinstance(peer, tuple) and isinstance(own, tuple):
        return _Ends(str(peer[0]), int(peer[1]), str(own[0]), int(own[1]))
    port = office.current.settings.listen_port
    return _Ends("unix", port, "unix", port)


def _peer_pid(transport: asyncio.Transport) -> int:
    """Return the process at the other end of a Unix socket; 0 for other sockets."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return 0
    try:
        return int(_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0])
    except OSError:
        return 0


def _pid(key: bytes) -> int:
    """Return the process that a server's cancel key names."""
    return int.from_bytes(key[:4], "big", signed=True)


def _tls(transport: asyncio.Transport) -> str:
    return "/".join(filter(None, encryption(transport).values()))


def _time(office: Office, moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(office.wall_clock(moment)))


def _pointer(session: ServerSession | ClientSession | ConsoleSession | None) -> str:
    """Return what links the rows of a client and of its server; ids are given to both in turn."""
    return "" if session is None else f"{session.id:#x}"


def _application_of(client: ClientSession) -> str:
    own = client.profile.settings.get(_APPLICATION_NAME) if client.profile is not None else None
    return text_of(own) if own is not None else client.login.parameters.get(_APPLICATION_NAME, "")


def _asked_at(office: Office, client: ClientSession) -> float:
    """Return when a client has sent its last request: of an idle one the janitor has seen only that it is."""
    if client.waiting:
        return client.waiting_since
    if client.server is not None:
        return _began(office, client.server)
    return client.idle_since or office.now()


def _began(office: Office, server: ServerSession) -> float:
    """Return when the query began that a server runs; between queries, its transaction."""
    return server.asked if server.asked > 0 else server.since or office.now()


def client_state(client: ClientSession) -> str:
    """Return PgBouncer's word."""
    if client.waiting:
        return "waiting"
    return "idle" if client.server is None else "active"


def server_state(server: ServerSession, stale: frozenset[ServerSession]) -> str:
    """Return PgBouncer's word; each server is in one state."""
    if server.client is not None or server.asker is not None:
        return "active"
    if server.hold & CANCELLING:
        return "being_canceled"
    if server.cleaning:
        return "tested"
    return "used" if server in stale else "idle"


# --- rows


def _client(office: Office, client: ClientSession) -> _Socket:
    state = client_state(client)
    wait = microseconds(office.now() - client.waiting_since if client.waiting else 0.0)
    row = (
        "C",
        client.login.user,
        client.login.database,
        "none",
        state,
        *_ends(client.transport, office),
        _time(office, client.connected_at),
        _time(office, _asked_at(office, client)),
        *wait,
        0,
        _pointer(client),
        _pointer(client.server),
        _peer_pid(client.transport),
        _tls(client.transport),
        _application_of(client),
        len(client.statements or ()),
        client.id,
    )
    kept = _Kept(len(client.pending), 0, client.transport.get_write_buffer_size())
    return _Socket(row, kept, "cl_waiting" if client.waiting else "cl_active")


def _passage(office: Office, passage: Passage) -> Iterator[_Socket]:
    """Yield the client and the server of one that replicates."""
    began = _time(office, passage.connected_at)
    application = passage.server.parameters.get(_APPLICATION_NAME, "")
    client, server = f"{passage.id:#x}", f"{passage.server_id:#x}"
    for side, transport, pointers, pid, id_ in (
        ("C", passage.transport, (client, server), _peer_pid(passage.transport), passage.id),
        ("S", passage.server.transport, (server, client), _pid(passage.server.key), passage.server_id),
    ):
        user = passage.login.user if side == "C" else passage.pool.user
        row = (
            *(side, user, passage.pool.database, passage.kind.value, "active"),
            *_ends(transport, office),
            *(began, began, 0, 0, int(passage.era != passage.pool.era)),
            *(*pointers, pid, _tls(transport), application, 0, id_),
        )
        kept = _Kept(0, 0, transport.get_write_buffer_size())
        yield _Socket(row, kept, "cl_active" if side == "C" else "sv_active")


def _console(office: Office, session: ConsoleSession) -> _Socket:
    row = (
        "C",
        session.login.user,
        session.login.database,
        "none",
        "active" if session.busy_since else "idle",
        *_ends(session.transport, office),
        _time(office, session.connected_at),
        _time(office, session.asked_at),
        *microseconds(office.now() - session.busy_since if session.busy_since else 0.0),
        0,
        _pointer(session),
        "",
        _peer_pid(session.transport),
        _tls(session.transport),
        session.login.parameters.get(_APPLICATION_NAME, ""),
        session.prepared_statements,
        session.id,
    )
    return _Socket(row, _Kept(0, 0, session.transport.get_write_buffer_size()), "cl_active")


def _server(office: Office, server: ServerSession, stale: frozenset[ServerSession]) -> _Socket:
    state = server_state(server, stale)
    client = server.client or server.asker
    linked = client if isinstance(client, ClientSession) else None
    row = (
        "S",
        server.pool.user,
        server.pool.database,
        "none",
        state,
        *_ends(server.transport, office),
        _time(office, server.connected_at),
        _time(office, _began(office, server)),
        0,
        0,
        int(server.retired),
        _pointer(server),
        _pointer(linked),
        _pid(server.key),
        _tls(server.transport),
        _application_of(linked) if linked is not None else "",
        len(server.state.statements),
        server.id,
    )
    kept = _Kept(
        len(server.exchange.replies_head), server.exchange.replies_rest, server.transport.get_write_buffer_size()
    )
    words = {"being_canceled": "sv_being_canceled"}
    return _Socket(row, kept, words.get(state, f"sv_{state}"))


def _opening(pool: ServerPool) -> _Socket:
    """Return the row of a connection that is being opened: there is no more of it yet than its pool."""
    row = ("S", pool.user, pool.database, "none", "new", "", 0, "", 0, "", "", 0, 0, 0, "", "", 0, "", "", 0, 0)
    return _Socket(row, _Kept(0, 0, 0), "sv_login")


def _login(office: Office, login: ClientLogin) -> _Socket:
    """Return the row of a client that is not let in yet: because of itself, or as its pool has no server."""
    user, database = (login.startup.user, login.startup.database) if login.identified else ("(nouser)", "(nodb)")
    application = login.startup.parameters.get(_APPLICATION_NAME, "") if login.identified else ""
    since = login.waiting_since if login.proven and login.waiting_since else login.since
    row = (
        *("C", user, database, "none", "waiting" if login.proven else "login"),
        *_ends(login.transport, office),
        *(_time(office, login.since), _time(office, since)),
        *microseconds(office.now() - since),
        *(0, f"{login.id:#x}", "", _peer_pid(login.transport), _tls(login.transport), application, 0, login.id),
    )
    kept = _Kept(0, 0, login.transport.get_write_buffer_size())
    return _Socket(row, kept, "cl_waiting" if login.proven else "cl_login")


def _clients(office: Office) -> Iterator[_Socket]:
    for client in list(office.clients.values()):
        if not client.ended:
            yield _client(office, client)
    for passage in office.passages:
        yield next(_passage(office, passage))
    for login in list(office.lobby.proving):
        if login.proven and not login.ended:
            yield _login(office, login)
    for session in office.consoles:
        if not session.ended:
            yield _console(office, session)


def _servers(office: Office) -> Iterator[_Socket]:
    for pool in office.pools:
        stale = frozenset(pool.stale)
        for server in list(pool.servers):
            if server in pool.servers:
                yield _server(office, server, stale)
        for _ in range(pool.opening):
            yield _opening(pool)
    for passage in office.passages:
        _, server_side = _passage(office, passage)
        yield server_side


def _logins(office: Office) -> Iterator[_Socket]:
    for queue in (office.lobby.strangers, office.lobby.queue, office.lobby.proving):
        for login in list(queue):
            if not (login.ended or login.proven):
                yield _login(office, login)


def _all(office: Office) -> Iterator[_Socket]:
    yield from _clients(office)
    yield from _servers(office)
    yield from _logins(office)


def _short(sockets: Iterable[_Socket]) -> Iterator[Row]:
    for each in sockets:
        yield each.row


def _long(sockets: Iterable[_Socket]) -> Iterator[Row]:
    for each in sockets:
        yield (*each.row[:4], each.long_state, *each.row[5:], *each.kept.row)


def _fds(office: Office) -> Iterator[Row]:
    nothing = (None,) * 7
    for client in list(office.clients.values()):
        ends = _ends(client.transport, office)
        names = client.login.user, client.login.database
        link = _fd(client.server.transport) if client.server is not None else None
        yield (_fd(client.transport), "client", *names, *ends[:2], 0, link, *nothing)
    for pool in office.pools:
        for server in list(pool.servers):
            ends = _ends(server.transport, office)
            link = _fd(server.client.transport) if server.client is not None else None
            yield (_fd(server.transport), "server", pool.user, pool.database, *ends[:2], 0, link, *nothing)


def _fd(transport: asyncio.Transport) -> int | None:
    sock = transport.get_extra_info("socket")
    return sock.fileno() if sock is not None else None


TABLES: Final = {
    "clients": Table(
        "Clients, one per row, those of the console too", _COLUMNS, lambda office: _short(_clients(office))
    ),
    "servers": Table("Server connections, one per row", _COLUMNS, lambda office: _short(_servers(office))),
    "sockets": Table(
        "Both, logins too, with what stands in their buffers", _COLUMNS + _BUFFERS, lambda office: _long(_all(office))
    ),
    "active_sockets": Table(
        "Those of them that have something in a buffer",
        _COLUMNS + _BUFFERS,
        lambda office: _long(each for each in _all(office) if any(each.kept)),
    ),
    "fds": Table("File descriptors, without keys and passwords; deprecated in PgBouncer", _FDS, _fds, for_admins=True),
}
