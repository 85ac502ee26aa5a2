"""What the pooler waits for before it ends."""

from enum import Enum, auto


class Shutdown(Enum):
    """As a signal or the console's SHUTDOWN asks for it."""

    WAIT_FOR_CLIENTS = auto()  # SIGTERM: busy clients finish their transaction
    WAIT_FOR_SERVERS = auto()  # SIGINT: as above, but who waits for a server is sent away
    IMMEDIATE = auto()  # SIGQUIT, or a second signal
