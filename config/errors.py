"""The one exception of the configuration: every mistake of every source, in words an operator can act on.

Messages reach it ready made and free of secrets; it only lists them.
"""

from collections.abc import Sequence


class ConfigurationError(Exception):
    """The settings are wrong. `mistakes` has one line each; str() is the whole message for the terminal."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        count = "a mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        super().__init__("\n  ".join([f"{count} in the settings (pgfunnel --help explains them)", *self.mistakes]))
