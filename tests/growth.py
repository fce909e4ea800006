"""Whether work grows with its size as it should, whatever the machine's speed. Knows nothing of what is done."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIES = 4  # what else runs can only make the larger one look worse
_TOLERANCE = 6.0  # of 16 times the size: a square would be 16, and a cache that the larger one does not fit has been 3


def assert_linear(work: Callable[[int], object], size: int, *, factor: int = 16) -> None:
    """Do the work of two sizes, `size` and a `factor`-th of it: processor time must grow by that factor, and not by its
    square.
    """
    work(size // factor)  # what is only made once
    ratios = []
    for _ in range(_TRIES):
        ratios.append(_seconds(work, size) / min(_seconds(work, size // factor) for _ in range(3)))
        if ratios[-1] < _TOLERANCE * factor:
            return
    raise AssertionError(f"{factor} times the size took {min(ratios):.0f} times as long")


@contextmanager
def at_most_as_long_as_parsing(content: bytes, *, times: int) -> Iterator[None]:
    """Check that what is done inside takes at most so many times the processor time that parsing this JSON takes."""
    parsing_s = min(_seconds(lambda _: json.loads(content), 0) for _ in range(3))
    started = time.process_time()
    yield
    taken_s = time.process_time() - started
    assert taken_s < times * parsing_s, f"{taken_s:.3f} s, where parsing took {parsing_s:.3f} s"


def _seconds(work: Callable[[int], object], size: int) -> float:
    started = time.process_time()
    work(size)
    return max(time.process_time() - started, 1e-4)
