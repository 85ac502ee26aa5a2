"""Names the figures that measures give, and the bounds that pgfunnel must keep."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Against(StrEnum):
    """What a bound is held against: the ratio to PgBouncer, or pgfunnel's own figure."""

    PGBOUNCER = "ratio"
    NOTHING = "absolute"


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit that a figure must keep to."""

    sign: Literal["<=", ">="]
    limit: float
    against: Against = Against.PGBOUNCER

    def holds(self, value: float) -> bool:
        """Say whether the limit is kept."""
        return value <= self.limit if self.sign == "<=" else value >= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table. Without a bound it is there for information."""

    name: str
    title: str
    unit: str
    bound: Bound | None = None
