"""A client of the leak torture: one connection, the tokens its queries carry, and what it must not see."""

import asyncio
import itertools
import random
import re
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tests.support.wire import Login, Message, cancel_request, startup, terminate

TOKEN: Final = re.compile(rb"token-\d+-\d+-[0-9a-f]+\.")
ANSWER_TIMEOUT: Final = 60.0  # longer than any queue here: an answer that never comes is a failure too


class TortureError(Exception):
    """A client saw what it must not see, or did not see what it must."""


@dataclass
class Report:
    """What happened: `failures` must stay empty; `habits` says how often each was practised to its end."""

    seconds: float = 0.0
    connections: int = 0
    tokens: int = 0
    cancelled: int = 0
    habits: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        habits = ", ".join(f"{name} {times}" for name, times in sorted(self.habits.items()))
        outcome = [f"{len(self.failures)} failures", *self.failures[:20]] if self.failures else ["no token leaked"]
        counts = f"{self.connections} connections, {self.tokens} tokens, {self.cancelled} queries cancelled"
        return "\n".join([f"{counts} in {self.seconds:.1f} s", habits, *outcome])


@dataclass(frozen=True)
class Target:
    """Where to connect, and as whom."""

    host: str
    port: int
    user: str
    dbname: str
    password: str = ""


class Answer:
    """What came up to ReadyForQuery: the first column of each row, COPY data, the first error, the status."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.copied = b""
        self.error = ""
        self.message = ""
        self.status = ""

    def __str__(self) -> str:
        return f"{self.rows} {self.status} {self.error} {self.message}"

    def add(self, message: Message) -> None:
        if message.kind == "D":
            self.rows.append(str(message.columns[0]))
        elif message.kind == "d":
            self.copied += message.payload
        elif message.kind == "E":
            self.error, self.message = message.fields["C"], message.fields["M"]
        elif message.kind == "Z":
            self.status = message.payload.decode()


class Client:
    """One connection and the tokens that its queries carry."""

    def __init__(self, target: Target, number: int, rng: random.Random, report: Report) -> None:
        self.target = target
        self.number = number
        self.rng = rng
        self.report = report
        self.login = Login(target.user, target.password)
        self.pieces = rng.random() < 0.2
        self._tokens: set[str] = set()
        self._serial = itertools.count()

    async def connect(self, receive_buffer: int | None = None) -> None:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)  # noqa: FBT003
        await asyncio.get_running_loop().sock_connect(sock, (self.target.host, self.target.port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock)
        self.report.connections += 1
        await self.send(startup({"user": self.target.user, "database": self.target.dbname}))
        while not self.login.ready:
            if answer := self.login.answer(await self.read()):
                await self.send(answer)

    def token(self) -> str:
        """Make a token that no other query has."""
        token = f"token-{self.number}-{next(self._serial)}-{self.rng.getrandbits(32):08x}."
        self._tokens.add(token)
        self.report.tokens += 1
        return token

    def tokens(self, most: int) -> list[str]:
        return [self.token() for _ in range(self.rng.randint(1, most))]

    async def send(self, *messages: bytes) -> None:
        data = b"".join(messages)
        while self.pieces and data and self.rng.random() < 0.9:
            size = self.rng.randint(1, 40)
            self.writer.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)
        self.writer.write(data)
        await self.writer.drain()

    async def read(self) -> Message:
        """Read a message, whatever it is: no token but ours may be in it."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            kind, length = struct.unpack("!cI", await self.reader.readexactly(5))
            message = Message(kind.decode(), await self.reader.readexactly(length - 4))
        for token in TOKEN.findall(message.payload):
            if token.decode() not in self._tokens:
                raise TortureError(f"client {self.number} was sent {token.decode()} in {message}")
        return message

    async def read_until(self, kind: str) -> None:
        while (message := await self.read()).kind != kind:
            if message.kind in "EZ":
                raise TortureError(f"client {self.number} waited for {kind} and got {message}")

    async def answer(self) -> Answer:
        answer = Answer()
        while not answer.status:
            answer.add(await self.read())
        return answer

    async def expect(self, *rows: str, status: str = "I", error: str = "") -> None:
        """Read an answer, which must be exactly this."""
        answer = await self.answer()
        if (answer.rows, answer.status, answer.error) != (list(rows), status, error):
            raise TortureError(f"client {self.number} expected {list(rows)} {status} {error}, got {answer}")

    async def cancel(self, key: bytes) -> None:
        """Send a CancelRequest and wait until it is settled, as PQcancel does."""
        reader, writer = await asyncio.open_connection(self.target.host, self.target.port)
        writer.write(cancel_request(self.login.backend_pid, key))
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    def vanish(self) -> None:
        """Die without a word: the peer gets a reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    @property
    def gone(self) -> bool:
        return self.writer.transport.is_closing()

    async def leave(self) -> None:
        if not self.gone:
            self.writer.write(terminate())
            self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()
