"""The way in: from a connection's first byte until there is a session for it."""
