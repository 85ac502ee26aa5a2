"""A new process takes over from an old one on the same port, and no transaction is lost on the way."""

import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.pgfunnel import Pgfunnel, two_free_ports
from tests.support.system_postgres import bin_dir
from tests.support.wire import Wire, query

RESTARTS = 10


class Relay:
    """One pgfunnel after the other on one port."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.port, self._metrics_port = two_free_ports()
        self._running = ExitStack()
        self.processes: list[Pgfunnel] = []

    def hand_over(self) -> None:
        """Start the next, and end the one before once that one serves."""
        process = Pgfunnel(
            self._upstream,
            so_reuseport=1,
            listen_port=self.port,
            metrics_port=self._metrics_port,
            default_pool_size=8,
        )
        self._running.enter_context(process)
        for before in self.processes[-1:]:
            before.signal(signal.SIGTERM)
        self.processes.append(process)

    def close(self) -> None:
        """End the last, and see that all have ended with 0."""
        self._running.close()


@pytest.fixture
def relay(postgres: EmbeddedPostgres) -> Iterator[Relay]:
    relay = Relay(postgres.url())
    relay.hand_over()
    yield relay
    relay.close()


@pytest.fixture(scope="module")
def pgbench(postgres: EmbeddedPostgres) -> Iterator[Path]:
    """Find pgbench, and give it its tables."""
    program = bin_dir() / "pgbench"
    postgres.psql("CREATE TABLE ledger (writer text, entry int)")
    yield program
    postgres.psql("DROP TABLE ledger")


class Writer(threading.Thread):
    """Keeps its connection, and writes one transaction after the other; connects again when it is told to go."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.over = threading.Event()
        self.committed = 0
        self.told: list[str] = []
        """What came in answer to BEGIN, and not to it."""

    def run(self) -> None:
        while not self.over.is_set():
            with Wire("127.0.0.1", self._port).login("postgres", "postgres") as wire:
                while not self.over.is_set() and self._begin(wire):
                    for _ in range(2):
                        wire.rows(f"INSERT INTO ledger VALUES ('kept', {self.committed})")
                    wire.rows("COMMIT")
                    self.committed += 1

    def _begin(self, wire: Wire) -> bool:
        wire.send(query("BEGIN"))
        answer = wire.read_until("EZ")[-1]
        if answer.kind == "E":
            self.told.append(answer.fields["C"])
            assert wire.read_to_end() == []
        return answer.kind == "Z"


def entries(postgres: EmbeddedPostgres, writer: str) -> int:
    return int(postgres.psql(f"SELECT count(*) FROM ledger WHERE writer = '{writer}'"))


def test_ten_restarts_under_pgbench_lose_no_transaction(
    postgres: EmbeddedPostgres, relay: Relay, pgbench: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.sql"
    script.write_text(
        "BEGIN;\nINSERT INTO ledger VALUES ('pgbench', 1);\nINSERT INTO ledger VALUES ('pgbench', 2);\nCOMMIT;\n"
    )
    writer = Writer(relay.port)
    writer.start()
    # -C: a connection for each transaction.
    options = ("-n", "-C", "-c4", "-T600", f"-f{script}", "-h127.0.0.1", f"-p{relay.port}", "-Upostgres")
    bench = subprocess.Popen([pgbench, *options, "postgres"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(RESTARTS):
            relay.hand_over()
        for process in relay.processes[:-1]:
            assert process.wait() == 0
    finally:
        bench.send_signal(signal.SIGALRM)  # the end of -T, here and now
        said, complaints = bench.communicate(timeout=20)
        writer.over.set()
        writer.join()
    assert bench.returncode == 0, complaints
    assert "number of failed transactions: 0 " in said, complaints
    (processed,) = re.findall(r"number of transactions actually processed: (\d+)", said)
    assert entries(postgres, "pgbench") == 2 * int(processed)
    assert set(writer.told) == {"57P01"}
    assert entries(postgres, "kept") == 2 * writer.committed
