"""What the clients of the machine may say: SQL texts and messages, drawn without knowing what was answered before.

Some of it makes no sense, such as COMMIT outside a transaction: Postgres says what comes of it.
"""

import re
from shlex import quote
from typing import Final

from hypothesis import strategies as st

SETTINGS: Final = {
    "work_mem": ("1MB", "2MB"),
    "extra_float_digits": ("0", "-3"),
    "statement_timeout": ("1min", "2min"),
    "default_transaction_isolation": ("serializable", "repeatable read"),
    "track_functions": ("pl", "all"),  # for superusers
    "TimeZone": ("Asia/Tokyo", "Europe/Vienna"),
    "DateStyle": ("SQL, DMY", "German, YMD"),
    "IntervalStyle": ("iso_8601", "sql_standard"),
    "application_name": ("first", "it's the second"),
    "client_encoding": ("LATIN1", "SQL_ASCII"),
    "search_path": ("one", "two, one", "nowhere"),
    "app.x": ("red", "it's blue"),
    "app.y": ("1", "2"),
}
ROLES: Final = ("alice", "bob")
SETUP: Final = """
CREATE SCHEMA one; CREATE SCHEMA two; GRANT USAGE ON SCHEMA one, two TO public;
CREATE TABLE public.t AS SELECT 0 AS v; CREATE TABLE one.t AS SELECT 1 AS v; CREATE TABLE two.t AS SELECT 2 AS v;
GRANT SELECT ON public.t, one.t, two.t TO public;
"""


def mixed(*weighted: tuple[int, st.SearchStrategy[str]]) -> st.SearchStrategy[str]:
    """Return one of several strategies, each as likely as its weight says; st.one_of() would look into them."""
    return st.sampled_from([each for weight, each in weighted for _ in range(weight)]).flatmap(lambda each: each)


