"""What the peers did wrong, as exceptions; split by who is to blame so that the right side is told and closed."""


class ProtocolViolation(Exception):  # noqa: N818 - the protocol's word for it (SQLSTATE 08P01)
    """A peer sent what the protocol does not allow. `message` is fit for that peer and for the log."""

    sqlstate = "08P01"

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        """Where in the chunk the offending message starts: everything before it was well-formed."""


class ClientViolation(ProtocolViolation):
    """The client broke the protocol: it is told, and closed."""


class ServerViolation(ProtocolViolation):
    """The server broke the protocol: its connection can't be trusted any more."""
