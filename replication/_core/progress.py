"""Progress bars that leave nothing behind."""

import os
from collections.abc import Iterable

from tqdm.auto import tqdm


def bar(iterable: Iterable | None = None, *, show: bool = True, **options) -> tqdm:
    """Return a tqdm bar that disappears when done; silent if TQDM_DISABLE is set.

    tqdm's bar for notebooks does not look at that variable by itself.
    """
    silent = not show or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(iterable, leave=False, disable=silent, **options)
