"""TLS on both sides: towards clients and towards Postgres."""
