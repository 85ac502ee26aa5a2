"""A scripted stand-in for Postgres, for what a real one does not do on demand.

A script is an ordinary function that is called with each new connection, in a thread of its own, and says from
top to bottom what it reads, what it answers and when it leaves: the connection is closed when it returns.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from tests.support.wire import Message, message

PARAMETERS: Mapping[str, str] = {
    "application_name": "",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "integer_datetimes": "on",
    "server_encoding": "UTF8",
    "server_version": "18.0",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
}


class Conversation:
    """One connection that pgfunnel opened, `number` counting them from 1."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.socket = sock
        self.number = number
        self.startup_parameters: dict[str, str] = {}

    def read_startup(self) -> dict[str, str]:
        """Return the StartupMessage's parameters, after refusing TLS if asked; a CancelRequest ends all."""
        while True:
            (length,) = struct.unpack("!I", self._exactly(4))
            body = self._exactly(length - 4)
            (code,) = struct.unpack("!I", body[:4])
            if code in (80877103, 80877104):
                self.send(b"N")
            elif code == 80877102:
                raise EOFError("a CancelRequest, not a login")
            else:
                words = body[4:].rstrip(b"\0").decode().split("\0")
                self.startup_parameters = dict(zip(words[::2], words[1::2], strict=False))
                return self.startup_parameters

    def read(self) -> Message:
        kind, length = struct.unpack("!cI", self._exactly(5))
        return Message(kind.decode(), self._exactly(length - 4))

    def send(self, *messages: bytes) -> None:
        self.socket.sendall(b"".join(messages))

    def accept_login(self) -> None:
        """Play the whole login with trust."""
        self.read_startup()
        self.log_in()

    def log_in(self) -> None:
        """Say what follows a startup or a password that is right."""
        self.send(message("R", struct.pack("!I", 0)))
        for name, value in PARAMETERS.items():
            self.send(message("S", f"{name}\0{value}\0".encode()))
        self.send(message("K", struct.pack("!II", 4000 + self.number, 1)), self.ready())

    def serve(self) -> None:
        """Answer every simple query with the connection's number, until the peer leaves."""
        while (request := self.read()).kind != "X":
            if request.kind == "Q":
                self.answer(str(self.number))
            elif request.kind == "S":
                self.send(self.ready())

    def answer(self, value: str) -> None:
        self.send(self.row_description(), self.row(value), message("C", b"SELECT 1\0"), self.ready())

    @staticmethod
    def ready(status: str = "I") -> bytes:
        return message("Z", status.encode())

    @staticmethod
    def row_description(name: str = "value") -> bytes:
        return message("T", struct.pack("!H", 1) + name.encode() + b"\0" + struct.pack("!IHIhiH", 0, 0, 25, -1, -1, 0))

    @staticmethod
    def row(value: str) -> bytes:
        return message("D", struct.pack("!HI", 1, len(value.encode())) + value.encode())

    def error(self, sqlstate: str, text: str, severity: str = "FATAL") -> None:
        fields = f"S{severity}\0V{severity}\0C{sqlstate}\0M{text}\0\0"
        self.send(message("E", fields.encode()))

    def reset(self) -> None:
        """End with RST when the script returns, as a crashed host does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def wait_until_closed(self) -> None:
        """Say nothing until the peer gives up."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(65536):
                pass

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.socket.recv(count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data


class ScriptedServer:
    """Listens, on a free port unless one is given, and plays `script` with each connection. It counts them."""

    def __init__(self, script: Callable[[Conversation], None], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._script = script
        self.host = host
        self.port = port
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self.connections = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server((self.host, self.port))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for sock in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def url(self, dbname: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@{self.host}:{self.port}/{dbname}"

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.append(sock)
                self.connections += 1
                self._start(self._play, Conversation(sock, self.connections))

    def _play(self, conversation: Conversation) -> None:
        # The peer may leave at any time: that ends the script, as it ends a backend of Postgres.
        with contextlib.suppress(ConnectionError, EOFError):
            self._script(conversation)
        with self._lock:
            self._sockets.remove(conversation.socket)
            conversation.socket.close()
