"""What of a request is left out, by its place in the body: the answer names it in a header.

Whoever answers a request collects with `collecting_left_out` around all that reads it; whatever reads a part that it
passes over says so with `leave_out`. A request that nobody collects for is read as strictly as by default.
"""

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

HEADER = "x-orcinus-left-out"

_MAX_SHOWN = 20
_MAX_CHARS = 100  # of each
_UNSAFE = re.compile(r"[^A-Za-z0-9_.=\[\]\-]")


@dataclass(slots=True)
class LeftOut:
    """Holds the places. With `is_lenient` those are left out too that would be refused as not known."""

    is_lenient: bool = False
    places: list[str] = field(default_factory=list)

    def header(self) -> str | None:
        """Return the header's value, None where nothing is left out."""
        shown = [_UNSAFE.sub("?", place[:_MAX_CHARS]) for place in self.places[:_MAX_SHOWN]]
        more = len(self.places) - len(shown)
        return ", ".join([*shown, *([f"and {more} more"] if more else [])]) or None


_left_out: ContextVar[LeftOut | None] = ContextVar("left_out", default=None)


@contextlib.contextmanager
def collecting_left_out(*, is_lenient: bool) -> Iterator[LeftOut]:
    """Collect what is left out of the request that is read within."""
    collected = LeftOut(is_lenient)
    token = _left_out.set(collected)
    try:
        yield collected
    finally:
        _left_out.reset(token)


def leave_out(place: str) -> None:
    """Say that what stands at this place of the body is passed over."""
    if (collected := _left_out.get()) is not None:
        collected.places.append(place)


def may_leave_out(place: str) -> bool:
    """Leave out what is not known, and return True, where the server was told to; else return False."""
    collected = _left_out.get()
    if collected is None or not collected.is_lenient:
        return False
    collected.places.append(place)
    return True
