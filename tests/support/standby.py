"""A standby of an embedded Postgres, made by pg_basebackup, and streaming from it."""

import subprocess

from pooler.demo.postgres import EmbeddedPostgres, PostgresStartError


class StandbyPostgres(EmbeddedPostgres):
    """Follows `primary`, whose pg_hba.conf has to let replication in."""

    def __init__(self, primary: EmbeddedPostgres) -> None:
        super().__init__(primary.version, settings=primary.settings, hba=primary.hba, bin_dir=primary.bin_dir)
        self._primary = primary

    def promote(self) -> None:
        """Make it a primary."""
        self.psql("SELECT pg_promote()")

    def _initdb(self) -> None:
        source = f"host={self._primary.host} port={self._primary.port} user=postgres"
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
