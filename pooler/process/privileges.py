"""As which user of the system pgfunnel runs."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager

from pooler.process.errors import StartError


@contextmanager
def acting_as(name: str) -> Iterator[None]:
    """As root, do what follows with the rights of a user. Raises StartError.

    What is created is that user's then; and a link that the user has laid leads nowhere where only root may write.
    """
    if not name or os.geteuid() != 0:
        yield
        return
    user, groups, group = _find(name), os.getgroups(), os.getegid()
    with _allowed(name):
        os.initgroups(name, user.pw_gid)
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def become(name: str) -> None:
    """Become a user for good, with that user's groups. Raises StartError."""
    user = _find(name)
    if os.geteuid() == user.pw_uid:
        return
    # Which Python loads at the first use of a host name; by then, it may be where this user can't read.
    "".encode("idna")
    with _allowed(name):
        # The user last: nobody else may change groups.
        os.initgroups(name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)


@contextmanager
def _allowed(name: str) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise StartError(f"user: only root can become {name!r}") from None


def _find(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise StartError(f"user: there is no system user {name!r}") from None
