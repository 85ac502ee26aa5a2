"""What the pooler counts: plain ints, added up where things happen and read when somebody asks."""

from collections import Counter
from typing import Final

from pooler.reasons import Reason

AUTH_QUERY_OUTCOMES: Final = ("remembered", "found", "unknown", "outdated", "failed")
PASSTHROUGH_OUTCOMES: Final = ("remembered", "proven", "refused")


class Tally:
    """Totals since the start, of what does not belong to one pool."""

    def __init__(self) -> None:
        self.logins = 0
        self.clients_ended: Counter[Reason] = Counter()
        self.servers_opened = 0
        self.servers_ended: Counter[Reason] = Counter()
        self.auth_query: Counter[str] = Counter(dict.fromkeys(AUTH_QUERY_OUTCOMES, 0))
        """How clients' users were looked up."""
        self.passthrough: Counter[str] = Counter(dict.fromkeys(PASSTHROUGH_OUTCOMES, 0))
        """How clients' passwords that are passed through were judged."""
        self.errors_sent: Counter[str] = Counter()
        """Errors of the pooler's own that clients were sent, by SQLSTATE."""
        self.cancels = 0
        self.cancels_failed = 0
