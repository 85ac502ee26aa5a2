"""What pgfunnel is to its system: a daemon, a number in a file, a user, a service."""
