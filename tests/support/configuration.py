"""A configuration made by hand, for parts that are tested without the program around them."""

from config.access import Access
from config.databases import Directory
from config.load import Loaded, Origin
from config.settings import Settings
from pooler.current import Current


def current(settings: Settings, directory: Directory | None = None, access: Access | None = None) -> Current:
    """These settings, in force."""
    return Current(
        Loaded(
            settings=settings,
            sources={},
            access=access or Access(),
            directory=directory or Directory(),
            notes=(),
            idle={},
            file=None,
            from_ini=False,
            quiet=False,
            daemon=False,
            given={},
            origin=Origin((), {}),
        )
    )
