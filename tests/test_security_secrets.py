"""Never again: a secret in a log line, an error, an exception or a metric; and what a stranger learns from waiting.

All passwords have a word in them that is nowhere else. It is looked for in whatever pgfunnel says, after logins that
succeed and that fail in every way; derived forms are looked for as well.
"""

import base64
import hashlib
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg
import pytest
from pydantic import SecretStr

from config.access import Access
from config.authentication import AuthType
from pooler.access.gate import Gate
from pooler.demo.postgres import EmbeddedPostgres
from protocol import scram
from tests.pooler.access.applicant import Applicant, scram_secret
from tests.support.certificates import Certificates
from tests.support.pgfunnel import Pgfunnel
from tests.support.wire import ServerError, message, password_message, sasl_initial_response, startup

CANARY: Final = "k4n4ri3nv0gel"
RIGHT: Final = f"right-{CANARY}"
WRONG: Final = f"wrong-{CANARY}"
KEPT: Final = ("canary_scram", "canary_md5")
SASL: Final = 10
AUTH_TYPES: Final = ("trust", "any", "plain", "md5", "scram-sha-256", "hba", "passthrough")


@pytest.fixture(scope="module")
def aviary(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    postgres.psql(
        f"""
        SET password_encryption = 'md5'; CREATE ROLE canary_md5 LOGIN PASSWORD '{RIGHT}';
        SET password_encryption = 'scram-sha-256'; CREATE ROLE canary_scram LOGIN PASSWORD '{RIGHT}';
        CREATE ROLE canary_asker LOGIN SUPERUSER PASSWORD '{RIGHT}';
        """
    )
    rules = postgres.data_dir / "pg_hba.conf"
    before = rules.read_text()
    asked = "".join(f"host all {user} all {how}\n" for user, how in zip(KEPT, ("scram-sha-256", "md5"), strict=True))
    rules.write_text(asked + before)
    postgres.psql("SELECT pg_reload_conf()")
    yield postgres
    rules.write_text(before)
    postgres.psql("SELECT pg_reload_conf(); DROP ROLE canary_scram, canary_md5, canary_asker")


def traces(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Yield every form of the secrets that must be nowhere."""
    yield CANARY
    for text in (RIGHT, WRONG):
        yield base64.b64encode(text.encode()).decode().rstrip("=")
        yield text.encode().hex()
        for user in KEPT:
            yield hashlib.md5(f"{text}{user}".encode()).hexdigest()
    stored = postgres.psql("SELECT rolpassword FROM pg_authid WHERE rolname = 'canary_scram'")
    _, salted, keys = stored.split("$")
    yield salted.split(":")[1]
    yield from keys.split(":")


@pytest.mark.parametrize("auth_type", AUTH_TYPES)
def test_no_secret_is_in_what_the_pooler_says(
    aviary: EmbeddedPostgres, certificates: Certificates, tmp_path: Path, auth_type: str
) -> None:
    stored = aviary.psql("SELECT rolpassword FROM pg_authid WHERE rolname = 'canary_scram'")
    users = {"canary_md5": RIGHT, "canary_scram": stored, "mistaken": WRONG} if auth_type != "passthrough" else {}
    rules = tmp_path / "pg_hba.conf"
    rules.write_text("hostssl all canary_scram all scram-sha-256\nhost all all all md5\n")
    lookups = {"auth_user": "canary_asker"} if auth_type in ("plain", "md5", "scram-sha-256") else {"auth_user": ""}
    certificate, key = certificates.ec
    pooler = Pgfunnel(
        aviary.url(user="canary_md5" if auth_type != "passthrough" else "nobody", password=RIGHT),
        userlist={**users, "canary_asker": RIGHT},
        auth_type=auth_type,
        auth_hba_file=str(rules),
        auth_user=lookups["auth_user"],
        client_tls_sslmode="allow",
        client_tls_cert_file=str(certificate),
        client_tls_key_file=str(key),
        login_failure_delay=0,
        query_wait_timeout=1,
        log_level="debug",
    )
    with pooler:
        said = [*visit(pooler), pooler.http("/metrics")[1]]
        pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=reloaded")
        # A list that can't be read is complained about, without what is in it.
        Path(str(pooler.settings["auth_file"])).write_text(f'"canary_scram" "SCRAM-SHA-256${CANARY}"\n{WRONG} "x\n')
        pooler.signal(signal.SIGHUP)
        pooler.wait_for_log("event=reload_failed")
    everything = "\n".join([*said, *pooler.log])
    assert "event=client_login" in everything
    assert "event=login_failed" in everything or auth_type == "any"
    found = [trace for trace in traces(aviary) if trace in everything]
    assert found == []


def visit(pooler: Pgfunnel) -> Iterator[str]:
    """Log in and fail to in all ways there are; yield what one is told."""
    for user in (*KEPT, "canary_asker", "mistaken", "nobody"):
        for password in (RIGHT, WRONG):
            for sslmode in ("disable", "require"):
                try:
                    with psycopg.connect(pooler.url(user=user, password=password), sslmode=sslmode) as connection:
                        connection.execute("SELECT 1")
                except psycopg.Error as error:
                    yield str(error)
    # A password where none belongs: as a user, a database, a parameter's name, half a message, another mechanism.
    first = startup({"user": "canary_scram", "database": "postgres"})
    for answers in (
        [startup({"user": "canary_scram", "database": "postgres", "password": WRONG})],
        [password_message(RIGHT)],
        [first, message("p", RIGHT.encode())],
        [first, sasl_initial_response(RIGHT, RIGHT.encode())],
        [first, message("Q", RIGHT.encode())],
        [first, message("p", f"SCRAM-SHA-256\0{RIGHT}".encode())],
    ):
        with pooler.connect() as wire:
            for answer in answers:
                wire.send(answer)
                with suppress(OSError):
                    yield wire.receive().decode(errors="replace")


@pytest.mark.parametrize(
    "mistake",
    [
        {"upstream": f"postgresql://user:{CANARY}@host:port/db"},
        {"upstream": f"postgresql://user:{CANARY}%@host/db"},
        {"upstream": f"postgresql://user:{CANARY}@host/db", "listen_port": "many"},
        {"upstream": "postgresql://user@host/db", "users": f'{{"user": ["{CANARY}"]}}'},
        {"upstream": "postgresql://user@host/db", "users": f'{{"user": "SCRAM-SHA-256${CANARY}"}}'},
    ],
)
def test_a_password_in_a_mistaken_setting_is_not_repeated(mistake: dict[str, str]) -> None:
    upstream = mistake.pop("upstream")
    pooler = Pgfunnel(upstream)
    pooler.settings |= mistake
    assert pooler.refuses_to_start() != 0
    assert pooler.log
    assert CANARY not in "\n".join(pooler.log)


# --- what a stranger learns from waiting

SCRAM_SECRET: Final = scram_secret(RIGHT)
LISTS: Final = {
    "passwords": {"known": RIGHT, "other": "another"},
    "SCRAM secrets": {"known": SCRAM_SECRET, "other": SCRAM_SECRET},
    "md5 hashes": {"known": "md5" + "0" * 32, "other": "md5" + "1" * 32},
    "of all kinds": {"known": RIGHT, "other": SCRAM_SECRET},
}


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what costs time in a login: the passwords that keys are derived from."""
    derived: list[str] = []
    derive = scram.salted_password

    def noted(password: str, salt: bytes, iterations: int) -> bytes:
        derived.append(password)
        return derive(password, salt, iterations)

    monkeypatch.setattr(scram, "salted_password", noted)
    return derived


def gate_with(kind: str, auth_type: AuthType) -> Gate:
    return Gate(auth_type, Access({user: SecretStr(secret) for user, secret in LISTS[kind].items()}), 4096)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
async def test_unknown_users_take_the_same_work_as_wrong_passwords(
    derivations: list[str], auth_type: AuthType, kind: str
) -> None:
    """But for the first answer of a user whose password is listed as such: what SCRAM takes is derived then."""
    gate = gate_with(kind, auth_type)
    await seen_by(gate, "known")
    work = []
    for user in ("known", "nobody"):
        derivations.clear()
        seen = await seen_by(gate, user)
        work.append((len(derivations), seen))
    assert work[0] == work[1]


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("user", ["known", "nobody"])
def test_nobody_is_asked_later_for_being_known(derivations: list[str], user: str, kind: str) -> None:
    """Failures are told after a delay, which hides what they cost; a question is asked at once."""
    gate = gate_with(kind, "scram-sha-256")
    applicant = Applicant(user)
    gate.examine(applicant)
    assert challenge(gate, applicant)
    assert derivations == []


def challenge(gate: Gate, applicant: Applicant) -> bytes:
    data = b"n,,n=,r=abcdefgh"
    challenge = applicant.say(gate, b"SCRAM-SHA-256\0" + len(data).to_bytes(4, "big") + data)
    assert challenge is not None
    return challenge[9:]


async def seen_by(gate: Gate, user: str) -> list[object]:
    """Fail to log in; return what there is to see of it, without what is random."""
    applicant = Applicant(user)
    gate.examine(applicant)
    assert applicant.proof is not None
    seen: list[object] = [applicant.proof.request[:9]]
    if applicant.proof.request[8] != SASL:
        applicant.say(gate, b"wrong\0")
    else:
        nonce, salt, iterations = challenge(gate, applicant).split(b",")
        seen += [len(nonce), len(salt), iterations]
        applicant.say(gate, b"c=biws," + nonce + b",p=" + base64.b64encode(bytes(32)))
    assert not await applicant.verdict()
    assert applicant.ending is not None
    return [*seen, applicant.ending.sqlstate, applicant.ending.message.replace(user, "")]


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_unknown_users_take_about_the_same_time(postgres: EmbeddedPostgres, auth_type: str) -> None:
    with Pgfunnel(
        postgres.url(user="known", password=RIGHT), auth_type=auth_type, login_failure_delay=0, log_pooler_errors=0
    ) as pooler:
        fails(pooler, "known")
        times: dict[str, list[float]] = {"known": [], "nobody": []}
        for _ in range(25):
            for user, taken in times.items():
                taken.append(fails(pooler, user))
    # The quickest of many: only they are undisturbed.
    quick, slow = sorted(min(taken) for taken in times.values())
    assert slow < 2 * quick + 0.002


def fails(pooler: Pgfunnel, user: str) -> float:
    """Log in with a wrong password; return how long it took until that was said."""
    with pooler.connect() as wire:
        began = time.perf_counter()
        with pytest.raises(ServerError, match="28P01"):
            wire.login(user, "postgres", WRONG)
        return time.perf_counter() - began
