"""The maps of an auth_ident_file: which names, of certificates or system users, may log in as which users.

The form is that of pg_ident.conf. https://www.postgresql.org/docs/current/auth-username-maps.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config.records import Pattern, Record, Records, Word


@dataclass(frozen=True, slots=True)
class Entry:
    """One record: a name outside, and the users as whom it may log in."""

    outside: str | Pattern
    user: Word | Pattern

    def allows(self, outside: str, user: str) -> bool:
        """Tell whether `outside` may log in as `user`."""
        wanted = self.user
        if isinstance(self.outside, Pattern):
            match = self.outside.search(outside)
            if match is None:
                return False
            if isinstance(wanted, Word) and "\\1" in wanted.text:
                # What is put in is a name, whatever it looks like.
                wanted = Word(wanted.text.replace("\\1", match[1] or "", 1), quoted=True)
        elif self.outside != outside:
            return False
        if isinstance(wanted, Pattern):
            return wanted.search(user) is not None
        return wanted.keyword == "all" or wanted.text == user


@dataclass(slots=True)
class Maps:
    """The maps by name, and all mistakes; each says where it is, what it is, and what to do."""

    maps: dict[str, list[Entry]] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


def allows(maps: Mapping[str, Sequence[Entry]], name: str, outside: str, user: str) -> bool:
    """Tell whether `outside` may log in as `user` by the map of this name; without one, as itself only."""
    if not name:
        return outside == user
    return any(entry.allows(outside, user) for entry in maps.get(name, ()))


def read(path: Path) -> Maps:
    """Read an auth_ident_file and what it includes."""
    records = Records(path)
    found = Maps(mistakes=records.mistakes)
    for record in records.found:
        try:
            name, entry = parse(record)
        except ValueError as error:
            found.mistakes.append(f"{record.place} {error}")
        else:
            found.maps.setdefault(name, []).append(entry)
    return found


def parse(record: Record) -> tuple[str, Entry]:
    """Read one record. Raises ValueError, which completes "FILE line N ..."."""
    if len(record.fields) != 3 or any(len(words) != 1 for words in record.fields):
        raise ValueError("is not in the form MAP NAME USER")
    name, outside, user = (words[0] for words in record.fields)
    if user.keyword.startswith("+"):
        raise ValueError(f"has {user.text}, but who is a member of what, pgfunnel does not know: name the users")
    entry = Entry(
        Pattern.parse(outside.text[1:]) if outside.text.startswith("/") else outside.text,
        Pattern.parse(user.text[1:]) if user.text.startswith("/") else user,
    )
    if "\\1" in user.text and isinstance(entry.user, Word):
        if not isinstance(entry.outside, Pattern):
            raise ValueError(r"has \1 for a user, but no /pattern before it that \1 could be of")
        if not entry.outside.groups:
            raise ValueError(r"has \1 for a user, but no parentheses in the pattern before it")
    return name.text, entry
