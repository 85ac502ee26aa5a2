"""Speed and size of pgfunnel, measured beside PgBouncer in the same run. Not part of the distribution."""
