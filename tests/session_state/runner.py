"""Runs a program at one place, Postgres itself or pgfunnel, and returns what its clients have seen."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Final, NamedTuple

import psycopg

from pooler.demo.postgres import EmbeddedPostgres
from tests.session_state.clients import Client, PatientWire
from tests.session_state.crowd import Crowd, LeakError, Nobody, views_of_the_crowd
from tests.session_state.notation import Administer, Leave, Login, Program, Say, Step
from tests.support.pgfunnel import Pgfunnel, eventually

DATABASE: Final = "session_state"
ROLES: Final = "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; GRANT alice TO bob"
CLEAN: Final = """
DO $clean$
DECLARE doomed text;
BEGIN
  FOR doomed IN SELECT format('DROP SCHEMA %I CASCADE', nspname) FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
  LOOP EXECUTE doomed; END LOOP;
  CREATE SCHEMA public;
  GRANT ALL ON SCHEMA public TO public;
END $clean$
"""
DISCONNECT: Final = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

Peer = EmbeddedPostgres | Pgfunnel


class Seen(NamedTuple):
    """One step and what it was answered; where a client leaves, the parameters that it has been told of, too."""

    step: str
    answer: list[str]
    parameters: dict[str, str]
    compared: bool = True


class Cast:
    """The clients of a program, who come when they are first mentioned, and stay until they leave or the end."""

    def __init__(self, program: Program, peer: Peer, others: Crowd | Nobody) -> None:
        self._program = program
        self._peer = peer
        self._others = others
        self._clients: dict[str, Client] = {}

    def play(self, admin: psycopg.Connection) -> list[Seen]:
        try:
            seen = [self._do(step, admin) for step in self._program.steps]
            ends = self._clients.items()
            return seen + [Seen(f"{name}, at the end", client.heard(), client.parameters) for name, client in ends]
        finally:
            for client in self._clients.values():
                client.leave()

    def backend_pids(self) -> list[int]:
        return [pid for client in self._clients.values() for pid in client.backend_pids]

    def _do(self, step: Step, admin: psycopg.Connection) -> Seen:
        if isinstance(step.does, Administer):
            admin.execute(step.does.sql.encode())
            return Seen(step.text, [], {})
        client = self._clients.setdefault(step.who, Client(self._program.user, DATABASE, self._connect))
        if isinstance(step.does, Say | Login):
            self._others.before(client, [other for other in self._clients.values() if other is not client])
        parameters = client.parameters if isinstance(step.does, Leave) else {}
        return Seen(step.text, client.do(step.does), parameters, step.compared)

    def _connect(self) -> PatientWire:
        return PatientWire(self._peer.host, self._peer.port, self._others.make_way)


class Stage:
    """Where programs are run: a Postgres, a pgfunnel in front of it, and an administrator's session."""

    def __init__(self, postgres: EmbeddedPostgres, pgfunnel: Pgfunnel, admin: psycopg.Connection) -> None:
        self._postgres = postgres
        self._pgfunnel = pgfunnel
        self._admin = admin
        self._views: dict[str, list[list[str]]] = {}

    def direct(self, program: Program) -> list[Seen]:
        """Run it with each client on a connection of its own, and return once Postgres has ended all of them."""
        self._prepare(program)
        cast = Cast(program, self._postgres, Nobody())
        seen = cast.play(self._admin)
        eventually(lambda: not self._alive(cast.backend_pids()))
        return seen

    def pooled(self, program: Program) -> list[Seen]:
        """Run it through pgfunnel amid the crowd; raises LeakError."""
        self._prepare(program)
        try:
            with closing(Crowd(partial(PatientWire, self._pgfunnel.host, self._pgfunnel.port))) as crowd:
                crowd.arrive(program.user, DATABASE, self._views_of(program.user))
                seen = Cast(program, self._pgfunnel, crowd).play(self._admin)
                crowd.finish()
        except LeakError:
            self._admin.execute(DISCONNECT)  # the next program must not find what this one has left
            raise
        return seen

    def _views_of(self, user: str) -> list[list[str]]:
        if user not in self._views:
            connect = partial(PatientWire, self._postgres.host, self._postgres.port)
            self._views[user] = views_of_the_crowd(user, DATABASE, connect)
        return self._views[user]

    def _prepare(self, program: Program) -> None:
        self._admin.execute(CLEAN)
        if program.setup:
            self._admin.execute(program.setup.encode())

    def _alive(self, pids: list[int]) -> bool:
        row = self._admin.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [pids]).fetchone()
        return row is not None and row[0] > 0


@contextmanager
def set_up(version: int, start: Callable[[str], Pgfunnel]) -> Iterator[Stage]:
    """Start a Postgres of this version, and the pgfunnel that `start` makes of its URL."""
    options = "-c client_min_messages=warning -c lock_timeout=5s"
    with ExitStack() as running:
        postgres = running.enter_context(EmbeddedPostgres(version, settings={"max_prepared_transactions": "4"}))
        postgres.psql(f"{ROLES}; CREATE DATABASE {DATABASE}")
        admin = running.enter_context(psycopg.connect(postgres.url(DATABASE), autocommit=True, options=options))
        yield Stage(postgres, running.enter_context(start(postgres.url())), admin)


def difference(direct: list[Seen], pooled: list[Seen]) -> str:
    """Say in which steps, and how, the second differs from the first; nothing if it does not."""
    told = []
    for expected, seen in zip(direct, pooled, strict=True):
        if not expected.compared or seen == expected:
            continue
        told.append(f"  {expected.step}")
        if seen.answer != expected.answer:
            told += [f"    direct   {line}" for line in expected.answer]
            told += [f"    pgfunnel {line}" for line in seen.answer]
        unlike = (
            dict(seen.parameters.items() ^ expected.parameters.items()) if seen.parameters else ()
        )  # else it is gone
        for name in sorted(unlike):
            told.append(f"    {name} is {seen.parameters.get(name)!r} instead of {expected.parameters.get(name)!r}")
    return "\n".join(told)


def transcript(seen: list[Seen]) -> str:
    return "\n".join(line for step in seen for line in (step.step, *(f"    {told}" for told in step.answer)))
