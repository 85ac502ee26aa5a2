"""What keeps pgfunnel from starting."""


class StartError(Exception):
    """It can't start as it is configured; the message says what is in the way."""
