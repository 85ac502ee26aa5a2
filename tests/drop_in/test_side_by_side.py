"""pgfunnel beside PgBouncer, with the same files, the same clients and the same commands: what differs is listed here.

Compared is with PgBouncer 1.18, Debian's: what newer ones have, the tests of the console show.
"""

import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Final, NamedTuple

import pytest

from config.errors import ConfigurationError
from config.load import load
from config.pgbouncer import WITHOUT_EFFECT
from pooler.demo.postgres import EmbeddedPostgres
from tests.drop_in.scripts import SCRIPTS, Script
from tests.drop_in.side import FILES, NEWER, PGBOUNCER, Side
from tests.support.certificates import Certificates
from tests.support.wire import Message

COMPARED_WITH: Final = "PgBouncer 1.18."


class Difference(NamedTuple):
    pgbouncer: str
    pgfunnel: str
    why: str


STATES: Final = "clients are told the SQLSTATE that Postgres has for it, and more words; PgBouncer's is always 08P01"
LATER: Final = "PgBouncer 1.18 does not know this command yet"
DIFFERENT: Final[Mapping[str, tuple[Difference, ...]]] = {
    "refusals": (
        Difference(
            "FATAL 08P01 password authentication failed",
            'FATAL 28P01 password authentication failed for user "shop_reader"',
            STATES,
        ),
        Difference(
            "FATAL 08P01 password authentication failed",
            'FATAL 28P01 password authentication failed for user "nobody"',
            STATES,
        ),
        Difference(
            "FATAL 08P01 SASL authentication failed",
            'FATAL 28P01 password authentication failed for user "clerk"',
            STATES,
        ),
        Difference(
            "FATAL 08P01 login rejected",
            'FATAL 28000 pg_hba.conf rejects connection for host "127.0.0.1", user "intruder", database "shop", '
            "no encryption",
            STATES,
        ),
        Difference(
            'FATAL 08P01 database "nowhere" does not exist', 'FATAL 3D000 database "nowhere" does not exist', STATES
        ),
        Difference(
            "FATAL 08P01 not allowed", 'FATAL 28000 not allowed: user "shop_reader" may not use the console', STATES
        ),
        Difference(
            "FATAL 08P01 login rejected",
            'FATAL 28000 pg_hba.conf rejects connection for host "127.0.0.1", user "batch", database "archive", '
            "no encryption",
            STATES,
        ),
    ),
    "startup_parameters": (
        Difference(
            "FATAL 08P01 unsupported startup parameter: work_mem",
            "let in",
            "whatever Postgres takes is taken, and follows its client",
        ),
        Difference(
            "FATAL 08P01 unsupported startup parameter: no_such_setting",
            'FATAL 42704 unrecognized configuration parameter "no_such_setting"',
            "what Postgres refuses is refused in its words",
        ),
    ),
    "transaction_mode": (
        Difference(
            "what one has set, the other sees: 7MB",
            "what one has set, the other sees: 4MB",
            "settings follow their client (session_state)",
        ),
    ),
    "kill_and_resume": (
        Difference(
            "FATAL 08P01 database removed",
            "FATAL 57P01 terminating connection: the database was killed on the console (KILL)",
            STATES,
        ),
    ),
    "disable_and_enable": (
        Difference(
            'FATAL 08P01 database "shop" is disabled',
            'FATAL 55000 database "shop" does not allow connections',
            f"{STATES}; and newer PgBouncers say it like this, too",
        ),
    ),
    "commands_gone_wrong": (
        Difference(
            "SET listen_port = 1: SET listen_port=1",
            "SET listen_port = 1: ERROR 08P01 SET failed",
            "what nothing would come of before a restart is not taken",
        ),
        Difference(
            "KILL_CLIENT: ERROR 08P01 invalid command 'KILL_CLIENT', use SHOW HELP;",
            "KILL_CLIENT: ERROR 08P01 invalid client pointer supplied",
            LATER,
        ),
        Difference(
            "RESUME; NONSENSE: ERROR 08P01 invalid command 'RESUME; NONSENSE', use SHOW HELP;",
            "RESUME; NONSENSE: ERROR 08P01 pooler is not paused/suspended",
            "a query may have several commands",
        ),
        Difference(
            ": ERROR 08P01 invalid command '', use SHOW HELP;", ": ", "an empty query is one that Postgres answers, too"
        ),
    ),
    "no_place_for_a_client": (
        Difference(
            "FATAL 08P01 no more connections allowed (max_client_conn)", "it waits", "who waits may still be served"
        ),
    ),
    "a_client_that_vanishes": (
        Difference("its query runs on: True", "its query runs on: False", "nobody waits for its answer"),
    ),
    "the_queue": (Difference("FATAL 08P01 True", "FATAL 57014 True", STATES),),
}


