"""Where the last tokens of a text stood before, in the same text or in another one: an index of every three tokens.

A hash of three tokens leads to the place behind their latest occurrence, and each place to the one before it with that
hash. Tokens that differ may share a hash, so places are compared. It tells what a suffix tree of bounded depth would of
the latest occurrences, for less than a microsecond a token. Knows nothing of requests.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Matches are found by so many tokens, and told from one another by so many at most.
SHORTEST_MATCH = 3
LONGEST_MATCH = 8
# So many places are looked at, the latest first.
_MAX_PLACES = 8
# Entries of the table of places: 4 bytes each.
_MIN_TABLE_BITS = 13
_MAX_TABLE_BITS = 17
# With so many new tokens or more numpy is faster than a loop.
_MANY = 32
# Small ones, with which a hash of token ids below 2 ** 18 is a small integer: these are quicker.
_FIRST_FACTOR, _SECOND_FACTOR = 1031, 257


class Matches(NamedTuple):
    """The places behind the longest matches, the latest first; none where `length` is 0."""

    length: int
    places: list[int]


NO_MATCHES = Matches(0, [])


class TokenIndex:
    """Indexes one growing text. It takes 8 bytes a token, and 8 to 16 a token of its first size for the table.

    `last_hash` is that of the last three tokens, `last_place` behind the latest occurrence of what may be these; -1
    where there is none, or if they are new.
    """

    __slots__ = ("_earlier", "_latest", "_mask", "last_hash", "last_place", "text")

    def __init__(self, num_tokens: int) -> None:
        """Size the table, 512 KiB at most, for a text that has so many tokens, or some more."""
        num_bits = min(max(num_tokens.bit_length() + 2, _MIN_TABLE_BITS), _MAX_TABLE_BITS)
        self.text = array("i")
        self.last_hash = self.last_place = -1
        self._mask = (1 << num_bits) - 1
        self._latest = array("i", [-1]) * (1 << num_bits)
        self._earlier = array("i")  # by place - SHORTEST_MATCH; there is none behind fewer tokens

    def append(self, token_id: int) -> None:
        """Append a token: what `extend` does, for what happens in each step."""
        text = self.text
        text.append(token_id)
        place = len(text)
        if place < SHORTEST_MATCH:
            return
        self.last_hash = text[place - 3] * _FIRST_FACTOR + text[place - 2] * _SECOND_FACTOR + token_id
        key = self.last_hash & self._mask
        latest = self._latest
        self.last_place = earlier = latest[key]
        latest[key] = place
        self._earlier.append(earlier)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens, each in the range of an int32."""
        if len(token_ids) < _MANY:
            self._append_each(token_ids)
            return
        self.text.extend(token_ids)
        self._fill(len(self._earlier) + SHORTEST_MATCH)

    def _append_each(self, token_ids: Sequence[int]) -> None:
        """Append some tokens: what `append` does with each, without a call for it."""
        text, latest, earlier, mask = self.text, self._latest, self._earlier, self._mask
        first, second = [0, 0, *text[-2:]][-2:]
        place = len(text)
        for token_id in token_ids:
            text.append(token_id)
            place += 1
            if place >= SHORTEST_MATCH:
                last_hash = first * _FIRST_FACTOR + second * _SECOND_FACTOR + token_id
                key = last_hash & mask
                last_place = latest[key]
                latest[key] = place
                earlier.append(last_place)
            first, second = second, token_id
        if token_ids and place >= SHORTEST_MATCH:
            self.last_hash, self.last_place = last_hash, last_place

    def own_matches(self) -> Matches:
        """Return where the end of the text stood before."""
        place = self.last_place
        return NO_MATCHES if place < 0 else self._longest(place, self.text[-LONGEST_MATCH:])

    def matches(self, other: "TokenIndex") -> Matches:
        """Return where the last tokens of another text stand."""
        place = self._latest[other.last_hash & self._mask]
        if place < 0 or other.last_hash < 0:
            return NO_MATCHES
        return self._longest(place, other.text[-LONGEST_MATCH:])

    def _longest(self, place: int, tail: "array[int]") -> Matches:
        """Return the longest matches of `tail` among the places that begin with this one."""
        text, earlier = self.text, self._earlier
        last, shortest = tail[-1], tail[-SHORTEST_MATCH:]
        longest, places = 0, []
        for _ in range(_MAX_PLACES):
            if text[place - 1] == last and text[place - SHORTEST_MATCH : place] == shortest:
                length = _num_alike(text[max(0, place - LONGEST_MATCH) : place], tail)
                if length > longest:
                    longest, places = length, [place]
                elif length == longest:
                    places.append(place)
            place = earlier[place - SHORTEST_MATCH]
            if place < 0:
                break
        return Matches(longest, places)

    def _fill(self, first: int) -> None:
        """Index the places from `first` on, all at once."""
        if len(self.text) < first:
            return
        ids = np.array(self.text[first - SHORTEST_MATCH :], dtype=np.int64)
        hashes = ids[:-2] * _FIRST_FACTOR + ids[1:-1] * _SECOND_FACTOR + ids[2:]
        keys = hashes & self._mask
        places: NDArray[np.intc] = np.arange(first, len(self.text) + 1, dtype=np.intc)
        order = np.argsort(keys, kind="stable")
        in_order = keys[order]
        is_same = in_order[1:] == in_order[:-1]
        latest = np.frombuffer(self._latest, dtype=np.intc)
        earlier = latest[keys]
        earlier[order[1:][is_same]] = places[order[:-1][is_same]]
        is_last = np.append(~is_same, True)
        latest[in_order[is_last]] = places[order[is_last]]
        self._earlier.frombytes(earlier.tobytes())
        self.last_hash, self.last_place = int(hashes[-1]), self._earlier[-1]


def _num_alike(left: "array[int]", right: "array[int]") -> int:
    """Count the tokens at the end of both that are the same."""
    if left == right:
        return len(left)
    count = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        count += 1
    return count
