"""What clients leave in a session: what it comes to, what is done about it, and the books on it."""
