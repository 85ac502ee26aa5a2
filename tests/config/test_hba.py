"""What an auth_hba_file may say, and what is said of one that is wrong."""

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import hba
from config.hba import Names, Rule
from config.records import Record, split


def rule(line: str) -> Rule:
    return hba.parse(Record("here", split(line)))


@pytest.mark.parametrize(
    ("line", "network"),
    [
        ("host all all 10.0.0.0/8 md5", "10.0.0.0/8"),
        ("host all all 10.1.2.3/8 md5", "10.0.0.0/8"),
        ("host all all 10.0.0.0 255.0.0.0 md5", "10.0.0.0/8"),
        ("host all all 0.0.0.0/0 md5", "0.0.0.0/0"),
        ("host all all 0.0.0.0 0.0.0.0 md5", "0.0.0.0/0"),
        ("host all all ::1/128 md5", "::1/128"),
        ("host all all ::ffff:10.1.2.3/104 md5", "10.0.0.0/8"),
        ("host all all ::ffff:0:0/90 md5", "::ffc0:0:0/90"),
        ("host all all fe80:: ffff:: md5", "fe80::/16"),
        ("host all all all md5", None),
    ],
)
def test_an_address_comes_with_its_mask(line: str, network: str | None) -> None:
    assert rule(line).network == (ip_network(network) if network else None)


@pytest.mark.parametrize(
    ("words", "inside", "outside"),
    [
        ("all", ["alice", "all"], []),
        ("alice", ["alice"], ["all", "bob", "Alice"]),
        ("alice,bob", ["alice", "bob"], ["carol"]),
        ("alice, bob ,carol", ["alice", "bob"], ["dave"]),
        ('"all"', ["all"], ["alice"]),
        ('"a b",c', ["a b", "c"], ["a"]),
        ('"say ""hi"""', ['say "hi"'], []),
        ('al"ic"e', ["alice"], []),
        ('"+staff"', ["+staff"], ["staff"]),
        (r"/^al", ["alice", "al"], ["bob", "pal"]),
        (r'"/^a(b|c),$"', ["ab,"], ["ab"]),
        ("/x,bob", ["axb", "bob"], ["alice"]),
        ("replication", ["replication"], []),
    ],
)
def test_names(words: str, inside: list[str], outside: list[str]) -> None:
    users = rule(f"host all {words} all md5").users
    assert [name for name in (*inside, *outside) if users.include(name, name)] == inside


def test_sameuser_is_the_database_that_is_called_like_the_user() -> None:
    databases = rule("local sameuser,shared all md5").databases
    assert databases.include("alice", "alice")
    assert not databases.include("alice", "bob")
    assert databases.include("shared", "bob")
    assert rule('local "sameuser" all md5').databases == Names(exact=frozenset(["sameuser"]))


def test_physical_replication_is_of_no_database() -> None:
    databases = rule("local replication,shop all md5").databases
    assert databases.replication
    assert databases.include("shop", "alice")
    assert not databases.include("replication", "replication")
    assert not rule("local all,sameuser all md5").databases.replication
    assert rule('local "replication" all md5').databases == Names(exact=frozenset(["replication"]))


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("local all all trust", "trust"),
        ("local all all peer", "peer"),
        ("local all all ident", "peer"),
        ("host all all all password", "plain"),
        ("hostnossl all all all scram-sha-256", "scram-sha-256"),
        ("hostssl all all all cert clientname=CN", "cert"),
        ("host all all all passthrough", "passthrough"),
    ],
)
def test_methods(line: str, method: str) -> None:
    assert rule(line).method == method


