"""Why a server that is free can't be released right away: bits of ServerSession.hold."""

from typing import Final

SESSION: Final = 1  # session mode: it stays with its client
CANCELLING: Final = 2  # a CancelRequest is on its way to it
RETIRED: Final = 4  # it is to be closed
CHOKED: Final = 8  # its client reads too slowly, so it is not read from
STUFFED: Final = 16  # it reads too slowly itself, so its client is not read from
RESET: Final = 32  # server_reset_query_always
CHECK: Final = 64  # server_check_delay = 0: checked each time
PARTING: Final = 128  # its client has said good-bye, and goes when it has its answers
ASK: Final = 256  # its client may have left something in the session
ASKING: Final = 512  # it is asked on account of its client, who has to wait
PINNED: Final = 1024  # its client has left something that no other server has
AUDIT: Final = 2048  # it is asked now and then, whatever its clients do
NEWS: Final = 4096  # Postgres has told of a setting that it reports
RESHAPED: Final = 8192  # a statement has run that may have changed what others return
STALLED: Final = 16384  # its client's next request needs to know how an earlier one ends
DRESSING: Final = 32768  # it is being given its client's settings, and its client's request waits for that
RESETTING: Final = 65536  # what its client has logged in with is about to be reset, and has to be put on again
AHEAD: Final = 131072  # its client's settings went ahead of a request, and the next one waits for them

WAITING: Final = ASKING | DRESSING | RESETTING | AHEAD
"""While one of these is set, a client that is linked has to wait."""
BLOCKED: Final = CANCELLING | WAITING
"""While one of these is set, it may have to."""
