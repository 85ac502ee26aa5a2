"""The clients of a program: each does one step at a time, and writes down what it is told in words that compare.

Left out is what no client may rely on: process ids, where in the server's source an error was raised, and the numbers
of objects that each run makes anew. ParameterStatus counts by the values a client ends with.
"""

import select
import struct
from collections.abc import Callable
from typing import Final

from tests.session_state.notation import Hear, Leave, Login, Say
from tests.support.wire import Message, ServerError, Wire

FIRST_NORMAL_OID: Final = 16384
REPLIES: Final = "123TnCsI"
"""The messages one of which answers each message of an extended query, unless it fails."""
TIMEOUT: Final = 5.0
PATIENCE: Final = 0.005


class PatientWire(Wire):
    """Says so when an answer is long in coming, then waits on."""

    def __init__(self, host: str, port: int, impatient: Callable[[], None] = lambda: None) -> None:
        super().__init__(host, port, timeout=TIMEOUT)
        self._impatient = impatient

    def receive(self) -> bytes:
        if not self.readable(PATIENCE):
            self._impatient()
        return super().receive()

    def readable(self, timeout: float) -> bool:
        """Something has come, or does within `timeout` seconds."""
        return bool(self._buffer) or bool(select.select([self.socket], [], [], timeout)[0])


class Client:
    """One client. `connect` opens its connection; `status` is ReadyForQuery's, or "-" in the middle of an answer."""

    def __init__(self, user: str, database: str, connect: Callable[[], Wire]) -> None:
        self.status = "I"
        self.parameters: dict[str, str] = {}
        self.backend_pids: list[int] = []
        self._user = user
        self._database = database
        self._connect = connect
        self._wire: Wire | None = None
        self._notifications: list[str] = []

    @property
    def at_boundary(self) -> bool:
        return self.status == "I"

    @property
    def present(self) -> bool:
        return self._wire is not None

    def do(self, action: Say | Login | Hear | Leave) -> list[str]:
        match action:
            case Login(parameters):
                return self.login(parameters)
            case Say():
                return self.say(action)
            case Hear(notifications):
                return self.hear(notifications)
            case Leave(politely):
                return self.leave(politely=politely)

    def login(self, parameters: dict[str, str]) -> list[str]:
        if self._wire is not None:
            self.leave()
        database = parameters.get("database", self._database)
        user = parameters.get("user", self._user)
        rest = {name: value for name, value in parameters.items() if name not in {"user", "database"}}
        self._wire = self._connect()
        try:
            self._wire.login(user, database, **rest)
        except ServerError as refused:
            self._end()
            return [f"refused: {refused.severity} {refused}"]
        except (OSError, EOFError) as error:
            self._end()
            return [f"broken: {error!r}"]
        self.backend_pids.append(self._wire.backend_pid)
        self.parameters = self._wire.parameters
        self.status = "I"
        return []

    def say(self, say: Say) -> list[str]:
        if self._wire is None and (refused := self.login({})):
            return refused
        assert self._wire is not None
        told: list[Message] = []
        try:
            self._wire.send(say.data)
            self._hear_out(self._wire, say, told)
        except (OSError, EOFError) as error:
            self._end()
            return [*self._in_words(told), f"broken: {type(error).__name__}"]
        return self._in_words(told)

    def _hear_out(self, wire: Wire, say: Say, told: list[Message]) -> None:
        """Read the whole answer, or up to the error that lets Postgres skip the rest until Sync."""
        for _ in range(say.readies):
            told.append(wire.read())
            while told[-1].kind != "Z":
                told.append(wire.read())
            self.status = told[-1].payload.decode()
        if say.replies or not say.readies:
            self.status = "-"
        replies = 0
        while replies < say.replies:
            told.append(wire.read())
            replies += say.replies if told[-1].kind == "E" else told[-1].kind in REPLIES

    def hear(self, count: int) -> list[str]:
        try:
            while self._wire is not None and len(self._notifications) < count:
                self._in_words([self._wire.read()])
        except (OSError, EOFError) as error:
            return [*self.heard(), f"broken: {type(error).__name__}"]
        return self.heard()

    def heard(self) -> list[str]:
        """Return the notifications that no step has reported yet."""
        heard, self._notifications = self._notifications, []
        return heard

    def hear_end(self) -> list[str]:
        """Return the last words of who ends the connection."""
        return self._in_words(self._wire.read_to_end()) if self._wire is not None else []

    def leave(self, *, politely: bool = True) -> list[str]:
        if self._wire is not None:
            if politely:
                self._wire.terminate()
            else:
                self._wire.close()
        self._end()
        return []

    def _end(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire = None
        self.status = "I"
        self.parameters = {}

    def _in_words(self, told: list[Message]) -> list[str]:
        words = []
        for message in told:
            if message.kind == "S":
                name, value, _ = message.payload.decode(errors="backslashreplace").split("\0")
                self.parameters = {**self.parameters, name: value}
            elif message.kind == "A":
                channel, payload, _ = message.payload[4:].split(b"\0")
                self._notifications.append(f"notified: {channel.decode()} {payload.decode()}")
            else:
                words.append(in_words(message))
        return words


def in_words(message: Message) -> str:
    """Write a message down so that equal words mean that a client has no reason to notice a difference."""
    kind, payload = message
    match kind:
        case "D":
            return f"row {_row(payload)}"
        case "T":
            return f"columns {_columns(payload)}"
        case "t":
            return f"parameters {[_oid(oid) for oid in struct.unpack(f'!{len(payload[2:]) // 4}I', payload[2:])]}"
        case "E" | "N":
            fields = {letter: text for letter, text in message.fields.items() if letter not in "SFLR"}
            return ("error " if kind == "E" else "notice ") + " ".join(f"{key}={text}" for key, text in fields.items())
        case "C":
            return f"complete {payload[:-1].decode()}"
        case "Z":
            return f"ready {payload.decode()}"
    return NAMES.get(kind, kind) + (f" {payload!r}" if payload else "")


NAMES: Final = {
    "1": "parsed", "2": "bound", "3": "closed", "n": "no data", "s": "suspended", "I": "empty query",
    "G": "copy in", "H": "copy out", "d": "copy data", "c": "copy done", "V": "function result",
}  # fmt: skip


def _row(payload: bytes) -> list[str | None]:
    (count,) = struct.unpack_from("!H", payload)
    values: list[str | None] = []
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", payload, at)
        at += 4
        values.append(None if length < 0 else payload[at : at + length].decode(errors="backslashreplace"))
        at += max(length, 0)
    return values


def _columns(payload: bytes) -> list[str]:
    """Return each column as name:type, with the table's column, the length, modifier and format where they tell."""
    (count,) = struct.unpack_from("!H", payload)
    columns, at = [], 2
    for _ in range(count):
        end = payload.index(0, at)
        table, attribute, oid, length, modifier, form = struct.unpack_from("!IhIhih", payload, end + 1)
        name = payload[at:end].decode(errors="backslashreplace")
        columns.append(
            f"{name}:{_oid(oid)}{f' of {_oid(table)}.{attribute}' if table else ''} {length}/{modifier}/{form}"
        )
        at = end + 19
    return columns


def _oid(number: int) -> str:
    return "made" if number >= FIRST_NORMAL_OID else str(number)
