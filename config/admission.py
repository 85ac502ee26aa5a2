"""Who may log in, out of the settings, the files and the entries together; and whether that is anybody."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from pydantic import SecretStr

from config.access import Access
from config.databases import Directory
from config.settings import Settings

_BY_PASSWORD: Final = ("plain", "md5", "scram-sha-256")


def complete(settings: Settings, access: Access) -> Access:
    """Add the users of the settings to those of the files."""
    return replace(access, users=_users(settings, access.users))


def nobody(settings: Settings, directory: Directory, access: Access) -> str:
    """Return why nobody could log in for want of passwords, if that is so, of completed access."""
    looked_up = settings.auth_user or any(database.auth_user for database in directory.databases.values())
    if settings.auth_type not in _BY_PASSWORD or access.users or looked_up:
        return ""
    return (
        f"upstream, users, auth_file: none has a password, so auth_type {settings.auth_type} would let nobody in; "
        "auth_user finds users in Postgres, auth_type passthrough needs no list"
    )


def nowhere(settings: Settings, directory: Directory) -> Iterator[str]:
    """Yield what says that users are looked up in a database that there is not."""
    if settings.upstream is not None:
        return
    named = {f"[databases] {name}: auth_dbname": entry.auth_dbname for name, entry in directory.databases.items()}
    for what, name in {"auth_dbname": settings.auth_dbname, **named}.items():
        if name and directory.database(name) is None:
            yield f"{what}: there is no entry for {name} in [databases], nor for *, so that nobody could be looked up"


def mistakes(settings: Settings, directory: Directory, access: Access) -> Iterator[str]:
    """Yield what can't be meant, of completed access."""
    if settings.auth_type == "any" and (settings.upstream is None or settings.upstream.user is None):
        yield from _nobody_to_serve_as(settings, directory)
    if settings.auth_type == "peer" and settings.unix_socket_dir is None:
        yield "auth_type: peer takes unix_socket_dir: only there the system user of a client is known"
    yield from _unverifiable(settings, access)


def _nobody_to_serve_as(settings: Settings, directory: Directory) -> Iterator[str]:
    if settings.upstream is not None:
        yield "upstream: it names no user, as whom auth_type any serves everybody"
    for name, database in directory.databases.items():
        if database.user is None:
            yield f"[databases] {name}: it names no user, as whom auth_type any serves everybody"


def _unverifiable(settings: Settings, access: Access) -> Iterator[str]:
    """Yield what asks for certificates of clients that nothing could verify."""
    if settings.client_tls_ca_file is not None and settings.client_tls_sslmode != "disable":
        return
    without = "takes client_tls_ca_file, and a client_tls_sslmode other than disable"
    if settings.auth_type == "cert":
        yield f"auth_type: cert {without}"
    for rule in access.rules:
        if settings.auth_type == "hba" and (rule.method == "cert" or rule.client_certificate):
            yield f"auth_hba_file: {rule.place} asks for a certificate of the client's, which {without}"


def _users(settings: Settings, listed: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    """Merge all users.

    The upstream's own goes last: that password is the one which logs in at Postgres, so a line left behind in a file
    can't lock its user out.
    """
    users = {**listed, **settings.users}
    upstream = settings.upstream
    if upstream is None or upstream.user is None:
        return users
    if upstream.password is not None or settings.auth_type not in _BY_PASSWORD:
        users[upstream.user] = upstream.password or users.get(upstream.user, SecretStr(""))
    return users
