"""What the pooler logs in with at Postgres."""
