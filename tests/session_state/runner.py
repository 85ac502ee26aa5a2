"""Runs a program at one place, Postgres itself or pgfunnel, and returns what its clients have seen."""

from contextlib import closing
from typing import Final, NamedTuple

import psycopg

from pooler.demo.postgres import EmbeddedPostgres
from tests.session_state.clients import Client, PatientWire
from tests.session_state.crowd import Crowd, Nobody, connect_holders
from tests.session_state.notation import Administer, Login, Program, Say, Step
from tests.support.pgfunnel import Pgfunnel, eventually

DATABASE: Final = "session_state"
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


Peer = EmbeddedPostgres | Pgfunnel


class Seen(NamedTuple):
    """One step, what it was answered, and the parameters that its client has been told of so far."""

    step: str
    answer: list[str]
    parameters: dict[str, str]


def run_direct(program: Program, postgres: Peer, admin: psycopg.Connection) -> list[Seen]:
    """Run it with each client on a connection of its own, and return once Postgres has ended all of them."""
    _prepare(program, admin)
    cast = Cast(program, postgres, Nobody())
    seen = cast.play(admin)
    eventually(lambda: not _alive(admin, cast.backend_pids()))
    return seen


def run_pooled(program: Program, pgfunnel: Peer, admin: psycopg.Connection, views: list[list[str]]) -> list[Seen]:
    """Run it through pgfunnel amid the crowd; raises LeakError."""
    _prepare(program, admin)
    holders = connect_holders(program.user, DATABASE, lambda: PatientWire(pgfunnel.host, pgfunnel.port))
    with closing(Crowd(holders, views)) as crowd:
        seen = Cast(program, pgfunnel, crowd).play(admin)
        crowd.finish()
    return seen


def views_of_the_crowd(user: str, postgres: Peer) -> list[list[str]]:
    """Return what each client of the crowd sees on a connection of its own."""
    holders = connect_holders(user, DATABASE, lambda: PatientWire(postgres.host, postgres.port))
    for holder in holders:
        holder.take()
        holder.settle()
        holder.close()
    return [holder.view for holder in holders]


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
            return seen + [Seen(f"{name}, at the end", client.heard(), {}) for name, client in self._clients.items()]
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
        answer = client.do(step.does)
        return Seen(step.text, answer, client.parameters)

    def _connect(self) -> PatientWire:
        return PatientWire(self._peer.host, self._peer.port, self._others.make_way)


def difference(direct: list[Seen], pooled: list[Seen]) -> str:
    """Say in which steps, and how, the second differs from the first; nothing if it does not."""
    told = []
    for expected, seen in zip(direct, pooled, strict=True):
        if seen != expected:
            parameters = dict(seen.parameters.items() ^ expected.parameters.items())
            told += [f"  {expected.step}"]
            told += [f"    direct   {line}" for line in expected.answer]
            told += [f"    pgfunnel {line}" for line in seen.answer if seen.answer != expected.answer]
            told += [
                f"    {name} is {seen.parameters.get(name)!r} instead of {expected.parameters.get(name)!r}"
                for name in parameters
            ]
    return "\n".join(told)


def transcript(seen: list[Seen]) -> str:
    return "\n".join(line for step in seen for line in (step.step, *(f"    {told}" for told in step.answer)))


def _prepare(program: Program, admin: psycopg.Connection) -> None:
    admin.execute(CLEAN)
    if program.setup:
        admin.execute(program.setup.encode())


def _alive(admin: psycopg.Connection, pids: list[int]) -> bool:
    row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [pids]).fetchone()
    return row is not None and row[0] > 0
