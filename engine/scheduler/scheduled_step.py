"""One step in the making: its plan, what the executor has to be told with it, and its counts.

Writes down what the scheduler decides. Decides nothing itself.
"""

from dataclasses import dataclass, field

import msgspec

from orcinus.engine.messages import AdmissionLimit, HeadUse, NewRequest, ScheduledRequest, StepPlan, StepStats
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.slots import Slots


@dataclass(slots=True, eq=False)
class ScheduledStep:
    """A step that was planned: `update` or `retry` says what became of it. `stats` has what was counted meanwhile.

    `num_chunk_tokens` are the tokens of prompts, but not those that end one alone: they cost what a decode costs.
    `num_known_tokens` are those that requests which decode compute beyond one: their grammars left no choice of them,
    or they were drafts, behind which the step that accepted them left no state.
    """

    plan: StepPlan = field(default_factory=lambda: StepPlan(scheduled=[], new_requests=[], released=[]))
    stats: StepStats = field(default_factory=StepStats)
    computing: set[bytes] = field(default_factory=set)  # hashes of the blocks of prompts that it fills
    num_chunk_tokens: int = 0
    num_known_tokens: int = 0

    @property
    def num_extra_tokens(self) -> int:
        """The tokens that it could do without, for want of memory."""
        num_drafts = sum(len(item.draft_token_ids) for item in self.plan.scheduled)
        return self.num_chunk_tokens + self.num_known_tokens + num_drafts

    def let_head_see_prompts(self) -> None:
        """Have a head that would rest compute its keys, so that those of prompts are there whenever it runs again."""
        if self.num_chunk_tokens and self.plan.head == "rests":
            self.plan = msgspec.structs.replace(self.plan, head="caches")


class StepBuilder:
    """Puts requests into a step, one after the other."""

    def __init__(
        self, slots: Slots, number: int, now: float, *, wants_drafts: bool = True, head: HeadUse = "guesses"
    ) -> None:
        self.step = ScheduledStep(StepPlan([], [], [], wants_drafts, head))
        self.now = now
        # Tokens beyond one that those may still compute who decode, and known ones among them; set when there are some.
        self.extra_budget: int | None = None
        self.known_budget: int | None = None
        self._slots = slots
        self._number = number

    def add(self, request: Request, num_tokens: int, new_block_ids: list[list[int]]) -> None:
        """Let a request compute its next tokens, and sample after the last one if it knows no more."""
        first = request.num_computed_tokens
        request.num_computed_tokens = end = first + num_tokens
        num_samples = 1 if request.wants_tokens and end == request.num_tokens else 0
        if first < request.num_prefill_tokens:
            self.step.stats.num_prefill_tokens += num_tokens
            self.step.num_chunk_tokens += num_tokens if num_tokens != num_samples else 0
        else:
            self.step.stats.num_decode_tokens += num_tokens
            self.step.num_known_tokens += num_tokens - 1
        item = ScheduledRequest(request.request_id, first, num_tokens, new_block_ids, num_samples)
        self.step.plan.scheduled.append(item)
        request.num_in_flight += num_samples
        request.last_scheduled_step = self._number

    def add_drafts(self, request: Request, draft_token_ids: list[int]) -> None:
        """Let a request that decodes compute its last tokens and drafts behind them.

        It samples after the last token, and after each draft.
        """
        assert self.extra_budget is not None
        num_known, num_tokens = request.num_tokens_to_compute, request.num_tokens_to_compute + len(draft_token_ids)
        self.extra_budget -= num_tokens - 1
        self.step.stats.num_decode_tokens += num_tokens
        self.step.num_known_tokens += num_known - 1
        first, new_block_ids = request.num_computed_tokens, self.unsent_blocks(request, num_tokens)
        item = ScheduledRequest(
            request.request_id,
            first,
            num_tokens,
            new_block_ids,
            num_samples=1 + len(draft_token_ids),
            draft_token_ids=tuple(draft_token_ids),
        )
        self.step.plan.scheduled.append(item)
        request.num_computed_tokens += num_tokens
        request.num_in_flight += item.num_samples
        request.last_scheduled_step = self._number

    def note_limit(self, limit: AdmissionLimit) -> None:
        """Note what a request waits for that gets nothing of this step."""
        if limit not in self.step.stats.blocked_by:
            self.step.stats.blocked_by.append(limit)

    def unsent_blocks(self, request: Request, num_tokens: int) -> list[list[int]]:
        """Return what the executor lacks of a request's block tables to compute its next tokens; empty if nothing.

        Introduce a request that it has not met.
        """
        if not request.is_known:
            self._introduce(request)
        unsent = self._slots.blocks.advance(request.request_id, request.num_computed_tokens + num_tokens)
        return unsent if any(unsent) else []

    def _introduce(self, request: Request) -> None:
        """Tell the executor of a request that it meets for the first time, or again after a preemption."""
        request.is_known = True
        if request.first_scheduled_time is None:
            request.first_scheduled_time = self.now
            request.num_cached_tokens = request.num_computed_tokens
            if self._slots.prefixes.is_for(request):
                self.step.stats.prefix_cache_queries += request.num_tokens
                self.step.stats.prefix_cache_hits += request.num_computed_tokens
        elif request.num_preemptions:
            request.pauses.append((request.queued_since, self.now))
        self.step.plan.new_requests.append(
            NewRequest(
                request_id=request.request_id,
                token_ids=list(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                sampling=request.sampling,
                prepared=request.prepared,
                adapter=request.adapter,
                cache_salt=request.cache_salt,
            )
        )
