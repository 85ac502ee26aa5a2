"""What the pooler counts: plain ints, added up where things happen and read when somebody asks."""

from collections import Counter

from pooler.reasons import Reason


class Tally:
    """Totals since the start, of what does not belong to one pool."""

    def __init__(self) -> None:
        self.logins = 0
        self.clients_ended: Counter[Reason] = Counter()
        self.servers_opened = 0
        self.servers_ended: Counter[Reason] = Counter()
        self.errors_sent: Counter[str] = Counter()
        """Errors of the pooler's own that clients were sent, by SQLSTATE."""
        self.cancels = 0
        self.cancels_failed = 0
