"""Where a Postgres is: the host as it was given, and the IP address that it has been found at."""

from typing import NamedTuple

from config.hosts import is_local


class Address(NamedTuple):
    """Where a Postgres is."""

    host: str
    """As it was given: a name, an IP address, the directory of a Unix socket, or @ and the name of an abstract one."""
    port: int
    ip: str = ""
    """What the name stands for; empty: the system is asked when it is dialled."""

    @property
    def local(self) -> bool:
        """It is a Unix socket."""
        return is_local(self.host)

    @property
    def socket_path(self) -> str:
        """The Unix socket; a zero byte comes first in the names of abstract ones (unix(7))."""
        path = f"{self.host}/.s.PGSQL.{self.port}"
        return "\0" + path[1:] if path.startswith("@") else path

    def __str__(self) -> str:
        """Return it as one would write it."""
        if self.local:
            return f"{self.host}/.s.PGSQL.{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f" ({self.ip})" if self.ip not in ("", self.host) else "")
