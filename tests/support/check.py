"""Runs `pgfunnel check`, and reads its table."""

import subprocess
import sys


def check(*arguments: str) -> tuple[int, str, str]:
    """Run it, and return its exit status and what it wrote to stdout and stderr."""
    command = [sys.executable, "-m", "pooler.main", "check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={})
    return done.returncode, done.stdout, done.stderr


def words(table: str, database: str) -> list[list[str]]:
    """Return the cells of a database's lines."""
    lines = [line.split() for line in table.splitlines()]
    return [line for line in lines if line[:1] == [database]]
