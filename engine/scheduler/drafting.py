"""Which proposals of the executor are kept as drafts of requests, to be tried in the next step.

Without a policy all are, up to what a step has room for. Knows requests; what drafts cost and bring is the policy's.
With a head for multi-token prediction there are two of them, for steps in which it runs and for others.
"""

from collections.abc import Mapping, Sequence

from orcinus.engine.messages import HeadUse, Proposal, StepPlan
from orcinus.engine.scheduler.draft_policy import DraftPolicy
from orcinus.engine.scheduler.head_policy import HeadPolicy
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.scheduled_step import ScheduledStep

# Drafts that a step may try where there are fewer slots.
_MIN_MOST_DRAFTS = 32


class Drafting:
    """Used by one thread. `weighs` drafts and keeps as many as pay; the model `has_head` that makes some of them."""

    def __init__(self, *, weighs: bool, has_head: bool, max_num_seqs: int, target_itl_s: float | None) -> None:
        self.policy: DraftPolicy | None = None
        self._head: HeadPolicy | None = None

        def make_policy() -> DraftPolicy:
            return DraftPolicy(max(_MIN_MOST_DRAFTS, max_num_seqs), target_itl_s)

        if weighs:
            self._head = HeadPolicy(make_policy) if has_head else None
            self.policy = make_policy() if self._head is None else self._head.resting

    def keep(
        self,
        plan: StepPlan,
        proposals: Mapping[str, Proposal],
        requests: Mapping[str, Request],
        running: Sequence[Request],
    ) -> None:
        """Keep proposals as drafts of those requests that are there still and whose next tokens may be guessed."""
        if not proposals and (self._head is None or not plan.wants_drafts):  # with it, that there are none is news
            return
        both = [(requests.get(request_id), proposal) for request_id, proposal in proposals.items()]
        usable = {
            request.request_id: proposal for request, proposal in both if request is not None and not request.looks_back
        }
        policy = self._policy_of(plan)
        if policy is None:
            kept = {request_id: proposal.token_ids for request_id, proposal in usable.items()}
        else:
            kept = policy.choose(usable, sum(request.is_decoding for request in running))
        for request_id, draft_token_ids in kept.items():
            requests[request_id].draft_token_ids = draft_token_ids

    def wants_proposals(self, num_running: int) -> bool:
        """Return whether the executor is to look for drafts in the step that is being planned."""
        if self._head is not None and self._head.runs_beside(num_running):
            return True
        return self.policy is None or self.policy.wants_proposals(num_running)

    def head_use(self, num_running: int) -> HeadUse:
        """Return what the head does in the step that is being planned, if that has nothing but decodes and drafts."""
        return "guesses" if self._head is None or self._head.runs_beside(num_running) else "rests"

    def observe_step(self, step: ScheduledStep, seconds: float) -> None:
        """Learn from a step how long it took, if it had nothing but decodes and drafts, and these are looked for."""
        policy = self._policy_of(step.plan)
        if policy is None or step.num_chunk_tokens or step.num_known_tokens:
            return
        num_decodes = len(step.plan.scheduled)
        if step.plan.wants_drafts:
            num_tokens = step.stats.num_decode_tokens + step.stats.num_prefill_tokens
            policy.observe_step(num_decodes, num_tokens - num_decodes, seconds)
        if self._head is not None:
            self._head.observe_step(num_decodes)

    def observe_tokens(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Learn from what came next in a request."""
        if self.policy is not None:
            self.policy.observe_tokens(request_id, token_ids)
        if self._head is not None:
            self._head.running.observe_tokens(request_id, token_ids)

    def forget(self, request_id: str) -> None:
        """Drop what is known of a request that ends."""
        if self.policy is not None:
            self.policy.forget(request_id)
        if self._head is not None:
            self._head.running.forget(request_id)

    def _policy_of(self, plan: StepPlan) -> DraftPolicy | None:
        """Return what decides of drafts that a step proposes."""
        return self.policy if self._head is None or plan.head != "guesses" else self._head.running
