"""The demonstration: one storm of clients at an embedded Postgres, without and with pgfunnel."""
