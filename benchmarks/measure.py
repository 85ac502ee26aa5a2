"""What a measure is: it loads one pooler once and returns the figures of that sample.

Repeating, alternating and judging are not its business.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from benchmarks import servers
from benchmarks.figures import Figure
from benchmarks.servers import Pooler
from benchmarks.workload import Workload


class CpuMeter:
    """CPU that a process used: everything so far at first, what a `with` block cost afterwards."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ticks = servers.system_share(pid)
        self._began = servers.cpu_seconds(pid)

    def per(self, count: int) -> dict[str, float]:
        """Microseconds per transaction, connection or whatever was counted since the meter was made."""
        total = (servers.cpu_seconds(self._pid) - self._began) * 1e6 / count
        user, system = (now - then for now, then in zip(servers.system_share(self._pid), self._ticks, strict=True))
        return {"cpu_us": total, "user_us": total * user / max(1, user + system)}


class Measure(ABC):
    """One load on one pooler."""

    name: str
    figures: tuple[Figure, ...]
    pool_size = 20
    auth_type = "trust"
    tls = False
    """Clients use TLS."""
    plain_passwords = False
    """Poolers know the password itself, not only the secret that Postgres stores."""
    operation = "transaction"
    """What `cpu_us` and `user_us` are the cost of."""
    most_rounds: int | None = None
    """Set where more rounds would prove nothing."""
    beside_others = True

    @abstractmethod
    def sample(self, pooler: Pooler, workload: Workload) -> Mapping[str, float]:
        """Load the pooler once. Keys are figures' names; others are kept in the results for the curious."""

    def expected_seconds(self, workload: Workload) -> float:
        """Guess how long one sample takes."""
        return workload.seconds + 0.1
