"""Telling a service manager how it goes: systemd's notification protocol, sd_notify(3)."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class ServiceManager:
    """Whoever has given us a NOTIFY_SOCKET; nobody, if there is none."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")

    def ready(self) -> None:
        """It serves, or does so again after a reload."""
        self._tell(f"READY=1\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """It reads its configuration again."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """It will end."""
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> None:
        if self._address[:1] not in ("/", "@"):
            return
        address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        # Nobody there: then nobody waits for it.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003
            sock.sendto(message.encode(), address)
