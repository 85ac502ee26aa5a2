"""Raw protocol clients that cost next to nothing, so that what is measured is the pooler.

Trust only: no password exchange, no parsing beyond "has the server said it is ready".
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator

_SSL_REQUEST = struct.pack("!II", 8, 80877103)
READY = b"Z\x00\x00\x00\x05I"
"""ReadyForQuery outside a transaction ends every exchange here, and text cannot contain it."""

_BATCH = 100  # below PgBouncer's listen_backlog of 128, so that no connection waits for a SYN to be sent again
_PATIENCE = 60.0


def startup_message(user: str, database: str) -> bytes:
    """Build a StartupMessage for protocol 3.0."""
    body = b"".join(part.encode() + b"\0" for part in ("user", user, "database", database)) + b"\0"
    return struct.pack("!II", len(body) + 8, 196608) + body


def query_message(sql: str) -> bytes:
    """Build a simple Query."""
    body = sql.encode() + b"\0"
    return b"Q" + struct.pack("!I", len(body) + 4) + body


def drain(connection: socket.socket, size: int = 1 << 18) -> int:
    """Read until ReadyForQuery and forget the bytes. Returns how many they were."""
    buffer = memoryview(bytearray(size))
    total, tail = 0, b""
    while True:
        received = connection.recv_into(buffer)
        if not received:
            raise ConnectionError(f"closed before ReadyForQuery, after {tail!r}")
        if total == 0 and buffer[0] == ord("E"):
            raise ConnectionError(f"refused: {bytes(buffer[:received])!r}")
        total += received
        tail = (tail + bytes(buffer[max(0, received - len(READY)) : received]))[-len(READY) :]
        if tail == READY:
            return total


@contextlib.contextmanager
def connected(
    address: tuple[str, int], user: str, database: str, count: int = 1, *, tls: bool = False
) -> Iterator[list[socket.socket]]:
    """Hold `count` clients, all logged in and told that the server is ready."""
    context = _unsuspicious() if tls else None
    greeting = startup_message(user, database)
    clients: list[socket.socket] = []
    try:
        while len(clients) < count:
            batch = min(_BATCH, count - len(clients))
            for _ in range(batch):
                client = socket.create_connection(address, timeout=_PATIENCE)
                clients.append(_encrypted(client, context) if context else client)
                clients[-1].sendall(greeting)
            for client in clients[-batch:]:
                drain(client, 4096)
        yield clients
    finally:
        for client in clients:
            client.close()


def _unsuspicious() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _encrypted(client: socket.socket, context: ssl.SSLContext) -> socket.socket:
    client.sendall(_SSL_REQUEST)
    if client.recv(1) != b"S":
        raise ConnectionError("TLS was declined")
    return context.wrap_socket(client)
