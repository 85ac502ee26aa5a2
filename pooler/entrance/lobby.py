"""Who is let in: connections that have not logged in yet, and how many clients there may be.

At max_client_conn, and at the limits of their database or user, clients wait here for a place, in order of arrival,
until client_login_timeout. Whoever comes for the console need not wait. What a stranger can
occupy is bounded: when too many connections have not said who they are, the oldest of them has to go.
"""

import asyncio
from collections import Counter, OrderedDict
from typing import Final, NamedTuple, Protocol

from pooler.entrance.login import ClientLogin
from pooler.reasons import Ending, Reason
from protocol.startup import Startup

LINGER_S: Final = 2.0
"""How long a connection that we have ended may go without reading anything of what it is still to read."""

PATIENCE_S: Final = 5.0
"""How long a client may take to answer when it is asked who it is, while others wait for its place."""

_TOO_SLOW: Final = Ending(
    Reason.LOGIN_TIMEOUT,
    "57014",
    f"no answer to the question for a password within {PATIENCE_S:g} s: others wait for a place (max_client_conn)",
)
_FLOOD: Final = Ending(
    Reason.LOGIN_FLOOD, "53300", "too many connections that have not logged in", hint="Try again in a moment."
)


CONSOLE_PLACES: Final = 32
"""How many may be at the console without a place of max_client_conn."""


class ClientLimits(Protocol):
    """How many clients there may be of one kind; 0 = any number."""

    any: bool
    """There are such limits at all: each login asks for them."""

    def of_database(self, name: str) -> int:
        """Return the limit of a database (max_db_client_connections)."""

    def of_user(self, name: str) -> int:
        """Return the limit of a user (max_user_client_connections)."""


class Obstacle(NamedTuple):
    """A limit on clients that is reached."""

    setting: str
    most: int
    of: str = ""
    """Whose it is, with a blank before it."""


class Lobby:
    """Counts the places, and keeps those who wait for one."""

    def __init__(self, places: int, strangers: int, limits: ClientLimits) -> None:
        """`places` is max_client_conn; `strangers` how many connections may be unidentified, or wait, at once."""
        self.places = places
        self._limits = limits
        self.of_database: Counter[str] = Counter()
        self.of_user: Counter[str] = Counter()
        """Places taken, by database and user."""
        self.consoles = 0
        """How many are at the console, or on their way there, beside all places."""
        self._most_strangers = strangers
        self.strangers: OrderedDict[ClientLogin, None] = OrderedDict()
        """Connections that have not said who they are."""
        self.queue: OrderedDict[ClientLogin, None] = OrderedDict()
        """Those that have, and wait for a place."""
        self.proving: OrderedDict[ClientLogin, float] = OrderedDict()
        """Those that have a place, and are logging in; since when they were seen to owe an answer, 0 = they did not."""
        self.clients = 0
        """Places taken, by whoever is logging in or logged in."""
        self._letting_in = False

    def arrived(self, login: ClientLogin) -> None:
        """A connection has been accepted."""
        self.strangers[login] = None
        if len(self.strangers) > self._most_strangers:
            next(iter(self.strangers)).end(_FLOOD)

    def identified(self, login: ClientLogin) -> None:
        """It has said who it is: let it in, or let it wait."""
        del self.strangers[login]
        if login.at_console and self.consoles < CONSOLE_PLACES:
            self._let_in_beside(login)
        elif self.obstacle(login.startup) is None:
            self._let_in(login)
        else:
            self.queue[login] = None
            if len(self.queue) > self._most_strangers:
                login.end(self.too_many(login.startup, "and as many wait already"))

    def obstacle(self, startup: Startup) -> "Obstacle | None":
        """Return the limit that a client has to wait for; None if there is a place for it."""
        if self.clients >= self.places:
            return Obstacle("max_client_conn", self.places)
        if not self._limits.any:
            return None
        database, user = startup.database, startup.user
        if 0 < (most := self._limits.of_database(database)) <= self.of_database[database]:
            return Obstacle("max_db_client_connections", most, f' of database "{database}"')
        if 0 < (most := self._limits.of_user(user)) <= self.of_user[user]:
            return Obstacle("max_user_client_connections", most, f' of user "{user}"')
        return None

    def too_many(self, startup: Startup, detail: str) -> Ending:
        """Return what a client is told for whom there is no place."""
        limit = self.obstacle(startup) or Obstacle("max_client_conn", self.places)
        return Ending(
            Reason.TOO_MANY_CLIENTS,
            "53300",
            f"sorry, too many clients already: all {limit.most} places{limit.of} ({limit.setting}) are taken, {detail}",
            hint=f"Raise {limit.setting}, or close connections that are not needed.",
        )

    def sweep(self, now: float) -> None:
        """End those who don't prove who they are, while others wait: any name will do to get a place."""
        if not self.queue:
            return
        for login, since in list(self.proving.items()):
            if not login.asked:
                self.proving[login] = 0.0
            elif not since:
                self.proving[login] = now
            elif now - since >= PATIENCE_S:
                login.end(_TOO_SLOW)

    def left(self, login: ClientLogin, *, joined: bool) -> None:
        """A login has ended; `joined` if it has become a session, which keeps the place."""
        if login in self.proving:
            del self.proving[login]
            if not joined:
                self.place_free(login.startup, beside=login.placed_beside)
        else:
            self.strangers.pop(login, None)
            self.queue.pop(login, None)

    def place_free(self, startup: Startup, *, beside: bool = False) -> None:
        """A client has gone: the place is for whoever has waited longest; `beside` if it had one at the console."""
        if beside:
            self.consoles -= 1
            login = next((login for login in self.queue if login.at_console), None)
            if login is not None:
                del self.queue[login]
                self._let_in_beside(login)
            return
        self.clients -= 1
        for counter, name in ((self.of_database, startup.database), (self.of_user, startup.user)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]
        if self.queue:
            self.let_in_more()

    def let_in_more(self) -> None:
        """Let in who can be, in order of arrival."""
        if self._letting_in:
            return  # whoever was let in has gone again at once: go on there, not deeper here
        self._letting_in = True
        try:
            while (login := self._next()) is not None:
                del self.queue[login]
                self._let_in(login)
        finally:
            self._letting_in = False

    def _next(self) -> ClientLogin | None:
        if not self.queue or self.clients >= self.places:
            return None
        return next((login for login in self.queue if self.obstacle(login.startup) is None), None)

    def _let_in_beside(self, login: ClientLogin) -> None:
        self.consoles += 1
        login.placed_beside = True
        self.proving[login] = 0.0
        login.go_on()

    def _let_in(self, login: ClientLogin) -> None:
        self.clients += 1
        self.of_database[login.startup.database] += 1
        self.of_user[login.startup.user] += 1
        self.proving[login] = 0.0
        login.go_on()


