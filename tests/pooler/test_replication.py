"""One client and one server connection: places, waiting, what passes, and how the end of one is that of the other."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from itertools import count

import pytest

from pooler.pool import Pool
from pooler.reasons import REPLACED, Ending, Reason
from pooler.replication import Passage, PassageDuties, Passages
from pooler.server import ServerSession
from pooler.upstream.connect import Login, LoginRefusedError
from pooler.upstream.dial import ConnectFailedError
from protocol.messages import TERMINATE, ErrorFields
from protocol.startup import Replication
from tests.pooler.house import DONE, LOGIN, READY, House, query, sent, wire
from tests.protocol.model import message
from tests.support.transport import MockTransport

SHUTDOWN = Ending(Reason.SHUTDOWN, "57P01", "shutting down")


class Guest:
    """A client that wants to replicate."""

    def __init__(self, passages: Passages, number: int) -> None:
        self.id = number
        self.startup = LOGIN._replace(replication=Replication.LOGICAL)
        self.client = MockTransport()
        self.transport: asyncio.Transport = self.client
        self.passage: Passage | None = None
        self.ending: Ending | None = None
        self._passages = passages

    def pass_on(self, passage: Passage, welcome: bytes) -> None:
        self.passage = passage
        passage.begin(b"key %d" % self.id, b"")

    def end(self, ending: Ending) -> None:
        self.ending = ending
        self._passages.leave(self)


class Office:
    """Opens connections when it is told to."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.endings: list[Reason] = []
        self.servers: list[MockTransport] = []
        self.attempts: asyncio.Queue[asyncio.Future[Login]] = asyncio.Queue()
        self._ids = count(100)
        self.passages = Passages(
            PassageDuties(
                log_in=self._log_in,
                wait_s=lambda _: 0.0,
                retry_s=lambda: 0.0,
                ended=lambda _, ending: self.endings.append(ending.reason),
                linger=_linger,
                now=house.now,
                next_id=self._ids.__next__,
            )
        )

    async def _log_in(self, _: Pool[ServerSession], __: Mapping[str, str]) -> Login:
        attempt: asyncio.Future[Login] = asyncio.get_running_loop().create_future()
        self.attempts.put_nowait(attempt)
        return await attempt

    def comes(self) -> Guest:
        guest = Guest(self.passages, next(self._ids))
        self.passages.begin(guest, self.house.pool, {})
        return guest

    async def lets_in(self) -> MockTransport:
        """Open the connection that is asked for."""
        attempt = await asyncio.wait_for(self.attempts.get(), 5)
        server = MockTransport()
        self.servers.append(server)
        attempt.set_result(Login(server, b"server key", {}))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return server

    async def fails(self, error: Exception) -> None:
        attempt = await asyncio.wait_for(self.attempts.get(), 5)
        attempt.set_exception(error)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def opens(self) -> tuple[Guest, MockTransport]:
        guest = self.comes()
        return guest, await self.lets_in()


def _linger(transport: asyncio.Transport) -> None:
    assert isinstance(transport, MockTransport)
    if not transport.closing:
        transport.eof = True


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    office = Office(House(size=1))
    yield office
    office.passages.close(SHUTDOWN)
    await asyncio.sleep(0)
    assert office.house.pool.aside == 0


# --- places


async def test_who_leaves_while_it_is_opened_gives_its_place_back(office: Office) -> None:
    guest = office.comes()
    attempt = await office.attempts.get()
    assert office.house.pool.aside == 1
    office.passages.leave(guest)
    assert office.house.pool.aside == 0
    await asyncio.sleep(0)
    assert attempt.cancelled()


async def test_who_waits_is_served_in_order_of_arrival(office: Office) -> None:
    server, client = office.house.server(), office.house.client()
    wire(client).receive(query())
    guest = office.comes()
    other = office.house.client()
    wire(other).receive(query())
    assert list(office.house.pool.waiters)[1] is other
    wire(server).receive(DONE)
    assert office.house.server_endings == {server: Reason.MADE_ROOM}
    await office.lets_in()
    assert guest.passage is not None
    assert list(office.house.pool.waiters) == [other]
    assert office.house.opens == 0
    guest.client.lose()
    assert office.house.opens == 1, "the next one gets the place"


async def test_who_comes_while_others_wait_waits_behind_them(office: Office) -> None:
    office.house.pool.size = 2
    office.house.server()
    first, second = office.house.client(), office.house.client()
    wire(first).receive(query())
    wire(second).receive(query())
    office.comes()
    assert office.house.pool.aside == 0
    assert len(office.house.pool.waiters) == 2


async def test_what_postgres_refuses_is_told_in_its_words(office: Office) -> None:
    guest = office.comes()
    await office.fails(LoginRefusedError(ErrorFields("FATAL", "42501", "must be replication role")))
    assert guest.ending is not None
    assert (guest.ending.reason, guest.ending.sqlstate) == (Reason.SERVER_REFUSED, "42501")
    assert office.house.pool.aside == 0


async def test_what_may_work_later_is_tried_again(office: Office) -> None:
    guest = office.comes()
    for _ in range(3):
        await office.fails(ConnectFailedError(Reason.SERVER_CONNECT_FAILED, "not there"))
    await office.lets_in()
    assert guest.passage is not None


# --- what passes


async def test_what_comes_is_sent_on_as_it_is(office: Office) -> None:
    guest, server = await office.opens()
    for chunk in (b"Q\0\0", b"\0\6a\0d", b"\0\0\0\4"):
        guest.client.receive(chunk)
        assert sent(server) == chunk
    for chunk in (b"T\0\0\0\5", b"x" + READY[:3], READY[3:]):
        server.receive(chunk)
        assert sent(guest.client) == chunk


