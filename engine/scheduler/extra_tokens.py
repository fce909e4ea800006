"""Tokens beyond its next one that a request which decodes computes in a step: drafts, and tokens known already.

They share what a step has left when each such request has its token. Nobody is preempted for them. Decides how many;
who runs, and what becomes of them, is the scheduler's.
"""

from orcinus.engine.scheduler.ends import EndRules
from orcinus.engine.scheduler.prefill_budget import PrefillBudget
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.scheduled_step import StepBuilder
from orcinus.engine.scheduler.slots import Slots
from orcinus.engine.scheduler.step_recovery import MemoryBackoff


class ExtraTokens:
    """Used by one thread, while a step is planned. With `snapshots` chunks of known tokens end with blocks."""

    def __init__(
        self,
        max_num_batched_tokens: int,
        slots: Slots,
        ends: EndRules,
        *,
        prefill_budget: PrefillBudget,
        memory_backoff: MemoryBackoff,
        has_snapshots: bool,
    ) -> None:
        self._max_num_batched_tokens = max_num_batched_tokens
        self._slots = slots
        self._blocks = slots.blocks
        self._ends = ends
        self._prefill_budget = prefill_budget
        self._memory_backoff = memory_backoff
        self._has_snapshots = has_snapshots

    def take_drafts(self, builder: StepBuilder, request: Request) -> list[int]:
        """Return as many of a request's drafts as this step can try, with blocks for them, and forget the others.

        No request is preempted for a draft: each that runs, of which any may reach a new block, can have one still.
        """
        drafts, request.draft_token_ids = request.draft_token_ids, []
        num_fitting = self._num_fitting(request) - request.num_tokens
        if self._blocks.has_windows:  # of more than a block, what is rejected would add up: see `cache_groups`
            num_fitting = min(num_fitting, self._blocks.block_size)
        if self._has_snapshots:  # which are made of states in front of drafts: none is in the way of one
            block_size = self._blocks.block_size
            num_fitting = min(num_fitting, block_size - 1 - request.num_tokens % block_size)
        if builder.extra_budget is None:
            builder.extra_budget = self._budget()
        budget = builder.extra_budget - (request.num_tokens_to_compute - 1)
        drafts = drafts[: max(0, min(self._ends.num_tokens_left(request) - 1, num_fitting, budget))]
        if self._blocks.allocate(request.request_id, request.num_tokens + len(drafts)) is None:
            return []
        return drafts

    def take_known(self, builder: StepBuilder, request: Request) -> int:
        """Return how many of the known tokens behind its next one a request computes now, with blocks for them.

        None is preempted for them, and nobody waits longer for a step with them than for one with a prompt.
        """
        num_known = request.num_tokens_to_compute - 1
        if num_known <= 0:
            return 0
        if builder.extra_budget is None:
            builder.extra_budget = self._budget()
        if builder.known_budget is None:
            num_running = len(self._slots.running)
            builder.known_budget = self._prefill_budget.known_tokens(num_running) if num_running > 1 else num_known
        next_end = request.num_computed_tokens + 1
        num_fitting = self._num_fitting(request) - next_end
        num_known = max(0, min(num_known, builder.known_budget, builder.extra_budget, num_fitting))
        if self._has_snapshots:  # which are made where a chunk ends with a block
            last_block_end = (next_end + num_known) // self._blocks.block_size * self._blocks.block_size
            num_known = last_block_end - next_end if last_block_end >= next_end else num_known
        if num_known == 0 or self._blocks.allocate(request.request_id, next_end + num_known) is None:
            return 0
        builder.known_budget -= num_known
        builder.extra_budget -= num_known
        return num_known

    def _num_fitting(self, request: Request) -> int:
        """Return how many tokens of a request fit into its blocks and those that nobody needs for a next token."""
        num_spare_blocks = max(0, self._blocks.num_free_blocks - len(self._slots.running))
        return (len(self._blocks.block_table(request.request_id)) + num_spare_blocks) * self._blocks.block_size

    def _budget(self) -> int:
        """Return how many tokens beyond one those may have together that decode.

        A token of each request goes first; prompts get half of the rest.
        """
        running = self._slots.running
        budget = self._max_num_batched_tokens - len(running)
        if self._memory_backoff.max_extra_tokens is not None:
            budget = min(budget, self._memory_backoff.max_extra_tokens)
        return budget if all(request.is_decoding for request in running) else budget // 2
