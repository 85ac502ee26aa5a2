"""Startup parameters: what a client's come to is found out once, on a server of its pool, before it is let in.

Postgres alone knows which parameters there are and which values they take; it objects in its own words. Clients that
come with parameters that were tried before, as functions always do, wait for nothing.
"""

from collections.abc import Callable
from typing import Protocol, final

from config.settings import Settings
from pooler.entrance.application_name import add_host
from pooler.pool import Pool
from pooler.reasons import Ending, Reason
from pooler.server import ServerSession
from pooler.session_state.policy import tracked_names
from pooler.session_state.sharing import Fitted, Sharing
from protocol.messages import ErrorFields
from protocol.startup import Startup

Parameters = tuple[tuple[str, str], ...]


def wanted(startup: Startup, settings: Settings) -> Parameters:
    """Return the settings that a client gets of those that it asks for at its login.

    Not what ignore_startup_parameters names. `options` stands there for all that are in it.
    """
    if not settings.ignore_startup_parameters:
        return startup.settings
    ignored = {name.lower() for name in settings.ignore_startup_parameters} - tracked_names(settings)
    in_options = tracked_names(settings) if "options" in ignored else None
    return tuple(
        (name, value)
        for name, value in startup.settings
        if name.lower() not in ignored
        and (in_options is None or name in startup.parameters or name.lower() in in_options)
    )


def passed_on(startup: Startup, settings: Settings) -> dict[str, str]:
    """Return the startup parameters that a server connection of the client's own is opened with.

    Its `options` may have more in them than settings, and are the server's to read.
    """
    ignored = {name.lower() for name in settings.ignore_startup_parameters} - tracked_names(settings) - {"options"}
    return {name: value for name, value in startup.parameters.items() if name.lower() not in ignored}


class Guest(Protocol):
    """A client that has proven who it is, and has startup parameters."""

    def fitted(self, fitted: Fitted) -> None:
        """It can be let in."""

    def end(self, ending: Ending) -> None:
        """It can't."""


class Fittings:
    """The parameters that are being tried."""

    def __init__(self, sharing_of: Callable[[Pool[ServerSession]], Sharing], now: Callable[[], float]) -> None:
        self._sharing_of = sharing_of
        self._now = now
        self._under_way: dict[tuple[Pool[ServerSession], Parameters], _Fitting] = {}

    def find(self, pool: Pool[ServerSession], parameters: Parameters) -> Fitted | None:
        """Return what these parameters come to, if that is known."""
        return self._sharing_of(pool).fitted.get(parameters)

    def plain(self, pool: Pool[ServerSession]) -> Fitted:
        """Return what a client without parameters gets. A server of the pool has to have been seen."""
        return Fitted(self._sharing_of(pool).base, pool.welcome)

    def begin(self, pool: Pool[ServerSession], parameters: Parameters, guest: Guest) -> None:
        """Find it out for `guest`, whose fitted() or end() will be called."""
        key = (pool, parameters)
        fitting = self._under_way.get(key)
        if fitting is None:
            fitting = self._under_way[key] = _Fitting(self, pool, parameters, self._now())
            fitting.guests[guest] = None
            server = pool.borrow()
            if server is None:
                pool.wait(fitting, self._now())
            else:
                fitting.serve(server)
        else:
            fitting.guests[guest] = None

    def add_host(self, pool: Pool[ServerSession], fitted: Fitted, origin: str) -> Fitted:
        """Return what parameters come to for a client that comes from there (application_name_add_host)."""
        return add_host(fitted, origin, self._sharing_of(pool).profiles)

    def leave(self, pool: Pool[ServerSession], parameters: Parameters, guest: Guest) -> None:
        """`guest` does not wait any more."""
        fitting = self._under_way.get((pool, parameters))
        if fitting is not None:
            fitting.guests.pop(guest, None)
            if not fitting.guests and not fitting.server:
                self.over(fitting)
                pool.leave(fitting)

    def over(self, fitting: "_Fitting") -> None:
        """Forget it."""
        self._under_way.pop((fitting.pool, fitting.parameters), None)

    def succeeded(self, fitting: "_Fitting", fitted: Fitted) -> None:
        """Remember what the parameters come to."""
        self._sharing_of(fitting.pool).remember_fitted(fitting.parameters, fitted)

    def again(self, fitting: "_Fitting") -> None:
        """The server was lost: try the next one, without losing the place in time."""
        since = fitting.waiting_since
        fitting.pool.wait(fitting, self._now())
        fitting.waiting_since = since


@final
class _Fitting:
    """One set of parameters that waits for a server, or is being tried on it, and all who have come with it."""

    def __init__(self, fittings: Fittings, pool: Pool[ServerSession], parameters: Parameters, now: float) -> None:
        self._fittings = fittings
        self.pool = pool
        self.parameters = parameters
        self.guests: dict[Guest, None] = {}
        self.waiting_since = now
        self.server = False
        """It has one."""

    def serve(self, server: ServerSession) -> None:
        """See pool.Waiter.serve."""
        self.server = True
        server.try_on(dict(self.parameters), self._done)

    def _done(self, outcome: Fitted | ErrorFields | None) -> None:
        self.server = False
        if isinstance(outcome, ErrorFields):
            self.end(Ending(Reason.LOGIN_REFUSED, outcome.sqlstate, outcome.message, outcome.detail, outcome.hint))
        elif outcome is not None:
            self._fittings.over(self)
            self._fittings.succeeded(self, outcome)
            for guest in list(self.guests):
                guest.fitted(outcome)
        elif self.guests:
            self._fittings.again(self)
        else:
            self._fittings.over(self)

    def end(self, ending: Ending) -> None:
        """See pool.Queued.end."""
        self._fittings.over(self)
        self.pool.leave(self)
        for guest in list(self.guests):
            guest.end(ending)
