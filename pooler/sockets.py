"""Sockets and their options: listening, keepalive, file descriptors."""

import errno
import grp
import os
import resource
import select
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from config.settings import Settings

_ANY: Final = "*"
_FIRST_INHERITED: Final = 3


class ListenError(Exception):
    """An address can't be listened on; the message says which and why."""


def keep_alive(sock: socket.socket, settings: Settings) -> None:
    """Set the TCP options that find out whether the peer is still there; what is 0 stays the system's.

    On Linux a connection inherits them from the socket that listened for it, so that accepting costs no call.
    """
    options = {
        "TCP_KEEPCNT": settings.tcp_keepcnt,
        "TCP_KEEPIDLE": settings.tcp_keepidle,
        "TCP_KEEPINTVL": settings.tcp_keepintvl,
        "TCP_USER_TIMEOUT": settings.tcp_user_timeout,
    }
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(settings.tcp_keepalive))
    for name, value in options.items():
        # Not every system has all of them.
        if value and hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), int(value))


def inherited_sockets(environ: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the sockets that a service manager has opened for this process: sd_listen_fds(3)."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = [socket.socket(fileno=fd) for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count))]
    for sock in sockets:
        sock.set_inheritable(False)
        sock.setblocking(False)  # noqa: FBT003
    return sockets


def listening_sockets(settings: Settings) -> Iterator[socket.socket]:
    """Yield a bound socket per address of listen_addr, and the Unix socket. Raises ListenError."""
    port = settings.listen_port
    for address in settings.listen_addr:
        for found in _resolve(address, port):
            sock = _tcp_socket(found, port, settings)
            if not port:
                port = sock.getsockname()[1]  # the addresses share the port that the first was given
            yield sock
    if settings.unix_socket_dir is not None:
        place = f"{settings.unix_socket_dir}/.s.PGSQL.{port}"
        yield _abstract_socket(place) if place.startswith("@") else _unix_socket(Path(place), settings)


def _resolve(address: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    host = None if address == _ANY else address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ListenError(f"listen_addr {address}: {error.strerror}") from None
    return list(dict.fromkeys((family, str(where[0])) for family, _, _, _, where in found))


def _tcp_socket(found: tuple[socket.AddressFamily, str], port: int, settings: Settings) -> socket.socket:
    family, host = found
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.so_reuseport:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)  # noqa: FBT003
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ListenError(f"can't listen on {host} port {port}: {error.strerror or error}") from None
    return sock


def _unix_socket(path: Path, settings: Settings) -> socket.socket:
    group = _group_id(settings.unix_socket_group) if settings.unix_socket_group else -1
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.setblocking(False)  # noqa: FBT003
        sock.bind(str(path))
        os.lchown(path, -1, group)
        path.chmod(settings.unix_socket_mode)
    except OSError as error:
        sock.close()
        raise ListenError(f"can't listen on {path}: {error.strerror or error}") from None
    return sock


def _abstract_socket(place: str) -> socket.socket:
    """Bind a socket that is in no directory: its name begins with a zero byte (unix(7)), which libpq writes as @."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003
        sock.bind("\0" + place[1:])
    except OSError as error:
        sock.close()
        raise ListenError(f"can't listen on {place}: {error.strerror or error}") from None
    return sock


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ListenError(f"unix_socket_group: there is no system group {name!r}") from None


def place_of(sock: socket.socket) -> str:
    """Return where a socket listens, as one writes it."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        return f"{name[0]}:{name[1]}"
    return name if isinstance(name, str) else "@" + os.fsdecode(name[1:])


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more. Raises OSError if somebody does, or it is something else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "something that is no socket is in its place")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")


def has_hung_up(sock: socket.socket) -> bool:
    """Tell whether the peer has closed its side or the connection broke, however much of it is still unread."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def raise_descriptor_limit() -> int:
    """Raise the soft limit on open files to the hard limit, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
