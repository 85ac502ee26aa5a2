"""The name that was probably meant, for messages about one that there is not."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest of the names, or nothing if none is near."""
    nearest = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.75)
    return f"; did you mean {nearest[0]}?" if nearest else ""
