"""By which method a client has to prove who it is, and what it is told if it may not log in."""

import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from config.access import Access, read_access
from config.authentication import AuthType
from pooler.access.candidate import Candidate, Judge
from pooler.access.gate import Gate
from pooler.access.proofs import Md5Proof, PlainProof, ScramProof
from pooler.reasons import Ending, Reason
from protocol.startup import Replication
from tests.pooler.access.applicant import Applicant, gate, scram_secret

ME = pwd.getpwuid(os.getuid()).pw_name
USERS = {"alice": SecretStr("hush"), "bob": SecretStr("hush")}


def gate_by_rules(tmp_path: Path, rules: str, maps: str = "") -> Gate:
    hba, ident = tmp_path / "hba", tmp_path / "ident"
    hba.write_text(rules)
    ident.write_text(maps)
    access, mistakes = read_access(None, hba, ident)
    assert not mistakes
    return Gate("hba", Access(USERS, access.rules, access.maps), 4096)


def over_tls(applicant: Applicant, *names: str) -> Applicant:
    applicant.tls = SimpleNamespace(end_point=b"hash", peer_names=names)
    return applicant


@pytest.mark.parametrize(
    ("rule", "proof"),
    [
        ("host all all 127.0.0.1/32 password", PlainProof),
        ("host all all 127.0.0.1/32 md5", Md5Proof),
        ("host all all 127.0.0.1/32 scram-sha-256", ScramProof),
        ("hostnossl shop alice all md5", Md5Proof),
        ("hostssl all all all reject\nhost all all all md5", Md5Proof),
        ("host all all 10.0.0.0/8 reject\nhost all all 127.0.0.0/8 md5", Md5Proof),
        ("local all all reject\nhost all all 127.0.0.1 255.255.255.255 md5", Md5Proof),
        ("host sameuser all all reject\nhost all /^al all md5\nhost all all all reject", Md5Proof),
        ("host other,shop bob,alice all md5", Md5Proof),
    ],
)
def test_the_first_rule_that_matches_says_how(tmp_path: Path, rule: str, proof: type[object]) -> None:
    applicant = Applicant("alice", "shop")
    gate_by_rules(tmp_path, rule).examine(applicant)
    assert isinstance(applicant.proof, proof)
    assert applicant.rule == f"'{tmp_path / 'hba'}' line {rule.count(chr(10)) + 1 - rule.endswith('all reject')}"


@pytest.mark.parametrize(
    "rule",
    [
        "host all all 10.0.0.0/8 trust",
        "local all all trust",
        "hostssl all all all trust",
        "host other all all trust",
        'host "all" all all trust',
        "host all bob all trust",
        "host sameuser all all trust",
        "host replication all all trust",
    ],
)
def test_nobody_is_let_in_for_whom_there_is_no_rule(tmp_path: Path, rule: str) -> None:
    applicant = Applicant("alice", "shop")
    gate_by_rules(tmp_path, rule).examine(applicant)
    assert applicant.ending is not None
    assert (applicant.ending.reason, applicant.ending.sqlstate, applicant.ending.message) == (
        Reason.LOGIN_REFUSED,
        "28000",
        'no pg_hba.conf entry for host "127.0.0.1", user "alice", database "shop", no encryption',
    )


@pytest.mark.parametrize(("user", "database"), [("alice", "é" * 32), ("é" * 32, "shop")])
def test_a_name_that_postgres_cuts_does_not_get_around_the_rule_for_what_is_left(
    tmp_path: Path, user: str, database: str
) -> None:
    applicant = Applicant(user, database)
    gate_by_rules(tmp_path, f"host {'e' * 63} all all reject\nhost all all all password").examine(applicant)
    assert applicant.ending is not None
    assert applicant.ending.reason is Reason.LOGIN_REFUSED


def test_who_is_rejected_is_told_so(tmp_path: Path) -> None:
    applicant = over_tls(Applicant("alice", "shop"))
    gate_by_rules(tmp_path, "host all all all reject\nhost all all all trust").examine(applicant)
    assert applicant.ending is not None
    assert applicant.ending.message == (
        'pg_hba.conf rejects connection for host "127.0.0.1", user "alice", database "shop", SSL encryption'
    )
    assert applicant.rule.endswith("line 1")


