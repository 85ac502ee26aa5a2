"""The name that was probably meant, for messages about one that there is not."""

import difflib
from collections.abc import Callable, Iterable


def did_you_mean(name: str, names: Iterable[str], *, plain: Callable[[str], str] = str.lower) -> str:
    """Return "; did you mean ...?" with the nearest of the names, or nothing if none is near.

    `plain` takes away what names may differ in and still be the same.
    """
    known, wanted = {plain(each): each for each in names}, plain(name)
    # default_pool_size for pool_size is a mistake that people make, and further away than reserve_pool_size.
    ends = [each for each in known if "_" in each and wanted.endswith(f"_{each}")]
    nearest = ends or difflib.get_close_matches(wanted, known, n=1, cutoff=0.75)
    return f"; did you mean {known[nearest[0]]}?" if nearest else ""