class Departures:
    """Connections that we have ended, whose peers are still to read why.

    Closing a socket while unread data stands in it resets the connection, and a reset may overtake the error that
    was just sent. So what has been written is followed by an end of stream, and the rest is the peer's, for a while.
    """

    def __init__(self, most: int) -> None:
        """`most` is how many connections may linger at once; one more, and the oldest is closed."""
        self._most = most
        self._deadlines: OrderedDict[asyncio.Transport, tuple[float, int]] = OrderedDict()
        """Until when they may stay, and how many bytes they had not read when that was set."""
        self._changed = asyncio.Event()

    def linger(self, transport: asyncio.Transport, now: float) -> None:
        """Close `transport` when its peer has closed its side, or reads no more."""
        if transport.is_closing():
            return
        self._deadlines[transport] = now + LINGER_S, transport.get_write_buffer_size()
        if len(self._deadlines) > self._most:
            self._deadlines.popitem(last=False)[0].abort()
        transport.set_protocol(_Deaf(self, transport))
        transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()

    def sweep(self, now: float) -> None:
        """Close those whose time is up, but who still reads gets more of it."""
        while self._deadlines:
            transport, (deadline, unread) = next(iter(self._deadlines.items()))
            if deadline > now:
                return
            del self._deadlines[transport]
            left = transport.get_write_buffer_size()
            if 0 < left < unread:
                self._deadlines[transport] = now + LINGER_S, left
            else:
                transport.abort()

    def close(self) -> None:
        """Close them all."""
        while self._deadlines:
            self._deadlines.popitem()[0].abort()

    def gone(self, transport: asyncio.Transport) -> None:
        """Its peer has closed its side, or the connection broke."""
        self._deadlines.pop(transport, None)
        self._changed.set()

    def __len__(self) -> int:
        return len(self._deadlines)

    async def all_gone(self) -> None:
        """Wait until nobody lingers."""
        while self._deadlines:
            self._changed.clear()
            await self._changed.wait()


class _Deaf(asyncio.Protocol):
    """Reads and forgets, until the peer closes its side."""

    def __init__(self, departures: Departures, transport: asyncio.Transport) -> None:
        self._departures = departures
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._departures.gone(self._transport)
