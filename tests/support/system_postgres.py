"""The Postgres that the system has installed: unlike the embedded one it speaks TLS, and brings an older libpq."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from pooler.demo.postgres import EmbeddedPostgres
from tests.support.certificates import Certificates, Pair

PASSWORD: Final = 'it\'s a "secret" % ünïcode'
# Roles are named after the way that Postgres makes them log in.
ROLES: Final = f"""
SET password_encryption = 'md5';
CREATE ROLE md5 LOGIN PASSWORD $${PASSWORD}$$;
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram LOGIN PASSWORD $${PASSWORD}$$;
CREATE ROLE plain LOGIN PASSWORD $${PASSWORD}$$;
CREATE ROLE trust LOGIN;
CREATE ROLE cert LOGIN;
"""


def hba(tls: str = "host") -> tuple[str, ...]:
    """Return the rules of ROLES; `tls` may make them hostssl or hostnossl."""
    return (
        f"{tls} all scram all scram-sha-256",
        f"{tls} all md5 all md5",
        f"{tls} all plain all password",
        "hostssl all cert all cert",
        "host all cert all reject",
        f"{tls} all trust,postgres all trust",
        f"{tls} all all all scram-sha-256",
    )


@cache
def found() -> Path | None:
    """Return where its programs are, if there is one with TLS."""
    bin_dirs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    usable = (each for each in bin_dirs if (each / "postgres").exists() and _links_openssl(each / "postgres"))
    return next(usable, None)


def bin_dir() -> Path:
    """Return where its programs are. Skips the test where there is none with TLS."""
    return found() or pytest.skip("no Postgres with TLS is installed (Debian: apt install postgresql)")


def _links_openssl(program: Path) -> bool:
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return "libssl" in linked


def tls_postgres(certificates: Certificates, pair: Pair | None = None, *, tls: str = "host") -> EmbeddedPostgres:
    """Make, not yet start, a Postgres with a certificate and the roles' rules; the roles are the caller's to create."""
    certificate, key = pair or certificates.ec
    files = {"server.crt": certificate, "server.key": key, "root.crt": certificates.ca}
    settings = {
        "max_connections": "100",
        "ssl": "on",
        "ssl_cert_file": "server.crt",
        "ssl_key_file": "server.key",
        "ssl_ca_file": "root.crt",
    }
    binaries = bin_dir()
    version = int(binaries.parent.name)
    return EmbeddedPostgres(version, settings=settings, hba=hba(tls), files=files, bin_dir=binaries)
