"""The names of hosts and their addresses: looked up when they are needed, and again for as long as they are in use.

What is dialled, in which order, is the affair of pooler.upstream.hosts.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple, final

from config.hosts import is_local
from pooler.current import Current
from pooler.log import Log
from pooler.upstream.dns import Answer, Lookup, LookupFailedError, SerialOf, look_up, serial_of

LEAST_TTL_S: Final = 1.0
"""An answer is good for this long, even where it says 0: a storm of logins must not be a storm of questions."""
QUESTION_S: Final = 10.0
"""How long a question may take, over all name servers and attempts."""
PATIENCE_S: Final = 2.0
"""How long the answer is waited for where an older one could serve."""
KEPT_S: Final = 300.0
"""How long a name is remembered that nobody asks for and no connection leads to."""


class UnresolvedError(Exception):
    """There is no address of a name."""


class Known(NamedTuple):
    """What SHOW DNS_HOSTS says of a name."""

    name: str
    ttl: int
    """For how many more seconds it is good."""
    addresses: tuple[str, ...]


class Zone(NamedTuple):
    """What SHOW DNS_ZONES says of a zone: what comes after the first dot of names."""

    name: str
    serial: int
    """0 = not known yet."""
    names: int
    """How many there are in it."""


@final
class _Name:
    """What is known of one name."""

    __slots__ = ("addresses", "failure", "gone", "good_until", "question", "wanted_at")

    def __init__(self) -> None:
        self.addresses: tuple[str, ...] = ()
        """The last ones that there were."""
        self.gone = False
        """It has none any more."""
        self.failure = ""
        """Why the last question has failed; empty: it has not."""
        self.good_until = 0.0
        self.wanted_at = 0.0
        self.question: asyncio.Task[None] | None = None


class Resolver:
    """Asks for names, once for all who want to know at the same time, and remembers the answers."""

    def __init__(
        self,
        current: Current,
        now: Callable[[], float],
        log: Log,
        lookup: Lookup = look_up,
        serial: SerialOf = serial_of,
    ) -> None:
        self._current = current
        self._now = now
        self._log = log
        self._lookup = lookup
        self._serial = serial
        self._names: dict[str, _Name] = {}
        self._serials: dict[str, int] = {}
        self._zones_checked_at = now()
        self._zone_check: asyncio.Task[None] | None = None

    async def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a host, at least one. Raises UnresolvedError."""
        if _is_address(host):
            return (host,)
        name = self._names.setdefault(host, _Name())
        name.wanted_at = self._now()
        if name.good_until <= name.wanted_at:
            # Not awaited itself: who loses patience must not end it for the others.
            await asyncio.wait({self._ask(host, name)}, timeout=PATIENCE_S if name.addresses else None)
        if name.gone or not name.addresses:
            raise UnresolvedError(f"can't resolve {host}: {name.failure or 'no answer'}")
        return name.addresses

    def has(self, host: str, address: str) -> bool:
        """Tell whether a connection to `address` still leads to `host`, as far as is known."""
        name = self._names.get(host)
        return name is None or name.gone or address in name.addresses

    def sweep(self, in_use: Callable[[str], bool]) -> None:
        """Ask again for names that connections lead to, so that a failover is noticed; forget unused ones."""
        now = self._now()
        for host, name in list(self._names.items()):
            if name.question is not None or now < name.good_until:
                continue
            if in_use(host):
                self._ask(host, name)
            elif now - name.wanted_at > KEPT_S:
                del self._names[host]
        period = self._current.settings.dns_zone_check_period
        if period and now - self._zones_checked_at >= period and self._zone_check is None and self._names:
            self._zone_check = asyncio.get_running_loop().create_task(self._check_zones())

    async def _check_zones(self) -> None:
        """Ask each zone for its serial number; where it is another than before, names are looked up again."""
        try:
            for zone in self.zones():
                try:
                    async with asyncio.timeout(QUESTION_S):
                        serial = await self._serial(zone.name, self._resolv_conf)
                except (LookupFailedError, TimeoutError):
                    continue  # it may be none; its names are looked up after their time all the same
                if zone.serial and serial != zone.serial:
                    self._log.info("dns_zone_changed", zone=zone.name, serial=serial, before=zone.serial)
                    for host, name in self._names.items():
                        if _zone_of(host) == zone.name:
                            name.good_until = 0.0
                self._serials[zone.name] = serial
        finally:
            self._zones_checked_at = self._now()
            self._zone_check = None

    def expire(self) -> None:
        """Look every name up again when it is needed next: a reload may have changed by which servers."""
        for name in self._names.values():
            name.good_until = 0.0

    def _ask(self, host: str, name: _Name) -> "asyncio.Task[None]":
        if name.question is None:
            name.question = asyncio.get_running_loop().create_task(self._find_out(host, name))
        return name.question

    async def _find_out(self, host: str, name: _Name) -> None:
        try:
            async with asyncio.timeout(QUESTION_S):
                answer = await self._lookup(host, self._resolv_conf)
        except LookupFailedError as failure:
            self._failed(host, name, str(failure), gone=failure.gone)
        except TimeoutError:
            self._failed(host, name, f"no answer within {QUESTION_S:g} s", gone=False)
        else:
            self._answered(host, name, answer)
        finally:
            name.question = None

    def _answered(self, host: str, name: _Name, answer: Answer) -> None:
        ttl = max(LEAST_TTL_S, min(answer.ttl, self._current.settings.dns_max_ttl))
        name.good_until = self._now() + ttl
        if name.failure:
            self._log.info("dns_recovered", host=host, addresses=",".join(answer.addresses))
        lost = set(name.addresses) - set(answer.addresses)
        name.addresses, name.gone, name.failure = answer.addresses, False, ""
        if lost:
            self._log.info("dns_changed", host=host, addresses=",".join(answer.addresses), lost=",".join(sorted(lost)))

    def _failed(self, host: str, name: _Name, failure: str, *, gone: bool) -> None:
        name.good_until = self._now() + max(LEAST_TTL_S, self._current.settings.dns_nxdomain_ttl)
        if not name.failure or name.gone != gone:  # once, not each time that it is tried again
            stale = "" if gone else ",".join(name.addresses)
            self._log.warning("dns_failed", host=host, error=failure, still_used=stale or None)
        name.gone, name.failure = gone, failure

    @property
    def _resolv_conf(self) -> Path | None:
        path = self._current.settings.resolv_conf
        return Path(path) if path is not None else None

    # --- for the console

    def known(self) -> Iterator[Known]:
        """Yield what SHOW DNS_HOSTS shows."""
        now = self._now()
        for host, name in sorted(self._names.items()):
            addresses = () if name.gone else name.addresses
            yield Known(host, max(0, round(name.good_until - now)), addresses)

    def zones(self) -> list[Zone]:
        """Return what SHOW DNS_ZONES shows."""
        counts = Counter(filter(None, map(_zone_of, self._names)))
        return [Zone(zone, self._serials.get(zone, 0), count) for zone, count in sorted(counts.items())]

    @property
    def questions(self) -> int:
        """How many are under way."""
        return sum(name.question is not None for name in self._names.values()) + (self._zone_check is not None)

    async def close(self) -> None:
        """Give up what is under way."""
        questions = [name.question for name in self._names.values() if name.question is not None]
        if self._zone_check is not None:
            questions.append(self._zone_check)
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)


def _zone_of(host: str) -> str:
    return host.rstrip(".").partition(".")[2]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return is_local(host)
    return True
