"""The name that was probably meant, for messages about one that there is not."""

import difflib
from collections.abc import Collection


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Return "; did you mean ...?" with the nearest of the names, or nothing if none is near."""
    # default_pool_size for pool_size is a mistake that people make, and further away than reserve_pool_size.
    ends = [each for each in names if name.lower().endswith(f"_{each}")]
    nearest = ends or difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.75)
    return f"; did you mean {nearest[0]}?" if nearest else ""
