"""What the clients of the leak torture do: each habit finds its connection idle, and leaves it idle or gone."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from tests.support.torture_client import Answer, Client, TortureError
from tests.support.wire import (
    bind,
    copy_data,
    copy_done,
    copy_fail,
    describe_portal,
    execute,
    extended,
    flush,
    parse,
    query,
    sync,
)


def select(token: str) -> bytes:
    return query(f"SELECT '{token}'")


def select_extended(token: str) -> bytes:
    return extended("SELECT $1::text", token)


FAIL: Final = extended("SELECT 1/$1::int", "0")


async def asks_simply(client: Client) -> None:
    token = client.token()
    await client.send(select(token))
    await client.expect(token)


async def asks_for_several_at_once(client: Client) -> None:
    tokens = client.tokens(5)
    await client.send(query(";".join(f"SELECT '{token}'" for token in tokens)))
    await client.expect(*tokens)


async def asks_extended(client: Client) -> None:
    token = client.token()
    await client.send(select_extended(token), sync())
    await client.expect(token)


async def asks_without_reading(client: Client) -> None:
    tokens = client.tokens(20)
    await client.send(*(select(token) for token in tokens))
    for token in tokens:
        await client.expect(token)


async def pipelines(client: Client) -> None:
    """Send runs of queries; where one fails, what follows up to the Sync is skipped."""
    expected: list[tuple[list[str], str]] = []
    sent = []
    for _ in range(client.rng.randint(1, 8)):
        answered, skipped = client.tokens(4), client.tokens(4)
        sent += [select_extended(token) for token in answered]
        if fails := client.rng.random() < 0.3:
            sent += [FAIL, *(select_extended(token) for token in skipped)]
        sent.append(sync())
        expected.append((answered, "22012" if fails else ""))
    await client.send(*sent)
    for rows, error in expected:
        await client.expect(*rows, error=error)


async def flushes(client: Client) -> None:
    tokens = client.tokens(4)
    await client.send(parse("SELECT $1::text"), flush())
    await client.read_until("1")
    for token in tokens:
        await client.send(bind(token), describe_portal(), execute(), flush())
        answer = Answer()
        while (message := await client.read()).kind != "C":
            answer.add(message)
        if answer.rows != [token]:
            raise TortureError(f"client {client.number} expected {token}, got {answer}")
        await asyncio.sleep(client.rng.random() / 200)
    await client.send(sync())
    await client.expect()


async def fails(client: Client) -> None:
    token = client.token()
    await client.send(query(f"SELECT '{token}'; DO $$ BEGIN RAISE EXCEPTION '{token}'; END $$; SELECT 1"))
    await client.expect(token, error="P0001")


async def raises_notices(client: Client) -> None:
    token = client.token()
    await client.send(query(f"DO $$ BEGIN RAISE NOTICE '{token}'; END $$; SELECT '{token}'"))
    await client.expect(token)


async def transacts(client: Client) -> None:
    """One transaction stays on one server connection, alone, however slowly it goes."""
    await client.send(query("BEGIN; SELECT pg_backend_pid()"))
    pid = (await client.answer()).rows
    for token in client.tokens(4):
        await asyncio.sleep(client.rng.random() / 100)
        await client.send(query(f"SELECT '{token}'; SELECT pg_backend_pid()"))
        await client.expect(token, *pid, status="T")
    if client.rng.random() < 0.3:
        await client.send(query("SELECT 1/0"))
        await client.expect(status="E", error="22012")
    await client.send(query(client.rng.choice(["COMMIT", "ROLLBACK"])))
    await client.expect()


async def copies_in_and_out(client: Client) -> None:
    token = client.token()
    await client.send(query("BEGIN; CREATE TEMP TABLE t (token text) ON COMMIT DROP; COPY t FROM STDIN"))
    await client.read_until("G")
    lines = client.rng.randint(0, 50)
    await client.send(*[copy_data(token.encode() + b"\n")] * lines, copy_done())
    await client.expect(status="T")
    await client.send(query("COPY t TO STDOUT"))
    answer = await client.answer()
    if answer.copied != (token.encode() + b"\n") * lines:
        raise TortureError(f"client {client.number} copied {lines} of {token}, got {answer.copied!r}")
    await client.send(query("ROLLBACK"))
    await client.expect()


async def fails_to_copy(client: Client) -> None:
    token = client.token()
    await client.send(query("BEGIN; CREATE TEMP TABLE t (token text) ON COMMIT DROP; COPY t FROM STDIN"))
    await client.read_until("G")
    await client.send(copy_data(b"half of it"), copy_fail(token))
    await client.expect(status="E", error="57014")
    await client.send(query("COMMIT"), select(token))
    await client.expect()
    await client.expect(token)


async def cancels(client: Client) -> None:
    """Cancel a query, which may be too quick for it; the one after it is left alone."""
    token, after = client.token(), client.token()
    seconds = client.rng.choice([0.0, 0.01, 0.2])
    await client.send(query(f"SELECT '{token}', pg_sleep({seconds})"))
    await asyncio.sleep(seconds * client.rng.random() * 1.2)
    await client.cancel(client.login.cancel_key)
    answer = await client.answer()
    if answer.error == "57014" and answer.rows in ([], [token]):
        client.report.cancelled += 1
    elif answer.error or answer.rows != [token]:
        raise TortureError(f"client {client.number} cancelled {token}, got {answer}")
    await client.send(select(after))
    await client.expect(after)


async def cancels_with_a_wrong_key(client: Client) -> None:
    token = client.token()
    await client.send(query(f"SELECT '{token}', pg_sleep(0.005)"))
    await client.cancel(client.rng.randbytes(len(client.login.cancel_key)))
    await client.expect(token)


async def cancels_and_vanishes(client: Client) -> None:
    await client.send(query(f"SELECT '{client.token()}', pg_sleep(0.01)"))
    cancelling = asyncio.ensure_future(client.cancel(client.login.cancel_key))
    await asyncio.sleep(client.rng.random() / 100)
    client.vanish()
    await cancelling


async def vanishes_amid_a_message(client: Client) -> None:
    message = select(client.token())
    await client.send(message[: client.rng.randint(1, len(message) - 1)])
    client.vanish()


async def vanishes_amid_a_query(client: Client) -> None:
    await client.send(query(f"SELECT '{client.token()}', pg_sleep(5)"))
    await asyncio.sleep(client.rng.random() / 50)
    client.vanish()


async def vanishes_amid_a_transaction(client: Client) -> None:
    token = client.token()
    await client.send(query(f"BEGIN; SELECT '{token}'"))
    await client.expect(token, status="T")
    client.vanish()


async def vanishes_amid_a_pipeline(client: Client) -> None:
    runs = [select_extended(token) + sync() for token in client.tokens(10)]
    await client.send(*runs, FAIL, select_extended(client.token()))
    for _ in range(client.rng.randint(0, len(runs))):
        await client.answer()
    client.vanish()


async def vanishes_amid_copy(client: Client) -> None:
    await client.send(query("BEGIN; CREATE TEMP TABLE t (token text) ON COMMIT DROP; COPY t FROM STDIN"))
    await client.read_until("G")
    await client.send(copy_data(client.token().encode()))
    client.vanish()


async def vanishes_with_answers_unread(client: Client) -> None:
    await client.send(query(f"SELECT '{client.token()}' || repeat('x', 1000) FROM generate_series(1, 3000)"))
    await client.read()
    client.vanish()


async def reads_slowly(client: Client) -> None:
    token, rows = client.token(), 3000
    await client.send(query(f"SELECT '{token}' || repeat('x', 300) FROM generate_series(1, {rows})"))
    answer = Answer()
    while not answer.status:
        answer.add(await client.read())
        if client.rng.random() < 0.01:
            await asyncio.sleep(0.002)
    if answer.rows != [token + "x" * 300] * rows or answer.status != "I":
        raise TortureError(f"client {client.number} got {len(answer.rows)} of {rows} rows, {answer.error}")


async def loses_its_server(client: Client) -> None:
    """Its server connection is killed: it is told so, and disconnected."""
    token = client.token()
    await client.send(query(f"SELECT '{token}' FROM pg_terminate_backend(pg_backend_pid())"))
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while (message := await client.read()).kind != "Z":
            if message.kind == "E" and message.fields["C"] not in ("57P01", "08006"):
                raise TortureError(f"client {client.number} lost its server and was told {message.fields}")
    client.vanish()


Habit = Callable[[Client], Awaitable[None]]
# How often each is practised.
HABITS: Final[dict[Habit, int]] = {
    asks_simply: 20,
    asks_for_several_at_once: 5,
    asks_extended: 20,
    asks_without_reading: 5,
    pipelines: 15,
    flushes: 5,
    fails: 5,
    raises_notices: 5,
    transacts: 8,
    copies_in_and_out: 4,
    fails_to_copy: 2,
    cancels: 8,
    cancels_with_a_wrong_key: 2,
    cancels_and_vanishes: 2,
    vanishes_amid_a_message: 2,
    vanishes_amid_a_query: 2,
    vanishes_amid_a_transaction: 2,
    vanishes_amid_a_pipeline: 2,
    vanishes_amid_copy: 2,
    vanishes_with_answers_unread: 2,
    reads_slowly: 1,
    loses_its_server: 1,
}
