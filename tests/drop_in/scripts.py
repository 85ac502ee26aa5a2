"""What clients and operators do, in order; each script yields what they see, in lines that a pooler's port is not in.

One script is played with pgfunnel and with PgBouncer: see test_side_by_side.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

from tests.drop_in.side import PASSWORDS, Side
from tests.support.pgfunnel import eventually
from tests.support.wire import Message, ServerError, Wire, cancel_request, query, startup

Script = Callable[[Side], Iterator[str]]

WHERE: Final = "SELECT pg_backend_pid()"
WRONG: Final = (
    "NONSENSE",
    "SHOW",
    "SHOW NONSENSE",
    "SHOW POOLS NOW",
    "PAUSE too many words",
    "DISABLE",
    "DISABLE pgbouncer",
    "PAUSE pgbouncer",
    "RESUME",
    "SET no_such_setting = 1",
    "SET default_pool_size = many",
    "SET listen_port = 1",
    "KILL_CLIENT",
    "RESUME; NONSENSE",
    "",
)


def told(answer: list[Message]) -> str:
    """Return an answer in one line: its rows, tags and errors."""
    words = []
    for each in answer:
        if each.kind == "D":
            words.append("|".join(column or "" for column in each.columns))
        elif each.kind == "C":
            words.append(each.payload.rstrip(b"\0").decode())
        elif each.kind == "E":
            words.append(error(ServerError(each)))
    return ", ".join(words)


def error(refusal: ServerError) -> str:
    return f"{refusal.severity} {refusal.sqlstate} {refusal.message}"


def login(side: Side, user: str, dbname: str, password: str | None = None, **parameters: str) -> str:
    """Return how a login ends."""
    with Wire(side.host, side.port) as wire:
        try:
            wire.login(user, dbname, PASSWORDS[user] if password is None else password, **parameters)
        except ServerError as refusal:
            return error(refusal)
        return "let in"


def refusals(side: Side) -> Iterator[str]:
    yield login(side, "shop_reader", "shop", "wrong")
    yield login(side, "nobody", "shop", "whatever")
    yield login(side, "clerk", "ledger", "wrong")
    yield login(side, "intruder", "shop", "whatever")
    yield login(side, "shop_reader", "nowhere")
    yield login(side, "shop_reader", "pgbouncer")
    yield login(side, "batch", "archive")  # not over TLS


def startup_parameters(side: Side) -> Iterator[str]:
    yield login(side, "shop_reader", "shop", extra_float_digits="2")
    yield login(side, "shop_reader", "shop", options="-c geqo=off")
    yield login(side, "shop_reader", "shop", work_mem="7MB")
    yield login(side, "shop_reader", "shop", no_such_setting="1")


def transaction_mode(side: Side) -> Iterator[str]:
    with side.login("clerk", "ledger") as one, side.login("clerk", "ledger") as other:
        yield f"the same server: {one.value(WHERE) == other.value(WHERE)}"
        yield told(one.query("BEGIN"))
        yield f"the same server: {one.value(WHERE) == other.value(WHERE)}"
        yield told(one.query("SELECT 1/0"))
        yield told(one.query("SELECT 1"))
        yield told(one.query("ROLLBACK"))
        yield told(one.query("SET work_mem = '7MB'"))
        one.query("BEGIN")  # so that another server serves the other client
        yield f"what one has set, the other sees: {other.value('SHOW work_mem')}"
        yield told(one.query("RESET work_mem; COMMIT"))


def session_mode(side: Side) -> Iterator[str]:
    with side.login("gatekeeper", "shop_reports") as one:
        pid = one.value(WHERE)
        yield told(one.query("SET work_mem = '7MB'; CREATE TEMP TABLE mine ()"))
        with side.login("gatekeeper", "shop_reports") as other:
            yield f"the same server: {other.value(WHERE) == pid}"
        yield told(one.query("SELECT current_setting('work_mem'), to_regclass('mine')"))
        one.terminate()
    with side.login("gatekeeper", "shop_reports") as wire, side.login("gatekeeper", "shop_reports") as other:
        for each in (wire, other):
            yield told(each.query("SELECT current_setting('work_mem'), to_regclass('mine')"))


def pause_and_resume(side: Side) -> Iterator[str]:
    with side.console() as console, side.login("shop_reader", "shop") as client:
        yield told(client.query("BEGIN"))
        console.send(query("PAUSE shop"))
        time.sleep(0.3)
        yield told(client.query("SELECT 'still served'"))
        yield told(client.query("COMMIT"))
        yield told(console.read_until())
        yield f"paused: {column(console, 'SHOW DATABASES', 'shop', 'paused')}"
        client.send(query("SELECT 'waited'"))
        eventually(lambda: column(console, "SHOW POOLS", "shop", "cl_waiting") == "1")
        yield told(console.query("PAUSE shop"))
        yield told(console.query("RESUME shop"))
        yield told(client.read_until())
        yield told(console.query("RESUME shop"))
        yield told(console.query("RESUME"))


def pause_all_and_resume(side: Side) -> Iterator[str]:
    with side.console() as console, side.login("shop_reader", "shop") as client:
        yield told(console.query("PAUSE"))
        client.send(query("SELECT 'waited'"))
        eventually(lambda: column(console, "SHOW POOLS", "shop", "cl_waiting") == "1")
        yield told(console.query("PAUSE"))
        yield told(console.query("RESUME"))
        yield told(client.read_until())


def kill_and_resume(side: Side) -> Iterator[str]:
    with side.console() as console, side.login("shop_reader", "shop") as client:
        client.query("BEGIN")
        yield told(console.query("KILL shop"))
        yield error(client.error())
        yield f"paused: {column(console, 'SHOW DATABASES', 'shop', 'paused')}"
        with Wire(side.host, side.port) as late:
            late.send(startup({"user": "shop_reader", "database": "shop"}))
            time.sleep(0.2)
            yield told(console.query("RESUME shop"))
            late.authenticate("shop_reader", PASSWORDS["shop_reader"])
            yield told(late.query("SELECT 'served again'"))


def disable_and_enable(side: Side) -> Iterator[str]:
    with side.console() as console, side.login("shop_reader", "shop") as client:
        yield told(console.query("DISABLE shop"))
        yield login(side, "shop_reader", "shop")
        yield told(client.query("SELECT 'goes on'"))
        yield told(console.query("ENABLE shop"))
        yield login(side, "shop_reader", "shop")


def reconnect(side: Side) -> Iterator[str]:
    with (
        side.console() as console,
        side.login("gatekeeper", "shop_reports") as keeper,
        side.login("clerk", "ledger") as wire,
    ):
        before, kept = wire.value(WHERE), keeper.value(WHERE)
        yield told(console.query("RECONNECT ledger"))
        yield told(console.query("WAIT_CLOSE ledger"))
        yield f"another server: {wire.value(WHERE) != before}"
        yield told(console.query("RECONNECT"))
        yield f"another server in a session: {keeper.value(WHERE) != kept}"


def who_may_do_what(side: Side) -> Iterator[str]:
    with side.console("monitoring") as console:
        for command in ("SHOW VERSION", "PAUSE", "RELOAD", "SET verbose = 1", "SHUTDOWN", "SHOW NONSENSE"):
            yield command if command == "SHOW VERSION" and console.rows(command) else told(console.query(command))


def commands_gone_wrong(side: Side) -> Iterator[str]:
    with side.console() as console:
        for command in WRONG:
            yield f"{command}: {told(console.query(command))}"


def settings_at_the_console(side: Side) -> Iterator[str]:
    with side.console() as console:
        before = column(console, "SHOW CONFIG", "query_wait_timeout", "value")
        yield told(console.query("SET query_wait_timeout = 7"))
        yield str(column(console, "SHOW CONFIG", "query_wait_timeout", "value"))
        yield told(console.query(f"SET query_wait_timeout = '{before}'"))
        yield str(column(console, "SHOW CONFIG", "query_wait_timeout", "value"))


def the_queue(side: Side) -> Iterator[str]:

    with ExitStack() as open_:
        console = open_.enter_context(side.console())
        clients = [open_.enter_context(side.login("gatekeeper", "nightly")) for _ in range(2)]
        clients[0].query("BEGIN")
        yield told(console.query("SET query_wait_timeout = 1"))
        clients[1].send(query("SELECT 1"))
        refusal = clients[1].error()
        yield f"{refusal.severity} {refusal.sqlstate} {'query_wait_timeout' in refusal.message}"
        yield told(console.query("SET query_wait_timeout = 10"))


def no_place_for_a_client(side: Side) -> Iterator[str]:
    with side.console() as console, side.login("clerk", "ledger"), Wire(side.host, side.port) as late:
        yield told(console.query("SET max_client_conn = 2"))
        late.send(startup({"user": "clerk", "database": "ledger"}))
        late.socket.settimeout(0.5)
        try:
            yield error(late.error())
        except TimeoutError:
            yield "it waits"
        late.socket.settimeout(20)
        yield told(console.query("SET max_client_conn = 200"))


def a_client_that_vanishes(side: Side) -> Iterator[str]:
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(2.25)' AND state = 'active'"
    with side.login("shop_app", "shop") as other:
        client = side.login("shop_reader", "shop")
        client.send(query("SELECT pg_sleep(2.25)"))
        eventually(lambda: other.value(running) == "1")
        client.reset()
        time.sleep(0.5)
        yield f"its query runs on: {other.value(running) == '1'}"


def a_cancel(side: Side) -> Iterator[str]:
    with side.login("shop_reader", "shop") as client:
        client.send(query("SELECT pg_sleep(60)"))
        time.sleep(0.3)
        with Wire(side.host, side.port) as other:
            other.send(cancel_request(client.backend_pid, client.cancel_key))
            other.read_to_end()
        yield told(client.read_until())
        yield told(client.query("SELECT 'goes on'"))


def a_server_that_dies(side: Side) -> Iterator[str]:
    with side.login("shop_reader", "shop") as client, side.login("shop_app", "shop") as other:
        client.query("BEGIN")
        pid = client.value(WHERE)
        other.query(f"SELECT pg_terminate_backend({pid})")
        yield error(client.error())
        yield told(other.query("SELECT 'goes on'"))


def column(console: Wire, command: str, name: str, wanted: str) -> str | None:
    """Return a value of the first row that begins with `name`."""
    answer = console.query(command)
    (described,) = (each.payload for each in answer if each.kind == "T")
    names, at = [], 2
    for _ in range(int.from_bytes(described[:2], "big")):
        end = described.index(b"\0", at)
        names.append(described[at:end].decode())
        at = end + 19
    row = next(each.columns for each in answer if each.kind == "D" and each.columns[0] == name)
    return row[names.index(wanted)]


SCRIPTS: Final[tuple[Script, ...]] = (
    refusals,
    startup_parameters,
    transaction_mode,
    session_mode,
    pause_and_resume,
    pause_all_and_resume,
    kill_and_resume,
    disable_and_enable,
    reconnect,
    who_may_do_what,
    commands_gone_wrong,
    settings_at_the_console,
    the_queue,
    no_place_for_a_client,
    a_client_that_vanishes,
    a_cancel,
    a_server_that_dies,
)
