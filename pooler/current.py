"""The configuration in force: one object that all parts keep, and that a reload fills anew."""

from config.access import Access
from config.databases import Directory
from config.load import Loaded
from config.settings import Settings


class Current:
    """What was loaded last. Its parts are frozen and replaced together, so that nobody sees half of a reload."""

    __slots__ = ("access", "directory", "loaded", "settings")

    def __init__(self, loaded: Loaded) -> None:
        self.replace(loaded)

    def replace(self, loaded: Loaded) -> None:
        """From now on, this holds."""
        self.loaded = loaded
        self.settings: Settings = loaded.settings
        self.directory: Directory = loaded.directory
        self.access: Access = loaded.access
