"""What people read about pgfunnel names things that exist: files, settings, metrics, reasons, events, tests."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from config.fields import default_text
from config.load import load
from config.pgbouncer import WITHOUT_EFFECT
from config.session_state import DEFAULTS, POLICIES
from config.settings import Settings
from pooler import hold
from pooler.admin.show import TABLES
from pooler.demo.postgres import EmbeddedPostgres
from pooler.reasons import Reason
from pooler.way_back import Step
from protocol.parameters import ONLY_AT_START
from tests.conftest import StartPgfunnel
from tests.support.certificates import Certificates
from tests.support.pgfunnel import Pgfunnel, eventually

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMES: Final = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
SOURCE_FOLDERS: Final = ("benchmarks", "config", "docs", "pooler", "protocol", "tests")
WRITTEN_LATER: Final = {"benchmarks/results/"}
# Variables that are no settings: the file of settings, and the tests' own.
OTHER_VARIABLES: Final = {
    "PGFUNNEL_CONFIG",
    "PGFUNNEL_DATABASES",
    "PGFUNNEL_PEERS",
    "PGFUNNEL_SIMULATION_SECONDS",
    "PGFUNNEL_SIMULATION_SEED",
}

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)


def read(name: str) -> str:
    return (ROOT / name).read_text()


def rows(text: str, first: str) -> Iterator[list[str]]:
    """Yield the cells of the table whose header begins with the cell `first`, without backticks."""
    lines = text[text.index(f"\n| {first} |") + 1 :].splitlines()
    for line in lines[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), target


@every_document
def test_files_that_are_named_exist(document: Path) -> None:
    folders = "|".join(SOURCE_FOLDERS)
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*)`", document.read_text()))
    for name in named - WRITTEN_LATER:
        assert (ROOT / name).exists(), name


@every_document
def test_variables_that_are_named_are_settings(document: Path) -> None:
    variables = {f"PGFUNNEL_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    assert set(re.findall(r"\bPGFUNNEL_[A-Z_]+[A-Z]\b", document.read_text())) <= variables


@every_document
def test_settings_of_logins_and_tls_that_are_named_exist(document: Path) -> None:
    others = {reason.value for reason in Reason} | {cells[0] for cells in rows(read("docs/operations.md"), "event")}
    others |= {column.name for column in TABLES["fds"].columns}
    named = set(
        re.findall(r"\b(?:auth|client_tls|server_tls|passthrough|scram|users)_\w*[a-z]\b", document.read_text())
    )
    assert named <= Settings.model_fields.keys() | WITHOUT_EFFECT.keys() | others


@pytest.mark.parametrize("name", ["README.md", "docs/operations.md"])
def test_options_of_the_command_are_settings(name: str) -> None:
    options = {f"--{setting.replace('_', '-')}" for setting in Settings.model_fields} | {"--config"}
    for line in re.findall(r"\bpgfunnel (--.*)", read(name)):
        assert set(re.findall(r"(?:^| )(--[a-z-]+)", line)) <= options


def test_the_readmes_settings_exist_with_the_defaults_it_tells() -> None:
    told = {cells[0]: cells[1] for cells in rows(read("README.md"), "setting")}
    assert told == {name: default_text(Settings.model_fields[name]) for name in told}


def test_the_readmes_file_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", read("README.md"), flags=re.DOTALL)
    file = tmp_path / "pgfunnel.toml"
    file.write_text(example)
    loaded = load(["--config", str(file)], {})
    assert loaded.credentials.keys() == {"app", "reporting"}


def test_every_setting_that_limits_time_or_waiting_is_in_the_table_of_timeouts() -> None:
    told = {cells[0] for cells in rows(read("docs/operations.md"), "timeout")} - {""}
    assert told <= Settings.model_fields.keys()
    assert {name for name in Settings.model_fields if name.endswith("_timeout")} <= told | {"tcp_user_timeout"}


def test_every_reason_is_explained_once() -> None:
    told = [cells[0] for cells in rows(read("docs/operations.md"), "reason")]
    assert sorted(told) == sorted(reason.value for reason in Reason)


def test_every_event_of_the_log_is_explained_once() -> None:
    told = [cells[0] for cells in rows(read("docs/operations.md"), "event")]
    code = "".join(path.read_text() for path in (ROOT / "pooler").rglob("*.py"))
    assert sorted(told) == sorted(set(re.findall(r'(?:log\.\w+|\bwrite)\(\s*"([a-z_]+)"', code)))


def test_every_class_of_session_state_is_described_with_its_default() -> None:
    told = {cells[0]: cells[2] for cells in rows(read("docs/session-state.md"), "class")}
    assert told == DEFAULTS


def test_every_policy_is_described() -> None:
    assert {cells[0] for cells in rows(read("docs/session-state.md"), "policy")} == POLICIES.keys()


def test_startup_parameters_without_effect_are_named() -> None:
    text = read("docs/session-state.md")
    assert [name for name in sorted(ONLY_AT_START) if name not in text] == []


def test_the_file_with_policies_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", read("docs/session-state.md"), flags=re.DOTALL)
    file = tmp_path / "pgfunnel.toml"
    file.write_text(example)
    loaded = load(["--config", str(file), "--upstream", "postgresql://app:secret@db/app"], {})
    assert loaded.settings.session_state["listen"] == "reject"


def test_the_way_back_of_a_server_is_described_step_by_step() -> None:
    text = read("docs/architecture.md")
    assert [cells[0] for cells in rows(text, "step")] == [step.name for step in Step]
    bits = [name for name in vars(hold) if name.isupper() and name not in ("BLOCKED", "WAITING")]
    assert [cells[0] for cells in rows(text, "bit of `hold`")] == bits


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    groups = project["project"]["optional-dependencies"] | project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *(name for group in groups.values() for name in group)]
    text = read("docs/dependencies.md")
    for requirement in wanted:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert re.search(rf"\b{name}\b", text), name


def test_tests_that_are_named_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", read("docs/architecture.md")))
    assert named
    assert named <= set(re.findall(r"def (test_\w+)\(", code))


@pytest.fixture
def experienced(postgres: EmbeddedPostgres, pgfunnel: StartPgfunnel, certificates: Certificates) -> Pgfunnel:
    """Start a pooler to which everything has happened that is counted by kind."""
    postgres.psql("CREATE OR REPLACE FUNCTION hide() RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_lock(1)'")
    pooler = pgfunnel(
        postgres.url(),
        server_lifetime=0,
        default_pool_size="50%",
        session_state="temporary=reject",
        pin_audit=1,
        client_tls_sslmode="prefer",
        client_tls_cert_file=str(certificates.ec.certificate),
        client_tls_key_file=str(certificates.ec.key),
    )
    with pooler.login() as client:
        client.query("SELECT hide()")
        client.query("CREATE TEMP TABLE refused ()")
    with pooler.connect() as nobody:
        nobody.send(b"GET / HTTP/1.1\r\n\r\n")
        nobody.read_to_end()
    with pooler.connect() as nobody:
        nobody.send(b"\x16\x03\x01\0\x04\x02\0\0\0")
        nobody.receive()
    eventually(lambda: pooler.metric("pgfunnel_servers_ended_total") == 1)
    return pooler


def test_every_metric_is_described_and_there_is_no_other(experienced: Pgfunnel) -> None:
    _, page = experienced.http("/metrics")
    exposed: dict[str, tuple[str, set[str]]] = {}
    states: set[tuple[str, str]] = set()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            exposed[sample.name] = (family.type, set(sample.labels))
            for label in ("state", "outcome"):
                if label in sample.labels:
                    states.add((sample.name, sample.labels[label]))

    text = read("docs/metrics.md")
    told = {name: (kind, set(filter(None, labels.split(", ")))) for name, kind, labels, *_ in rows(text, "metric")}
    assert told == {name: figures for name, figures in exposed.items() if name.startswith("pgfunnel_")}
    sections = [text[text.index(title) :] for title in ("## States", "## Outcomes")]
    assert {(name, state) for section in sections for name, state, *_ in rows(section, "metric")} == states
    of_the_process = set(re.findall(r"`((?:process|python)_\w+)`", text[text.index("## Of the process") :]))
    assert of_the_process == {name for name in exposed if not name.startswith("pgfunnel_")}


def test_every_published_hole_that_is_named_is_in_the_tests_that_are_named_with_it() -> None:
    table = list(rows(read("docs/security.md"), "hole"))
    for cells in table:
        tests = "".join(read(name) for name in re.findall(r"tests/\w+\.py", cells[-1]))
        for number in re.findall(r"CVE-[\d-]+\d", cells[0]):
            assert number in tests or f"test_{number.lower().replace('-', '_')}_" in tests, number
    assert len(table) > 15
