"""Drafts from a request's own prompt and output: what followed the last tokens where they stood before.

Prompt lookup (Saxena, https://github.com/apoorvumang/prompt-lookup-decoding): what copies, quotes or edits its context
repeats it at length. Costs a few microseconds a request and step. Knows nothing of the model and of what is accepted.
"""

from array import array
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Matches are found by so many tokens, and told from one another by so many at most.
_SHORTEST_MATCH = 3
_LONGEST_MATCH = 8
# So many places are looked at, the latest first.
_MAX_PLACES = 8
# Entries of the table of places: 4 bytes each.
_MIN_TABLE_BITS = 10
_MAX_TABLE_BITS = 17
# With so many new tokens or more numpy is faster than a loop.
_MANY = 32
# Three odd factors below 2 ** 31: with token ids below 2 ** 31 no sum of products leaves 64 bits.
_FACTORS = (1_640_531_527, 668_265_263, 374_761_393)
_SHIFT = 17


class NgramDrafter:
    """Proposes up to `max_drafts` tokens behind the longest match of a request's last tokens, the latest of these."""

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._indexes: dict[str, NgramIndex] = {}

    def propose(self, known: Mapping[str, NDArray[np.int32]]) -> dict[str, list[int]]:
        """Return drafts by request id, of those that have any; `known` is as `Drafter.propose` says."""
        proposals = {}
        for request_id, token_ids in known.items():
            index = self._indexes.get(request_id)
            if index is None:
                index = self._indexes[request_id] = NgramIndex(len(token_ids))
            if drafts := index.following(token_ids, self._max_drafts):
                proposals[request_id] = drafts
        return proposals

    def release(self, request_id: str) -> None:
        self._indexes.pop(request_id, None)


class NgramIndex:
    """Finds where the last tokens of one growing sequence stood before.

    A hash of three tokens leads to the place behind their latest occurrence, and each place to the one before it with
    that hash. Tokens that differ may share a hash: each place is compared. It takes 4 bytes a token, and 4 to 8 a token
    of the prompt, 512 KiB at most, for the table.
    """

    def __init__(self, num_tokens: int) -> None:
        """Size the table for a sequence that has so many tokens, or some more."""
        num_bits = min(max(num_tokens.bit_length() + 1, _MIN_TABLE_BITS), _MAX_TABLE_BITS)
        self._mask = (1 << num_bits) - 1
        self._latest = array("i", [-1]) * (1 << num_bits)
        self._earlier = array("i", [-1]) * _SHORTEST_MATCH  # by place; there is none behind fewer tokens

    def following(self, token_ids: NDArray[np.int32], most: int) -> list[int]:
        """Return up to `most` tokens that followed what ends the sequence; empty if that is new.

        `token_ids` (num_tokens,) are all so far: those of the last call and any number more.
        """
        place = self._match(token_ids)
        if place is None:
            return []
        period = len(token_ids) - place
        drafts: list[int] = token_ids[place : place + most].tolist()
        # What repeats itself goes on beyond the end.
        return drafts if period >= most else [drafts[i % period] for i in range(most)]

    def _match(self, token_ids: NDArray[np.int32]) -> int | None:
        """Return the place behind the longest match, the latest of several, and note the new tokens."""
        end = len(token_ids)
        if end < _SHORTEST_MATCH:
            return None
        self._extend(token_ids)
        last = token_ids[-_LONGEST_MATCH:].tolist()
        best, longest = None, _SHORTEST_MATCH - 1
        place = self._earlier[end]
        for _ in range(_MAX_PLACES):
            if place < 0 or longest >= len(last):
                break
            length = _num_alike(token_ids[max(0, place - _LONGEST_MATCH) : place].tolist(), last)
            if length > longest:
                best, longest = place, length
            place = self._earlier[place]
        return best

    def _extend(self, token_ids: NDArray[np.int32]) -> None:
        first = len(self._earlier)
        if len(token_ids) + 1 - first >= _MANY and first == _SHORTEST_MATCH:
            self._fill(token_ids)
            return
        new = token_ids[first - _SHORTEST_MATCH :].tolist()
        one, two, three = _FACTORS
        for place in range(first, len(token_ids) + 1):
            at = place - first
            key = new[at] * one + new[at + 1] * two + new[at + 2] * three
            key = (key ^ key >> _SHIFT) & self._mask
            self._earlier.append(self._latest[key])
            self._latest[key] = place

    def _fill(self, token_ids: NDArray[np.int32]) -> None:
        """Do what `_extend` does for all places of a sequence at once."""
        ids = token_ids.astype(np.int64)
        keys = ids[:-2] * _FACTORS[0] + ids[1:-1] * _FACTORS[1] + ids[2:] * _FACTORS[2]
        keys = (keys ^ keys >> _SHIFT) & self._mask
        order = np.argsort(keys, kind="stable")
        in_order = keys[order]
        is_same = in_order[1:] == in_order[:-1]
        earlier = np.full(len(keys), -1, dtype=np.intc)
        earlier[order[1:][is_same]] = order[:-1][is_same] + _SHORTEST_MATCH
        latest = np.frombuffer(self._latest, dtype=np.intc)
        is_last = np.append(~is_same, True)
        latest[in_order[is_last]] = order[is_last] + _SHORTEST_MATCH
        self._earlier.frombytes(earlier.tobytes())


def _num_alike(left: list[int], right: list[int]) -> int:
    """Count the tokens at the end of both that are the same."""
    count = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        count += 1
    return count
