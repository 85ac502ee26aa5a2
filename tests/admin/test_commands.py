"""What is typed at the console is read as PgBouncer reads it, and a little more kindly."""

import time

import pytest

from pooler.admin.commands import Command, SetCommand, read, split
from pooler.admin.results import CommandError
from pooler.admin.session import LONGEST_MESSAGE
from pooler.admin.small_talk import answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SHOW POOLS;", ["SHOW POOLS"]),
        ("pause; resume ;;", ["pause", "resume"]),
        ("", []),
        (" ; -- nothing", []),
        ("SHOW POOLS -- all of them; really\n; SHOW /* a; b */ STATS", ["SHOW POOLS", "SHOW STATS"]),
        ("SET server_check_query = 'select 1;'", ["SET server_check_query = 'select 1;'"]),
        ('PAUSE "a;b""c"; RESUME', ['PAUSE "a;b""c"', "RESUME"]),
        ("PAUSE /* no end; RESUME", ["PAUSE /* no end; RESUME"]),
        ("SET a = 'no end; SHOW POOLS", ["SET a = 'no end", "SHOW POOLS"]),
    ],
)
def test_commands_end_at_semicolons(text: str, expected: list[str]) -> None:
    assert split(text) == expected


@pytest.mark.parametrize(
    ("text", "verb", "argument"),
    [
        ("SHOW Pools", "show", "Pools"),
        ("pause\n  Sales", "pause", "Sales"),
        ('PAUSE "two words"', "pause", "two words"),
        ('KILL "a""b"', "kill", 'a"b'),
        ("KILL my-db.de", "kill", "my-db.de"),
        ("RELOAD", "reload", ""),
        ("KILL_CLIENT 17", "kill_client", "17"),
        ("one two three", "", ""),
    ],
)
def test_a_command_is_a_word_and_maybe_another(text: str, verb: str, argument: str) -> None:
    assert read(text) == Command(text, verb, argument)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("SET log_connections = 1", "log_connections", "1"),
        ("set Log_Connections=0", "log_connections", "0"),
        ("SET server_check_query TO 'select ''x'''", "server_check_query", "select 'x'"),
        ('SET application_name = "a b"', "application_name", "a b"),
        ("SET listen_addr = ''", "listen_addr", ""),
        ("SET default_pool_size = 90%", "default_pool_size", "90%"),
        ("SET session extra_float_digits = 3", "extra_float_digits", "3"),
    ],
)
def test_a_setting_has_a_key_and_a_value(text: str, key: str, value: str) -> None:
    assert read(text) == SetCommand(text, key, value)


@pytest.mark.parametrize(
    "text",
    [
        "show " + " " * LONGEST_MESSAGE + "!",
        "set x" + " " * LONGEST_MESSAGE + "y",
        "select current_setting('" + " " * LONGEST_MESSAGE + "!')",
        "/* " * (LONGEST_MESSAGE // 3),
    ],
    ids=["show", "set", "current_setting", "comment"],
)
def test_nobody_holds_up_the_pooler_with_a_long_text(text: str) -> None:
    began = time.process_time()
    for command in split(text):
        read(command)
        answer(command, "alice", "pgbouncer")
    assert time.process_time() - began < 0.5  # where it takes quadratic time, it is several seconds


def test_a_result_has_no_more_columns_than_one_of_postgres() -> None:
    assert answer("select " + ",".join(["1"] * 1664), "alice", "pgbouncer") is not None
    with pytest.raises(CommandError, match="at most 1664"):
        answer("select " + ",".join(["1"] * 1665), "alice", "pgbouncer")
