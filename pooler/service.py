"""The pooler as a whole: starts its parts, reloads, drains and stops them."""

import asyncio
import contextlib
import gc
import math
import signal
from collections.abc import Callable, Mapping
from typing import Final

from config.errors import ConfigurationError
from config.load import Loaded, reload, with_setting
from pooler.admin.results import CommandError
from pooler.assembly import Parts
from pooler.figures.web import Web
from pooler.listening import Doors
from pooler.process.process import Process
from pooler.reasons import Ending, Reason
from pooler.shutdown import Shutdown
from pooler.sockets import ListenError

_JUST_CONNECTED_S: Final = 2.0
"""How long a client that has connected may take to begin what it has connected for."""
_METRICS: Final = frozenset({"metrics_addr", "metrics_port"})
_SHUTDOWN: Final = Ending(
    Reason.SHUTDOWN, "57P01", "terminating connection: pgfunnel is shutting down", hint="Connect again."
)


class Pooler:
    """One pgfunnel process."""

    def __init__(self, loaded: Loaded, process: Process) -> None:
        self._process = process
        self.log = process.log
        self.parts = Parts(loaded, self.log, self)
        self.current = self.parts.current
        self.accepting = False
        self._stopping: Shutdown | None = None
        self._stop_changed = asyncio.Event()
        self._doors = Doors()
        settings = loaded.settings
        self._web = Web(self.parts.figures, lambda: self.accepting, settings) if settings.metrics_addr else None

    # --- life

    async def run(self) -> None:
        """Serve until a signal says otherwise. Raises ListenError or StartError."""
        self._process.settle(self.current.loaded)
        self._tell(self.current.loaded)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._report)
        for number, how in (
            (signal.SIGTERM, Shutdown.WAIT_FOR_CLIENTS),
            (signal.SIGINT, Shutdown.WAIT_FOR_SERVERS),
            (signal.SIGQUIT, Shutdown.IMMEDIATE),
        ):
            loop.add_signal_handler(number, self.stop, how, number.name)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        operations = self.parts.operations
        for number, operation in ((signal.SIGUSR1, operations.pause), (signal.SIGUSR2, operations.resume)):
            loop.add_signal_handler(number, self._operate, operation, number.name)
        await self._start()
        try:
            await self._serve_until_stopped()
        finally:
            await self._close()

    async def _start(self) -> None:
        settings = self.current.settings
        if self._web is not None:
            try:
                await self._web.start()
            except OSError as error:
                where = f"{settings.metrics_addr} port {settings.metrics_port}"
                failure = f"can't serve metrics on {where}: {error.strerror or error}"
                if not _METRICS & self.current.loaded.given.keys():
                    # Nobody has asked for it, and PgBouncer's exporter takes the same port by default.
                    self._web = None
                    self.log.warning("metrics_not_served", error=failure, advice="set metrics_port to a free one")
                else:
                    raise ListenError(failure) from None
        places = await self._doors.open(settings, self.parts.new_login, self.parts.new_local_login)
        self._process.ready()
        for place in places:  # once whoever waits for the first such line can come by any of them
            self.log.info("listening", on=place)
        self.accepting = True
        self.parts.janitor.start()
        # What exists now stays: the collector need not look at it again, and rarely at the clients that come.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    # --- changes while running

    def reload(self) -> None:
        """Read the configuration and all files again; what is wrong with them is logged, and changes nothing."""
        self._process.reloading()
        with contextlib.suppress(ConfigurationError):
            self.try_reload()
        self._process.reloaded()

    def try_reload(self) -> None:
        """As reload(). Raises ConfigurationError."""
        try:
            self.apply(reload(self.current.loaded))
        except ConfigurationError as mistakes:
            error = "; ".join(mistakes.mistakes)
            self._process.follow(self.current.settings)  # whatever is wrong, files that were renamed are let go
            self.log.error("reload_failed", error=error, advice="what was read before stays in use")  # noqa: TRY400
            raise

    def apply(self, loaded: Loaded) -> None:
        """Let another configuration be in force. Raises ConfigurationError; then the old one stays."""
        try:
            self.parts.apply(loaded)
        except ValueError as error:
            raise ConfigurationError([str(error)]) from None
        self._process.follow(loaded.settings)
        self._doors.follow(loaded.settings)
        self.log.info(
            "reloaded",
            users=len(loaded.access.users),
            rules=len(loaded.access.rules),
            databases=len(loaded.directory.databases),
        )
        self._tell(loaded)

    def _tell(self, loaded: Loaded) -> None:
        for note in loaded.notes:
            self.log.info("setting_note", note=note)

    def _operate(self, operation: Callable[[], None], signal_name: str) -> None:
        """Do what a signal asks for instead of a client of the console."""
        try:
            operation()
        except CommandError as error:
            self.log.warning("signal_ignored", signal=signal_name, error=str(error))
        else:
            self.log.info("signal_handled", signal=signal_name)

    def _report(self, _: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        """Log what nobody has caught: a fault of ours. The connection in whose callback it happened is closed."""
        exception = context.get("exception")
        self.log.error(
            "internal_error",
            error=str(context.get("message")),
            exc_info=exception if isinstance(exception, BaseException) else None,
        )

    def set(self, name: str, text: str) -> None:
        """Change one setting until the next reload. Raises ConfigurationError; then nothing has changed."""
        self.apply(with_setting(self.current.loaded, name, text))

    @property
    def stopping(self) -> bool:
        """It is shutting down."""
        return self._stopping is not None

    def stop(self, how: Shutdown, signal_name: str) -> None:
        """Begin to shut down, as a signal asks for; asked again, do so at once."""
        self.shut_down(how if self._stopping is None else Shutdown.IMMEDIATE, signal_name)

    def shut_down(self, how: Shutdown, signal_name: str = "") -> None:
        """Begin to shut down, or go on in another way."""
        clients = len(self.parts.clients)
        self._process.stopping()
        self.log.info("shutting_down", how=how.name.lower(), signal=signal_name or None, clients=clients)
        self._stopping = how
        self._stop_changed.set()

    async def _serve_until_stopped(self) -> None:
        await self._stop_changed.wait()
        self._stop_changed.clear()
        self.accepting = False
        await self._doors.close(at_once=self._stopping is Shutdown.IMMEDIATE)
        try:
            async with asyncio.timeout(self.current.settings.shutdown_timeout or None):
                while self._stopping is not Shutdown.IMMEDIATE and self._drain():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop_changed.wait(), 0.05)
        except TimeoutError:
            seconds, clients = self.current.settings.shutdown_timeout, len(self.parts.clients)
            self.log.warning("shutdown_timeout", seconds=seconds, clients=clients)

    def _drain(self) -> bool:
        """Send away every client that has nothing under way; True if some are left."""
        # Who has just come is served, if clients are waited for: it has been told by nobody to go elsewhere.
        waits_for_clients = self._stopping is Shutdown.WAIT_FOR_CLIENTS
        latest = self.parts.now() - _JUST_CONNECTED_S if waits_for_clients else math.inf
        logins = self._end_logins(latest)
        for client in list(self.parts.clients.values()):
            busy = client.server is not None and not client.server.exchange.settled
            waits = client.waiting and not client.pool.paused and waits_for_clients
            has_just_come = client.idle_since == client.connected_at > latest
            if not (busy or waits or has_just_come):
                client.end(_SHUTDOWN)
        replicating = self.parts.passages.drain(_SHUTDOWN)
        cleaning = any(server.cleaning for pool in self.parts.pools for server in pool.servers)
        return bool(self.parts.clients or logins or replicating or len(self.parts.departures) or cleaning)

    def _end_logins(self, latest: float = math.inf) -> bool:
        """Send away who has not logged in and has come by then; True if some are left."""
        lobby = self.parts.lobby
        logins = [*lobby.strangers, *lobby.queue, *lobby.proving]
        due = [login for login in logins if login.since <= latest]
        for login in due:
            login.end(_SHUTDOWN)
        return len(due) < len(logins)

    async def _close(self) -> None:
        parts = self.parts
        self._end_logins()
        for client in list(parts.clients.values()):
            client.end(_SHUTDOWN)
        for session in parts.consoles:
            session.end(_SHUTDOWN)
        parts.passages.close(_SHUTDOWN)
        parts.throttle.close()
        parts.janitor.stop()
        await parts.canceller.close()
        await parts.passthrough.close()
        await parts.lookups.close()
        await parts.pools.close()
        # What has been written to clients still has to arrive.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(parts.departures.all_gone(), 1.0)
        parts.departures.close()
        if self._web is not None:
            await self._web.close()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            # One more must not kill what has ended well, and only has to remove its pidfile.
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        self.log.info("stopped")
