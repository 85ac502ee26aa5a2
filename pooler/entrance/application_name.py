"""application_name_add_host: a client's application_name says where it comes from.

It is added once a client's startup parameters have been tried, so that these are still tried once for all who come with
the same, from wherever they come.
"""

import asyncio
import socket
import struct
from typing import Final

from pooler.session_state.session import APPLICATION_NAME
from pooler.session_state.sharing import Fitted
from protocol.kinds import PARAMETER_STATUS
from protocol.messages import message, messages_in, parameter_status, text_of
from protocol.parameters import Profiles

_NAMELESS: Final = "app"
"""What PgBouncer calls a client that has no name."""
_LONGEST: Final = 63
"""Bytes; Postgres cuts what is longer (NAMEDATALEN)."""


def origin_of(transport: asyncio.Transport, port: int) -> str:
    """Return where a client comes from, as PgBouncer writes it; `port` is our own, for a Unix socket."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        host = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
        return f"{host}:{peer[1]}"
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return "unknown"
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return f"unix({pid}@{socket.gethostname()}):{port}"


def with_host(name: str, origin: str) -> str:
    """Return the name with where its client comes from; a long name is cut, so that this stays readable."""
    addition = f" - {origin}"
    room = _LONGEST - len(addition.encode("utf-8", "surrogateescape"))
    kept = (name or _NAMELESS).encode("utf-8", "surrogateescape")[: max(room, 0)]
    return kept.decode("utf-8", "ignore") + addition


def add_host(fitted: Fitted, origin: str, profiles: Profiles) -> Fitted:
    """Return what a client with these parameters gets that comes from there."""
    settings = dict(fitted.profile.settings) if fitted.profile is not None else {}
    name = with_host(text_of(settings.get(APPLICATION_NAME, b"")), origin)
    settings[APPLICATION_NAME] = name.encode("utf-8", "surrogateescape")
    others = b"".join(
        message(b"S", payload)
        for kind, payload in messages_in(fitted.welcome)
        if kind == PARAMETER_STATUS and not payload.startswith(APPLICATION_NAME.encode() + b"\0")
    )
    return Fitted(profiles.of(settings), others + parameter_status(APPLICATION_NAME, name))
