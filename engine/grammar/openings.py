"""Finds, in a text that is otherwise free, the openings after which a grammar counts. Bytes in, openings out.

All openings are looked for at once, by an automaton whose states are made when they are first reached. Knows nothing of
grammars and of requests.
"""

import re
import threading
from typing import NamedTuple

from orcinus.engine.sampling_params import Opening, Openings


class Found(NamedTuple):
    """Says where a piece of text leads: to a state, and with `opening` to the end of one, which `rest` follows."""

    state: int
    opening: int | None = None
    rest: bytes = b""


class _Place(NamedTuple):
    """Says how far an opening has come: `num_bytes` of the part that is next."""

    opening: int
    part: int
    num_bytes: int


_Places = frozenset[_Place]


class OpeningFinder:
    """Follows texts through the openings of one request. States are numbers; for any thread.

    A text begins in `start`. In `base` no opening has begun.
    """

    def __init__(self, openings: Openings) -> None:
        self._patterns = [*openings.openings, *(Opening((reset,), ()) for reset in openings.resets)]
        self._num_openings = len(openings.openings)
        self._parts = [[part.encode() for part in pattern.parts] for pattern in self._patterns]
        self._between = [None if of.between is None else of.between.encode() for of in self._patterns]
        again = [i for i, pattern in enumerate(self._patterns) if not pattern.is_first]
        self._again: _Places = frozenset(_Place(i, 0, 0) for i in again)
        self._states: dict[_Places, int] = {}
        self._places: list[_Places] = []
        self._next: list[dict[int, tuple[int, int | None]]] = []
        self._lock = threading.Lock()
        self.base = self._state(self._again)
        self.start = self._state(frozenset(_Place(i, 0, 0) for i in range(len(self._patterns))))
        first_bytes = sorted({self._parts[i][0][:1] for i in again})
        self._begins = re.compile(b"|".join(map(re.escape, first_bytes)) or rb"(?!)")
        self.last_bytes = frozenset(parts[-1][-1] for parts in self._parts[: self._num_openings])

    def feed(self, state: int, text: bytes) -> Found:
        """Follow a text from a state, as far as the first opening that ends in it."""
        position = 0
        while position < len(text):
            if state == self.base:
                begin = self._begins.search(text, position)
                if begin is None:
                    return Found(state)
                position = begin.start()
            state, opening = self._step(state, text[position])
            position += 1
            if opening is not None:
                return Found(state, opening, text[position:])
        return Found(state)

    def _step(self, state: int, byte: int) -> tuple[int, int | None]:
        known = self._next[state].get(byte)
        if known is None:
            with self._lock:
                known = self._next[state][byte] = self._find(self._places[state], byte)
        return known

    def _find(self, places: _Places, byte: int) -> tuple[int, int | None]:
        """Return the state after one more byte, and the opening that it ends, if it does."""
        after, ended = set(self._again), []
        for place in places:
            parts, between = self._parts[place.opening], self._between[place.opening]
            part = parts[place.part]
            may_wait = place.part > 0 or self._patterns[place.opening].is_first
            if place.num_bytes == 0 and may_wait and (between is None or byte in between):
                after.add(place)
            if part[place.num_bytes] != byte:
                continue
            if place.num_bytes + 1 < len(part):
                after.add(place._replace(num_bytes=place.num_bytes + 1))
            elif place.part + 1 < len(parts):
                after.add(_Place(place.opening, place.part + 1, 0))
            else:
                ended.append(place.opening)
        opening = min(ended, default=self._num_openings)
        if opening < self._num_openings:
            return self._state(frozenset(after)), opening
        return (self.base if ended else self._state(frozenset(after))), None

    def _state(self, places: _Places) -> int:
        known = self._states.get(places)
        if known is None:
            self._places.append(places)
            self._next.append({})
            known = self._states[places] = len(self._places) - 1
        return known
