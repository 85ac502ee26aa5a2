"""A raw PostgreSQL wire client on a blocking socket: builds and reads messages, logs in, asserts nothing.

Independent of the product's protocol package on purpose: a mistake there must not hide itself here.
Message formats: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

import hashlib
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from scramp import ScramClient

PROTOCOL_3_0 = 3 << 16
PROTOCOL_3_2 = 3 << 16 | 2
SSL_REQUEST = struct.pack("!II", 8, 80877103)
GSSENC_REQUEST = struct.pack("!II", 8, 80877104)


class Message(NamedTuple):
    """One message of the server: its type byte and what follows the length."""

    kind: str
    payload: bytes

    @property
    def raw(self) -> bytes:
        return message(self.kind, self.payload)

    @property
    def fields(self) -> dict[str, str]:
        """The fields of an ErrorResponse or NoticeResponse by letter: S severity, C SQLSTATE, M message."""
        parts = self.payload.rstrip(b"\0").split(b"\0")
        return {part[:1].decode(): part[1:].decode(errors="replace") for part in parts}

    @property
    def columns(self) -> list[str | None]:
        """The values of a DataRow in text format."""
        return list(_columns(self.payload))


class ServerError(Exception):
    """The server answered ErrorResponse where the script counted on success."""

    def __init__(self, error: Message) -> None:
        super().__init__(f"{error.fields['C']}: {error.fields['M']}")
        self.sqlstate = error.fields["C"]
        self.message = error.fields["M"]
        self.severity = error.fields["S"]


class Login:
    """The client's half of a login, without a socket: `answer` each message of the server until `ready`."""

    def __init__(self, user: str, password: str = "") -> None:
        self.ready = False
        self.parameters: dict[str, str] = {}
        self.backend_pid = 0
        self.cancel_key = b""
        self._user = user
        self._password = password
        self._scram: ScramClient | None = None

    def answer(self, told: Message) -> bytes:
        """Return what to send, often nothing; raises ServerError if the server refuses."""
        kind, payload = told
        if kind == "E":
            raise ServerError(told)
        if kind == "R":
            return self._authenticate(struct.unpack("!I", payload[:4])[0], payload[4:])
        if kind == "S":
            name, value, _ = payload.decode().split("\0")
            self.parameters[name] = value
        elif kind == "K":
            self.backend_pid, self.cancel_key = struct.unpack("!I", payload[:4])[0], payload[4:]
        elif kind == "Z":
            self.ready = True
        return b""

    def _authenticate(self, method: int, data: bytes) -> bytes:
        if method == 3:
            return password_message(self._password)
        if method == 5:
            return password_message(md5_password(self._user, self._password, data))
        if method == 10:
            self._scram = ScramClient(["SCRAM-SHA-256"], self._user, self._password)
            return sasl_initial_response("SCRAM-SHA-256", self._scram.get_client_first().encode())
        if method == 11 and self._scram is not None:
            self._scram.set_server_first(data.decode())
            return message("p", self._scram.get_client_final().encode())
        if method == 12 and self._scram is not None:
            self._scram.set_server_final(data.decode())
        return b""


