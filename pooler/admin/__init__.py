"""The console: what is to be seen of the pooler, and done with it, by whoever connects to the database pgbouncer."""