def a_few(what: str, texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return one of a few of these, the same few throughout an example: what happens once is to happen again."""
    few = st.lists(texts, min_size=1, max_size=3, unique=True)
    return st.shared(few, key=what).flatmap(st.sampled_from)


names = a_few("settings", st.sampled_from(sorted(SETTINGS)))
assignments = names.flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(SETTINGS[name])))


def literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def assigned(assignment: tuple[str, str]) -> str:
    name, value = assignment
    return f"{name} = {value if name == 'search_path' else literal(value)}"


def configured(assignment: tuple[str, str], *, local: bool = False) -> str:
    name, value = assignment
    return f"set_config('{name}', {literal(value)}, {str(local).lower()})"


def texts(pattern: str, *choices: str) -> st.SearchStrategy[str]:
    """Return `pattern` with one of `choices` for its {}, if it has any."""
    return st.sampled_from([pattern.format(choice) for choice in choices or ("",)])


sets = a_few(
    "sets",
    st.one_of(
        assignments.map(lambda each: f"set {assigned(each)}"),
        assignments.map(lambda each: f"set local {assigned(each)}"),
        assignments.map(lambda each: f"select {configured(each)}"),
        assignments.map(lambda each: f"select {configured(each, local=True)}"),
        assignments.map(lambda each: f"do $$begin perform {configured(each)}; end$$"),
    ),
)
identities = a_few(
    "identities",
    st.one_of(
        texts("set role {}", *ROLES, "none"),
        texts("set local role {}", *ROLES, "none"),
        texts("set session authorization {}", *ROLES, "default"),
        texts("reset {}", "role", "session authorization"),
    ),
)
resets = a_few(
    "resets",
    st.one_of(
        names.map("reset {}".format),
        names.map("set {} to default".format),
        st.sampled_from(("reset all", "discard all")),
    ),
)
visible_pins = st.one_of(
    texts("create temporary table own as select {} as v", "91", "92"),
    texts("listen {}", "news", "jobs"),
    texts(
        "prepare s as {}", "select v from t", "select pg_try_advisory_lock(1)", "select set_config('app.x', '2', false)"
    ),
    texts("declare c{} cursor with hold for select generate_series(1, 3)", "1", "2"),
    texts("select pg_try_advisory_lock({})", "1", "2"),
)
pins = a_few("pins", st.one_of(visible_pins, texts("do $$begin perform pg_try_advisory_lock({}); end$$", "1", "2")))
unpins = st.one_of(
    texts("{}", "drop table own", "discard temp", "deallocate s", "deallocate all", "close all", "discard all"),
    texts("unlisten {}", "news", "jobs", "*"),
    texts("close c{}", "1", "2"),
    texts("select pg_advisory_unlock({})", "1", "2"),
    texts("select pg_advisory_unlock_all() is null"),
)
uses = a_few(
    "uses",
    st.one_of(
        texts("select v from {}", "t", "pg_temp.own"),
        texts("{}", "execute s", "select 1 / 0", "create temporary table brief (v int) on commit drop"),
        texts("fetch from c{}", "1", "2"),
        texts("notify {}", "news", "jobs"),
        texts("declare brief cursor for select 1"),
        texts("select pg_try_advisory_xact_lock({})", "1", "2"),
        names.map(lambda name: f"select nullif(current_setting('{name}', true), '')"),
    ),
)
blocks = texts("{}", "begin", "begin", "commit", "rollback", "commit and chain", "rollback and chain")
savepoints = st.one_of(
    texts("savepoint {}", "one", "two"), texts("rollback to {}", "one", "two"), texts("release {}", "one", "two")
)
together = mixed(
    (3, sets), (2, identities), (2, resets), (4, pins), (4, unpins), (4, uses), (4, blocks), (2, savepoints)
)
statements = mixed((25, together), (1, texts("deallocate {}", "p", "q", "r")))
several = st.lists(together, min_size=2, max_size=4).map("; ".join)

PREPARED: Final = (
    "select v from t",
    "select nullif(current_setting('app.x', true), '')",
    "set app.x = 'red'",
    "select set_config('TimeZone', 'Asia/Tokyo', false)",
    "begin",
    "commit",
    "rollback",
    "deallocate all",
)
PREPARED_WITH_PARAMETER: Final = (
    "select $1::text",
    "select set_config('work_mem', $1, false)",
    "select set_config($1, '2', false)",
)
prepared = a_few("prepared", st.sampled_from(PREPARED))
prepared_names = st.sampled_from(("p", "q", '""'))
messages = mixed(
    (3, st.builds("parse {} {}".format, prepared_names, prepared)),
    (1, texts("parse r {}", *PREPARED_WITH_PARAMETER)),
    (4, prepared_names.map("run {} []".format)),
    (1, texts('run r ["{}"]', "1MB", "app.x", "app.y")),
    (1, texts("describe {}", "p", "q", "r")),
    (2, texts("close {}", "p", "q", "r", '""')),
    (2, st.builds("parse {0} {1} | run {0} []".format, prepared_names, prepared)),
    (4, together.map("extended {}".format)),
)
runs = mixed(
    (6, st.lists(messages, min_size=1, max_size=4).map(lambda each: " | ".join((*each, "sync")))),
    (1, texts("extended deallocate {} | sync", "p", "q", "r")),
    (2, statements.map("query {}".format)),
)
pipelines = st.lists(runs, min_size=1, max_size=3).map(" | ".join)

startups = st.lists(assignments, max_size=3, unique_by=lambda each: each[0]).map(
    lambda chosen: " ".join(("login", *(quote(f"{name}={value}") for name, value in chosen)))
)
turns = mixed(
    (10, mixed((5, statements), (1, several)).map("> query {}".format)),
    (6, pipelines.map("> {}".format)),
    (1, startups.map(" {}".format)),
    (1, texts(" {}", "leaves", "vanishes")),
)
"""A step without the letter of whose turn it is."""

_DO: Final = re.compile(r"do \$\$.*?\$\$")
_PINS: Final = re.compile(r"\b(temporary table own|listen (?!\*)|prepare s|with hold|pg_try_advisory_lock)")
_RESETS: Final = re.compile(r"\b(reset|to default|discard all|session authorization|role none)\b")


def units(line: str) -> list[list[str]]:
    """Return the messages of a step, apart by what is answered with one ReadyForQuery each."""
    found: list[list[str]] = [[]]
    for message in line.partition("> ")[2].split(" | "):
        if message != "sync":
            found[-1].append(message)
        if message == "sync" or is_query(message):
            found.append([])
    return found[:-1]


def is_query(message: str) -> bool:
    return message.startswith("query ")


def describes(message: str) -> bool:
    return message.startswith("describe ")


def names_statement(message: str) -> bool:
    """Tell whether it parses, describes or deallocates one of p, q and r."""
    return bool(re.match(r"(parse|describe|(query|extended) deallocate) [pqr]\b", message))


def replaces_unnamed(message: str) -> bool:
    return message.startswith(('parse ""', 'close ""', "extended "))


def pins_visibly(text: str) -> bool:
    """Tell whether it shows that a client may be pinned."""
    return bool(_PINS.search(_DO.sub("", text)))


def resets_something(text: str) -> bool:
    return bool(_RESETS.search(text))


def is_single(unit: list[str]) -> bool:
    """Tell whether there is but one statement."""
    return len(unit) == 1 and ";" not in _DO.sub("", unit[0])


def in_vain(line: str) -> str:
    """Return a step with what would pin its client replaced by what Postgres refuses."""
    messages = line.split(" | ")
    at = next(at for at, message in enumerate(messages) if pins_visibly(message))
    if "query " in messages[at]:
        messages[at] = f"{line[:3]}query nonsense"
    else:
        messages[at] = messages[at].replace("extended ", 'parse "" ') + " | run nonsense []"
    return " | ".join(messages)