class Wire:
    """One connection. A read gives up after `timeout` seconds, so that a test fails instead of hanging.

    As for libpq, a `host` that begins with a slash is the directory of a Unix socket.
    """

    def __init__(self, host: str, port: int, *, timeout: float = 20.0) -> None:
        if host.startswith("/"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            try:
                self.socket.connect(f"{host}/.s.PGSQL.{port}")
            except OSError:
                self.socket.close()
                raise
        else:
            self.socket = socket.create_connection((host, port), timeout=timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.parameters: dict[str, str] = {}
        self.backend_pid = 0
        self.cancel_key = b""
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, *messages: bytes) -> None:
        self.socket.sendall(b"".join(messages))

    def receive(self) -> bytes:
        """Whatever bytes come next; empty at the end of the stream."""
        return self.socket.recv(65536)

    def read_bytes(self, count: int) -> bytes:
        while len(self._buffer) < count:
            chunk = self.receive()
            if not chunk:
                raise EOFError(f"closed with {len(self._buffer)} of {count} bytes read")
            self._buffer += chunk
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def read(self) -> Message:
        header = self.read_bytes(5)
        (length,) = struct.unpack("!I", header[1:])
        return Message(chr(header[0]), self.read_bytes(length - 4))

    def read_until(self, kinds: str = "Z") -> list[Message]:
        """Return the messages up to and including the first one of `kinds`."""
        messages = [self.read()]
        while messages[-1].kind not in kinds:
            messages.append(self.read())
        return messages

    def read_to_end(self) -> list[Message]:
        """Return the messages up to the end of the stream; a reset counts as its end."""
        messages = []
        try:
            while True:
                messages.append(self.read())
        except (EOFError, ConnectionResetError):
            return messages

    def login(self, user: str, dbname: str, password: str = "", **parameters: str) -> Self:
        """Log in by whatever method the server asks for, up to ReadyForQuery."""
        self.send(startup({"user": user, "database": dbname, **parameters}))
        self.authenticate(user, password)
        return self

    def authenticate(self, user: str, password: str) -> list[Message]:
        """Answer the server's questions up to ReadyForQuery; raises ServerError if it refuses."""
        login = Login(user, password)
        seen = []
        while not login.ready:
            seen.append(self.read())
            if answer := login.answer(seen[-1]):
                self.send(answer)
        self.parameters = login.parameters
        self.backend_pid = login.backend_pid
        self.cancel_key = login.cancel_key
        return seen

    def query(self, sql: str) -> list[Message]:
        """Return a simple query's answer, up to ReadyForQuery."""
        self.send(query(sql))
        return self.read_until()

    def rows(self, sql: str) -> list[list[str | None]]:
        """Return a simple query's rows; raises ServerError."""
        answer = self.query(sql)
        for error in answer:
            if error.kind == "E":
                raise ServerError(error)
        return [row.columns for row in answer if row.kind == "D"]

    def value(self, sql: str) -> str | None:
        return self.rows(sql)[0][0]

    def error(self) -> ServerError:
        """Return the next ErrorResponse, whatever comes before it."""
        return ServerError(self.read_until("E")[-1])

    def terminate(self) -> None:
        """Leave politely."""
        self.send(terminate())
        self.close()

    def reset(self) -> None:
        """Leave as a killed process on a lossy network does: with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.socket.close()


def message(kind: str, payload: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!I", len(payload) + 4) + payload


def startup(parameters: Mapping[str, str], protocol: int = PROTOCOL_3_0) -> bytes:
    body = struct.pack("!I", protocol)
    for name, value in parameters.items():
        body += _text(name) + _text(value)
    return struct.pack("!I", len(body) + 5) + body + b"\0"


def cancel_request(pid: int, key: bytes) -> bytes:
    return struct.pack("!III", 12 + len(key), 80877102, pid) + key


def query(sql: str) -> bytes:
    return message("Q", _text(sql))


def parse(sql: str, name: str = "", types: Sequence[int] = ()) -> bytes:
    return message("P", _text(name) + _text(sql) + struct.pack(f"!H{len(types)}I", len(types), *types))


def bind(*values: str | None, statement: str = "", portal: str = "", binary_results: bool = False) -> bytes:
    body = _text(portal) + _text(statement) + struct.pack("!HH", 0, len(values))
    for value in values:
        body += struct.pack("!i", -1) if value is None else _sized(value.encode())
    return message("B", body + struct.pack("!HH", 1, int(binary_results)))


def describe_statement(name: str = "") -> bytes:
    return message("D", b"S" + _text(name))


def describe_portal(name: str = "") -> bytes:
    return message("D", b"P" + _text(name))


def execute(portal: str = "", max_rows: int = 0) -> bytes:
    return message("E", _text(portal) + struct.pack("!I", max_rows))


def close_statement(name: str = "") -> bytes:
    return message("C", b"S" + _text(name))


def close_portal(name: str = "") -> bytes:
    return message("C", b"P" + _text(name))


def sync() -> bytes:
    return message("S")


def flush() -> bytes:
    return message("H")


def extended(sql: str, *values: str | None) -> bytes:
    """Parse, Bind, Describe and Execute of the unnamed statement; the Sync is the script's."""
    return parse(sql) + bind(*values) + describe_portal() + execute()


def copy_data(data: bytes) -> bytes:
    return message("d", data)


def copy_done() -> bytes:
    return message("c")


def copy_fail(reason: str) -> bytes:
    return message("f", _text(reason))


def function_call(oid: int, *arguments: bytes) -> bytes:
    body = struct.pack("!IHHH", oid, 1, 1, len(arguments))
    return message("F", body + b"".join(_sized(argument) for argument in arguments) + struct.pack("!H", 1))


def password_message(password: str) -> bytes:
    return message("p", _text(password))


def sasl_initial_response(mechanism: str, data: bytes) -> bytes:
    return message("p", _text(mechanism) + _sized(data))


def md5_password(user: str, password: str, salt: bytes) -> str:
    inner = hashlib.md5(password.encode() + user.encode()).hexdigest()
    return "md5" + hashlib.md5(inner.encode() + salt).hexdigest()


def terminate() -> bytes:
    return message("X")


def kinds(messages: Sequence[Message]) -> str:
    """Return the type bytes of an answer as one word, such as TDCZ."""
    return "".join(each.kind for each in messages)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _sized(value: bytes) -> bytes:
    return struct.pack("!I", len(value)) + value


def _columns(payload: bytes) -> Iterator[str | None]:
    (count,) = struct.unpack_from("!H", payload)
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", payload, at)
        at += 4
        if length < 0:
            yield None
        else:
            yield payload[at : at + length].decode()
            at += length
