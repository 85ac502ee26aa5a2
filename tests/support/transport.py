"""A transport without a socket: the test is the peer, and decides when what arrives, is read, or breaks.

Behaves as uvloop's do where sessions depend on it: pause_writing() comes from inside write(), nothing is received
while reading is paused, and connection_lost() comes some time after close(), never from inside it.
"""

import asyncio
from collections.abc import Iterable, Mapping

HIGH_WATER = 64 * 1024


class MockTransport(asyncio.Transport):
    def __init__(
        self,
        protocol: asyncio.BaseProtocol | None = None,
        *,
        slow_peer: bool = False,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """A `slow_peer` reads only what take() asks for; any other has read everything at once."""
        super().__init__({"peername": ("127.0.0.1", 50000), **(extra or {})})
        self.protocol = protocol
        self.sent = bytearray()
        """Written, and not yet taken by the peer."""
        self.inbox = b""
        """Sent by the peer, and not yet received."""
        self.slow_peer = slow_peer
        self.reading = True
        self.paused = False
        self.closing = False
        self.aborted = False
        self.lost = False
        self.eof = False

    # --- the session's side

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading and not self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.closing:
            return
        self.sent += data
        if self.slow_peer and not self.paused and len(self.sent) > HIGH_WATER:
            self.paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.sent) if self.slow_peer else 0

    def writelines(self, list_of_data: "Iterable[bytes | bytearray | memoryview]") -> None:
        self.write(b"".join(list_of_data))

    # --- the peer's side

    @property
    def _protocol(self) -> asyncio.Protocol:
        assert isinstance(self.protocol, asyncio.Protocol)
        return self.protocol

    def receive(self, data: bytes = b"") -> None:
        """Let `data` arrive, behind what stands in the inbox; nothing does while reading is paused."""
        self.inbox += data
        if self.inbox and self.is_reading():
            data, self.inbox = self.inbox, b""
            self._protocol.data_received(data)

    def take(self, count: int | None = None) -> bytes:
        """Return what the peer reads of what was written."""
        taken = bytes(self.sent[:count])
        del self.sent[: len(taken)]
        if self.paused and len(self.sent) <= HIGH_WATER // 4:
            self.paused = False
            if not self.lost:
                self._protocol.resume_writing()
        return taken

    def lose(self, exc: Exception | None = None) -> None:
        """Break the connection, or finish what close() began."""
        self.closing = True
        if not self.lost:
            self.lost = True
            self._protocol.connection_lost(exc)
