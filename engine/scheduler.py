"""Iteration-level scheduling (Orca, Yu et al., OSDI 2022): which request runs how many tokens in the next step.

A request has tokens known and tokens computed, and each step lets computed catch up. The scheduler owns the
requests, the queue, the slots and, through the block manager, the KV blocks. It refuses to know the model, text
and transport; what it decides leaves as a `StepPlan`, and comes back as a `StepResult`.
"""

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from config.engine_config import BatchingStrategy
from engine.batching import batching_rule
from engine.block_manager import BlockManager
from engine.messages import (
    AddRequest,
    FinishReason,
    NewRequest,
    RequestDelta,
    ScheduledRequest,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from engine.request import Request, RequestStatus
from engine.waiting_queue import WaitingQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What the scheduler has to keep within. `max_model_len` tokens must fit into the blocks there are."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    batching: BatchingStrategy = "continuous"
    batch_wait_s: float = 0.05
    enable_prefix_caching: bool = True
    max_queue_wait_s: float = 60.0


@dataclass(slots=True)
class StepCounts:
    """What happened in one step, counted while it was planned."""

    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_preemptions: int = 0
    num_slots_refilled: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0


class Scheduler:
    """Used by one thread: `schedule` and `update` in turn, `add` and `abort` between steps."""

    def __init__(
        self,
        limits: SchedulerLimits,
        block_manager: BlockManager,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert limits.max_num_batched_tokens >= limits.max_num_seqs, "a step must fit one token of every slot"
        assert block_manager.num_blocks >= block_manager.blocks_for(limits.max_model_len), (
            "a request of max_model_len tokens must fit into the KV blocks"
        )
        self.limits = limits
        self.counts = StepCounts()
        self._blocks = block_manager
        self._clock = clock
        self._rule = batching_rule(limits.batching, limits.max_num_seqs, limits.batch_wait_s)
        self._requests: dict[str, Request] = {}
        self._waiting = WaitingQueue(limits.max_queue_wait_s)
        self._running: list[Request] = []  # by `Request.order`: the last one is the first to be preempted
        self._released: list[str] = []
        self._num_added = 0
        self._step = 0

    @property
    def num_slots(self) -> int:
        return self._rule.max_num_seqs

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def wait_time_s(self) -> float | None:
        """Seconds until a step would have something to run, or None if it has now (or has no work at all)."""
        if self._running or not self._waiting:
            return None
        return self._rule.admission_delay_s(self._running, self._waiting, self._clock()) or None

    def add(self, added: AddRequest) -> None:
        """Queue a request. Its prompt and `max_tokens` fit the context: whoever admits requests checked that."""
        assert added.request_id not in self._requests, f"request {added.request_id} is already known"
        request = Request(added, self._num_added)
        self._num_added += 1
        self._requests[request.request_id] = request
        self._waiting.push(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests wherever they are. Ids that are not known, or not any more, are fine."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._finish(request)

    def schedule(self) -> StepPlan:
        """Plan the next step: fill free slots, then one token for all who decode, then chunks of prompts."""
        self.counts = StepCounts()
        self._step += 1
        now = self._clock()
        self._admit(now)
        plan = StepPlan(scheduled=[], new_requests=[], released=[])
        candidates = list(self._rule.select(self._running))
        budget = self.limits.max_num_batched_tokens
        for request in candidates:
            if request.num_tokens_to_compute == 1 and self._grow(request, now):
                budget -= self._schedule_tokens(plan, request, 1, now)
        computing: set[bytes] = set()
        for request in candidates:
            if budget > 0 and request.status is RequestStatus.RUNNING and request.num_tokens_to_compute > 1:
                budget -= self._schedule_chunk(plan, request, budget, computing, now)
        if plan.scheduled:  # an empty plan is not executed
            plan.released.extend(self._released)
            self._released.clear()
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[RequestDelta]:
        """Book what a plan brought: append tokens, finish, free. One delta for each request with news."""
        deltas = []
        for scheduled in plan.scheduled:
            request = self._requests.get(scheduled.request_id)
            if request is None or request.status is not RequestStatus.RUNNING:
                continue
            error = result.errors.get(request.request_id)
            if error is not None:
                deltas.append(self._fail(request, error))
                continue
            self._book_computed(request, scheduled.num_tokens)
            if request.prompt_logprobs is not None:
                request.prompt_logprobs += result.prompt_logprobs.get(request.request_id, [])
            if scheduled.samples or (request.num_tokens_to_compute == 0 and not request.wants_tokens):
                deltas.append(self._book_sampled(request, result))
        return deltas

    def fail(self, plan: StepPlan, message: str) -> list[RequestDelta]:
        """The step as a whole failed: end the requests that took part in it, with an error."""
        requests = [self._requests[scheduled.request_id] for scheduled in plan.scheduled]
        return [self._fail(request, message) for request in requests]

    # --- admission ------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        if self._rule.admission_delay_s(self._running, self._waiting, now) != 0.0:
            return
        while len(self._running) < self.num_slots:
            request = self._waiting.peek(now)
            if request is None or not self._admit_one(request):
                return
            self._waiting.remove(request)
            request.status = RequestStatus.RUNNING
            bisect.insort(self._running, request, key=lambda running: running.order)
            self.counts.num_slots_refilled += 1

    def _admit_one(self, request: Request) -> bool:
        """Give a request blocks for all tokens it has, so that only decoding can run out of them later."""
        prefix = self._blocks.find_prefix(self._reusable_hashes(request))
        growth_reserve = len(self._running)  # each running request needs its next block before long
        needed = self._blocks.blocks_for(request.num_tokens) - len(prefix)
        if self._running and needed + growth_reserve > self._blocks.num_free_excluding(prefix):
            return False
        if self._blocks.allocate(request.request_id, request.num_tokens, prefix) is None:
            return False
        request.num_computed_tokens = len(prefix) * self._blocks.block_size
        return True

    def _reusable_hashes(self, request: Request) -> list[bytes]:
        """Hashes of the full blocks before the last token: that one is always computed, to be sampled from."""
        if not self.limits.enable_prefix_caching or not request.may_reuse_prefix:
            return []
        block_size = self._blocks.block_size
        return request.block_hashes(block_size, (request.num_tokens - 1) // block_size)

    # --- one step's tokens ----------------------------------------------------------------------------------

    def _grow(self, request: Request, now: float) -> bool:
        """Make room for one more token, preempting the newest if need be. False if that was `request` itself."""
        while request.status is RequestStatus.RUNNING:
            if len(self._blocks.block_table(request.request_id)) * self._blocks.block_size >= request.num_tokens:
                return True
            if self._blocks.allocate(request.request_id, request.num_tokens) is not None:
                return True
            self._preempt(self._running[-1], now)
        return False

    def _schedule_chunk(self, plan: StepPlan, request: Request, budget: int, computing: set[bytes], now: float) -> int:
        """Schedule as much of a prompt as the budget allows; returns the tokens scheduled.

        Before its first chunk a request looks for its prefix once more: others may have computed it since it got
        its slot. If `computing`, the blocks being computed in this very step, has its next one, it waits for that.
        """
        block_size = self._blocks.block_size
        hashes = self._reusable_hashes(request)
        start = request.num_computed_tokens // block_size
        if request.num_blocks_sent == 0:
            start += self._blocks.extend_prefix(request.request_id, hashes, start)
            request.num_computed_tokens = start * block_size
            if start < len(hashes) and hashes[start] in computing:
                return 0
        num_tokens = min(request.num_tokens_to_compute, budget)
        computing.update(hashes[start : (request.num_computed_tokens + num_tokens) // block_size])
        return self._schedule_tokens(plan, request, num_tokens, now)

    def _schedule_tokens(self, plan: StepPlan, request: Request, num_tokens: int, now: float) -> int:
        if request.num_blocks_sent == 0:
            self._introduce(plan, request, now)
        if num_tokens == 1 and request.num_output_tokens > 0:
            self.counts.num_decode_tokens += 1
        else:
            self.counts.num_prefill_tokens += num_tokens
        table = self._blocks.block_table(request.request_id)
        plan.scheduled.append(
            ScheduledRequest(
                request_id=request.request_id,
                num_computed_tokens=request.num_computed_tokens,
                num_tokens=num_tokens,
                new_block_ids=list(table[request.num_blocks_sent :]),
                samples=num_tokens == request.num_tokens_to_compute and request.wants_tokens,
            )
        )
        request.num_blocks_sent = len(table)
        request.last_scheduled_step = self._step
        return num_tokens

    def _introduce(self, plan: StepPlan, request: Request, now: float) -> None:
        """The executor meets a request for the first time, or again after a preemption."""
        if request.first_scheduled_time is None:
            request.first_scheduled_time = now
            request.num_cached_tokens = request.num_computed_tokens
            if self.limits.enable_prefix_caching and request.may_reuse_prefix:
                self.counts.prefix_cache_queries += request.num_tokens
                self.counts.prefix_cache_hits += request.num_computed_tokens
        plan.new_requests.append(
            NewRequest(
                request_id=request.request_id,
                token_ids=list(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                sampling=request.sampling,
            )
        )

    # --- what a step brought --------------------------------------------------------------------------------

    def _book_computed(self, request: Request, num_tokens: int) -> None:
        """Count tokens as computed and make the blocks that they filled findable."""
        block_size = self._blocks.block_size
        first = request.num_computed_tokens // block_size
        request.num_computed_tokens += num_tokens
        last = request.num_computed_tokens // block_size
        if not self.limits.enable_prefix_caching or first == last:
            return
        hashes = request.block_hashes(block_size, last)
        for index in range(first, last):
            self._blocks.register(request.request_id, index, hashes[index])

    def _book_sampled(self, request: Request, result: StepResult) -> RequestDelta:
        """Append what was sampled until something ends the request, and report it."""
        sampled = result.sampled_token_ids.get(request.request_id, [])
        finish_reason = None if request.wants_tokens else _reason_without_tokens(request)
        stop_reason = None
        num_accepted = 0
        for token_id in sampled:
            request.token_ids.append(token_id)
            num_accepted += 1
            finish_reason, stop_reason = self._finish_reason(request, token_id)
            if finish_reason is not None:
                break
        is_complete = finish_reason != "stop" and request.request_id in result.finished
        finish_reason = "stop" if is_complete else finish_reason
        is_text = request.token_ids[-1] not in self.limits.eos_token_ids
        request.is_steered |= request.request_id in result.steered
        if request.is_steered and finish_reason == "stop" and stop_reason is None:
            finish_reason = "length"
            num_accepted -= not is_text  # an end that the limit called for is not the model's
        logprobs = result.logprobs.get(request.request_id)
        delta = self._report(
            request,
            token_ids=sampled[:num_accepted],
            logprobs=None if logprobs is None else logprobs[:num_accepted],
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            embedding=result.embeddings.get(request.request_id),
            ends_in_text=is_complete and is_text,
        )
        if delta.finish_reason is not None:
            self._finish(request)
        return delta

    def _finish_reason(self, request: Request, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Whether the token just appended ends the request, and which stop token did."""
        sampling = request.sampling
        if request.num_output_tokens >= sampling.min_tokens:
            if token_id in self.limits.eos_token_ids and not sampling.ignore_eos:
                return "stop", None
            if token_id in sampling.stop_token_ids:
                return "stop", token_id
        is_at_limit = sampling.max_tokens is not None and request.num_output_tokens >= sampling.max_tokens
        if is_at_limit or request.num_tokens >= self.limits.max_model_len:
            return "length", None
        return None, None

    def _report(
        self,
        request: Request,
        *,
        token_ids: list[int],
        logprobs: list[TokenLogprobs] | None = None,
        finish_reason: FinishReason | None = None,
        stop_reason: int | None = None,
        error: str | None = None,
        embedding: bytes | None = None,
        ends_in_text: bool = False,
    ) -> RequestDelta:
        """A delta; the first one of a request also says how it came to run."""
        is_first, request.has_reported = not request.has_reported, True
        started = request.first_scheduled_time
        prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        return RequestDelta(
            request_id=request.request_id,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_cached_tokens=request.num_cached_tokens if is_first else None,
            queue_time_s=started - request.arrival_time if is_first and started is not None else None,
            num_preemptions=request.num_preemptions,
            error=error,
            embedding=embedding,
            ends_in_text=ends_in_text,
        )

    def _fail(self, request: Request, message: str) -> RequestDelta:
        delta = self._report(request, token_ids=[], finish_reason="error", error=message)
        self._finish(request)
        return delta

    def _finish(self, request: Request) -> None:
        """Take a request out of everything; its slot and blocks are free for the next step."""
        if request.status is RequestStatus.RUNNING:
            self._leave_slot(request)
        else:
            self._waiting.remove(request)
        request.status = RequestStatus.FINISHED
        del self._requests[request.request_id]

    def _preempt(self, request: Request, now: float) -> None:
        """Take slot and blocks away; the request waits in its old place and its tokens are recomputed."""
        self._leave_slot(request)
        request.forget_computed(now)
        self._waiting.push(request)
        self.counts.num_preemptions += 1

    def _leave_slot(self, request: Request) -> None:
        self._running.remove(request)
        self._blocks.free(request.request_id)
        if request.num_blocks_sent:
            self._released.append(request.request_id)

    def check_integrity(self) -> None:
        """Raise `AssertionError` where the books do not balance. For tests and idle moments."""
        self._blocks.check_integrity()
        running = {request.request_id for request in self._running}
        assert len(running) == len(self._running) <= self.num_slots, "slots"
        assert self._running == sorted(self._running, key=lambda request: request.order), "order"
        assert len(running) + len(self._waiting) == len(self._requests), "a request is lost"
        for request_id, request in self._requests.items():
            table = self._blocks.block_table(request_id)
            is_running = request.status is RequestStatus.RUNNING
            assert is_running == (request_id in running) == (request_id not in self._waiting), request_id
            assert bool(table) == is_running, f"{request_id} has blocks and no slot, or the reverse"
            assert request.num_computed_tokens <= request.num_tokens, request_id
            assert request.num_computed_tokens <= len(table) * self._blocks.block_size, request_id
            assert request.num_blocks_sent <= len(table), request_id
        if not running:
            assert self._blocks.num_used_blocks == 0, "blocks are held by nobody"


def _reason_without_tokens(request: Request) -> FinishReason:
    """A prompt alone is a continuation cut short at 0 tokens; an embedding is all that was asked for."""
    return "length" if request.sampling.pooling is None else "stop"
