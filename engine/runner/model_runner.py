"""Executes plans: turns a `StepPlan` into flat tensors, runs the model once, and samples.

It keeps a copy of each running request's tokens and block table. It decides nothing: what runs, where keys and
values lie and when a request ends come from the scheduler; tokens are chosen by the sampler.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata, metadata_of
from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.attention.step_context import DraftSlots, StepContext, step_context
from orcinus.engine.attention.step_layout import lay_out
from orcinus.engine.grammar.masks import MaskFiller, pack_tokens
from orcinus.engine.grammar.thought import Thought, ThoughtMatcher
from orcinus.engine.messages import (
    NOTHING_LEFT,
    Fault,
    HeadUse,
    NewRequest,
    ScheduledRequest,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.platform.device import DeviceMonitor, is_broken, is_out_of_memory
from orcinus.engine.platform.device_copy import to_device
from orcinus.engine.recurrent.states import StatePool
from orcinus.engine.runner.cuda_graphs import DecodeGraphs, Recorder, padded_size, recorded_sizes
from orcinus.engine.runner.drafts import Drafter, SamplePositions, accept, sample_positions
from orcinus.engine.runner.launched_samples import LaunchedSamples
from orcinus.engine.runner.mtp_drafter import MtpDrafter, StepStates
from orcinus.engine.runner.pooling import PooledPrompt
from orcinus.engine.runner.prompt_outputs import PromptOutputs
from orcinus.engine.runner.request_rows import RequestRows
from orcinus.engine.runner.state_slots import StateSlots
from orcinus.engine.runner.step_batch import RunningRequest, StepBatch
from orcinus.engine.runner.suspect_blocks import SuspectBlocks
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.row import BadWords, SamplingRow, penalty_counts
from orcinus.engine.sampling.sampler import PendingSample, SampledRows, Sampler
from orcinus.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from orcinus.engine.grammar.compiler import GrammarCompiler

_NOT_FINITE = "the model's logits are not finite"


class ModelRunner:
    """Executes plans for one model on one device. Used by one thread.

    `device_monitor` says how busy the device is. `graphs` replays steps of single tokens once they are recorded; with
    None each operation is launched. `make_compiler` is called when a request first brings a grammar. Where it
    `runs_ahead`, which is for devices that work while the host goes on, tokens that the host does not know yet are
    taken from the device. There are at most `max_num_seqs` requests. `adapters` has the row of each adapter by its
    name; row 0 is no adapter. A `drafter` proposes what may be tried next, for the scheduler to plan. `states` has the
    states of a model that keeps some beside keys and values, of which a request has two where there is a drafter.
    """

    def __init__(
        self,
        model: LanguageModel,
        attention: PagedAttention,
        sampler: Sampler,
        *,
        block_size: int,
        device: torch.device,
        device_monitor: DeviceMonitor,
        make_compiler: "Callable[[], GrammarCompiler]",
        max_num_seqs: int,
        num_cache_groups: int = 1,
        runs_ahead: bool = False,
        drafter: Drafter | None = None,
        seed: int = 0,
    ) -> None:
        self.device_monitor: DeviceMonitor | None = device_monitor
        self.runs_ahead = runs_ahead
        self.adapters: dict[str, int] = {}
        self.states: StatePool | None = None
        self.drafter = drafter
        self._model = model
        self._attention = attention
        self._sampler = sampler
        self._rows = RequestRows(block_size, max_num_seqs, num_cache_groups)
        self._history = TokenHistory(max_num_seqs, model.vocab_size, device)
        self._prompt_outputs = PromptOutputs(model, self._rows, device)
        self._device = device
        self._make_compiler = make_compiler
        self._seed = seed
        self._masks = MaskFiller()
        self._max_num_seqs = max_num_seqs
        self.graphs: DecodeGraphs | None = None
        self._requests: dict[str, RunningRequest] = {}
        self._state_slots = StateSlots(max_num_seqs)
        self._suspects = SuspectBlocks(self._rows, attention, device)

    @torch.inference_mode()
    def record_decodes(self, record: Recorder, max_model_len: int, sizes: Sequence[int] | None = None) -> None:
        """Record steps of single tokens, of so many sequences or of all batch sizes, to replay them from here on.

        To be called before any request runs: recordings write into the first block.
        """
        self.graphs = DecodeGraphs(
            self._compute_logits,
            record,
            self._device,
            max_num_seqs=self._max_num_seqs,
            max_model_len=max_model_len,
            block_size=self._rows.block_size,
            spare_slot=self._max_num_seqs,
            num_groups=len(self._rows.block_tables),
        )
        self.graphs.record_sizes(recorded_sizes(self._max_num_seqs) if sizes is None else sizes)
        (first_block,) = to_device([np.zeros(1, dtype=np.int64)], self._device)
        for group in range(len(self._rows.block_tables)):
            self._attention.scrub(first_block, group)

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        """Begin to compile the request's grammar, if it has one: the result is `NewRequest.prepared`."""
        if sampling.grammar is None:
            return None
        return self._grammars.prepare(sampling.grammar, sampling.max_tokens)

    def warm_up(self) -> None:
        """Begin to load the vocabulary that grammars are compiled for."""
        self._grammars.load()

    def diagnose(self, error: Exception) -> Fault:
        """Return what `launch`, or what it returned, failed of. Gives back memory that is kept for reuse."""
        if is_broken(self._device):
            return "engine"
        if not is_out_of_memory(error):
            return "request"
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return "memory"

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step to its end."""
        return self.launch(plan)()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Begin one step: forget what was released, take in what is new, compute, sample.

        A request whose own logits are not finite, or whose parameters leave no token to choose, is named in `errors`;
        the others are not affected. Only what a request needs beyond its next token is waited for.
        """
        for request_id in plan.released:
            self._release(request_id)
        for new in plan.new_requests:
            self._requests[new.request_id] = request = self._request(new)
            if self.drafter is not None and not new.sampling.looks_back:
                self.drafter.begin(new)
                request.num_shown = len(new.token_ids)
        if not plan.scheduled:
            return lambda: StepResult(sampled_token_ids={})
        batch = self._batch(plan.scheduled)
        self._suspects.begin(batch.rows)
        self._start_masks(batch)
        self._load_states(plan)
        wait = self._compute(batch, plan.head)
        self._save_states(plan)

        def wait_and_note() -> StepResult:
            result = wait()
            self._suspects.end(batch.requests)
            return self._with_proposals(self.drafter, batch, result) if self.drafter and plan.wants_drafts else result

        return wait_and_note

    def _load_states(self, plan: StepPlan) -> None:
        """Let requests go on from snapshots, before the model runs: replayed steps find their states in their slots."""
        if self.states is not None:
            for item in plan.scheduled:
                if item.load_state >= 0:
                    self.states.restore(item.load_state, self._state_slot(item.request_id))

    def _save_states(self, plan: StepPlan) -> None:
        """Keep what the step has made of states; a device that works while the host goes on does so in its order.

        Of a request with drafts that is the state in front of them.
        """
        if self.states is not None:
            for item in plan.scheduled:
                if item.save_state >= 0:
                    self.states.save(self._state_slot(item.request_id), item.save_state)

    @property
    def _has_states(self) -> bool:
        return self.states is not None and self.states.row_bytes > 0

    def _slots_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the state slots of rows, which mean nothing where there are no states."""
        return self._state_slots.of(rows) if self._has_states else rows

    def _state_slot(self, request_id: str) -> int:
        return int(self._slots_of(np.array([self._requests[request_id].index]))[0])

    def _draft_slots(self, batch: StepBatch) -> DraftSlots | None:
        """Return where a step with drafts puts the states behind them; None where there are no states."""
        if not batch.has_drafts or self.states is None or not self._has_states:
            return None
        counts = [len(item.draft_token_ids) for item in batch.scheduled]
        slots = self._state_slots.behind_drafts(batch.rows)
        assert int(slots.max()) < len(self.states.slots), "there are no slots for states behind drafts"
        return DraftSlots(counts, to_device([slots], self._device)[0])

    def _compute(self, batch: StepBatch, head: HeadUse) -> Callable[[], StepResult]:
        """Run the model over a batch, and begin to sample."""
        if batch.is_plain:
            hidden, logits = self._decode(batch)
            sampled = self._sample(batch, [*range(len(batch.rows))], logits)
            return self._with_guesses(batch, hidden, sampled, head)
        hidden = self._hidden_states(batch)
        take_in_hidden = self._suspects.watch(batch, hidden)
        prompts = self._prompt_outputs.of(batch, hidden)
        sampled = self._sample_last(batch, hidden, prompts.errors)
        take_in_sampled = self._with_guesses(batch, hidden, sampled, head)

        def wait() -> StepResult:
            take_in_hidden()
            result = take_in_sampled()
            return msgspec.structs.replace(
                result,
                prompt_logprobs=prompts.prompt_logprobs,
                errors=prompts.errors | result.errors,
                embeddings=prompts.embeddings,
            )

        return wait

    def _with_guesses(
        self, batch: StepBatch, hidden: Tensor | None, sampled: LaunchedSamples, head: HeadUse
    ) -> Callable[[], StepResult]:
        """Begin to guess what follows the sampled tokens, if the model has a head for that and it is used."""
        if not isinstance(self.drafter, MtpDrafter) or head == "rests":
            return sampled.take_in
        assert hidden is not None
        next_ids, positions, context = self._inputs(batch, self._rows.next_tokens(batch.rows, batch.layout))
        (samples,) = to_device([sampled.places], self._device)
        if sampled.tokens is not None:
            next_ids[samples] = sampled.tokens.to(next_ids.dtype)
        states = StepStates(hidden, next_ids, positions, samples, sampled.request_ids, (sampled.positions + 1).tolist())
        with step_context(context):
            keep_guesses = self.drafter.launch(states, wants_guesses=head == "guesses")

        def take_in() -> StepResult:
            keep_guesses()
            return sampled.take_in()

        return take_in

    def _request(self, new: NewRequest) -> RunningRequest:
        pooled = None if new.sampling.pooling is None else PooledPrompt(new.sampling.pooling)
        adapter_row = 0 if new.adapter is None else self.adapters[new.adapter]
        index, row = self._rows.add(new.token_ids), self._row(new)
        if self.runs_ahead:
            row.slot = index
            if new.sampling.has_penalties:
                self._history.begin(index, new.sampling, new.token_ids, new.num_prompt_tokens)
        return RunningRequest(index, row, adapter_row, pooled)

    def _row(self, new: NewRequest) -> SamplingRow:
        sampling, vocab_size = new.sampling, self._model.vocab_size
        output = new.token_ids[new.num_prompt_tokens :]
        row = SamplingRow(sampling, self._seed_of(new), new.num_prompt_tokens)
        if not self.runs_ahead:
            row.counts = penalty_counts(sampling, new.token_ids, new.num_prompt_tokens)
        if sampling.bad_words_token_ids:
            row.bad_words = BadWords(sampling.bad_words_token_ids, output)
        if sampling.allowed_token_ids:
            row.allowed = pack_tokens(sampling.allowed_token_ids, vocab_size)
        if sampling.grammar is not None:
            assert new.prepared is not None, "a request with a grammar is prepared before it runs"
            row.matcher = new.prepared.matcher(
                sampling.grammar.thinking,
                ignore_eos=sampling.ignore_eos,
                max_tokens=sampling.max_tokens,
                tokens=output,
            )
        if sampling.thinking is not None and sampling.has_budget:
            thought = Thought(sampling.thinking, sampling.max_tokens)
            row.matcher = ThoughtMatcher(thought, vocab_size, row.matcher, output)
        return row

    @cached_property
    def _recorded_hidden(self) -> Tensor:
        """The hidden states of the last step that was replayed, where there is a head that reads them."""
        return torch.zeros(
            padded_size(self._max_num_seqs),
            self._model.hidden_size,
            dtype=self._model.causal_lm.dtype,
            device=self._device,
        )

    @cached_property
    def _grammars(self) -> "GrammarCompiler":
        return self._make_compiler()

    def _start_masks(self, batch: StepBatch) -> None:
        """Begin to find out which tokens grammars allow next: they are known before the model runs."""
        both = zip(batch.scheduled, batch.requests, strict=True)
        matchers = [request.row.matcher for item, request in both if item.num_samples and request.row.sampling.grammar]
        self._masks.start([matcher for matcher in matchers if matcher is not None and matcher.error is None])

    def _seed_of(self, new: NewRequest) -> int:
        if new.sampling.seed is not None:
            return new.sampling.seed
        digest = hashlib.blake2b(f"{self._seed} {new.request_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def _release(self, request_id: str) -> None:
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        if self.drafter is not None:
            if unshown := self._unshown(request):
                self.drafter.take_in({request_id: unshown})
            self.drafter.release(request_id)
        self._suspects.release(request.index)
        self._rows.remove(request.index)
        request.is_released = True

    def _batch(self, scheduled: list[ScheduledRequest]) -> StepBatch:
        singles = [item for item in scheduled if item.num_tokens == 1]
        longer = [item for item in scheduled if item.num_tokens > 1]
        ordered = singles + longer
        requests = [self._requests[item.request_id] for item in ordered]
        for item, request in zip(ordered, requests, strict=True):
            for group, block_ids in enumerate(item.new_block_ids):
                self._suspects.clean_new(request.index, item, group)
                self._rows.block_tables[group].extend(request.index, block_ids)
        rows = np.array([request.index for request in requests], dtype=np.int64)
        firsts = np.array([item.num_computed_tokens for item in ordered], dtype=np.int64)
        ends = firsts + np.array([item.num_tokens for item in ordered], dtype=np.int64)
        has_drafts = any(item.draft_token_ids for item in longer)
        known_ends = np.array([item.known_end for item in ordered]) if has_drafts else ends
        assert (known_ends <= self._rows.num_tokens[rows] + self.runs_ahead).all()
        for each in self._rows.block_tables:
            assert (ends <= each.num_blocks[rows] * self._rows.block_size).all()
        tables = self._rows.tables(rows, int(ends.max()))
        return StepBatch(ordered, requests, rows, lay_out(firsts, ends, tables, self._rows.block_size), has_drafts)

    def _decode(self, batch: StepBatch) -> tuple[Tensor | None, Tensor]:
        """Return hidden states and logits, (num_seqs, ...), where each request has one token and samples the next.

        A replayed step keeps hidden states for a head alone.
        """
        if self.graphs is not None:
            token_ids, adapter_rows = self._token_ids(batch), self._adapter_rows(batch)
            logits = self.graphs.logits(token_ids, batch.layout, self._slots_of(batch.rows), adapter_rows)
            if logits is not None:
                return None if self._model.mtp_head is None else self._recorded_hidden[: len(logits)], logits
        hidden = self._hidden_states(batch)
        return hidden, self._model.logits(hidden)

    def _token_ids(self, batch: StepBatch) -> NDArray[np.int64]:
        """Return the step's tokens (num_tokens,); -1 - row for one that the host does not know yet."""
        find = self._rows.tokens_or_rows if self.runs_ahead else self._rows.tokens
        if not batch.has_drafts:
            return find(batch.rows[batch.layout.sequences], batch.layout.positions)
        self._rows.reserve_tokens(int(batch.layout.seq_lens.max()))
        ids = find(batch.rows[batch.layout.sequences], batch.layout.positions)
        for item, end in zip(batch.scheduled, batch.layout.query_start[1:].tolist(), strict=True):
            ids[end - len(item.draft_token_ids) : end] = item.draft_token_ids
        return ids

    def _adapter_rows(self, batch: StepBatch) -> NDArray[np.int64] | None:
        """(num_tokens,), or None where no request of the step has an adapter."""
        if not self.adapters:
            return None
        rows = np.array([request.adapter_row for request in batch.requests], dtype=np.int64)
        return rows[batch.layout.sequences] if rows.any() else None

    def _known(self, ids: Tensor) -> Tensor:
        """Fill in the tokens that only the device knows."""
        if not self.runs_ahead:
            return ids
        return torch.where(ids < 0, self._history.last_tokens[(-1 - ids).clamp(min=0)], ids)

    def _inputs(self, batch: StepBatch, token_ids: NDArray[np.int64]) -> tuple[Tensor, Tensor, StepContext]:
        """Return ids and positions (num_tokens,) on the device, and the context to run a model over them in."""
        layout = batch.layout
        arrays = [token_ids, layout.positions, self._slots_of(batch.rows), *layout.cache_arrays]
        ids, positions, state_slots, *cache_tensors = to_device(arrays, self._device)
        rows = self._adapter_rows(batch)
        adapter_rows = None if rows is None else to_device([rows], self._device)[0]
        metas = metadata_of(layout, cache_tensors)
        context = StepContext(
            self._attention,
            metas,
            adapter_rows=adapter_rows,
            state_slots=state_slots,
            draft_slots=self._draft_slots(batch),
        )
        return ids, positions, context

    def _hidden_states(self, batch: StepBatch) -> Tensor:
        """Run the model; returns (num_tokens, hidden_size)."""
        ids, positions, context = self._inputs(batch, self._token_ids(batch))
        with step_context(context):
            return self._model.hidden_states(self._known(ids), positions)

    def _compute_logits(
        self,
        token_ids: Tensor,
        positions: Tensor,
        metas: tuple[AttentionMetadata, ...],
        state_slots: Tensor,
        adapter_rows: Tensor | None = None,
    ) -> Tensor:
        with step_context(StepContext(self._attention, metas, adapter_rows=adapter_rows, state_slots=state_slots)):
            hidden = self._model.hidden_states(self._known(token_ids), positions)
            if self._model.mtp_head is not None:
                self._recorded_hidden[: len(hidden)].copy_(hidden)
            return self._model.logits(hidden)

    def _sample_last(self, batch: StepBatch, hidden: Tensor, errors: dict[str, str]) -> LaunchedSamples:
        """Sample for each request that has reached the end of its tokens and has not failed."""
        both = enumerate(batch.scheduled)
        sampling = [i for i, item in both if item.num_samples and item.request_id not in errors]
        if not sampling:
            return LaunchedSamples.none()
        if batch.has_drafts:
            return self._sample_drafts(batch, sampling, hidden)
        (last,) = to_device([batch.layout.query_start[1:][sampling].astype(np.int64) - 1], self._device)
        return self._sample(batch, sampling, self._model.logits(hidden[last]))

    def _sample(self, batch: StepBatch, sampling: list[int], logits: Tensor) -> LaunchedSamples:
        """Sample one token for each of those requests of the batch, whose logits these are."""
        rows, requests = batch.rows[sampling], [batch.requests[i] for i in sampling]
        self._masks.wait()
        positions = batch.layout.seq_lens[sampling].astype(np.int64)
        chosen = self._launch_sampler(logits, rows, [request.row for request in requests], positions)
        names = [batch.scheduled[i].request_id for i in sampling]
        places = batch.layout.query_start[1:][sampling].astype(np.int64) - 1
        take_in = partial(self._take_in, rows, requests, names, chosen)
        return LaunchedSamples(places, names, positions, chosen.tokens, take_in)

    def _launch_sampler(
        self, logits: Tensor, slots: NDArray[np.int64], rows: list[SamplingRow], positions: NDArray[np.int64]
    ) -> PendingSample:
        """Begin to choose a token for each row, and leave it where the next step finds it."""
        if not self.runs_ahead:
            return self._sampler.launch(logits, rows, positions)
        chosen = self._sampler.launch(logits, rows, positions, self._history)
        is_counted = np.array([row.sampling.has_penalties for row in rows], dtype=np.bool_)
        self._history.add(slots, chosen.tokens, is_counted)
        return chosen

    def _take_in(
        self, rows: NDArray[np.int64], requests: list[RunningRequest], names: list[str], chosen: PendingSample
    ) -> StepResult:
        """Wait for the tokens of a step and keep them. Meanwhile a request may have been released, its row reused."""
        sampled = chosen.wait()
        failed = _failures(requests, sampled)
        here = [i for i, request in enumerate(requests) if not request.is_released]
        self._suspects.note(rows[here], np.array(sampled.is_finite, dtype=np.bool_)[here])
        taken = [i for i in here if i not in failed]
        self._rows.append(rows[taken], [sampled.token_ids[i] for i in taken])
        failed |= _advance(requests, taken, sampled)
        token_ids, logprobs = [[token_id] for token_id in sampled.token_ids], [[entry] for entry in sampled.logprobs]
        failed |= self._take_forced(requests, [i for i in taken if i not in failed], token_ids)
        return _sampled_result(names, requests, token_ids, logprobs, failed)

    def _sample_drafts(self, batch: StepBatch, sampling: list[int], hidden: Tensor) -> LaunchedSamples:
        """Sample after the last token of each of those requests, and after each of its drafts."""
        scheduled = [batch.scheduled[i] for i in sampling]
        rows, requests = batch.rows[sampling], [batch.requests[i] for i in sampling]
        samples = sample_positions([item.num_samples for item in scheduled])
        ends = batch.layout.query_start[1:][sampling].astype(np.int64)[samples.requests]
        places = ends - 1 - samples.behind
        (index,) = to_device([places], self._device)
        logits = self._model.logits(hidden[index])
        self._masks.wait()
        positions = batch.layout.seq_lens[sampling].astype(np.int64)[samples.requests] - samples.behind
        # Of a request with drafts whichever is kept: its next step is planned when its tokens are known.
        of_samples = samples.requests.tolist()
        chosen = self._launch_sampler(logits, rows[samples.requests], [requests[i].row for i in of_samples], positions)
        names = [scheduled[i].request_id for i in of_samples]
        take_in = partial(self._take_in_drafts, rows, scheduled, requests, samples, chosen)
        return LaunchedSamples(places, names, positions, chosen.tokens, take_in)

    def _take_in_drafts(
        self,
        rows: NDArray[np.int64],
        scheduled: list[ScheduledRequest],
        requests: list[RunningRequest],
        positions: SamplePositions,
        chosen: PendingSample,
    ) -> StepResult:
        """Wait for the tokens of a step, and keep those that are accepted, as `_take_in` does."""
        accepted = accept(scheduled, positions, chosen.wait())
        failed = _failures(requests, accepted.first)
        for i, is_spoiled in enumerate(accepted.is_spoiled):
            if is_spoiled:
                del failed[i]
        here = [i for i, request in enumerate(requests) if not request.is_released]
        if self._has_states:
            are_accepted = [i for i in here if 1 < scheduled[i].num_samples == len(accepted.token_ids[i])]
            self._state_slots.accept_drafts(rows[are_accepted])
        for i in here:
            item, broken_from = scheduled[i], accepted.broken_from[i]
            if broken_from is not None:
                self._suspects.clean_rejected(requests[i].index, item.num_computed_tokens + broken_from, item.end)
        is_finite = np.array(accepted.first.is_finite) | np.array(accepted.is_spoiled)
        self._suspects.note(rows[here], is_finite[here])
        taken = [i for i in here if i not in failed]
        self._rows.extend(rows[taken], [accepted.token_ids[i] for i in taken])
        failed |= _advance(requests, taken, accepted.first)
        failed |= self._take_forced(requests, [i for i in taken if i not in failed], accepted.token_ids)
        names = [item.request_id for item in scheduled]
        return _sampled_result(names, requests, accepted.token_ids, accepted.logprobs, failed)

    def _take_forced(
        self, requests: list[RunningRequest], taken: list[int], token_ids: list[list[int]]
    ) -> dict[int, str]:
        """Append to the tokens of requests those that their grammars leave no choice of; return why some failed.

        Grammars are followed where masks are filled, as it may take them as long.
        """
        followed = [(i, requests[i].row.matcher) for i in taken if requests[i].row.takes_forced]
        matchers = [matcher for _, matcher in followed if matcher is not None]
        if not matchers:
            return {}
        self._masks.start(matchers, lambda matcher: matcher.take_forced())
        self._masks.wait()
        failed = {i: matcher.error for i, matcher in followed if matcher is not None and matcher.error is not None}
        forced = {i: requests[i].row.add_forced() for i, _ in followed if i not in failed}
        forced = {i: tokens for i, tokens in forced.items() if tokens}
        self._rows.extend(np.array([requests[i].index for i in forced], dtype=np.int64), [*forced.values()])
        for i, tokens in forced.items():
            token_ids[i] += tokens
        return failed

    def _with_proposals(self, drafter: Drafter, batch: StepBatch, result: StepResult) -> StepResult:
        """Ask the drafter what may follow the tokens of requests that have just got some and may try drafts."""
        brought = result.sampled_token_ids
        grown = {
            item.request_id: new
            for item, request in zip(batch.scheduled, batch.requests, strict=True)
            if item.request_id in brought and not request.is_released and (new := self._unshown(request))
        }
        drafter.take_in(grown)
        drafts = drafter.propose([*grown])
        return msgspec.structs.replace(result, drafts=drafts) if drafts else result

    def _unshown(self, request: RunningRequest) -> list[int]:
        """Return the tokens that a request got since the drafter saw it last; none where no drafts are tried."""
        if request.num_shown is None:
            return []
        unshown: list[int] = self._rows.known_tokens(request.index)[request.num_shown :].tolist()
        request.num_shown += len(unshown)
        return unshown


