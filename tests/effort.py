"""How much the tests try: what `make test` leaves to `make test-all`.

Two things differ. Tests marked `slow` are left out, and what grows with a number (examples, samples) does less: the
hypothesis profile in force says how much, `quick` or `thorough`. Either way tests and servers compute with one thread,
unless they ask for more. Knows nothing of what is tested.
"""

import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

PROFILES = {"quick": 20, "thorough": 100}  # examples of a test that asks for no number of its own


def compute_with_one_thread() -> None:
    """Give torch in this process, if it has yet to be imported, and in those that it starts, one thread each.

    Two threads of OpenMP on cores that others want, too, wait for each other most of the time: tiny models then take
    thirty times as long.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def register_profiles() -> None:
    """Make the profiles known by name; `thorough` holds unless `--hypothesis-profile` names the other."""
    for name, max_examples in PROFILES.items():
        settings.register_profile(name, max_examples=max_examples, deadline=None)
    settings.load_profile("thorough")


def scaled(count: int) -> int:
    """Return `count` in the thorough profile and its share of that in the one in force, at least 1."""
    return max(1, count * settings().max_examples // PROFILES["thorough"])


def slow_but_for(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Return the values as parameters of a test, all but `quick` ones marked as slow. Raises `ValueError` if one of
    these is not among them."""
    every = list(values)
    if unknown := [value for value in quick if value not in every]:
        raise ValueError(f"there are no {unknown} among {every}")
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in every]