@pytest.mark.parametrize("slow", ["client", "server"])
async def test_who_reads_slowly_stops_the_other_and_nobody_else(office: Office, slow: str) -> None:
    guest, server = await office.opens()
    reader, writer = (guest.client, server) if slow == "client" else (server, guest.client)
    reader.slow_peer = True
    writer.receive(message("d", b"x" * 100_000))
    assert not writer.reading
    assert reader.reading
    reader.take()
    assert writer.reading


# --- the end


@pytest.mark.parametrize("polite", [True, False])
async def test_when_the_client_goes_its_server_does(office: Office, *, polite: bool) -> None:
    guest, server = await office.opens()
    if polite:
        guest.client.receive(TERMINATE)
    guest.client.lose()
    assert sent(server) == TERMINATE
    assert server.eof
    assert office.endings == [Reason.CLIENT_QUIT if polite else Reason.CLIENT_GONE]


async def test_when_the_server_goes_the_client_is_told(office: Office) -> None:
    guest, server = await office.opens()
    server.lose()
    assert b"08006" in sent(guest.client)
    assert guest.client.eof
    assert office.endings == [Reason.SERVER_LOST]


async def test_what_the_server_has_said_at_the_end_is_not_said_again(office: Office) -> None:
    guest, server = await office.opens()
    farewell = message("E", b"SFATAL\0C57P01\0\0")
    server.receive(farewell)
    server.lose()
    assert sent(guest.client) == farewell


async def test_nothing_is_told_in_the_middle_of_a_message(office: Office) -> None:
    guest, server = await office.opens()
    half = message("d", b"x" * 100)[:50]
    server.receive(half)
    server.lose()
    assert sent(guest.client) == half
    assert guest.client.eof


@pytest.mark.parametrize(
    ("from_client", "told", "reason"),
    [(True, b"08P01", Reason.CLIENT_VIOLATION), (False, b"08006", Reason.SERVER_VIOLATION)],
)
async def test_what_is_no_message_ends_it(office: Office, *, from_client: bool, told: bytes, reason: Reason) -> None:
    guest, server = await office.opens()
    (guest.client if from_client else server).receive(b"d\0\0\0\1")
    assert told in sent(guest.client)
    assert office.endings == [reason]
    assert b"d" not in sent(server)


@pytest.mark.parametrize(
    ("asked", "answered", "ends"),
    [
        (b"", b"", True),
        (query("BASE_BACKUP"), b"", False),
        (query("START_REPLICATION"), message("W", b"\0\0\0"), True),
        (query("SELECT 1"), DONE, True),
    ],
    ids=["idle", "a backup", "streaming", "done"],
)
async def test_a_shutdown_waits_for_what_comes_to_an_end(
    office: Office, asked: bytes, answered: bytes, *, ends: bool
) -> None:
    guest, server = await office.opens()
    guest.client.receive(asked)
    server.receive(answered)
    sent(guest.client)
    assert office.passages.drain(SHUTDOWN) != ends
    assert (b"57P01" in sent(guest.client)) == ends


async def test_who_comes_after_the_end_is_sent_away(office: Office) -> None:
    office.passages.close(SHUTDOWN)
    assert office.comes().ending is SHUTDOWN


async def test_it_ends_when_its_pool_leads_elsewhere(office: Office) -> None:
    guest, _ = await office.opens()
    office.passages.sweep()
    assert not office.endings
    office.house.pool.era += 1
    office.passages.sweep()
    assert office.endings == [REPLACED.reason]
    assert b"57P01" in sent(guest.client)


async def test_a_pause_waits_for_what_comes_to_an_end(office: Office) -> None:
    guest, server = await office.opens()
    guest.client.receive(query("BASE_BACKUP"))
    office.house.pool.paused = True
    office.house.pool.era += 1
    office.passages.sweep()
    assert not office.endings
    server.receive(DONE)
    office.passages.sweep()
    assert office.endings == [REPLACED.reason]


async def test_who_is_about_to_try_again_gives_its_place_back_for_a_pause_and_goes_on_after_it(office: Office) -> None:
    guest = office.comes()
    attempt = await office.attempts.get()
    pool = office.house.pool
    pool.paused = True
    attempt.set_exception(ConnectFailedError(Reason.SERVER_CONNECT_FAILED, "connection refused"))
    for _ in range(5):  # it pauses for no time, and tries again
        await asyncio.sleep(0)
    assert pool.aside == 0
    assert office.attempts.empty(), "a pause would be over, and a connection there all the same"
    assert len(pool.waiters) == 1
    pool.paused = False
    pool.grow(office.house.now())
    office.house.server()
    await office.lets_in()
    assert guest.passage is not None


async def test_kill_sends_away_who_waits_for_a_connection(office: Office) -> None:
    guest, other = office.comes(), office.comes()
    office.passages.turn_away([], SHUTDOWN)
    assert guest.ending is None
    office.passages.turn_away([office.house.pool], SHUTDOWN)
    assert guest.ending is other.ending is SHUTDOWN


async def test_a_connection_that_breaks_as_it_is_opened_is_told(office: Office) -> None:
    guest = office.comes()
    attempt = await office.attempts.get()
    server = MockTransport()
    server.closing = True
    attempt.set_result(Login(server, b"server key", {}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert b"08006" in sent(guest.client)