def test_options() -> None:
    assert rule('hostssl all all all cert map="my map"').ident_map == "my map"
    assert rule("local all all peer map=m").ident_map == "m"
    assert rule("hostssl all all all md5 clientcert=verify-full").client_certificate == "verify-full"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("remote all all all md5", "begins with 'remote', which is not one of local, host, hostssl, hostnossl"),
        ("hostgssenc all all all md5", "begins with 'hostgssenc'"),
        ("host all all md5", "is too short: it takes TYPE DATABASE USER ADDRESS METHOD"),
        ("local all all", "is too short: it takes TYPE DATABASE USER METHOD"),
        ("host all all 10.0.0.0 255.0.0.0", "names no method"),
        ("host all all 10.0.0.0 md5", "has the address 10.0.0.0 without a mask"),
        ("host all all 10.0.0.0/33 md5", "is no address with a mask"),
        ("host all all 10.0.0.0/8/8 md5", "names of hosts are not looked up"),
        ("host all all 10.0.0 255.0.0.0 md5", "is no address with a mask"),
        ("host all all 10.0.0.0 255.0.255.0 md5", "which is no mask for it"),
        ("host all all 10.0.0.0 ffff:: md5", "which is no mask for it"),
        ("host all all 10.0.0.0 1.2.3.400 md5", "which is no mask"),
        ("host all all db.example.com md5", "names of hosts are not looked up"),
        ("host all all .example.com md5", "names of hosts are not looked up"),
        ('host all all "all" md5', "names of hosts are not looked up"),
        ("host all all samenet md5", "has samenet, which pgfunnel does not know"),
        ("host all +staff all md5", "has +staff, but who is a member of what"),
        ("host samerole all all md5", "has samerole, but who is a member of what"),
        ("host all all all ldap", "has the method 'ldap', which is not one of trust, reject"),
        ("host all all all peer", "begin it with local"),
        ("host all all all cert", "begin it with hostssl"),
        ("host all all all md5 map=m", "has the option map=m, which is not taken"),
        ("host all all all md5 clientcert=verify-ca", "has the option clientcert=verify-ca"),
        ("hostssl all all all md5 clientcert=1", "has the option clientcert=1"),
        ("host all all all md5 why", "has 'why' after its method"),
        ("host all all all md5,trust", "has a list where it takes a method"),
        ("host all /( all md5", "has a pattern that is none"),
        ("host all /[[:alpha:]] all md5", "Python reads in another way"),
        ('host all "all all md5', 'has a " that is not closed'),
        ("host all a\0b all md5", "has a zero byte"),
    ],
)
def test_a_rule_that_is_wrong_is_refused_with_what_to_do(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        rule(line)


# Files


def test_comments_blank_lines_continuations_and_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "hba"
    file.write_bytes(b"# comment\r\n\r\nlocal all \\\r\n  all trust # more\nhost all all all md5\\\n")
    read = hba.read(file)
    assert not read.mistakes
    assert [(each.place, each.method) for each in read.rules] == [
        (f"'{file}' line 3", "trust"),
        (f"'{file}' line 5", "md5"),
    ]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "hba"
    file.write_text('local all all trust\nlocal all all ldap\nhost "all\nhost all all all md5 x\n')
    read = hba.read(file)
    assert [mistake.split(" has ")[0] for mistake in read.mistakes] == [
        f"'{file}' line 3",
        f"'{file}' line 2",
        f"'{file}' line 4",
    ]


def test_names_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "hba"
    file.write_text("local all @names/users,dave trust")
    (tmp_path / "names").mkdir()
    (tmp_path / "names/users").write_text("alice, bob # both\n@more\n")
    (tmp_path / "names/more").write_text("carol")
    read = hba.read(file)
    assert not read.mistakes
    assert read.rules[0].users.exact == {"alice", "bob", "carol", "dave"}


def test_rules_may_come_from_other_files(tmp_path: Path) -> None:
    file = tmp_path / "hba"
    file.write_text("include_dir rules\ninclude one\ninclude_if_exists none\ninclude_if_exists one")
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/2.conf").write_text("local second all md5")
    (tmp_path / "rules/1.conf").write_text("local first all md5")
    (tmp_path / "rules/other").write_text("nonsense")
    (tmp_path / "one").write_text("local third all md5")
    read = hba.read(file)
    assert not read.mistakes
    assert [next(iter(each.databases.exact)) for each in read.rules] == ["first", "second", "third", "third"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("include none", "none' cannot be read: No such file or directory"),
        ("include_dir none", "names a directory that can't be read"),
        ("include a b", "has something other than one path after include"),
        ("include hba", "is included too deeply, too often or in a circle"),
        ("local all @hba trust", "is included too deeply, too often or in a circle"),
        ("local all @hba,@hba,@hba,@hba,@hba,@hba trust", "is included too deeply, too often or in a circle"),
        ("", "has no rule, so nobody would be let in"),
        ("# nothing", "has no rule, so nobody would be let in"),
    ],
)
def test_what_is_included_has_to_be_there_and_to_end(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "hba"
    file.write_text(text)
    mistakes = hba.read(file).mistakes
    assert any(complaint in mistake for mistake in mistakes)
    assert len(mistakes) < 100


def test_a_name_too_long_for_postgres_is_not_looked_at_with_a_pattern() -> None:
    users = rule("local all /^(a+)+$ trust").users
    assert not users.include("a" * 5000 + "b", "")


PIECES = st.sampled_from(
    ["local", "host", "hostssl", "all", "sameuser", "+x", "/", "/(", "@f", ",", '"', '""', " ", "\t", "\\", "\n", "#",
     "10.0.0.0", "/8", "::1", "255.0.0.0", "md5", "cert", "map=", "clientcert=verify-ca", "include", "\0", "é"]
)  # fmt: skip


@given(st.lists(PIECES).map("".join) | st.lists(PIECES).map(" ".join) | st.text())
def test_any_line_is_a_rule_or_a_mistake(line: str) -> None:
    try:
        fields = split(line)
        assert isinstance(hba.parse(Record("here", fields)), Rule) if fields else True
    except ValueError as error:
        assert str(error)  # noqa: PT017


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r")), min_size=1), min_size=1))
def test_whatever_is_quoted_is_read_as_it_is(fields: list[list[str]]) -> None:
    line = " ".join(",".join('"' + word.replace('"', '""') + '"' for word in words) for words in fields)
    assert [[word.text for word in words] for words in split(line)] == fields
    assert not any(word.keyword for words in split(line) for word in words)
