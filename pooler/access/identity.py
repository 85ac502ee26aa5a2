"""Who a client is by something else than a password: the name in its certificate, or its system user."""

import pwd
import socket
import struct
from typing import Final

from pooler.access.candidate import Candidate
from protocol.scram import AuthenticationFailedError

_UCRED: Final = struct.Struct("iII")
"""pid, uid, gid; see unix(7)."""


def name_in_certificate(candidate: Candidate) -> str:
    """Return the common name in the certificate that the client has shown. Raises AuthenticationFailedError."""
    names = candidate.tls.peer_names if candidate.tls is not None else ()
    if not names:
        raise AuthenticationFailedError("no certificate of the client's that is verified and has a common name")
    if len(names) > 1:
        raise AuthenticationFailedError(f"{len(names)} common names in the client's certificate, of which one may be")
    if "\0" in names[0] or "\n" in names[0]:
        # What comes after it would be overlooked by whoever takes it for the end of the name, as patterns' $ does.
        raise AuthenticationFailedError("a certificate with a zero byte or a line break in its common name")
    return names[0]


def peer_uid(candidate: Candidate) -> int:
    """Return the number of the user whose process is at the other end of a Unix socket.

    Raises AuthenticationFailedError.
    """
    sock = candidate.transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX or candidate.tls is not None:
        raise AuthenticationFailedError("not a Unix socket, so that the client's system user is not known")
    try:
        _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError as error:
        raise AuthenticationFailedError(f"the client's system user can't be told: {error}") from None
    return int(uid)


def system_user(candidate: Candidate) -> str:
    """Return that user's name. Raises AuthenticationFailedError."""
    uid = peer_uid(candidate)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise AuthenticationFailedError(f"the client's system user {uid} has no name") from None
