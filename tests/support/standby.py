"""A standby of an embedded Postgres, made by pg_basebackup, and streaming from it."""

import subprocess

from pooler.demo.postgres import EmbeddedPostgres, PostgresStartError
from tests.support.pgfunnel import Pgfunnel


class StandbyPostgres(EmbeddedPostgres):
    """Follows `primary`, whose pg_hba.conf has to let replication in; if it is given one, `via` a pgfunnel."""

    def __init__(self, primary: EmbeddedPostgres, via: Pgfunnel | None = None) -> None:
        super().__init__(
            primary.version,
            settings=primary.settings,
            hba=primary.hba,
            files=primary.files,
            bin_dir=primary.bin_dir,
        )
        self._source = via or primary

    def promote(self) -> None:
        """Make it a primary."""
        self.psql("SELECT pg_promote()")

    def _initdb(self) -> None:
        source = f"host={self._source.host} port={self._source.port} user=postgres"
        backup = subprocess.run(
            [self.bin_dir / "pg_basebackup", "-d", source, "-D", self.data_dir, "-R", "-X", "stream", "-c", "fast"],
            cwd=self._directory,
            capture_output=True,
            text=True,
            check=False,
            **self._identity(),
        )
        if backup.returncode != 0:
            raise PostgresStartError(f"pg_basebackup failed:\n{backup.stderr}")
