"""Iteration-level scheduling (Orca, Yu et al., OSDI 2022): which request runs how many tokens in the next step.

A request has tokens known and tokens computed, and each step lets computed catch up. The scheduler owns the
requests, the queue, the slots and, through the block manager, the KV blocks. It refuses to know the model, text
and transport; what it decides leaves as a `StepPlan`, and comes back as a `StepResult`.
"""

import bisect
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orcinus.config.engine_config import BatchingStrategy
from orcinus.engine.messages import (
    AddRequest,
    FinishReason,
    NewRequest,
    RequestDelta,
    ScheduledRequest,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from orcinus.engine.scheduler.batching import batching_rule
from orcinus.engine.scheduler.block_manager import BlockManager
from orcinus.engine.scheduler.fair_queue import FairQueue
from orcinus.engine.scheduler.prefill_budget import FLOWING_TOKENS, Pacing
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.step_recovery import MemoryRelief, Trials


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
    target_itl_s: float | None = None


@dataclass(slots=True)
class StepCounts:
    """What happened in one step, counted while it was planned."""

    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_chunk_tokens: int = 0  # of prefill, of requests that lacked more than one
    num_preemptions: int = 0
    num_slots_refilled: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step that was planned and is not known yet."""

    plan: StepPlan
    counts: StepCounts
    computing: set[bytes]  # hashes of the blocks of prompts that it fills


@dataclass(frozen=True, slots=True)
class _End:
    """How a request ends. `is_text` tells that it does after its last token, which is text, and not by it."""

    reason: FinishReason
    stop_reason: int | None = None  # the stop token
    is_text: bool = False


class Scheduler:
    """Used by one thread: `schedule` and `update` in turn, `add` and `abort` in between.

    Where `may_run_ahead`, a step is planned before the one before it is known, and each `update` is of the oldest plan.
    After a step that failed, `retry` takes the place of `update`.
    """

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
        self._pacing = Pacing(limits.target_itl_s)
        self._waiting = FairQueue(limits.max_queue_wait_s)
        self._running: list[Request] = []  # by `Request.order`
        self._turns: list[Request] = []  # the same, clients in turn: the last one is the first to be preempted
        self._released: list[str] = []
        self._in_flight: deque[_InFlight] = deque()  # the plans that wait for their update, oldest first
        self._is_short_of_blocks = False  # somebody could not grow, and nobody is preempted while a step is in flight
        self._trials = Trials()
        self._relief = MemoryRelief()
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

    @property
    def may_run_ahead(self) -> bool:
        """Whether another step can be planned although the last one is in flight.

        Not where what may come next depends on a token in flight, somebody has to be preempted, or a culprit is sought.
        """
        if self._is_short_of_blocks or self._trials:
            return False
        return not any(request.num_in_flight and request.follows_tokens for request in self._running)

    def schedule(self) -> StepPlan:
        """Plan the next step: fill free slots, then one token for all who decode, then chunks of prompts."""
        self.counts = StepCounts()
        self._step += 1
        self._is_short_of_blocks = False
        now = self._clock()
        self._admit(now)
        self._turns = self._waiting.in_turn(self._running)
        plan = StepPlan(scheduled=[], new_requests=[], released=[])
        prompts = self._schedule_decodes(plan, now)
        computing = self._schedule_prompts(plan, prompts, now)
        if plan.scheduled:  # an empty plan is not executed
            plan.released.extend(self._released)
            self._released.clear()
            self._in_flight.append(_InFlight(plan, self.counts, computing))
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[RequestDelta]:
        """Book what a plan brought: append tokens, finish, free. One delta for each request with news."""
        assert self._in_flight.popleft().plan is plan, "steps end in the order in which they were planned"
        self._relief.relax(self.num_slots, self.limits.max_num_batched_tokens)
        deltas = []
        for scheduled in plan.scheduled:
            request = self._requests.get(scheduled.request_id)
            if request is None:  # it ended while the step ran
                continue
            if request.request_id in result.errors:
                deltas.append(self._fail(request, result.errors[request.request_id]))
                continue
            self._book_computed(request, scheduled)
            if request.prompt_logprobs is not None:
                request.prompt_logprobs += result.prompt_logprobs.get(request.request_id, [])
            request.num_in_flight -= scheduled.samples
            if scheduled.samples or (not request.wants_tokens and scheduled.end == request.num_tokens):
                self._trials.acquit(request.request_id)
                deltas.append(self._book_sampled(request, result))
        return deltas

    def observe(self, counts: StepCounts, step_time_s: float) -> None:
        """Tell how long a step with these counts took, from which the next ones are paced."""
        num_single = counts.num_decode_tokens + counts.num_prefill_tokens - counts.num_chunk_tokens
        self._pacing.observe(num_single, counts.num_chunk_tokens, step_time_s)

    def retry(self, message: str, *, is_out_of_memory: bool = False) -> list[RequestDelta]:
        """The step in flight failed, and any planned after it is void: find the culprit, and recompute the others.

        Of several one half is tried first, then the other. A request that fails a second time, and alone, ends with an
        error. For want of memory, fewer run at a time instead.
        """
        suspects = self._in_flight_requests()
        num_prompt_tokens = max(step.counts.num_chunk_tokens for step in self._in_flight)
        fits_if_smaller = is_out_of_memory and self._relief.shrink(len(suspects), num_prompt_tokens)
        culprits = [request for request in suspects if self._trials.is_alone(request.request_id)]
        if fits_if_smaller:
            culprits = []
        deltas = [self._fail(request, message) for request in culprits]
        self.void_steps()
        if not fits_if_smaller and not culprits:
            self._trials.split([request.request_id for request in suspects])
        return deltas

    def void_steps(self) -> None:
        """Nothing will be known of the steps in flight: everybody who runs has to be computed anew."""
        self._released += [request_id for step in self._in_flight for request_id in step.plan.released]
        self._in_flight.clear()
        now = self._clock()
        for request in [*self._running]:
            self._preempt(request, now)

    def _in_flight_requests(self) -> list[Request]:
        """Who takes part in the steps in flight and has not ended, each once."""
        ids = dict.fromkeys(item.request_id for step in self._in_flight for item in step.plan.scheduled)
        return [self._requests[request_id] for request_id in ids if request_id in self._requests]

    # --- admission ------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        if self._trials:
            self._admit_suspects(now)
            return
        if self._rule.admission_delay_s(self._running, self._waiting, now) != 0.0:
            return
        while self._has_slot and self._pacing.may_admit(len(self._running)):
            request = self._waiting.peek(now)
            if request is None or not self._allocate_all(request):
                return
            self._take_slot(request)

    @property
    def _has_slot(self) -> bool:
        most = self._relief.max_running
        return len(self._running) < (self.num_slots if most is None else min(self.num_slots, most))

    def _admit_suspects(self, now: float) -> None:
        """All of the group on trial, as far as there is room, which others make: those wait until it is over."""
        group = [self._requests[request_id] for request_id in self._trials.group]
        for request in sorted(group, key=lambda suspect: suspect.order):
            if request.is_running:
                continue
            while not (self._has_slot and self._allocate_all(request)):
                turns = self._waiting.in_turn(self._running)
                others = [running for running in turns if running.request_id not in self._trials.group]
                if not others:
                    return
                self._preempt(others[-1], now)
            self._take_slot(request)

    def _take_slot(self, request: Request) -> None:
        self._waiting.take(request)
        request.is_running = True
        bisect.insort(self._running, request, key=lambda running: running.order)
        self.counts.num_slots_refilled += 1

    def _allocate_all(self, request: Request) -> bool:
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

    def _schedule_decodes(self, plan: StepPlan, now: float) -> list[Request]:
        """Schedule everybody who lacks a single token; returns those who lack more."""
        prompts = []
        block_size = self._blocks.block_size
        for request in self._selected():
            if request.num_tokens_to_compute > 1:
                prompts.append(request)
            elif request.num_computed_tokens % block_size:  # its last block has room, and the executor knows of it
                self._schedule_tokens(plan, request, 1, [])
            elif self._grow(request, now):
                self._schedule_tokens(plan, request, 1, self._unsent_blocks(plan, request, now))
        return [request for request in prompts if request.is_running]

    def _selected(self) -> list[Request]:
        """Who takes part in this step if there is room. Not who ends with a token in flight, whichever that is."""
        running = self._turns
        if self._trials:
            running = [request for request in running if request.request_id in self._trials.group]
        selected = self._rule.select(running)
        if not self._in_flight:
            return [*selected]  # preemption changes whose turn it is
        return [request for request in selected if not self._ends_in_flight(request)]

    def _ends_in_flight(self, request: Request) -> bool:
        return request.num_in_flight > 0 and self._is_at_limit(request, request.num_tokens)

    def _grow(self, request: Request, now: float) -> bool:
        """Make room for one more token, preempting whose turn comes last if need be. False if that is `request` itself.

        While a step is in flight nobody is preempted: the request waits for the next step, which waits for that one.
        """
        while request.is_running:
            if self._blocks.allocate(request.request_id, request.num_tokens) is not None:
                return True
            if self._in_flight:
                self._is_short_of_blocks = True
                return False
            self._preempt(self._turns.pop(), now)
        return False

    def _schedule_prompts(self, plan: StepPlan, prompts: Sequence[Request], now: float) -> set[bytes]:
        """Share out among prompts, in turn, what the decodes of this step leave them.

        Returns the hashes of the blocks that are going to be full.
        """
        if not prompts:
            return set()
        budget = self._prompt_budget(plan, len(prompts))
        computing = {block_hash for step in self._in_flight for block_hash in step.computing}
        for request in prompts:
            if budget <= 0:
                break
            budget -= self._schedule_chunk(plan, request, budget, computing, now)
        return computing

    def _prompt_budget(self, decodes: StepPlan, num_prompts: int) -> int:
        output_lengths = [self._requests[item.request_id].num_output_tokens for item in decodes.scheduled]
        num_tokens = self._pacing.prompt_tokens(
            num_decodes=len(decodes.scheduled),
            num_flowing=sum(length >= FLOWING_TOKENS for length in output_lengths),
            num_prompts=num_prompts,
        )
        room = self.limits.max_num_batched_tokens - len(decodes.scheduled)
        limits = [limit for limit in (num_tokens, self._relief.max_prompt_tokens) if limit is not None]
        return min([room, *limits])

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
        self.counts.num_chunk_tokens += num_tokens
        computing.update(hashes[start : (request.num_computed_tokens + num_tokens) // block_size])
        self._schedule_tokens(plan, request, num_tokens, self._unsent_blocks(plan, request, now))
        return num_tokens

    def _schedule_tokens(self, plan: StepPlan, request: Request, num_tokens: int, new_block_ids: list[int]) -> None:
        num_tokens_there = request.num_tokens
        if num_tokens == 1 and num_tokens_there > request.num_prompt_tokens:
            self.counts.num_decode_tokens += 1
        else:
            self.counts.num_prefill_tokens += num_tokens
        first = request.num_computed_tokens
        request.num_computed_tokens = end = first + num_tokens
        samples = request.wants_tokens and end == num_tokens_there
        plan.scheduled.append(ScheduledRequest(request.request_id, first, num_tokens, new_block_ids, samples))
        request.num_in_flight += samples
        request.last_scheduled_step = self._step

    def _unsent_blocks(self, plan: StepPlan, request: Request, now: float) -> list[int]:
        """What the executor lacks of a request's block table; one that it has not met is introduced."""
        if request.num_blocks_sent == 0:
            self._introduce(plan, request, now)
        table = self._blocks.block_table(request.request_id)
        unsent = list(table[request.num_blocks_sent :])
        request.num_blocks_sent = len(table)
        return unsent

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
                adapter=request.adapter,
            )
        )

    # --- what a step brought --------------------------------------------------------------------------------

    def _book_computed(self, request: Request, scheduled: ScheduledRequest) -> None:
        """Make the blocks findable that the step filled."""
        block_size = self._blocks.block_size
        first, last = scheduled.num_computed_tokens // block_size, scheduled.end // block_size
        if first == last or not self.limits.enable_prefix_caching:
            return
        hashes = request.block_hashes(block_size, last)
        for index in range(first, last):
            self._blocks.register(request.request_id, index, hashes[index])

    def _book_sampled(self, request: Request, result: StepResult) -> RequestDelta:
        """Append what was sampled until something ends the request, and report it."""
        request_id = request.request_id
        sampled = result.sampled_token_ids.get(request_id, [])
        end = None if request.wants_tokens else _end_without_tokens(request)
        for count, token_id in enumerate(sampled, 1):
            request.token_ids.append(token_id)
            end = self._end(request, token_id)
            if end is not None:
                sampled = sampled[:count]
                break
        if request_id in result.steered:
            request.is_steered = True
        if request.is_steered or request_id in result.finished:
            end, sampled = self._end_of_grammar(request, result, end, sampled)
        self._waiting.charge_output(request, len(sampled))
        logprobs = result.logprobs.get(request_id)
        delta = self._report(
            request,
            sampled,
            end,
            logprobs=None if logprobs is None else logprobs[: len(sampled)],
            embedding=result.embeddings.get(request_id),
        )
        if end is not None:
            self._finish(request)
        return delta

    def _end(self, request: Request, token_id: int) -> _End | None:
        """What the token just appended ends the request by, if it does."""
        sampling = request.sampling
        if len(request.token_ids) - request.num_prompt_tokens >= sampling.min_tokens:
            if token_id in self.limits.eos_token_ids and not sampling.ignore_eos:
                return _End("stop")
            if token_id in sampling.stop_token_ids:
                return _End("stop", stop_reason=token_id)
        return _End("length") if self._is_at_limit(request, len(request.token_ids)) else None

    def _is_at_limit(self, request: Request, num_tokens: int) -> bool:
        max_tokens = request.sampling.max_tokens
        is_complete = max_tokens is not None and num_tokens - request.num_prompt_tokens >= max_tokens
        return is_complete or num_tokens >= self.limits.max_model_len

    def _end_of_grammar(
        self, request: Request, result: StepResult, end: _End | None, sampled: list[int]
    ) -> tuple[_End | None, list[int]]:
        """The end of a request whose grammar is complete, or that was steered to it, and the tokens to give out."""
        is_text = request.token_ids[-1] not in self.limits.eos_token_ids
        if (end is None or end.reason != "stop") and request.request_id in result.finished:
            end = _End("stop", is_text=is_text)
        if end is None or end.reason != "stop" or end.stop_reason is not None or not request.is_steered:
            return end, sampled
        # An end that the limit called for is not the model's.
        return replace(end, reason="length"), sampled if is_text else sampled[:-1]

    def _report(
        self,
        request: Request,
        token_ids: list[int],
        end: _End | None,
        *,
        logprobs: list[TokenLogprobs] | None = None,
        embedding: bytes | None = None,
        error: str | None = None,
    ) -> RequestDelta:
        """A delta; the first one of a request also says how it came to run, and the last one how it ended."""
        if request.has_reported and end is None:
            return RequestDelta(
                request.request_id,
                token_ids,
                logprobs=logprobs,
                num_preemptions=request.num_preemptions,
                is_steered=request.is_steered,
            )
        is_first, request.has_reported = not request.has_reported, True
        started = request.first_scheduled_time
        prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        return RequestDelta(
            request_id=request.request_id,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=None if end is None else end.reason,
            stop_reason=None if end is None else end.stop_reason,
            num_cached_tokens=request.num_cached_tokens if is_first else None,
            queue_time_s=started - request.arrival_time if is_first and started is not None else None,
            num_preemptions=request.num_preemptions,
            error=error,
            embedding=embedding,
            ends_in_text=end is not None and end.is_text,
            is_steered=request.is_steered,
        )

    def _fail(self, request: Request, message: str) -> RequestDelta:
        delta = self._report(request, [], _End("error"), error=message)
        self._finish(request)
        return delta

    def _finish(self, request: Request) -> None:
        """Take a request out of everything; its slot and blocks are free for the next step."""
        if request.is_running:
            self._leave_slot(request)
        else:
            self._waiting.remove(request)
        self._trials.acquit(request.request_id)
        del self._requests[request.request_id]

    def _preempt(self, request: Request, now: float) -> None:
        """Take slot and blocks away; the request waits in its old place and its tokens are recomputed."""
        self._leave_slot(request)
        request.forget_computed(now)
        self._waiting.push(request)
        self.counts.num_preemptions += 1

    def _leave_slot(self, request: Request) -> None:
        request.is_running = False
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
            is_running = request.is_running
            assert is_running == (request_id in running) == (request_id not in self._waiting), request_id
            assert bool(table) == is_running, f"{request_id} has blocks and no slot, or the reverse"
            assert request.num_computed_tokens <= request.num_tokens, request_id
            assert request.num_computed_tokens <= len(table) * self._blocks.block_size, request_id
            assert request.num_blocks_sent <= len(table), request_id
        if not running:
            assert self._blocks.num_used_blocks == 0, "blocks are held by nobody"


def _end_without_tokens(request: Request) -> _End:
    """A prompt alone is a continuation cut short at 0 tokens; an embedding is all that was asked for."""
    return _End("length" if request.sampling.pooling is None else "stop")
