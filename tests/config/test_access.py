"""The files that say who may log in, read together with the settings, and again."""

from pathlib import Path

import pytest

from config.errors import ConfigurationError
from config.load import Loaded, load, reload

UPSTREAM = "postgresql://app:secret@localhost/app"


def load_files(directory: Path, *argv: str) -> Loaded:
    named = [
        f"--{name.replace('_', '-')}={directory / name}" for name in ("auth_file", "auth_hba_file", "auth_ident_file")
    ]
    return load(["--upstream", UPSTREAM, "--auth-type", "hba", *named, *argv], {})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "auth_file").write_text('"alice" "hush"')
    (tmp_path / "auth_hba_file").write_text("local all all peer map=m")
    (tmp_path / "auth_ident_file").write_text("m root alice")
    return tmp_path


def test_all_of_them_are_read(files: Path) -> None:
    access = load_files(files).access
    assert set(access.users) == {"alice", "app"}
    assert [rule.method for rule in access.rules] == ["peer"]
    assert set(access.maps) == {"m"}


def test_mistakes_in_all_of_them_are_told_at_once(files: Path) -> None:
    (files / "auth_file").write_text("alice")
    (files / "auth_hba_file").write_text("local all all ldap")
    (files / "auth_ident_file").write_text("m")
    with pytest.raises(ConfigurationError) as raised:
        load_files(files, "--listen-port=x")
    told = [mistake.split(":")[0] for mistake in raised.value.mistakes]
    assert told == ["--listen-port", "--auth-file", "--auth-hba-file", "--auth-ident-file"]


def test_a_rule_that_names_a_map_which_is_not_there_is_a_mistake(files: Path) -> None:
    (files / "auth_ident_file").write_text("other root alice")
    with pytest.raises(ConfigurationError, match="names the map 'm', of which auth_ident_file has no line"):
        load_files(files)


def test_hba_needs_its_file() -> None:
    with pytest.raises(ConfigurationError, match="auth_hba_file: it is empty, but auth_type is hba"):
        load(["--upstream", UPSTREAM, "--auth-type", "hba"], {})


def test_any_needs_somebody_as_whom_to_serve() -> None:
    with pytest.raises(ConfigurationError, match="upstream: it names no user"):
        load(["--upstream", "postgresql://localhost/app", "--auth-type", "any"], {})


@pytest.mark.parametrize("auth_type", ["peer", "passthrough"])
def test_who_proves_it_in_another_way_needs_no_password_here(auth_type: str, tmp_path: Path) -> None:
    socket = ["--unix-socket-dir", str(tmp_path)]
    assert load(["--upstream", "postgresql://localhost/app", "--auth-type", auth_type, *socket], {})


def test_peer_takes_a_unix_socket_to_know_the_system_user_by() -> None:
    with pytest.raises(ConfigurationError, match="auth_type: peer takes unix_socket_dir"):
        load(["--upstream", UPSTREAM, "--auth-type", "peer"], {})


def test_certificates_of_clients_take_something_to_verify_them_with(files: Path) -> None:
    without = "takes client_tls_ca_file, and a client_tls_sslmode other than disable"
    with pytest.raises(ConfigurationError, match=f"auth_type: cert {without}"):
        load(["--upstream", UPSTREAM, "--auth-type", "cert"], {})
    for rule in ("hostssl all all all cert", "hostssl all all all md5 clientcert=verify-ca"):
        (files / "auth_hba_file").write_text(rule)
        with pytest.raises(ConfigurationError, match=f"line 1 asks for a certificate of the client's, which {without}"):
            load_files(files)


def test_the_files_are_read_again(files: Path) -> None:
    loaded = load_files(files)
    (files / "auth_file").write_text('"bob" "hush"')
    (files / "auth_hba_file").write_text("local all all md5")
    access = reload(loaded).access
    assert set(access.users) == {"bob", "app"}
    assert [rule.method for rule in access.rules] == ["md5"]
    assert set(loaded.access.users) == {"alice", "app"}


def test_read_again_with_mistakes_they_are_told_as_ever(files: Path) -> None:
    loaded = load_files(files)
    (files / "auth_hba_file").write_text("local all all md5 x")
    (files / "auth_ident_file").unlink()
    with pytest.raises(ConfigurationError) as raised:
        reload(loaded)
    assert [mistake.split(" has ")[0] for mistake in raised.value.mistakes] == [
        f"--auth-hba-file: '{files / 'auth_hba_file'}' line 1",
        f"--auth-ident-file: '{files / 'auth_ident_file'}' cannot be read: No such file or directory (command line)",
    ]
