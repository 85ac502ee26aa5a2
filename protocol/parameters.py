"""Settings that follow their client: profiles, the SQL that turns one into another, and startup parameters.

Source: PostgreSQL documentation, "Message Flow: Start-up", "SET", "RESET", and "postgres" for what `options` takes.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, final
from weakref import WeakValueDictionary

from protocol.errors import ClientViolation
from protocol.messages import message

ROLE: Final = "role"
SESSION_USER: Final = "session_authorization"
_IDENTITY: Final = (SESSION_USER, ROLE)
"""In the order in which they have to be set: each takes the right to do the other away."""
IDENTITY: Final = frozenset(_IDENTITY)
"""Settings that say as whom a session acts."""

ONLY_AT_START: Final = frozenset(
    (
        "ignore_system_indexes",
        "jit_debugging_support",
        "jit_profiling_support",
        "log_connections",
        "log_disconnections",
        "post_auth_delay",
    )
)
"""Parameters that a running session can't have any more (context "backend" in pg_settings). None changes an answer."""


_WITHOUT_MEANING: Final = frozenset(
    ("application_name", "client_min_messages", "maintenance_work_mem", "synchronous_commit", "work_mem", *_IDENTITY)
)

Dialect = frozenset[tuple[str, bytes]]


@final
class Profile:
    """The settings of a session that are not the server's defaults. Profiles.of() makes them: equal ones are one."""

    __slots__ = ("__weakref__", "dialect", "settings")

    def __init__(self, settings: Mapping[str, bytes]) -> None:
        self.settings = settings
        """Values by name, as pg_settings has them, in the encoding of the database."""
        self.dialect = frozenset(item for item in settings.items() if not _says_nothing(item[0]))
        """Those that may decide what a text means when it is parsed: what it reads as, and what is folded into it."""

    def get(self, name: str) -> bytes:
        """Return the value of a setting, empty if it is the server's default."""
        return self.settings.get(name, b"")


def _says_nothing(name: str) -> bool:
    """Tell whether a setting surely has no part in what a prepared statement means."""
    return "." in name or name in _WITHOUT_MEANING or name.endswith("_timeout") or name.startswith(("log_", "enable_"))


class Profiles:
    """The profiles in use. What no session has any more is forgotten."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[frozenset[tuple[str, bytes]], Profile] = WeakValueDictionary()

    def of(self, settings: Mapping[str, bytes]) -> Profile | None:
        """Return the profile with these settings; None is the one without any."""
        if not settings:
            return None
        key = frozenset(settings.items())
        profile = self._known.get(key)
        if profile is None:
            profile = self._known[key] = Profile(dict(sorted(settings.items())))
        return profile

    def __len__(self) -> int:
        return len(self._known)


_NOTHING: Final = Profile({})


def change(present: Profile | None, wanted: Profile | None) -> bytes:
    """Return a Query that turns a session with the settings `present` into one with `wanted`.

    In a transaction block of its own: if it fails, the session is left in a failed one, in which nothing that was
    sent behind it is carried out.
    """
    return message(b"Q", _change(present or _NOTHING, (wanted or _NOTHING).settings) + b"\0")


def fit(present: Profile | None, parameters: Mapping[str, str]) -> bytes:
    """Return a Query, as change() does, that gives a session startup parameters as its client wrote them."""
    wanted = {name: value.encode("utf-8", "surrogateescape") for name, value in parameters.items()}
    return message(b"Q", _change(present or _NOTHING, wanted) + b"\0")


def _change(present: Profile, wanted: Mapping[str, bytes]) -> bytes:
    steps = []
    if SESSION_USER in present.settings:
        steps.append(b"SET SESSION AUTHORIZATION DEFAULT")  # which resets the role, too
    elif ROLE in present.settings:
        steps.append(b"RESET ROLE")
    names = {name.lower() for name in wanted}
    steps.extend(
        b"RESET " + _identifier(name)
        for name in present.settings
        if name.lower() not in names and name not in _IDENTITY
    )
    set_ = [name for name, value in wanted.items() if present.settings.get(name) != value and name not in _IDENTITY]
    set_ += [name for name in _IDENTITY if name in wanted]
    # One statement each: an error tells of the first that is wrong, and the identity comes after all else.
    steps.extend(
        b"SELECT pg_catalog.set_config(%b,%b,false)"
        % (_literal(name.encode("utf-8", "surrogateescape")), _literal(value))
        for name, value in ((name, wanted[name]) for name in set_)
    )
    return b";".join((b"BEGIN", *steps, b"COMMIT"))


def _identifier(name: str) -> bytes:
    return b".".join(
        b'"' + part.replace('"', '""').encode("utf-8", "surrogateescape") + b'"' for part in name.split(".")
    )


_HARMLESS: Final = re.compile(rb"[ -&(-\[\]-~]*").fullmatch


def _literal(value: bytes) -> bytes:
    """Return an SQL expression for a text, the same whatever client_encoding and standard_conforming_strings are."""
    if _HARMLESS(value):
        return b"'" + value + b"'"
    return (
        b"pg_catalog.convert_from(pg_catalog.decode('%b','hex'),pg_catalog.getdatabaseencoding())"
        % value.hex().encode()
    )


# --- startup parameters


def session_parameters(startup: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that a StartupMessage asks for: its parameters, and before them what `options` says.

    Raises ClientViolation for options that are none.
    """
    found = dict(_options(startup.get("options", "")))
    found.update((name, value) for name, value in startup.items() if name not in ("options", "replication"))
    return {name: value for name, value in found.items() if name.lower() not in ONLY_AT_START}


def _options(text: str) -> Iterator[tuple[str, str]]:
    words = iter(_words(text))
    for word in words:
        if word == "-c" and (argument := next(words, None)) is not None:
            setting = argument
        elif word == "-c":
            raise InvalidOptionError(f"invalid command-line argument for server process: {word}")
        elif word.startswith(("-c", "--")):
            setting = word[2:]
        else:
            raise InvalidOptionError(f"invalid command-line argument for server process: {word}")
        name, equals, value = setting.partition("=")
        if not name or not equals:
            raise InvalidOptionError(f"{'-c ' if word.startswith('-c') else '--'}{setting} requires a value")
        yield name.replace("-", "_"), value


def _words(text: str) -> list[str]:
    """Split `options` at white space; a backslash takes the next character as it is."""
    words = re.findall(r"(?:\\.|[^\s\\])+", text, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL) for word in words]


class InvalidOptionError(ClientViolation):
    """`options` in a StartupMessage has something else than settings."""

    sqlstate = "42601"
