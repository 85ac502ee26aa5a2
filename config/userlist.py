"""The users of an auth_file, in the form of PgBouncer's userlist.txt: "user" "password", one per line.

A secret may be a password, md5 followed by its hash, or SCRAM-SHA-256$...; it is kept as given, and no message
quotes it. https://www.pgbouncer.org/config.html#authentication-file-format
"""

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from config.files import read_text

_FIELD = r'"((?:[^"]|"")*+)"'
# Whatever follows the two fields is left alone, as PgBouncer does; but it must not touch the second field, where
# it would mean a quote that was not doubled and a password cut short.
_ENTRY = re.compile(rf"{_FIELD}[ \t]+{_FIELD}(?=[ \t\r]|$)")
_FORM = 'is not in the form "user" "password" (a " inside is written "")'


class Userlist(NamedTuple):
    """Users in the order of the file, a later entry for the same name replacing an earlier one, and mistakes."""

    users: dict[str, SecretStr]
    mistakes: list[str]


def parse(text: str) -> Userlist:
    """Parse the text of a userlist. Each mistake reads "line N ..." and names no secret."""
    users: dict[str, SecretStr] = {}
    mistakes: list[str] = []
    # Not splitlines(): it would also cut at characters that a password may have, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.strip(" \t\r")
        if not entry or entry.startswith((";", "#")):
            continue
        match = _ENTRY.match(entry)
        if match is None or "\0" in match[0]:
            mistakes.append(f"line {number} {_FORM}")
            continue
        user, secret = (field.replace('""', '"') for field in match.groups())
        if user:
            users[user] = SecretStr(secret)
        else:
            mistakes.append(f"line {number} has an empty user name")
    return Userlist(users, mistakes)


def read(path: Path) -> Userlist:
    """Read and parse a userlist file. A file that can't be read is a mistake like any other."""
    try:
        return parse(read_text(path))
    except ValueError as error:
        return Userlist({}, [str(error)])