def _present(entries: list[TokenLogprobs | None]) -> list[TokenLogprobs]:
    return [entry for entry in entries if entry is not None]


def _failures(requests: list[RunningRequest], sampled: SampledRows) -> dict[int, str]:
    """Return why no token was chosen, for the rows where none was."""
    failed: dict[int, str] = {}
    if not all(sampled.is_finite):
        failed |= {i: _NOT_FINITE for i, is_finite in enumerate(sampled.is_finite) if not is_finite}
    for i, request in enumerate(requests):
        matcher = request.row.matcher
        if matcher is not None and matcher.error is not None:
            failed.setdefault(i, matcher.error)
    if not all(sampled.has_choice):
        for i, has_choice in enumerate(sampled.has_choice):
            if not has_choice:
                failed.setdefault(i, NOTHING_LEFT)
    return failed


def _advance(requests: list[RunningRequest], taken: list[int], sampled: SampledRows) -> dict[int, str]:
    """Let rows that keep their tokens take them in; returns why, of those that could not."""
    failed = {}
    for i in taken:
        row = requests[i].row
        if row.keeps_tokens:
            row.add(sampled.token_ids[i])
            if row.matcher is not None and row.matcher.error is not None:
                failed[i] = row.matcher.error
    return failed


def _sampled_result(
    request_ids: list[str],
    requests: list[RunningRequest],
    token_ids: list[list[int]],
    logprobs: list[list[TokenLogprobs | None]],
    failed: dict[int, str],
) -> StepResult:
    """Return what became of each request; `logprobs` is empty where no request asks for any."""
    errors = {request_ids[i]: message for i, message in failed.items()}
    pairs = zip(request_ids, token_ids, strict=True)
    tokens = {request_id: sampled for request_id, sampled in pairs if request_id not in errors}
    entries = zip(request_ids, logprobs, strict=False)
    followed = [
        (request_ids[i], request.row)
        for i, request in enumerate(requests)
        if request.row.matcher is not None and i not in failed
    ]
    return StepResult(
        sampled_token_ids=tokens,
        logprobs={name: wanted for name, own in entries if name in tokens and (wanted := _present(own))},
        errors=errors,
        finished=[request_id for request_id, row in followed if row.is_finished],
        steered=[request_id for request_id, row in followed if row.is_steered],
    )
