"""A DNS server on loopback that says what a test wants, and hears what it is asked."""

import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

A: Final = 1
SOA: Final = 6
NXDOMAIN: Final = 3
SERVFAIL: Final = 2


class DnsServer:
    """Knows IPv4 addresses only. Change `names` at any time; `silent`: hear, and say nothing."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.ttl = 300
        self.serial = 0
        """That of every zone; 0: there is none."""
        self.silent = False
        self.broken = False
        """It answers that it can't."""
        self.asked: list[str] = []
        """The names whose addresses it was asked for."""
        self.zones: list[str] = []
        """The zones whose serial number it was asked for."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def resolv_conf(self, directory: Path) -> Path:
        """Return a file that names this server, and it alone."""
        path = directory / "resolv.conf"
        path.write_text(f"nameserver 127.0.0.1:{self.port}\noptions timeout:1 attempts:1\n")
        return path

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))  # which ends it
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, peer = self._socket.recvfrom(512)
            if not question:
                return
            answer = self._answer(question)
            if not self.silent:
                self._socket.sendto(answer, peer)

    def _answer(self, question: bytes) -> bytes:
        labels = []
        at = 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode())
            at += 1 + question[at]
        name = ".".join(labels).lower()
        (kind,) = struct.unpack_from("!H", question, at + 1)
        if kind in (A, SOA):
            (self.asked if kind == A else self.zones).append(name)
        addresses = self.names.get(name)
        code = SERVFAIL if self.broken else NXDOMAIN if addresses is None else 0
        found = addresses if addresses and kind == A and not code else []
        records = b"".join(
            struct.pack("!HHHIH", 0xC00C, A, 1, self.ttl, 4) + socket.inet_aton(address) for address in found
        )
        count = len(found)
        if kind == SOA and self.serial:
            code, count = 0, 1
            data = b"\0\0" + struct.pack("!IIIII", self.serial, 3600, 600, 86400, 60)
            records = struct.pack("!HHHIH", 0xC00C, SOA, 1, self.ttl, len(data)) + data
        head = question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, count, 0, 0)
        return head + question[12 : at + 5] + records
