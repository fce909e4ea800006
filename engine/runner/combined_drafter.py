"""Drafts from a request's own text or from past answers, whichever has the longer match; of as long ones its own."""

from collections.abc import Mapping, Sequence

from orcinus.engine.messages import NewRequest
from orcinus.engine.runner.ngram_drafter import NgramDrafter
from orcinus.engine.runner.suffix_drafter import SuffixDrafter
from orcinus.engine.runner.token_index import SHORTEST_MATCH


class CombinedDrafter:
    """Asks both. Used by one thread."""

    def __init__(self, max_drafts: int) -> None:
        self._own, self._past = NgramDrafter(max_drafts), SuffixDrafter(max_drafts)

    def begin(self, new: NewRequest) -> None:
        self._past.follow(new, self._own.begin(new))

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        self._own.take_in(grown)  # and with it the texts that are shared

    def propose(self, request_ids: Sequence[str]) -> dict[str, list[int]]:
        """Return drafts by request id, of those that have any."""
        proposals = {}
        for request_id in request_ids:
            length, drafts = self._own.following(request_id)
            if longer := self._past.following(request_id, max(length + 1, SHORTEST_MATCH)):
                drafts = longer
            if drafts:
                proposals[request_id] = drafts
        return proposals

    def release(self, request_id: str) -> None:
        self._own.release(request_id)
        self._past.release(request_id)
