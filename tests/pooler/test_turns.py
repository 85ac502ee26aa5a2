"""The order in which hosts are tried, with any history of failures."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pooler.upstream.turns import MOST_PUT_OFF, Turns

HOSTS = ("a", "b", "c")
RETRY_S = 15.0


class World:
    """Hosts that fail and work, a clock, and what a login does: it tries one after the other until one works."""

    def __init__(self) -> None:
        self.time = 100.0
        self.turns = Turns(lambda: self.time)
        self.sick: set[str] = set()

    def log_in(self, *, balance: bool) -> list[str]:
        """Return whom a login has tried; the last one has worked, unless all are sick."""
        tried: list[str] = []
        put_off = []
        for host in self.turns.order(HOSTS, balance=balance)[0]:
            until = self.turns.put_off_until(host, RETRY_S)
            if until:
                put_off.append((until, host))
            elif self._try(host, tried):
                return tried
        for _, host in sorted(put_off):
            if self._try(host, tried):
                return tried
        return tried

    def _try(self, host: str, tried: list[str]) -> bool:
        tried.append(host)
        if host in self.sick:
            self.turns.put_off(host, RETRY_S)
            return False
        self.turns.answered(host)
        self.turns.worked(HOSTS, host)
        return True


def test_logins_are_spread_over_the_hosts() -> None:
    world = World()
    assert Counter(world.log_in(balance=True)[0] for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_without_balance_logins_stay_with_the_first_host_until_it_fails_and_then_with_the_next() -> None:
    world = World()
    assert [world.log_in(balance=False) for _ in range(3)] == [["a"]] * 3
    world.sick = {"a"}
    assert world.log_in(balance=False) == ["a", "b"]
    world.sick = set()
    world.time += 10 * RETRY_S
    assert [world.log_in(balance=False) for _ in range(3)] == [["b"]] * 3


def test_a_sick_host_is_tried_by_one_login_in_a_while() -> None:
    world = World()
    world.sick = {"b"}
    for _ in range(2):
        logins = [world.log_in(balance=True) for _ in range(30)]
        assert sum("b" in tried for tried in logins) == 1
        world.time += RETRY_S


def test_only_one_login_finds_out_whether_a_host_is_back() -> None:
    world = World()
    world.turns.put_off("a", RETRY_S)
    world.time += RETRY_S
    assert not world.turns.put_off_until("a", RETRY_S), "this one tries it"
    assert world.turns.put_off_until("a", RETRY_S), "and while it does, the others don't"


def test_that_a_host_has_failed_is_news_once() -> None:
    world = World()
    assert [world.turns.put_off("a", RETRY_S) for _ in range(3)] == [True, False, False]
    world.turns.answered("a")
    assert world.turns.put_off("a", RETRY_S)


def test_what_failed_long_ago_takes_no_memory() -> None:
    world = World()
    for number in range(3 * MOST_PUT_OFF):
        world.turns.put_off(number, RETRY_S)
        world.time += 1
    assert len(world.turns._put_off) <= MOST_PUT_OFF


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(HOSTS)), st.floats(0, 2 * RETRY_S), st.integers(1, 5)),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
)
def test_whoever_works_is_found_and_nobody_is_tried_twice(
    history: list[tuple[set[str], float, int]], balance: bool
) -> None:
    """Whatever has failed before: a login succeeds if any host works, and tries none twice."""
    world = World()
    for sick, pause, logins in history:
        world.sick = sick
        world.time += pause
        for _ in range(logins):
            tried = world.log_in(balance=balance)
            assert len(tried) == len(set(tried))
            if sick == set(HOSTS):
                assert set(tried) == set(HOSTS)
            else:
                assert tried[-1] not in sick


@given(st.sets(st.sampled_from(HOSTS), max_size=2), st.booleans())
def test_once_their_failures_are_known_sick_hosts_cost_healthy_ones_nothing(sick: set[str], balance: bool) -> None:
    world = World()
    world.sick = sick
    for _ in range(len(HOSTS)):
        world.log_in(balance=balance)
    assert all(len(world.log_in(balance=balance)) == 1 for _ in range(10))