@pytest.fixture(scope="module")
def sides(side_of: Callable[[str], Side]) -> tuple[Side, Side]:
    if PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed (Debian: apt install pgbouncer)")
    version = subprocess.run([PGBOUNCER, "-V"], capture_output=True, text=True, check=True).stdout
    if not version.startswith(COMPARED_WITH):
        pytest.skip(f"this is not {COMPARED_WITH}x: its words differ")
    return side_of("pgbouncer"), side_of("pgfunnel")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_clients_and_operators_see_the_same_but_for_what_is_listed(sides: tuple[Side, Side], script: Script) -> None:
    theirs, ours = (list(script(side)) for side in sides)
    found = [pair for pair in zip_longest(theirs, ours) if pair[0] != pair[1]]
    assert found == [(each.pgbouncer, each.pgfunnel) for each in DIFFERENT.get(script.__name__, ())]


# --- the console's tables

Table = tuple[list[tuple[str, int]], list[dict[str, str | None]]]

SHOWN: Final = (
    "ACTIVE_SOCKETS",
    "CLIENTS",
    "CONFIG",
    "DATABASES",
    "DNS_HOSTS",
    "DNS_ZONES",
    "FDS",
    "LISTS",
    "MEM",
    "POOLS",
    "SERVERS",
    "SOCKETS",
    "STATS",
    "STATS_AVERAGES",
    "STATS_TOTALS",
    "TOTALS",
    "USERS",
    "VERSION",
)
RENAMED: Final = {"reserve_pool": "reserve_pool_size"}
LISTED: Final = ("pooler_admin", "monitoring", "gatekeeper", "shop_app", "shop_reader", "batch")
ENTRIES: Final = ("shop", "shop_reports", "ledger", "archive", "nightly")
KEPT: Final = (
    "host",
    "port",
    "database",
    "force_user",
    "pool_size",
    "min_pool_size",
    "reserve_pool_size",
    "pool_mode",
    "paused",
    "disabled",
)


def table(side: Side, command: str) -> Table:
    """Return a table's columns with their types, and its rows."""
    with side.console() as console:
        answer = console.query(command)
    (described,) = (each for each in answer if each.kind == "T")
    columns = list(_columns(described))
    names = [name for name, _ in columns]
    return columns, [dict(zip(names, each.columns, strict=True)) for each in answer if each.kind == "D"]


def _columns(described: Message) -> list[tuple[str, int]]:
    found, at = [], 2
    for _ in range(int.from_bytes(described.payload[:2], "big")):
        end = described.payload.index(b"\0", at)
        (oid,) = struct.unpack_from("!I", described.payload, end + 7)
        found.append((described.payload[at:end].decode(), oid))
        at = end + 19
    return found


@pytest.mark.parametrize("name", SHOWN)
def test_each_table_has_pgbouncers_columns_in_its_order_with_its_types(sides: tuple[Side, Side], name: str) -> None:
    (theirs, _), (ours, _) = (table(side, f"SHOW {name}") for side in sides)
    expected = [(RENAMED.get(column, column), oid) for column, oid in theirs]
    assert [column for column in ours if column in expected] == expected


