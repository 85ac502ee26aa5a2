"""What belongs to one pool, and is not the pool's to know: its terms, its password, and what its sessions share."""

from config.terms import Terms
from pooler.credentials.credential import Password
from pooler.session_state.sharing import Sharing


class Place:
    """See above. Its terms change with a reload."""

    __slots__ = ("password", "sharing", "terms")

    def __init__(self, terms: Terms, sharing: Sharing) -> None:
        self.terms = terms
        self.sharing = sharing
        self.password = _password_of(terms)
        """The one of the database's entry; None: the vault has the user's own."""

    def take_terms(self, terms: Terms) -> None:
        """From now on, these hold."""
        if terms.endpoint != self.terms.endpoint:
            self.password = _password_of(terms)
        self.terms = terms


def _password_of(terms: Terms) -> Password | None:
    password = terms.endpoint.password
    return Password(password.get_secret_value()) if password is not None else None
