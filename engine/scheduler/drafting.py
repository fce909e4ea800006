"""Which proposals of the executor are kept as drafts of requests, to be tried in the next step.

Without a policy all are, up to what a step has room for. Knows requests; what drafts cost and bring is the policy's.
"""

from collections.abc import Mapping, Sequence

from orcinus.engine.scheduler.draft_policy import DraftPolicy
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.scheduled_step import ScheduledStep

# Drafts that a step may try where there are fewer slots.
_MIN_MOST_DRAFTS = 16


class Drafting:
    """Used by one thread. `weighs` drafts and keeps as many as pay."""

    def __init__(self, *, weighs: bool, max_num_seqs: int, target_itl_s: float | None) -> None:
        self.policy: DraftPolicy | None = None
        if weighs:
            self.policy = DraftPolicy(max(_MIN_MOST_DRAFTS, max_num_seqs), target_itl_s)

    def keep(
        self, proposals: Mapping[str, list[int]], requests: Mapping[str, Request], running: Sequence[Request]
    ) -> None:
        """Keep proposals as drafts of those requests that are there still and whose next tokens may be guessed."""
        if not proposals:
            return
        both = [(requests.get(request_id), drafts) for request_id, drafts in proposals.items()]
        kept = {
            request.request_id: drafts for request, drafts in both if request is not None and not request.looks_back
        }
        if self.policy is not None:
            kept = self.policy.choose(kept, sum(request.is_decoding for request in running))
        for request_id, draft_token_ids in kept.items():
            requests[request_id].draft_token_ids = draft_token_ids

    def wants_proposals(self, num_running: int) -> bool:
        """Return whether the executor is to look for drafts in the step that is being planned."""
        return self.policy is None or self.policy.wants_proposals(num_running)

    def observe_step(self, step: ScheduledStep, seconds: float) -> None:
        """Learn from a step how long it took, if it had nothing but decodes and drafts, and these are looked for."""
        is_telling = step.plan.wants_drafts and not step.num_chunk_tokens and not step.num_known_tokens
        if self.policy is not None and is_telling:
            num_decodes = len(step.plan.scheduled)
            num_tokens = step.stats.num_decode_tokens + step.stats.num_prefill_tokens
            self.policy.observe_step(num_decodes, num_tokens - num_decodes, seconds)

    def observe_tokens(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Learn from what came next in a request."""
        if self.policy is not None:
            self.policy.observe_tokens(request_id, token_ids)

    def forget(self, request_id: str) -> None:
        """Drop what is known of a request that ends."""
        if self.policy is not None:
            self.policy.forget(request_id)