def replicating(kind: Replication) -> Applicant:
    applicant = Applicant("alice", "shop")
    applicant.startup = applicant.startup._replace(replication=kind)
    return applicant


@pytest.mark.parametrize(
    ("kind", "rule", "is_in"),
    [
        (Replication.PHYSICAL, "host replication alice all trust", True),
        (Replication.PHYSICAL, "host all,sameuser,shop all all trust", False),
        (Replication.PHYSICAL, 'host "replication" all all trust', False),
        (Replication.LOGICAL, "host shop all all trust", True),
        (Replication.LOGICAL, "host replication all all trust", False),
    ],
)
def test_physical_replication_has_rules_of_its_own(tmp_path: Path, kind: Replication, rule: str, is_in: bool) -> None:
    applicant = replicating(kind)
    gate_by_rules(tmp_path, rule).examine(applicant)
    assert applicant.is_in == is_in


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("host all all all trust", "no pg_hba.conf entry for replication connection from"),
        ("host replication all all reject", "pg_hba.conf rejects replication connection for"),
    ],
)
def test_who_may_not_replicate_is_told_so(tmp_path: Path, rule: str, message: str) -> None:
    applicant = replicating(Replication.PHYSICAL)
    gate_by_rules(tmp_path, rule).examine(applicant)
    assert applicant.ending is not None
    assert applicant.ending.message == f'{message} host "127.0.0.1", user "alice", no encryption'


def test_a_client_that_comes_by_ipv4_to_an_ipv6_socket_is_judged_by_its_ipv4_address(tmp_path: Path) -> None:
    applicant = Applicant(peer=("::ffff:10.1.2.3", 5, 0, 0))
    gate_by_rules(tmp_path, "host all all 10.0.0.0/8 trust").examine(applicant)
    assert applicant.is_in


def test_a_link_local_address_has_a_zone(tmp_path: Path) -> None:
    applicant = Applicant(peer=("fe80::1%eth0", 5, 0, 2))
    gate_by_rules(tmp_path, "host all all fe80::/10 trust").examine(applicant)
    assert applicant.is_in


def test_who_comes_over_tcp_from_an_address_that_is_not_known_is_not_local(tmp_path: Path) -> None:
    rules = "local all all trust\nhost all all 10.0.0.0/8 reject\nhost all all all trust"
    with socket.socket() as tcp:
        applicant = Applicant("alice", peer=None, socket=tcp)
        gate_by_rules(tmp_path, rules).examine(applicant)
    assert applicant.ending is not None
    assert applicant.ending.reason is Reason.LOGIN_REFUSED


# Certificates


@pytest.mark.parametrize(
    ("names", "is_in"),
    [(("alice",), True), (("bob",), False), ((), False), (("alice", "bob"), False), (("alice\0.evil.example",), False)],
)
@pytest.mark.parametrize("auth_type", ["cert", "hba"])
def test_a_client_is_who_its_certificate_says(
    tmp_path: Path, auth_type: AuthType, names: tuple[str, ...], is_in: bool
) -> None:
    applicant = over_tls(Applicant("alice"), *names)
    to = gate_by_rules(tmp_path, "hostssl all all all cert") if auth_type == "hba" else gate(auth_type)
    to.examine(applicant)
    assert applicant.is_in is is_in
    if not is_in:
        assert applicant.ending is not None
        assert applicant.ending[:3] == (
            Reason.LOGIN_FAILED,
            "28000",
            'certificate authentication failed for user "alice"',
        )
        assert applicant.ending.why


def test_a_name_with_an_odd_byte_in_it_is_no_name_that_a_map_could_shorten(tmp_path: Path) -> None:
    to = gate_by_rules(tmp_path, "hostssl all all all cert map=m", r'm "/^(\w+)( of sales.*)?$" \1')
    names = {"alice": True, "alice of sales": True, "alice of sales\0": False, "alice\n": False, "bob": False}
    for name, is_in in names.items():
        applicant = over_tls(Applicant("alice"), name)
        to.examine(applicant)
        assert applicant.is_in is is_in


def test_without_tls_there_is_no_certificate() -> None:
    applicant = Applicant("alice")
    gate("cert").examine(applicant)
    assert applicant.ending is not None


