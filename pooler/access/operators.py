"""Who may use the console, and how much of it: admin_users and stats_users, and the pooler's own system user.

As in PgBouncer: whoever is listed has to prove its identity as at any database; with auth_type any everybody may look.
"""

import os
from typing import Final

from pooler.access.candidate import Candidate
from pooler.access.identity import peer_uid
from pooler.current import Current
from pooler.reasons import Ending, Reason
from protocol.scram import AuthenticationFailedError

OWN_USER: Final = "pgbouncer"
"""Who may do everything, without a password, if it comes over the Unix socket from the pooler's own system user."""


class Operators:
    """Knows those who are let in."""

    def __init__(self, current: Current) -> None:
        self._current = current

    def is_own(self, candidate: Candidate) -> bool:
        """Tell whether it is the pooler's own system user, under the name for that."""
        if candidate.startup.user != OWN_USER:
            return False
        try:
            return peer_uid(candidate) == os.geteuid()
        except AuthenticationFailedError:
            return False

    def may_do_everything(self, candidate: Candidate) -> bool:
        """Tell whether a candidate, which refusal() has let pass, may do more than look."""
        return candidate.startup.user in self._current.settings.admin_users or self.is_own(candidate)

    def refusal(self, candidate: Candidate) -> Ending | None:
        """Say why a candidate that has proven who it is may not use the console; None if it may."""
        settings, user = self._current.settings, candidate.startup.user
        if user in settings.stats_users or settings.auth_type == "any" or self.may_do_everything(candidate):
            return None
        return Ending(
            Reason.LOGIN_REFUSED,
            "28000",
            f'not allowed: user "{user}" may not use the console',
            hint="It takes a user of admin_users or stats_users.",
        )
