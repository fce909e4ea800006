"""Texts and tokens that arrive in pieces, cut anywhere."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

quick = settings(deadline=None, max_examples=200)
cuts = st.lists(st.integers(0, 1000), max_size=8)


def cut(values: Sequence[Any], cuts: Sequence[int]) -> list[Sequence[Any]]:
    bounds = sorted({0, len(values), *(c % (len(values) + 1) for c in cuts)})
    return [values[a:b] for a, b in pairwise(bounds)]