@pytest.mark.parametrize(
    ("clientcert", "names", "sqlstate"),
    [
        ("verify-ca", ("whoever",), ""),
        ("verify-full", ("alice",), ""),
        ("verify-full", ("whoever",), "28000"),
        ("verify-ca", (), "28000"),
    ],
)
def test_a_certificate_may_be_asked_for_beside_a_password(
    tmp_path: Path, clientcert: str, names: tuple[str, ...], sqlstate: str
) -> None:
    applicant = over_tls(Applicant("alice"), *names)
    gate_by_rules(tmp_path, f"hostssl all all all md5 clientcert={clientcert}").examine(applicant)
    assert (applicant.ending.sqlstate if applicant.ending else "") == sqlstate
    assert (applicant.proof is not None) is not bool(sqlstate)


# Unix sockets


@pytest.mark.parametrize(("user", "is_in"), [(ME, True), ("alice", False)])
def test_on_a_unix_socket_a_client_is_its_system_user(user: str, is_in: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        applicant = Applicant(user, peer="", socket=ours)
        gate("peer").examine(applicant)
    assert applicant.is_in is is_in


def test_a_system_user_may_log_in_as_others_by_a_map(tmp_path: Path) -> None:
    to = gate_by_rules(tmp_path, "local all all peer map=m", f"m {ME} alice\nm nobody all")
    for user, is_in in (("alice", True), ("bob", False), (ME, False)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            applicant = Applicant(user, peer="", socket=ours)
            to.examine(applicant)
        assert applicant.is_in is is_in


def test_over_tcp_there_is_no_system_user() -> None:
    with socket.socket() as tcp:
        applicant = Applicant(ME, socket=tcp)
        gate("peer").examine(applicant)
    assert applicant.ending is not None
    assert applicant.ending.sqlstate == "28000"


# Everybody


def test_any_serves_everybody_as_one_user() -> None:
    applicant = Applicant("whoever")
    Gate("any", Access(), 4096, everybody="app").examine(applicant)
    assert applicant.served_as == "app"


# Secrets from elsewhere


class Later:
    """A lookup that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Callable[[str | None], None]] = []
        self.forgotten: list[Candidate] = []

    def find(self, candidate: Candidate, found: Callable[[str | None], None]) -> None:
        self.asked.append(found)

    def forget(self, candidate: Candidate) -> None:
        self.forgotten.append(candidate)

    def serves(self, candidate: Candidate) -> bool:
        return True


@pytest.mark.parametrize("auth_type", ["trust", "md5", "scram-sha-256"])
def test_who_is_in_no_list_is_looked_up(auth_type: AuthType) -> None:
    lookup = Later()
    to = Gate(auth_type, Access(USERS), 4096, lookup=lookup)
    applicant = Applicant("carol")
    to.examine(applicant)
    assert applicant.proof is None
    assert not applicant.ended
    lookup.asked[0]("secret")
    assert applicant.is_in or applicant.proof is not None
    known = Applicant("alice")
    to.examine(known)
    assert len(lookup.asked) == 1


def test_who_has_gone_while_it_was_looked_up_is_asked_nothing() -> None:
    lookup = Later()
    applicant = Applicant("carol")
    Gate("trust", Access(), 4096, lookup=lookup).examine(applicant)
    applicant.ended = True
    lookup.asked[0]("secret")
    assert applicant.proof is None
    assert not applicant.is_in


def test_what_was_looked_up_is_forgotten_when_the_login_fails() -> None:
    lookup = Later()
    to = Gate("md5", Access(), 4096, lookup=lookup)
    applicant = Applicant("carol")
    to.examine(applicant)
    lookup.asked[0]("secret")
    applicant.say(to, b"md5wrong\0")
    assert lookup.forgotten == [applicant]


@pytest.mark.parametrize("most", ["scram", "md5"])
def test_who_does_not_exist_is_asked_like_most_who_do(most: str) -> None:
    secret = scram_secret("hush") if most == "scram" else "hush"
    applicant = Applicant("mallory")
    gate("md5", None, alice=secret, bob=secret, carol="" if most == "md5" else secret).examine(applicant)
    assert isinstance(applicant.proof, ScramProof if most == "scram" else Md5Proof)


def test_who_does_not_exist_is_asked_for_as_many_iterations_as_those_who_do() -> None:
    stored = scram_secret("hush", 5000)
    asked = []
    for user in ("alice", "mallory"):
        to = gate("scram-sha-256", None, alice=stored)
        applicant = Applicant(user)
        to.examine(applicant)
        first = applicant.say(to, b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc")
        assert first is not None
        asked.append(first[-7:])
    assert asked[0] == asked[1] == b",i=5000"


def iterations_asked_of(applicant: Applicant, to: Gate) -> bytes:
    first = applicant.say(to, b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc")
    assert first is not None
    return first.rpartition(b",i=")[2]


def test_a_single_secret_does_not_make_all_passwords_stand_out_from_who_does_not_exist() -> None:
    to = gate("scram-sha-256", None, alice="hush", bob="hush", carol=scram_secret("hush", 5000), dave="", erin="")
    applicants = Applicant("alice"), Applicant("mallory")
    for applicant in applicants:
        to.examine(applicant)
    assert {iterations_asked_of(applicant, to) for applicant in applicants} == {b"4096"}


def test_who_is_not_found_is_asked_for_as_many_iterations_as_those_who_are() -> None:
    lookup = Later()
    to = Gate("scram-sha-256", Access({"pgfunnel": SecretStr("hush")}), 4096, lookup=lookup)
    applicants = [Applicant("alice"), Applicant("bob"), Applicant("mallory")]
    for applicant, secret in zip(
        applicants, [scram_secret("hush", 5000), scram_secret("hush", 5000), None], strict=True
    ):
        to.examine(applicant)
        lookup.asked[-1](secret)
    assert {iterations_asked_of(applicant, to) for applicant in applicants} == {b"5000"}


# Judgements from elsewhere


class Postgres:
    """Judges by the wishes of the test."""

    def begin(self, judge: Judge, candidate: Candidate) -> None:
        self.judge = judge


def test_what_is_judged_elsewhere_is_told_in_its_words() -> None:
    postgres = Postgres()
    to = Gate("passthrough", Access(), 4096, elsewhere=postgres)
    let_in, refused = Applicant("carol"), Applicant("mallory")
    to.examine(let_in)
    postgres.judge.accept(let_in)
    assert let_in.is_in
    to.examine(refused)
    postgres.judge.refuse(refused, Ending(Reason.LOGIN_FAILED, "28P01", "Postgres's words"))
    assert refused.ending is not None
    assert refused.ending.message == "Postgres's words"


def test_a_judgement_that_comes_too_late_is_void() -> None:
    postgres = Postgres()
    applicant = Applicant("carol")
    Gate("passthrough", Access(), 4096, elsewhere=postgres).examine(applicant)
    applicant.ended = True
    postgres.judge.accept(applicant)
    postgres.judge.reject(applicant, "late")
    assert not applicant.is_in
    assert applicant.ending is None


# Reload


def test_users_change_for_those_who_come_from_now_on() -> None:
    to = gate("md5", None, alice="old")
    underway = Applicant("alice")
    to.examine(underway)
    to.reload("md5", Access({"alice": SecretStr("new")}), 4096)
    assert not Applicant("alice").try_to_get_in(to, "old")
    assert Applicant("alice").try_to_get_in(to, "new")


def test_a_list_with_a_malformed_secret_changes_nothing() -> None:
    to = gate("md5", None, alice="hush")
    with pytest.raises(ValueError, match='the secret of user "bob" is a malformed SCRAM secret'):
        to.reload("md5", Access({"bob": SecretStr("SCRAM-SHA-256$x")}), 4096)
    assert Applicant("alice").try_to_get_in(to, "hush")


@pytest.mark.parametrize("user", ["alice", "mallory"])
def test_after_a_reload_a_user_is_asked_the_same(user: str) -> None:
    to = gate("scram-sha-256", None, alice="hush")

    def salt() -> bytes:
        applicant = Applicant(user)
        to.examine(applicant)
        first = applicant.say(to, b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc")
        assert first is not None
        return first.split(b",s=")[1]

    before = salt()
    to.reload("scram-sha-256", Access({"alice": SecretStr("hush"), "bob": SecretStr("new")}), 4096)
    assert salt() == before
