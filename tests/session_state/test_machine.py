"""Random clients with random session state over two server connections: each is told what Postgres tells it directly.

A failure is written down as a program, to be kept in programs/. PGFUNNEL_MACHINE_EXAMPLES makes it run longer, with
other steps each time.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from string import ascii_uppercase
from typing import ClassVar, Final

import psycopg
import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pooler.demo.postgres import EmbeddedPostgres
from tests.session_state import machine_texts as some
from tests.session_state.clients import Client, PatientWire
from tests.session_state.crowd import Crowd, views_of_the_crowd
from tests.session_state.machine_twins import Twins
from tests.session_state.notation import Leave, Login, read_step
from tests.support.pgfunnel import Pgfunnel, eventually

EXAMPLES: Final = int(os.environ.get("PGFUNNEL_MACHINE_EXAMPLES", "0"))
STRAIGHT: Final = "straight"
POOLED: Final = "pooled"
SERVERS: Final = 2
MOST_CLIENTS: Final = 3
LOGINS: Final = [f"login_{number}" for number in range(500)]


class Stage:
    """A Postgres, a pgfunnel in front of it, and an administrator. Each example has a login, and so a pool, of its own.

    `max_pinned` is how many clients pgfunnel lets be pinned.
    """

    def __init__(
        self, postgres: EmbeddedPostgres, pgfunnel: Pgfunnel, admin: psycopg.Connection, max_pinned: int
    ) -> None:
        self.max_pinned = max_pinned
        self._postgres = postgres
        self._pgfunnel = pgfunnel
        self._admin = admin
        self._logins = cycle(LOGINS)

    def new_login(self) -> str:
        return next(self._logins)

    def crowd(self, login: str) -> Crowd:
        crowd = Crowd(partial(PatientWire, self._pgfunnel.host, self._pgfunnel.port))
        straight = partial(PatientWire, self._postgres.host, self._postgres.port)
        crowd.arrive(login, POOLED, views_of_the_crowd(login, POOLED, straight))
        return crowd

    def twins(self, name: str, login: str, make_way: Callable[[], None]) -> Twins:
        straight = Client(login, STRAIGHT, lambda: PatientWire(self._postgres.host, self._postgres.port))
        pooled = Client(login, POOLED, lambda: PatientWire(self._pgfunnel.host, self._pgfunnel.port, make_way))
        return Twins(name, straight, pooled)

    def wait_for_end(self, pids: list[int]) -> None:
        """Wait until Postgres has ended these sessions."""
        alive = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = ANY(%s)"
        eventually(lambda: self._ask(alive, pids) == [(True,)])

    def end_all(self, login: str) -> None:
        """End what sessions the pool has."""
        ended = "SELECT count(pg_terminate_backend(pid)) = 0 FROM pg_stat_activity WHERE usename = %s"
        eventually(lambda: self._ask(ended, login) == [(True,)])

    def locks(self, database: str) -> list[tuple[object, ...]]:
        return self._ask(
            "SELECT objid::int, mode FROM pg_locks JOIN pg_database AS d ON d.oid = database"
            " WHERE locktype = 'advisory' AND datname = %s ORDER BY 1, 2",
            database,
        )

    def pins(self, login: str) -> dict[str, int]:
        """Return how many clients are pinned, by class, as pgfunnel says."""
        _, text = self._pgfunnel.http("/metrics")
        pinned = rf'^pgfunnel_pinned_clients{{class="(\w+)",.*user="{login}"}} ([\d.]+)$'
        found = re.findall(pinned, text, re.MULTILINE)
        return {state: int(float(number)) for state, number in found if float(number)}

    def _ask(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        return self._admin.execute(sql.encode(), values).fetchall()


class Machine(RuleBasedStateMachine):
    """Clients A, B, C ..., and a crowd that pushes them from one server connection to the other.

    Whose turn it is depends on what Postgres says, never on what pgfunnel says, nor on time.
    """

    stage: ClassVar[Stage]

    def __init__(self) -> None:
        super().__init__()
        self._login = self.stage.new_login()
        self._names = cycle(ascii_uppercase)
        self._clients: list[Twins] = []
        self._pins: dict[str, int] = {}
        """The pins that have been checked last."""
        self._crowd = self.stage.crowd(self._login)

    @initialize(startups=st.lists(some.startups, min_size=2, max_size=MOST_CLIENTS))
    def begin(self, startups: list[str]) -> None:
        for startup in startups:
            self._arrive(startup)

    @rule(who=st.integers(0, MOST_CLIENTS - 1), what=some.turns)
    def take_turn(self, who: int, what: str) -> None:
        """Let one of those do something who have a server connection, or can get one."""
        able = [each for each in self._clients if each.keeps_server or self._servers_kept < SERVERS]
        twins = able[who % len(able)]
        match read_step(f"{twins.name}{what}").does:
            case Login():
                if len(self._clients) < MOST_CLIENTS and self._servers_kept < SERVERS:
                    self._arrive(what.strip())
            case Leave() as leave:
                if len(self._clients) > 1:
                    note(f"{twins.name}{what}")
                    twins.leave(leave)
                    self._see_off(twins)
            case _:
                self._say(twins, what)

    def teardown(self) -> None:
        for twins in self._clients:
            twins.leave(Leave(politely=True))
        self._crowd.close()
        self.stage.end_all(self._login)

    # --- turns

    @property
    def _servers_kept(self) -> int:
        return sum(each.keeps_server for each in self._clients)

    def _arrive(self, startup: str) -> None:
        line = f"{next(self._names)} {startup}"
        note(line)
        step = read_step(line)
        assert isinstance(step.does, Login)
        twins = self.stage.twins(step.who, self._login, self._crowd.make_way)
        self._clients.append(twins)
        twins.login(step.does)
        twins.look()

    def _say(self, twins: Twins, what: str) -> None:
        others = [each for each in self._clients if each is not twins]
        crowded = sum(bool(each.pins) for each in others) >= self.stage.max_pinned
        line = f"{twins.name}{what}"
        if not twins.may_say(line, crowded=crowded):
            return
        note(line)
        self._crowd.before(twins.pooled, [each.pooled for each in others])
        twins.say(line, crowded=crowded)
        if not twins.look(crowded=crowded):
            twins.leave(Leave(politely=True))
            self._see_off(twins)
        self._check_pins()

    def _see_off(self, twins: Twins) -> None:
        """Wait until what it has left behind is gone."""
        self._clients.remove(twins)
        self.stage.wait_for_end(twins.straight.backend_pids)
        eventually(lambda: self.stage.locks(POOLED) == self.stage.locks(STRAIGHT))
        self._check_pins()

    def _check_pins(self) -> None:
        """Hold against each other who has to be pinned and who is."""
        pins = Counter(state for each in self._clients for state in each.pins)
        if pins != self._pins:
            eventually(lambda: self.stage.pins(self._login) == pins)
            self._pins = pins


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    roles = "; ".join(f"CREATE ROLE {login} LOGIN SUPERUSER" for login in LOGINS)
    with EmbeddedPostgres() as running:
        running.psql(f"{roles}; CREATE ROLE alice; CREATE ROLE bob; GRANT alice TO bob")
        for database in (STRAIGHT, POOLED):
            running.psql(f"CREATE DATABASE {database}")
            running.psql(some.SETUP, database)
        yield running


@pytest.mark.timeout(600 + 60 * EXAMPLES)
@pytest.mark.parametrize(
    ("start", "max_pinned"),
    [
        pytest.param(Pgfunnel, 1, id="default"),
        # Every transaction is asked about, and statements are evicted all the time.
        pytest.param(partial(Pgfunnel, pin_audit=1.0, max_prepared_statements=2), SERVERS, id="strict"),
    ],
)
def test_clients_that_share_two_servers_are_told_what_postgres_tells_them(
    postgres: EmbeddedPostgres, start: Callable[..., Pgfunnel], max_pinned: int
) -> None:
    userlist = dict.fromkeys(LOGINS, "")
    with (
        start(postgres.url(), default_pool_size=SERVERS, max_pinned=max_pinned, userlist=userlist) as pgfunnel,
        psycopg.connect(postgres.url(), autocommit=True) as admin,
    ):

        class Staged(Machine):
            stage = Stage(postgres, pgfunnel, admin, max_pinned)

        run_state_machine_as_test(
            Staged,
            settings=settings(
                max_examples=EXAMPLES or 20,
                stateful_step_count=50,
                derandomize=not EXAMPLES,
                print_blob=True,
                database=None,
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
