"""Drafts from a request's own prompt and output: what followed the last tokens where they stood before.

Prompt lookup (Saxena, https://github.com/apoorvumang/prompt-lookup-decoding): what copies, quotes or edits its context
repeats it at length. Knows nothing of the model and of what is accepted.
"""

from array import array
from collections.abc import Mapping, Sequence

from orcinus.engine.messages import NewRequest
from orcinus.engine.runner.token_index import TokenIndex


class NgramDrafter:
    """Proposes up to `max_drafts` tokens behind the longest match of a request's last tokens, the latest of these."""

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._texts: dict[str, TokenIndex] = {}

    def begin(self, new: NewRequest) -> "array[int]":
        """Get to know a request; returns its text, which grows with it."""
        index = self._texts[new.request_id] = TokenIndex(len(new.token_ids))
        index.extend(new.token_ids)
        return index.text

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        texts = self._texts
        for request_id, token_ids in grown.items():
            if len(token_ids) == 1:
                texts[request_id].append(token_ids[0])
            else:
                texts[request_id].extend(token_ids)

    def propose(self, request_ids: Sequence[str]) -> dict[str, list[int]]:
        """Return drafts by request id, of those that have any."""
        proposals = {}
        for request_id in request_ids:
            if drafts := self.following(request_id)[1]:
                proposals[request_id] = drafts
        return proposals

    def following(self, request_id: str) -> tuple[int, list[int]]:
        """Return how many tokens the longest match has, 0 if there is none, and the drafts of a request."""
        index = self._texts[request_id]
        if index.last_place < 0 or not (matches := index.own_matches()).length:
            return 0, []
        return matches.length, repeated(index, matches.places[0], self._max_drafts)

    def release(self, request_id: str) -> None:
        self._texts.pop(request_id, None)


def repeated(index: TokenIndex, place: int, most: int) -> list[int]:
    """Return up to `most` tokens behind a place of a text, as if it went on from its end as from there."""
    period = len(index.text) - place
    drafts = index.text[place : place + most].tolist()
    return drafts if period >= most else [drafts[i % period] for i in range(most)]
