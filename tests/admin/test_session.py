"""A console session when things go wrong: its client does not read, a command fails by a fault, the place is wanted."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from pooler.admin import session as module
from pooler.admin.results import Outcome, Plan, Row, columns
from pooler.admin.session import ConsoleDuties, ConsoleSession, Interpreter
from pooler.demo.postgres import EmbeddedPostgres
from pooler.entrance.lobby import CONSOLE_PLACES
from pooler.reasons import CLIENT_QUIT, Ending, Reason
from protocol.console import Kind
from protocol.startup import Startup
from tests.conftest import StartPgfunnel
from tests.support.pgfunnel import eventually
from tests.support.transport import MockTransport
from tests.support.wire import describe_statement, parse, query, startup, sync, terminate

LOGIN = Startup("alice", "pgbouncer", 0, negotiate=False, unknown_options=[], parameters={})


class Endless:
    """Understands everything as a table without an end."""

    def __init__(self) -> None:
        self.made = 0

    def plan(self, text: str) -> Plan:
        return Plan(self._run, columns(number=Kind.INT4))

    async def _run(self) -> Outcome:
        return Outcome("SHOW", self._rows())

    def _rows(self) -> Iterator[Row]:
        while True:
            self.made += 1
            yield (self.made,)


class Faulty:
    """Understands nothing, by a mistake."""

    def plan(self, text: str) -> Plan:
        raise RuntimeError("a mistake")


class Desk:
    """One session, and what it reports."""

    def __init__(self, interpreter: Interpreter) -> None:
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.transport = MockTransport(None)
        duties = ConsoleDuties(
            lambda _, ending: self.ending.set_result(ending), lambda _: self.transport.close(), lambda: 1.0
        )
        self.session = ConsoleSession(7, LOGIN, self.transport, b"key", interpreter, duties)

    async def until_ended(self) -> Ending:
        async with asyncio.timeout(10):
            return await self.ending


async def test_rows_are_not_made_faster_than_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    endless = Endless()
    desk = Desk(endless)
    desk.session.pause_writing()
    desk.session.data_received(query("SHOW IT"))
    ending = await desk.until_ended()
    assert endless.made <= 2 * module.PIECE
    assert ending.reason is Reason.CLIENT_IDLE_TIMEOUT


async def test_short_requests_are_not_answered_faster_than_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    desk = Desk(Endless())
    desk.session.data_received(parse("SHOW IT"))
    await asyncio.sleep(0)
    desk.session.pause_writing()
    desk.session.data_received(describe_statement() * 1000)
    ending = await desk.until_ended()
    assert len(desk.transport.sent) < 200
    assert ending.reason is Reason.CLIENT_IDLE_TIMEOUT


async def test_others_have_their_turn_between_requests() -> None:
    desk = Desk(Endless())
    desk.session.data_received(sync() * 1000)
    for _ in range(50):
        await asyncio.sleep(0)
    assert 0 < len(desk.transport.sent) < 1000
    desk.session.connection_lost(None)
    await desk.until_ended()


async def test_others_have_their_turn_between_rows() -> None:
    desk = Desk(Endless())
    desk.session.data_received(query("SHOW IT"))
    for _ in range(50):
        await asyncio.sleep(0)
    desk.session.connection_lost(None)
    assert (await desk.until_ended()).reason is Reason.CLIENT_GONE


async def test_a_fault_is_logged_and_told_and_ends_the_session() -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    desk = Desk(Faulty())
    desk.session.data_received(query("SHOW IT"))
    assert (await desk.until_ended()).sqlstate == "XX000"
    assert [str(fault) for fault in faults] == ["a mistake"]


async def test_a_client_that_says_good_bye_goes() -> None:
    desk = Desk(Faulty())
    desk.session.data_received(terminate())
    assert await desk.until_ended() is CLIENT_QUIT


def test_the_next_operator_gets_the_place_of_one_who_leaves(
    postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel
) -> None:
    pooler = pgfunnel(postgres.url(), auth_type="any", max_client_conn=1)
    held = [pooler.login("bob", "pgbouncer") for _ in range(CONSOLE_PLACES)]
    with pooler.login("bob", "postgres"), pooler.connect() as waiting:
        waiting.send(startup({"user": "bob", "database": "pgbouncer"}))
        eventually(lambda: len(held[0].rows("SHOW QUEUE")) == 1)
        held.pop().terminate()
        waiting.authenticate("bob", "")
        assert waiting.value("SHOW VERSION")
    for wire in held:
        wire.close()
