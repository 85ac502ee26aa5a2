"""The files that say who may log in: users, rules and maps, read together, as settings or again at a SIGHUP."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from config import hba, ident, userlist


@dataclass(frozen=True, slots=True)
class Access:
    """What the files say. It is replaced as a whole."""

    users: Mapping[str, SecretStr] = field(default_factory=dict)
    """Passwords, md5 or SCRAM secrets by name."""
    rules: Sequence[hba.Rule] = ()
    maps: Mapping[str, Sequence[ident.Entry]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mistake:
    """A mistake in a file: the setting that names the file, and what is wrong where."""

    setting: str
    text: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.text}"


def read_access(
    auth_file: Path | None, auth_hba_file: Path | None, auth_ident_file: Path | None
) -> tuple[Access, list[Mistake]]:
    """Read the files that are given. A file that can't be read is a mistake like any other."""
    users = userlist.read(auth_file) if auth_file else userlist.Userlist({}, [])
    rules = hba.read(auth_hba_file) if auth_hba_file else hba.Rules()
    maps = ident.read(auth_ident_file) if auth_ident_file else ident.Maps()
    mistakes = [
        *(Mistake("auth_file", f"{str(auth_file)!r} {text}") for text in users.mistakes),
        *(Mistake("auth_hba_file", text) for text in rules.mistakes),
        *(Mistake("auth_ident_file", text) for text in maps.mistakes),
    ]
    if not maps.mistakes:
        mistakes.extend(_unknown_maps(rules.rules, maps.maps))
    return Access(users.users, rules.rules, maps.maps), mistakes


def _unknown_maps(rules: Sequence[hba.Rule], maps: Mapping[str, object]) -> Iterator[Mistake]:
    for rule in rules:
        if rule.ident_map and rule.ident_map not in maps:
            yield Mistake(
                "auth_hba_file",
                f"{rule.place} names the map {rule.ident_map!r}, of which auth_ident_file has no line, so that nobody "
                "would be let in by it",
            )
