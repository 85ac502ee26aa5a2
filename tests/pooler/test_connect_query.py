"""What a new connection runs first, against a Postgres that does not play along."""

import pytest

from pooler.upstream.connect import Login, Target, log_in
from pooler.upstream.connect_query import run_connect_query
from pooler.upstream.dial import ConnectFailedError
from protocol.messages import READY_IDLE, ErrorFields, error_response, parameter_status
from protocol.sql import State
from tests.pooler.house import full_answer
from tests.protocol.model import message
from tests.support.scripted_upstream import GREETING, Peer, scripted_upstream

REFUSED = error_response(ErrorFields("ERROR", "42501", "permission denied"))
FAREWELL = error_response(ErrorFields("FATAL", "57P01", "terminating connection"))


async def run(*answers: bytes) -> Login:
    """Let Postgres give these answers to what is run, and then to the question."""

    async def play(peer: Peer) -> None:
        await peer.packet()
        peer.say(GREETING)
        for answer in answers:
            await peer.message()
            peer.say(answer)
        await peer.until_gone()

    async with scripted_upstream(play) as upstream:
        target = Target(upstream.host, upstream.port, "alice", "shop")
        login = await run_connect_query(await log_in(target, {}, 5), "alice", "SELECT 1", 5)
        login.transport.abort()
        return login


async def test_what_is_left_is_found_out() -> None:
    told = parameter_status("TimeZone", "Asia/Tokyo")
    login = await run(told + READY_IDLE, full_answer("temporary", TimeZone="Asia/Tokyo"))
    assert login.parameters["TimeZone"] == "Asia/Tokyo"
    assert login.left is not None
    assert (login.left.settings, login.left.states) == ({"TimeZone": b"Asia/Tokyo"}, State.TEMPORARY)
    assert login.objection is None


async def test_an_objection_is_kept() -> None:
    login = await run(REFUSED + READY_IDLE, full_answer())
    assert login.objection is not None
    assert login.objection.sqlstate == "42501"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ((message("Z", b"T"),), "leaves a transaction open"),
        ((message("G", b"\0\0\0"),), "waits for data"),
        ((FAREWELL,), "terminating connection"),
        ((READY_IDLE, REFUSED + message("Z", b"E")), "can't be found out: ERROR: permission denied"),
        ((message("S", b"odd"),), "does not speak the protocol"),
        ((READY_IDLE, message("D", b"\0\3odd") + READY_IDLE), "does not speak the protocol"),
    ],
)
async def test_a_connection_of_no_use_is_given_up(answers: tuple[bytes, ...], why: str) -> None:
    with pytest.raises(ConnectFailedError, match=f"connect_query: .*{why}"):
        await run(*answers)
