"""Iteration-level scheduling (Orca, Yu et al., OSDI 2022): which request runs how many tokens in the next step.

A request has tokens known and tokens computed, and each step lets computed catch up. The scheduler owns the
requests and decides who runs, with `engine.scheduler.slots` for slots and KV blocks. It refuses to know the model, text
and transport; what it decides leaves as a `StepPlan`, and comes back as a `StepResult`.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any

from orcinus.config.engine_config import BatchingStrategy
from orcinus.engine.messages import (
    AddRequest,
    AdmissionLimit,
    RequestDelta,
    ScheduledRequest,
    StepResult,
    pack_logprobs,
)
from orcinus.engine.scheduler.batching import batching_rule
from orcinus.engine.scheduler.block_manager import BlockManager
from orcinus.engine.scheduler.drafting import Drafting
from orcinus.engine.scheduler.ends import End, EndRules, end_without_tokens, report, report_error
from orcinus.engine.scheduler.extra_tokens import ExtraTokens
from orcinus.engine.scheduler.fair_queue import FairQueue
from orcinus.engine.scheduler.prefill_budget import FLOWING_TOKENS, PendingPrompt, PrefillBudget
from orcinus.engine.scheduler.prefix_reuse import ComingHashes, PrefixReuse
from orcinus.engine.scheduler.prompt_order import soonest_first
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.scheduled_step import ScheduledStep, StepBuilder
from orcinus.engine.scheduler.slot_time import SlotTime
from orcinus.engine.scheduler.slots import Slots
from orcinus.engine.scheduler.snapshots import SnapshotReuse, SnapshotStepBuilder
from orcinus.engine.scheduler.state_cache import StateCache
from orcinus.engine.scheduler.step_recovery import CulpritSearch, MemoryBackoff


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Bounds what the scheduler plans. `max_model_len` tokens must fit into the blocks there are."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    batching: BatchingStrategy = "continuous"
    batch_wait_s: float = 0.05
    enable_prefix_caching: bool = True
    max_queue_wait_s: float = 60.0
    target_itl_s: float | None = None
    target_ttft_s: float = 0.5
    weighs_drafts: bool = False  # and tries as many as pay, not all there are
    has_mtp_head: bool = False  # which makes drafts
    has_states: bool = False  # of sequences, beside keys and values: of drafts, all that was computed stands or none


class Scheduler:
    """Used by one thread: `schedule` and `update` in turn, `add` and `abort` in between.

    Where `may_run_ahead`, a step is planned before the one before it is known, and each `update` is of the oldest step.
    After a step that failed, `retry` takes the place of `update`. A model with states reuses prefixes by the snapshots
    of a `state_cache`, which follows the blocks of `block_manager`; without one it reuses none.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        block_manager: BlockManager,
        clock: Callable[[], float] = time.monotonic,
        state_cache: StateCache | None = None,
    ) -> None:
        assert limits.max_num_batched_tokens >= limits.max_num_seqs, "a step must fit one token of every slot"
        assert block_manager.num_blocks >= block_manager.blocks_for(limits.max_model_len), (
            "a request of max_model_len tokens must fit into the KV blocks"
        )
        self.limits = limits
        self._blocks = block_manager
        self._clock = clock
        self._rule = batching_rule(limits.batching, limits.max_num_seqs, limits.batch_wait_s)
        self._ends = EndRules(limits.eos_token_ids, limits.max_model_len)
        self._requests: dict[str, Request] = {}
        self._waiting = FairQueue(limits.max_queue_wait_s)
        self._slot_time = SlotTime(clock)
        self.snapshots: SnapshotReuse | None = None
        if limits.enable_prefix_caching and state_cache is not None:
            self.snapshots = SnapshotReuse(block_manager, state_cache, limits.eos_token_ids)
        is_enabled = limits.enable_prefix_caching and not limits.has_states
        self._prefixes = self.snapshots or PrefixReuse(block_manager, is_enabled=is_enabled)
        self._slots = Slots(block_manager, self._waiting, self._slot_time, self._prefixes)
        self._by_service: list[Request] = []  # the running ones: the last one is the first to be preempted
        self._steps_in_flight: deque[ScheduledStep] = deque()  # those that wait for their update, oldest first
        self._is_short_of_blocks = False  # a request could not grow, and none is preempted while a step is in flight
        self._prefill_budget = PrefillBudget(limits.target_itl_s, limits.target_ttft_s)
        self._culprit_search = CulpritSearch()
        self._memory_backoff = MemoryBackoff()
        self._extra = ExtraTokens(
            limits.max_num_batched_tokens,
            self._slots,
            self._ends,
            prefill_budget=self._prefill_budget,
            memory_backoff=self._memory_backoff,
            has_snapshots=self.snapshots is not None,
        )
        self._drafting = Drafting(
            weighs=limits.weighs_drafts,
            has_head=limits.has_mtp_head,
            max_num_seqs=limits.max_num_seqs,
            target_itl_s=limits.target_itl_s,
        )
        self._num_added = 0
        self._num_steps = 0

    @property
    def slots(self) -> Slots:
        """The slots and who has them, to be looked at."""
        return self._slots

    @property
    def num_slots(self) -> int:
        return self._rule.max_num_seqs

    @property
    def num_running(self) -> int:
        return len(self._slots.running)

    @property
    def num_running_tokens(self) -> int:
        """The tokens, prompts and output, of the requests that run."""
        return sum(len(request.token_ids) for request in self._slots.running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def take_slot_seconds(self) -> tuple[float, float]:
        """Return the slot-seconds that were held since the last call, and those that there were to hold."""
        held_s, passed_s = self._slot_time.take()
        return held_s, passed_s * self.num_slots

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def wait_time_s(self) -> float | None:
        """Return the seconds until a step would have something to run; None if it has now, or has no work at all."""
        if self._slots.running or not self._waiting:
            return None
        return self._rule.admission_delay_s(self._slots.running, self._waiting, self._clock()) or None

    def add(self, added: AddRequest, prepared: Any = None) -> None:
        """Queue a request, with what the executor prepared for it.

        Its prompt and `max_tokens` fit the context: whoever admits requests checked that.
        """
        assert added.request_id not in self._requests, f"request {added.request_id} is already known"
        request = Request(added, self._num_added, prepared)
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

        It cannot where the host has to know a token in flight to say what may come next, drafts are tried or about to
        be, a request has to be preempted, or a culprit is sought.
        """
        if self._is_short_of_blocks or self._culprit_search:
            return False
        return not any(
            request.draft_token_ids or (request.num_in_flight and (request.follows_tokens or request.num_in_flight > 1))
            for request in self._slots.running
        )

    def schedule(self) -> ScheduledStep:
        """Plan the next step: fill free slots, then a token, and drafts, for all that decode, then chunks of prompts.

        A step whose plan is empty is not to be executed, and has no `update`.
        """
        self._num_steps += 1
        self._is_short_of_blocks = False
        builder = self._begin_step()
        self._admit(builder)
        self._by_service = self._slots.by_service()
        prompts = self._schedule_decodes(builder)
        self._schedule_prompts(builder, prompts)
        step = builder.step
        step.let_head_see_prompts()
        if step.plan.scheduled:
            step.plan.released.extend(self._slots.released)
            self._slots.released.clear()
            self._steps_in_flight.append(step)
        return step

    def _begin_step(self) -> StepBuilder:
        now, wants_drafts = self._clock(), self._drafting.wants_proposals(self.num_running)
        head = self._drafting.head_use(self.num_running)
        if self.snapshots is None:
            return StepBuilder(self._slots, self._num_steps, now, wants_drafts=wants_drafts, head=head)
        return SnapshotStepBuilder(
            self._slots, self._num_steps, now, self.snapshots, wants_drafts=wants_drafts, head=head
        )

    def update(self, step: ScheduledStep, result: StepResult) -> list[RequestDelta]:
        """Book what a step brought: append tokens, finish, free. Returns a delta for each request with news."""
        assert self._steps_in_flight.popleft() is step, "steps end in the order in which they were planned"
        self._memory_backoff.relax(self.num_slots, self.limits.max_num_batched_tokens)
        deltas = []
        for item in step.plan.scheduled:
            request = self._requests.get(item.request_id)
            if request is None:  # it ended while the step ran
                continue
            num_accepted, num_preemptions = request.num_accepted_drafts, request.num_preemptions
            if request.request_id in result.errors:
                deltas.append(self._fail(request, result.errors[request.request_id]))
                continue
            if request.prompt_logprobs is not None:
                request.prompt_logprobs += pack_logprobs(result.prompt_logprobs.get(request.request_id, ()))
            take_in = self._take_in_samples if item.num_samples else self._take_in_chunk
            if (delta := take_in(request, item, result)) is not None:
                step.stats.num_forced_tokens += max(0, len(delta.token_ids) - item.num_samples)
                deltas.append(delta)
            step.stats.count_drafts(len(item.draft_token_ids), request.num_accepted_drafts - num_accepted)
            step.stats.num_preemptions += request.num_preemptions - num_preemptions
        self._drafting.keep(step.plan, result.drafts, self._requests, self._slots.running)
        return deltas

    def observe(self, step: ScheduledStep, step_time_s: float) -> None:
        """Learn how long a step took; the budget of prompts in the next ones follows from that."""
        num_chunk_tokens = step.num_chunk_tokens
        num_tokens = step.stats.num_decode_tokens + step.stats.num_prefill_tokens
        self._prefill_budget.observe(num_tokens - num_chunk_tokens, num_chunk_tokens, step_time_s)
        self._drafting.observe_step(step, step_time_s)

    def retry(self, message: str, *, is_out_of_memory: bool = False) -> list[RequestDelta]:
        """Find the culprit of the oldest step in flight, which failed; any planned after it is void.

        Of several requests one half is tried first, then the other. A request that fails a second time, and alone, ends
        with an error. For want of memory, fewer run at a time instead.
        """
        suspects = self._in_flight_requests()
        num_extra_tokens = max(step.num_extra_tokens for step in self._steps_in_flight)
        fits_if_smaller = is_out_of_memory and self._memory_backoff.shrink(len(suspects), num_extra_tokens)
        culprits = [request for request in suspects if self._culprit_search.is_sole_suspect(request.request_id)]
        if fits_if_smaller:
            culprits = []
        deltas = [self._fail(request, message) for request in culprits]
        self.void_steps()
        if not fits_if_smaller and not culprits:
            self._culprit_search.split([request.request_id for request in suspects])
        return deltas

    def void_steps(self) -> None:
        """Give up the steps in flight, of which nothing will be known: all that run have to be computed anew.

        What was counted for those planned later, and the preemptions, go to the account of the oldest one.
        """
        running = [*self._slots.running]
        now = self._clock()
        for request in running:
            self._slots.preempt(request, now)
        if self._steps_in_flight:
            oldest, *later = self._steps_in_flight
            oldest.stats.num_preemptions += len(running) + sum(step.stats.num_preemptions for step in later)
            oldest.stats.num_slots_refilled += sum(step.stats.num_slots_refilled for step in later)
        for step in self._steps_in_flight:
            self._slots.released += step.plan.released
        self._steps_in_flight.clear()

    def _in_flight_requests(self) -> list[Request]:
        """Return the requests that take part in the steps in flight and have not ended, each once."""
        ids = dict.fromkeys(item.request_id for step in self._steps_in_flight for item in step.plan.scheduled)
        return [self._requests[request_id] for request_id in ids if request_id in self._requests]

    # --- admission ------------------------------------------------------------------------------------------

    def _admit(self, builder: StepBuilder) -> None:
        if self._culprit_search:
            self._admit_suspects(builder)
            limit: AdmissionLimit = "other"
        else:
            limit = self._fill_slots(builder)
        if self._waiting:
            builder.note_limit(limit)

    def _fill_slots(self, builder: StepBuilder) -> AdmissionLimit:
        """Give slots to requests until none waits, or until something limits it. Return what would keep one waiting."""
        running = self._slots.running
        if self._rule.admission_delay_s(running, self._waiting, builder.now) != 0.0:
            return "other"
        while self._has_free_slot:
            if not self._prefill_budget.may_admit(len(running)):
                return "objective"
            request = self._waiting.peek(builder.now)
            if request is None or not self._slots.allocate(request):
                return "blocks"
            self._take_slot(builder, request)
        return "slots" if self.num_running >= self.num_slots else "other"

    @property
    def _has_free_slot(self) -> bool:
        most = self._memory_backoff.max_running
        return self.num_running < (self.num_slots if most is None else min(self.num_slots, most))

    def _admit_suspects(self, builder: StepBuilder) -> None:
        """Let the group of suspects run, as far as there is room. The others make room, and wait until it is over."""
        group = [self._requests[request_id] for request_id in self._culprit_search.group]
        for request in sorted(group, key=lambda suspect: suspect.order):
            if request.is_running:
                continue
            while not (self._has_free_slot and self._slots.allocate(request)):
                ordered = self._slots.by_service()
                others = [running for running in ordered if running.request_id not in self._culprit_search.group]
                if not others:
                    return
                self._preempt(builder, others[-1])
            self._take_slot(builder, request)

    def _take_slot(self, builder: StepBuilder, request: Request) -> None:
        self._slots.take(request)
        builder.step.stats.num_slots_refilled += 1

    def _preempt(self, builder: StepBuilder, request: Request) -> None:
        self._slots.preempt(request, builder.now)
        builder.step.stats.num_preemptions += 1

    # --- one step's tokens ----------------------------------------------------------------------------------

    def _schedule_decodes(self, builder: StepBuilder) -> list[Request]:
        """Schedule each request that decodes, with its drafts; returns those whose prompts are not computed yet.

        A prompt that lacks a single token is no dearer than a decode, and goes with them.
        """
        prompts, extra = [], self._extra
        block_size = self._blocks.block_size
        for request in self._selected():
            if not request.is_decoding and request.num_tokens_to_compute > 1:
                prompts.append(request)
            elif request.draft_token_ids and (drafts := extra.take_drafts(builder, request)):
                builder.add_drafts(request, drafts)
            elif (num_tokens := 1 + extra.take_known(builder, request)) <= -request.num_computed_tokens % block_size:
                builder.add(request, num_tokens, [])  # its last block has room, and the executor knows of it
            elif num_tokens > 1 or self._grow(builder, request):
                builder.add(request, num_tokens, builder.unsent_blocks(request, num_tokens))
        return [request for request in prompts if request.is_running]

    def _selected(self) -> list[Request]:
        """Return the requests that take part in this step if there is room."""
        running = self._by_service
        if self._culprit_search:
            running = [request for request in running if request.request_id in self._culprit_search.group]
        selected = self._rule.select(running)
        if not self._steps_in_flight:
            return [*selected]  # preemption changes the order of those that run
        return [request for request in selected if not self._ends_in_flight(request)]

    def _ends_in_flight(self, request: Request) -> bool:
        """Return whether a request ends with what is in flight, whatever that brings."""
        if request.num_in_flight == 0:
            return request.num_tokens_to_compute == 0  # all that it asks for is being computed
        return self._ends.is_at_limit(request, request.num_tokens)

    def _grow(self, builder: StepBuilder, request: Request) -> bool:
        """Make room for one more token, preempting the last one in order if need be. False if that is `request` itself.

        While a step is in flight none is preempted: the request waits for the next step, which waits for that one.
        """
        while request.is_running:
            if self._blocks.allocate(request.request_id, request.num_computed_tokens + 1) is not None:
                return True
            if self._steps_in_flight:
                self._is_short_of_blocks = True
                return False
            self._preempt(builder, self._by_service.pop())
        return False

    def _schedule_prompts(self, builder: StepBuilder, prompts: Sequence[Request]) -> None:
        """Share out among prompts, the soonest first, what the decodes of this step leave them."""
        if not prompts:
            return
        prompts = soonest_first(prompts, self._prefill_budget.prompt_token_s)
        budget, limit = self._prompt_tokens(builder, prompts)
        coming = ComingHashes(builder.step.computing, [step.computing for step in self._steps_in_flight])
        self._prefixes.announce(prompts, coming)
        for request in prompts:
            if budget <= 0:
                builder.note_limit(limit)
                break
            budget -= self._schedule_chunk(builder, request, budget, coming)

    def _prompt_tokens(self, builder: StepBuilder, prompts: Sequence[Request]) -> tuple[int, AdmissionLimit]:
        """Return how many tokens of prompts may go into a step that has its decodes, and why not more."""
        decodes = builder.step.plan
        output_lengths = [self._requests[item.request_id].num_output_tokens for item in decodes.scheduled]
        num_decodes = decodes.num_tokens
        pending = [PendingPrompt(r.num_tokens_to_compute, builder.now - r.queued_since) for r in prompts]
        budget = self._prefill_budget.prompt_tokens(
            num_decodes=num_decodes,
            num_flowing=sum(length >= FLOWING_TOKENS for length in output_lengths),
            prompts=pending,
        )
        limits: list[tuple[int, AdmissionLimit]] = [(self.limits.max_num_batched_tokens - num_decodes, "tokens")]
        if budget is not None:
            limits.append((budget, "objective"))
        if self._memory_backoff.max_extra_tokens is not None:
            limits.append((self._memory_backoff.max_extra_tokens - builder.step.num_extra_tokens, "other"))
        return min(limits, key=lambda limit: limit[0])

    def _schedule_chunk(self, builder: StepBuilder, request: Request, budget: int, coming: ComingHashes) -> int:
        """Schedule as much of a prompt as the budget allows, or as is good for it; returns the tokens scheduled."""
        num_tokens = self._prefixes.chunk(request, budget, coming)
        if num_tokens:
            builder.add(request, num_tokens, builder.unsent_blocks(request, num_tokens))
        return num_tokens

    # --- what a step brought --------------------------------------------------------------------------------

    def _take_in_chunk(self, request: Request, item: ScheduledRequest, result: StepResult) -> RequestDelta | None:
        """Book a part of a prompt; report a request that wants no tokens once all of its prompt is computed."""
        self._slots.book_blocks(request, item.num_computed_tokens, item.end)
        if request.wants_tokens or item.end < request.num_tokens:
            return None
        return self._report(request, result, [], end_without_tokens(request))

    def _take_in_samples(self, request: Request, item: ScheduledRequest, result: StepResult) -> RequestDelta | None:
        """Append what was sampled, and what comes with it, until something ends the request; None if nothing was.

        What was counted on and did not come is taken back. Keys and values of drafts that were not accepted lie behind
        what counts as computed: they are overwritten before anything reads them, and their blocks are not registered.
        Of a model with states it is the known tokens alone that count, unless all drafts were accepted.
        """
        num_samples, sampled = item.num_samples, result.sampled_token_ids.get(request.request_id, [])
        request.num_draft_tokens += len(item.draft_token_ids)
        request.num_in_flight -= num_samples
        if request.draft_token_ids:  # of before these tokens were known
            request.draft_token_ids = []
        computed_end = item.end
        if (num_rejected := num_samples - len(sampled)) > 0:
            assert request.num_in_flight == 0, "a step was planned ahead of drafts"
            computed_end = item.known_end if self.limits.has_states else computed_end - num_rejected
            request.num_computed_tokens = computed_end
            if not sampled:
                if self.limits.has_states:  # the last known token has changed them, and is to be computed again
                    self._slots.preempt(request, self._clock())
                return None
        sampled, end = self._ends.take_in(request, sampled, result)
        request.num_accepted_drafts += sum(map(eq, item.draft_token_ids, sampled))
        self._drafting.observe_tokens(request.request_id, sampled)
        if num_samples > 1:
            computed_end = min(computed_end, len(request.token_ids))
        self._slots.book_blocks(request, item.num_computed_tokens, min(computed_end, item.known_end))
        if computed_end > item.known_end:
            self._slots.book_blocks(request, item.known_end, computed_end)
        self._waiting.charge_output(request, len(sampled))
        return self._report(request, result, sampled, end)

    def _report(self, request: Request, result: StepResult, sampled: list[int], end: End | None) -> RequestDelta:
        self._culprit_search.clear(request.request_id)
        logprobs = result.logprobs.get(request.request_id)
        delta = report(
            request,
            sampled,
            end,
            logprobs=None if logprobs is None else logprobs[: len(sampled)],
            embedding=result.embeddings.get(request.request_id),
        )
        if end is not None:
            self._finish(request)
        return delta

    def _fail(self, request: Request, message: str) -> RequestDelta:
        delta = report_error(request, message)
        self._finish(request)
        return delta

    def _finish(self, request: Request) -> None:
        """Remove a request from everything; its slot and blocks are free for the next step."""
        self._slots.remove(request)
        self._culprit_search.clear(request.request_id)
        self._drafting.forget(request.request_id)
        del self._requests[request.request_id]

    def check_integrity(self) -> None:
        """Raise `AssertionError` where the books do not balance. For tests and idle moments."""
        assert self.num_running <= self.num_slots, "slots"
        self._slots.check_integrity(self._requests)
        in_flight: Counter[str] = Counter()
        for step in self._steps_in_flight:
            in_flight.update({item.request_id: item.num_samples for item in step.plan.scheduled})
        for request_id, request in self._requests.items():
            assert request.num_in_flight == in_flight[request_id], f"{request_id} has lost count of its steps"
        if self.snapshots is not None:
            items = [item for step in self._steps_in_flight for item in step.plan.scheduled]
            saved = {item.save_state for item in items if item.request_id in self._requests}
            assert self.snapshots.rows_in_flight() == saved - {-1}, "a snapshot is made by no step, or twice"