def test_databases_users_and_lists_are_the_same(sides: tuple[Side, Side]) -> None:
    for side in sides:
        side.login("shop_reader", "shop").close()
    databases, modes, lists = [], [], []
    for side in sides:
        rows = [
            {RENAMED.get(key, key): value for key, value in row.items()} for row in table(side, "SHOW DATABASES")[1]
        ]
        databases.append({row["name"]: [row[key] for key in KEPT] for row in rows if row["name"] in ENTRIES})
        modes.append({row["name"]: row["pool_mode"] for row in table(side, "SHOW USERS")[1] if row["name"] in LISTED})
        lists.append([row["list"] for row in table(side, "SHOW LISTS")[1]])
    assert list(databases[0].items()) == list(databases[1].items()), "in the same order, too"
    # PgBouncer knows some users only once they have come.
    assert {name: modes[1].get(name) for name in modes[0]} == modes[0]
    assert [name for name in lists[1] if name in lists[0]] == lists[0]


# What SHOW CONFIG says otherwise; the value of what is in no file, or of what is in a file of either's own, aside.
OTHERWISE: Final = {
    "admin_users": ("pooler_admin, postgres", "pooler_admin,postgres"),
    "server_tls_ciphers": ("fast", "default"),  # two words for the same
    "unix_socket_mode": ("504", "0770"),
}


def test_settings_have_the_same_values(sides: tuple[Side, Side]) -> None:
    theirs, ours = (
        {row["key"]: (row["value"] or "").replace(str(side.directory), "/etc") for row in table(side, "SHOW CONFIG")[1]}
        for side in sides
    )
    differ = {key: (theirs[key], ours[key]) for key in theirs if ours.get(key) != theirs[key]}
    assert differ.pop("listen_port") == tuple(str(side.port) for side in sides)
    for key in WITHOUT_EFFECT:
        differ.pop(key, None)
    assert differ == OTHERWISE


# --- files with mistakes

MISTAKES: Final = {
    "a setting that there is not": ("pool_mode = trans", "pol_mode = trans", "did you mean pool_mode?"),
    "a word for a number": ("default_pool_size = 10", "default_pool_size = many", "'many' is not a whole number"),
    "a word that does not belong there": ("pool_mode = trans", "pool_mode = some", "is not one of session, trans"),
    "a boolean that is none": ("so_reuseport = 0", "so_reuseport = maybe", "'maybe' is not 0 or 1"),
    "a section that there is not": ("[users]", "[userz]", "there is no section [userz]; did you mean users?"),
    "no equals sign": ("max_client_conn = 200", "max_client_conn 200", "it is not of the form name = value"),
    "a key of a database that there is not": ("shop = host=", "shop = hots=", "no key hots; did you mean host?"),
    "a quote that does not end": ("a secret' pool", "a secret pool", "[databases] shop: it has something after user"),
    "a mode of a database": ("pool_mode=session pool", "pool_mode=often pool", "[databases] shop_reports: pool_mode"),
    "a key of a user": ("batch = pool_mode", "batch = pol_mode", "[users] batch: there is no key pol_mode"),
    "a file that is not there": ("/logging.ini", "/missing.ini", "cannot be read: No such file or directory (%include"),
    "the console's name": ("nightly = ", "pgbouncer = ", "[databases] pgbouncer: it is the console's name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_neither_takes_a_file_with_a_mistake_and_ours_says_where_and_what(
    server: EmbeddedPostgres, certificates: Certificates, sides: tuple[Side, Side], mistake: str
) -> None:
    right, wrong, words = MISTAKES[mistake]
    files = {file: Side.text(file) for file in FILES}
    assert files["pgbouncer.ini"].count(right) == 1
    broken = files["pgbouncer.ini"].replace(right, wrong)
    line = broken[: broken.index(wrong)].count("\n") + 1
    side = Side("pgbouncer", server, certificates, files | {"pgbouncer.ini": broken}, NEWER)
    assert side.refuses()
    ours = Side("pgfunnel", server, certificates, files | {"pgbouncer.ini": broken})
    with pytest.raises(ConfigurationError) as refused:
        load([str(ours.ini)], {})
    shutil.rmtree(ours.directory)
    (said,) = refused.value.mistakes
    assert words in said
    assert f"pgbouncer.ini' line {line})" in said
