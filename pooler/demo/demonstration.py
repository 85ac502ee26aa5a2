"""The demo from start to end: a Postgres, a storm, pgfunnel, the same storm, a table, and what to try next."""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pooler.demo import logistics
from pooler.demo.funnel import Funnel, FunnelError
from pooler.demo.postgres import EmbeddedPostgres, PostgresNotFoundError, PostgresStartError, free_port
from pooler.demo.report import side_by_side
from pooler.demo.storm import Storm

if TYPE_CHECKING:
    from pooler.demo.storm import Outcome

_LISTEN_PORT: Final = 6432
_METRICS_PORT: Final = 9127
# What a process needs besides its clients' sockets: server connections, listeners, logs, libraries.
_OTHER_FILES: Final = 200
# The superuser may come over the socket only, in a directory that nobody else may enter.
_HBA: Final = (f"host {logistics.DATABASE} {logistics.USER} 127.0.0.1/32 scram-sha-256",)


class FileLimitError(Exception):
    """The process may not open as many sockets as there shall be clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """What `pgfunnel demo` was asked to show; None where it may choose."""

    storm: Storm
    pool_size: int
    max_connections: int
    once: bool
    listen_port: int | None
    metrics_port: int | None
    postgres_version: int | None

    def run(self) -> int:
        """Show it; return 0, or 1 if it cannot be shown, or if `once` and pgfunnel failed a request."""
        console = Console(highlight=False)
        try:
            _raise_file_limit(self.storm.clients + _OTHER_FILES)
            with self._postgres() as postgres:
                console.print(
                    f"Postgres {postgres.version} takes {self.max_connections} connections; "
                    f"{self.storm.clients:,} functions want one each."
                )
                return self._show(console, postgres)
        except (FileLimitError, PostgresNotFoundError, PostgresStartError, FunnelError) as error:
            print(f"pgfunnel demo: {error}", file=sys.stderr)
            return 1

    def _postgres(self) -> EmbeddedPostgres:
        newest = max(EmbeddedPostgres.available_versions(), default=18)
        settings = {"max_connections": str(self.max_connections)}
        return EmbeddedPostgres(self.postgres_version or newest, settings=settings, hba=_HBA)

    def _show(self, console: Console, postgres: EmbeddedPostgres) -> int:
        logistics.create(postgres)
        upstream = logistics.url(postgres.port)
        direct = _unleash(self.storm, console, "straight at Postgres", upstream, postgres)
        logistics.reset(postgres)

        listen_port = self.listen_port or _free_port(_LISTEN_PORT)
        settings = {
            "upstream": upstream,
            "listen-port": listen_port,
            "default-pool-size": self.pool_size,
            "scram-iterations": logistics.SCRAM_ITERATIONS,
        }
        with Funnel(settings, metrics_port=self.metrics_port or _free_port(_METRICS_PORT)) as funnel:
            url = logistics.url(listen_port)
            pooled = _unleash(self.storm, console, "through pgfunnel", url, postgres)
            console.print("", side_by_side({"straight at Postgres": direct, "through pgfunnel": pooled}), sep="\n")
            if self.once:
                return 1 if pooled.failures else 0
            console.print(_what_next(postgres, funnel, url), soft_wrap=True)
            _stay_up(console, funnel)
            return 0


def _unleash(storm: Storm, console: Console, name: str, url: str, postgres: EmbeddedPostgres) -> Outcome:
    """Run the storm behind a progress bar; without a terminal only its last state is printed."""
    columns = (
        TextColumn(f"{name:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]:>5,} failed"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=storm.clients, failed=0)

        def on_end(outcome: Outcome) -> None:
            progress.update(task, advance=1, failed=outcome.failures.total())

        return uvloop.run(storm.run(url, postgres.socket_url(), on_end))


def _what_next(postgres: EmbeddedPostgres, funnel: Funnel, url: str) -> str:
    psql, pgbench = (tool if shutil.which(tool) else postgres.bin_dir / tool for tool in ("psql", "pgbench"))
    return f"""
Both stay up until Ctrl-C.

  DATABASE_URL={url}
  metrics   {funnel.metrics_url}/metrics
  log       {funnel.log_file}

Try next:

  {psql} {url} -c 'table inventory'
  {pgbench} -i -q {url}
  {pgbench} -n -S -c 200 -T 10 {url}
  {psql} '{postgres.socket_url(logistics.DATABASE)}' -c 'select pid, state, query from pg_stat_activity'
  curl -s {funnel.metrics_url}/metrics
"""


def _stay_up(console: Console, funnel: Funnel) -> None:
    try:
        funnel.wait()
    except KeyboardInterrupt:
        console.print("\nStopping pgfunnel and Postgres.")


def _raise_file_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise FileLimitError(
            f"{needed} open files are needed, and the hard limit is {hard}: "
            f"raise it (ulimit -Hn {needed}) or ask for fewer --clients"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _free_port(usual: int) -> int:
    """Return the port that users know if nothing listens there, else any free one."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", usual)):
        return usual
    return free_port()
