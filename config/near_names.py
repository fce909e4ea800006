"""What a name that is not known was probably meant to be: one that is close to it, or none.

Knows nothing of which names there are.
"""

import difflib
import os
from collections.abc import Iterable

_CUTOFF = 0.7  # of difflib's ratio: two letters changed places in a name of four, or one in ten was left out


def near_names(name: str, known: Iterable[str], count: int = 2) -> list[str]:
    """Return the known names closest to this one, best first, none where none is near.

    Dashes and underscores are one, and what all names begin with does not count.
    """
    plain = {_plain(entry): entry for entry in reversed([*known])}
    common = os.path.commonprefix([*plain, _plain(name)]) if len(plain) > 1 else ""  # noqa: RUF071  (names, not paths)
    by_core = {entry.removeprefix(common): original for entry, original in plain.items()}
    core = _plain(name).removeprefix(common)
    return [by_core[close] for close in difflib.get_close_matches(core, by_core, n=count, cutoff=_CUTOFF)]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
