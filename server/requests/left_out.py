"""What of a request is left out, by its place in the body: the answer names it in a header, percent-encoded (RFC 3986).

Whoever answers a request collects with `collecting_left_out` around all that reads it; whatever reads a part that it
passes over says so with `leave_out`. A request that nobody collects for is read as strictly as by default.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from urllib.parse import quote

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.json_values import path_of, without_nulls

HEADER = "x-orcinus-left-out"

_MAX_SHOWN = 20
_MAX_CHARS = 100  # of each
_PLAIN = "=[]$"  # beside what a URL may have anywhere; a comma stands between two places
_ELLIPSIS = "..."


@dataclass(slots=True)
class LeftOut:
    """Holds the places. With `is_lenient` those are left out too that would be refused as not known."""

    is_lenient: bool = False
    places: list[str] = field(default_factory=list)

    def header(self) -> str | None:
        """Return the header's value, None where nothing is left out."""
        shown = [_encoded(place) for place in self.places[:_MAX_SHOWN]]
        more = len(self.places) - len(shown)
        return ", ".join([*shown, *([f"and {more} more"] if more else [])]) or None


def _encoded(place: str) -> str:
    """Return a place that a header can hold. Of a long one its two ends are shown."""
    parts = [quote(char, safe=_PLAIN, errors="surrogatepass") for char in _shortened(place)]
    if sum(map(len, parts)) <= _MAX_CHARS:
        return "".join(parts)
    room = (_MAX_CHARS - len(_ELLIPSIS)) // 2
    return _fitting(parts, room) + _ELLIPSIS + _fitting(parts[::-1], room, is_reversed=True)


def _shortened(place: str) -> str:
    return place if len(place) <= 2 * _MAX_CHARS else place[:_MAX_CHARS] + place[-_MAX_CHARS:]


def _fitting(parts: list[str], room: int, *, is_reversed: bool = False) -> str:
    """Return as many whole parts as there is room for."""
    lengths = [*accumulate(map(len, parts))]
    taken = parts[: bisect_right(lengths, room)]
    return "".join(reversed(taken) if is_reversed else taken)


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


def known_fields(given: Mapping[str, Any], known: Collection[str], where: str) -> dict[str, Any]:
    """Return the fields of an object within the body that are known and not null.

    Raises `InvalidRequestError`, which names the first other one by its path, unless it may be left out.
    """
    stated = without_nulls(given)
    for name in stated:
        if name not in known:
            refuse_unknown(path_of(where, [name]))
    return {name: value for name, value in stated.items() if name in known}


def refuse_unknown(path: str) -> None:
    """Leave out what is not known, where the server was told to. Raises `InvalidRequestError` elsewhere."""
    if not may_leave_out(path):
        raise InvalidRequestError(f"unknown parameter {path!r}", path)


@contextlib.contextmanager
def renaming_left_out(rename: Callable[[str], str]) -> Iterator[None]:
    """Have what is left out within called by other names."""
    collected = _left_out.get()
    num_before = 0 if collected is None else len(collected.places)
    try:
        yield
    finally:
        if collected is not None:
            collected.places[num_before:] = map(rename, collected.places[num_before:])
