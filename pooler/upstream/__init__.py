"""Towards Postgres: names and hosts, connecting, logging in, and what becomes of attempts."""
