"""Every setting has a test that shows its effect, and every column of the console one that shows its value.

proofs.toml says which. A list, not marks on the tests: it can be read in one go, and needs nothing that generates it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from config.databases import Database, Peer, User
from config.pgbouncer import DEFAULTS
from config.settings import Settings
from pooler.admin.interpreter import COMMANDS
from pooler.admin.show import TABLES
from tests.proof.proofs import LIST, Proof, flaw, read

PROOFS = read(LIST.read_text())


def to_prove() -> Iterator[tuple[str, str]]:
    """Yield everything there is to set or to see: the section of the list, and the name."""
    keys: Mapping[str, set[str]] = {
        "settings": {*Settings.model_fields, *DEFAULTS},
        "databases": set(Database.model_fields),
        "users": set(User.model_fields),
        "peers": set(Peer.model_fields),
        "commands": {*COMMANDS, "set", "show"},
        **{f"show.{name}": {column.name for column in table.columns} for name, table in TABLES.items()},
    }
    for section, names in keys.items():
        yield from ((section, name) for name in sorted(names))


def test_there_is_a_proof_for_everything_that_can_be_set_or_seen() -> None:
    proven = {(proof.section, proof.thing) for proof in PROOFS}
    assert [each for each in to_prove() if each not in proven] == []


def test_nothing_is_proven_that_there_is_not() -> None:
    there = set(to_prove())
    assert [str(proof) for proof in PROOFS if (proof.section, proof.thing) not in there] == []


def test_each_proof_is_a_test_that_is_run_and_names_what_it_proves() -> None:
    flaws = [f"{proof}: {wrong}" for proof in PROOFS if (wrong := flaw(proof))]
    assert flaws == []


# --- the checks themselves

TESTS = """
import pytest

SIZES = {"small": 1}

@pytest.fixture
def pooler():
    return start(pool_mode="session")

@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("a", "b"), [(1, True), (2, False)])
def test_a_pool(pooler, size, a, b):
    helper(size)

def helper(size):
    assert size

@pytest.mark.slow
def test_for_ever():
    pool_mode = 1

class TestMany:
    def test_one_of_many(self):
        pool_mode = 1
"""


@pytest.mark.parametrize(
    ("thing", "test", "expected"),
    [
        ("pool_mode", "tests/test_pools.py::test_a_pool", None),
        ("pool_mode", "tests/test_pools.py::test_a_pool[1-True-small]", None),
        ("pool_mode", "tests/test_pools.py::TestMany::test_one_of_many", None),
        ("pool_mode", "tests/test_pools.py::test_a_pool[1-True-large]", "it has no parameters of that id"),
        ("pool_mode", "tests/test_pools.py::TestMany::test_one_of_many[1]", "it has no parameters of that id"),
        ("pool_mode", "tests/test_pools.py::test_one_of_many", "there is no such test in that file"),
        ("pool_mode", "tests/test_pools.py::test_another", "there is no such test in that file"),
        ("pool_mode", "tests/test_pool.py::test_a_pool", "there is no such file of tests"),
        ("pool_mode", "tests/test_pools.py::test_for_ever", "it may be left out: slow"),
        ("pool_mode", "tests/test_pools.py::helper", "it is not of the form tests/FILE.py::test_NAME"),
        ("pool_size", "tests/test_pools.py::test_a_pool", "it does not name what it is to prove"),
    ],
)
def test_a_proof_that_is_none_is_found_out(tmp_path: Path, thing: str, test: str, expected: str | None) -> None:
    file = tmp_path / "tests" / "test_pools.py"
    file.parent.mkdir()
    file.write_text(TESTS)
    assert flaw(Proof("settings", thing, test), tmp_path) == expected
