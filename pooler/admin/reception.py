"""Where clients come who want the console: lets them in, and keeps the books of their sessions."""

import asyncio
from collections.abc import Callable
from typing import Final

from pooler.access.operators import Operators
from pooler.admin.interpreter import Commander
from pooler.admin.office import Office
from pooler.admin.operations import Operations
from pooler.admin.session import ConsoleDuties, ConsoleSession
from pooler.admin.small_talk import REPORTED
from pooler.entrance.login import ClientLogin
from pooler.log import Log
from pooler.reasons import Ending
from protocol.messages import parameter_status

_WELCOME: Final = b"".join(parameter_status(name, value) for name, value in REPORTED.items())


class Reception:
    """See login.Reception."""

    welcome = _WELCOME

    def __init__(
        self,
        office: Office,
        operations: Operations,
        linger: Callable[[asyncio.Transport], None],
        left: Callable[[ConsoleSession, Ending], None],
        log: Log,
    ) -> None:
        """`left` is told who has gone, to log and count it and to give back its place."""
        self._office = office
        self._operations = operations
        self._operators = Operators(office.current)
        self._duties = ConsoleDuties(self._ended, linger, office.now)
        self._left = left
        self._log = log

    def knows(self, login: ClientLogin) -> bool:
        """See login.Reception."""
        return self._operators.is_own(login)

    def receive(self, login: ClientLogin, key: bytes) -> ConsoleSession | Ending:
        """See login.Reception."""
        refusal = self._operators.refusal(login)
        if refusal is not None:
            return refusal
        admin = self._operators.may_do_everything(login)
        commander = Commander(self._office, self._operations, self._log, login.startup, admin=admin)
        session = ConsoleSession(
            login.id, login.startup, login.transport, key, commander, self._duties, placed_beside=login.placed_beside
        )
        self._office.consoles.joined(session)
        if self._office.current.settings.log_connections:
            peer = login.transport.get_extra_info("peername")
            self._log.info(
                "console_login",
                client=session.id,
                user=login.startup.user,
                admin=admin,
                addr=f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix",
                rule=login.rule or None,
            )
        return session

    def _ended(self, session: ConsoleSession, ending: Ending) -> None:
        self._office.consoles.left(session)
        self._left(session, ending)
