"""As which user of the system pgfunnel runs."""

import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from pooler.process.errors import StartError


def become(name: str, owned: Iterable[Path]) -> None:
    """Become a user for good, with that user's groups. Raises StartError.

    What is `owned` is the user's from then on: a log that root has opened could not be opened again.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise StartError(f"user: there is no system user {name!r}") from None
    if os.geteuid() == user.pw_uid:
        return
    # Which Python loads at the first use of a host name; by then, it may be where this user can't read.
    "".encode("idna")
    try:
        for path in owned:
            os.chown(path, user.pw_uid, user.pw_gid)
        # The user last: nobody else may change groups.
        os.initgroups(name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except PermissionError:
        raise StartError(f"user: only root can become {name!r}") from None
    except OSError as error:
        raise StartError(f"user: can't become {name!r}: {error}") from None
