"""Executes plans: turns a `StepPlan` into flat tensors, runs the model once, and samples.

It keeps a copy of each running request's tokens and block table. It decides nothing: what runs, where keys and
values lie and when a request ends come from the scheduler; tokens are chosen by the sampler.
"""

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata, metadata_of
from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.attention.step_layout import StepLayout, lay_out
from orcinus.engine.grammar.masks import MaskFiller, pack_tokens
from orcinus.engine.messages import Fault, NewRequest, ScheduledRequest, StepPlan, StepResult, TokenLogprobs
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.platform.device import DeviceMonitor, is_broken_device, is_out_of_memory
from orcinus.engine.platform.device_copy import to_device
from orcinus.engine.runner.cuda_graphs import CudaRecorder, DecodeGraphs
from orcinus.engine.runner.pooling import PooledPrompt, unit_vectors
from orcinus.engine.runner.request_rows import RequestRows
from orcinus.engine.sampling.sampler import (
    BadWords,
    ChosenTokens,
    SampledRows,
    Sampler,
    SamplingRow,
    penalty_counts,
    token_logprobs,
)
from orcinus.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from orcinus.engine.grammar.matcher import GrammarCompiler

# Rows of logits computed at a time for prompt_logprobs, so that memory does not grow with prompt x vocabulary.
_LOGPROB_ROWS = 256
_NOT_FINITE = "the model's logits are not finite"
_NO_CHOICE = "every token is ruled out by the request's own parameters"
_EMBEDDING_NOT_FINITE = "the model's embedding is not finite"


@dataclass(slots=True)
class _Request:
    """What the runner remembers of a request between steps, beside its row in `RequestRows`."""

    index: int
    row: SamplingRow
    adapter_row: int
    pooled: PooledPrompt | None = None
    is_released: bool = False


@dataclass(frozen=True, slots=True)
class _Batch:
    """The requests of a step in the order of its tokens: single ones first, as the attention takes them together."""

    scheduled: list[ScheduledRequest]
    requests: list[_Request]
    rows: NDArray[np.int64]  # those of `requests`
    layout: StepLayout

    @property
    def is_plain(self) -> bool:
        """Whether each request computes one token and samples the next, and nothing else is asked for."""
        return self.layout.is_decode and all(item.samples for item in self.scheduled)

    def part(self, i: int) -> "_Part":
        item = self.scheduled[i]
        return _Part(
            item.request_id,
            self.requests[i],
            item.num_computed_tokens,
            item.num_tokens,
            int(self.layout.query_start[i]),
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """One request's share of a step, and where its tokens lie in the flat batch."""

    request_id: str
    request: _Request
    first: int  # position of its first token of this step
    num_tokens: int
    offset: int  # of its first token in the flat batch

    @property
    def end(self) -> int:
        return self.first + self.num_tokens


class ModelRunner:
    """Executes plans for one model on one device. Used by one thread.

    `device_monitor` says how busy the device is. `graphs` replays steps of single tokens on a GPU; with None each
    operation is launched. `make_compiler` is called when a request first brings a grammar. Where it `runs_ahead`, which
    is for devices that work while the host goes on, tokens that the host does not know yet are taken from the device.
    There are at most `max_num_seqs` requests. `adapters` has the row of each adapter by its name; row 0 is no adapter.
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
        runs_ahead: bool = False,
        seed: int = 0,
    ) -> None:
        self.device_monitor: DeviceMonitor | None = device_monitor
        self.runs_ahead = runs_ahead
        self.adapters: dict[str, int] = {}
        self._model = model
        self._attention = attention
        self._sampler = sampler
        self._rows = RequestRows(block_size, max_num_seqs)
        self._last_tokens = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._device = device
        self._make_compiler = make_compiler
        self._seed = seed
        self._masks = MaskFiller()
        self.graphs: DecodeGraphs | None = None
        if device.type == "cuda":
            self.graphs = DecodeGraphs(self._compute_logits, CudaRecorder(), device, spare_slot=max_num_seqs)
        self._requests: dict[str, _Request] = {}
        self._suspect_blocks: set[int] = set()

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        """Begin to compile the request's grammar, if it has one that is not at hand."""
        return None if sampling.grammar is None else self._grammars.prepare(sampling.grammar)

    def diagnose(self, error: Exception) -> Fault:
        """What `launch`, or what it returned, failed of. Memory that is kept for reuse is given back."""
        if is_out_of_memory(error):
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return "memory"
        return "engine" if is_broken_device(error) else "request"

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
            self._requests[new.request_id] = self._request(new)
        if not plan.scheduled:
            return lambda: StepResult(sampled_token_ids={})
        batch = self._batch(plan.scheduled)
        self._start_masks(batch)
        if batch.is_plain:
            return self._sample(batch, [*range(len(batch.rows))], self._decode_logits(batch))
        hidden = self._hidden_states(batch)
        prompt_logprobs = self._prompt_logprobs(batch, hidden)
        errors = self._broken_prompts(prompt_logprobs)
        embedded = self._embed(batch, hidden)
        sampled = self._sample_last(batch, hidden, errors)

        def wait() -> StepResult:
            result = sampled()
            return StepResult(
                sampled_token_ids=result.sampled_token_ids,
                logprobs=result.logprobs,
                prompt_logprobs={k: v for k, v in prompt_logprobs.items() if k not in errors},
                errors=errors | embedded.errors | result.errors,
                finished=result.finished,
                steered=result.steered,
                embeddings=embedded.embeddings,
            )

        return wait

    def _request(self, new: NewRequest) -> _Request:
        pooled = None if new.sampling.pooling is None else PooledPrompt(new.sampling.pooling)
        adapter_row = 0 if new.adapter is None else self.adapters[new.adapter]
        return _Request(self._rows.add(new.token_ids), self._row(new), adapter_row, pooled)

    def _row(self, new: NewRequest) -> SamplingRow:
        sampling, vocab_size = new.sampling, self._model.vocab_size
        output = new.token_ids[new.num_prompt_tokens :]
        row = SamplingRow(sampling, self._seed_of(new), new.num_prompt_tokens)
        row.counts = penalty_counts(sampling, new.token_ids, new.num_prompt_tokens)
        if sampling.bad_words_token_ids:
            row.bad_words = BadWords(sampling.bad_words_token_ids, output)
        if sampling.allowed_token_ids:
            row.allowed = pack_tokens(sampling.allowed_token_ids, vocab_size)
        if sampling.grammar is not None:
            row.matcher = self._grammars.matcher(
                sampling.grammar, ignore_eos=sampling.ignore_eos, max_tokens=sampling.max_tokens, tokens=output
            )
        return row

    @cached_property
    def _grammars(self) -> "GrammarCompiler":
        return self._make_compiler()

    def _start_masks(self, batch: _Batch) -> None:
        """What may come next is known before the model runs, and found out meanwhile."""
        both = zip(batch.scheduled, batch.requests, strict=True)
        matchers = [request.row.matcher for item, request in both if item.samples]
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
        if not self._rows.is_finite[request.index]:
            self._suspect_blocks.update(self._rows.blocks(request.index).tolist())
        self._rows.remove(request.index)
        request.is_released = True

    def _batch(self, scheduled: list[ScheduledRequest]) -> _Batch:
        singles = [item for item in scheduled if item.num_tokens == 1]
        ordered = singles + [item for item in scheduled if item.num_tokens > 1]
        requests = [self._requests[item.request_id] for item in ordered]
        for item, request in zip(ordered, requests, strict=True):
            if item.new_block_ids:
                self._scrub(request, item)
                self._rows.extend_blocks(request.index, item.new_block_ids)
        rows = np.array([request.index for request in requests], dtype=np.int64)
        firsts = np.array([item.num_computed_tokens for item in ordered], dtype=np.int64)
        ends = firsts + np.array([item.num_tokens for item in ordered], dtype=np.int64)
        assert (ends <= self._rows.num_tokens[rows] + self.runs_ahead).all()
        assert (ends <= self._rows.num_blocks[rows] * self._rows.block_size).all()
        tables = self._rows.tables(rows, int(ends.max()))
        return _Batch(ordered, requests, rows, lay_out(firsts, ends, tables, self._rows.block_size))

    def _scrub(self, request: _Request, item: ScheduledRequest) -> None:
        """Make blocks finite that may not be, before another request fills them.

        Not sooner: one with the same prompt may find them by its prefix, and has to break in the same way.
        """
        if not self._suspect_blocks:
            return
        num_blocks = int(self._rows.num_blocks[request.index])
        num_found = max(0, item.num_computed_tokens // self._rows.block_size - num_blocks)
        stale = self._suspect_blocks.intersection(item.new_block_ids[num_found:])
        if stale:
            self._attention.scrub(*to_device([np.array(sorted(stale), dtype=np.int64)], self._device))
            self._suspect_blocks -= stale

    def _decode_logits(self, batch: _Batch) -> Tensor:
        """(num_seqs, vocab_size) of a step in which each request has one token and samples the next."""
        logits = None
        if self.graphs is not None:
            logits = self.graphs.logits(self._token_ids(batch), batch.layout, batch.rows, self._adapter_rows(batch))
        return self._model.logits(self._hidden_states(batch)) if logits is None else logits

    def _token_ids(self, batch: _Batch) -> NDArray[np.int64]:
        """-1 - row for a token that the host does not know yet."""
        find = self._rows.tokens_or_rows if self.runs_ahead else self._rows.tokens
        return find(batch.rows[batch.layout.sequences], batch.layout.positions)

    def _adapter_rows(self, batch: _Batch) -> NDArray[np.int64] | None:
        """(num_tokens,), or None where no request of the step has an adapter."""
        if not self.adapters:
            return None
        rows = np.array([request.adapter_row for request in batch.requests], dtype=np.int64)
        return rows[batch.layout.sequences] if rows.any() else None

    def _known(self, ids: Tensor) -> Tensor:
        """With the tokens that only the device knows."""
        if not self.runs_ahead:
            return ids
        return torch.where(ids < 0, self._last_tokens[(-1 - ids).clamp(min=0)], ids)

    def _hidden_states(self, batch: _Batch) -> Tensor:
        """(num_tokens, hidden_size)"""
        layout = batch.layout
        arrays = [self._token_ids(batch), layout.positions, batch.rows, *layout.cache_arrays]
        ids, positions, state_slots, *cache_tensors = to_device(arrays, self._device)
        rows = self._adapter_rows(batch)
        adapter_rows = None if rows is None else to_device([rows], self._device)[0]
        meta = metadata_of(layout, cache_tensors)
        with step_context(StepContext(self._attention, meta, adapter_rows=adapter_rows, state_slots=state_slots)):
            return self._model.hidden_states(self._known(ids), positions)

    def _compute_logits(
        self,
        token_ids: Tensor,
        positions: Tensor,
        meta: AttentionMetadata,
        state_slots: Tensor,
        adapter_rows: Tensor | None = None,
    ) -> Tensor:
        with step_context(StepContext(self._attention, meta, adapter_rows=adapter_rows, state_slots=state_slots)):
            return self._model.logits(self._model.hidden_states(self._known(token_ids), positions))

    def _sample_last(self, batch: _Batch, hidden: Tensor, errors: dict[str, str]) -> Callable[[], StepResult]:
        """One token for each request that samples and has not failed."""
        both = enumerate(batch.scheduled)
        sampling = [i for i, item in both if item.samples and item.request_id not in errors]
        if not sampling:
            return lambda: StepResult(sampled_token_ids={})
        (last,) = to_device([batch.layout.query_start[1:][sampling].astype(np.int64) - 1], self._device)
        return self._sample(batch, sampling, self._model.logits(hidden[last]))

    def _sample(self, batch: _Batch, sampling: list[int], logits: Tensor) -> Callable[[], StepResult]:
        """One token for each of those requests of the batch, whose logits these are."""
        rows, requests = batch.rows[sampling], [batch.requests[i] for i in sampling]
        self._masks.wait()
        positions = batch.layout.seq_lens[sampling].astype(np.int64)
        chosen = self._sampler.choose(logits, [request.row for request in requests], positions)
        if self.runs_ahead:
            (index,) = to_device([rows], self._device)
            self._last_tokens[index] = chosen.tokens
        self._rows.is_finite[rows] = False  # until it is known
        names = [batch.scheduled[i].request_id for i in sampling]
        return partial(self._take_in, rows, requests, names, chosen)

    def _take_in(
        self, rows: NDArray[np.int64], requests: list[_Request], names: list[str], chosen: ChosenTokens
    ) -> StepResult:
        """Wait for the tokens of a step and keep them. Meanwhile a request may have been released, its row reused."""
        sampled = chosen.wait()
        failed = _failures(requests, sampled)
        here = [i for i, request in enumerate(requests) if not request.is_released]
        self._rows.is_finite[rows[here]] = np.array(sampled.is_finite, dtype=np.bool_)[here]
        taken = [i for i in here if i not in failed]
        self._rows.append(rows[taken], [sampled.token_ids[i] for i in taken])
        failed |= _advance(requests, taken, sampled)
        return _sampled_result(names, requests, sampled, failed)

    def _prompt_logprobs(self, batch: _Batch, hidden: Tensor) -> dict[str, list[TokenLogprobs]]:
        wanted = [i for i, request in enumerate(batch.requests) if request.row.sampling.prompt_logprobs is not None]
        parts = [batch.part(i) for i in wanted]
        return {
            part.request_id: self._prompt_logprobs_of(part, part.request.row.sampling.prompt_logprobs or 0, hidden)
            for part in parts
            if part.first < part.request.row.num_prompt_tokens - 1
        }

    def _prompt_logprobs_of(self, part: _Part, num_top: int, hidden: Tensor) -> list[TokenLogprobs]:
        """Each position of the chunk tells of the prompt token after it; the last one of the prompt tells none."""
        last = min(part.end, part.request.row.num_prompt_tokens - 1)
        entries: list[TokenLogprobs] = []
        for first in range(part.first, last, _LOGPROB_ROWS):
            end = min(first + _LOGPROB_ROWS, last)
            rows = hidden[part.offset + first - part.first : part.offset + end - part.first]
            logprobs = torch.log_softmax(self._model.logits(rows).float(), dim=-1)
            following = self._rows.tokens(part.request.index, np.arange(first + 1, end + 1))
            (tokens,) = to_device([following], self._device)
            entries += token_logprobs(logprobs, tokens, [num_top] * (end - first))()
        return entries

    def _embed(self, batch: _Batch, hidden: Tensor) -> StepResult:
        """Pool what was computed of prompts that are to be embedded, and give out those that are complete."""
        complete: list[tuple[_Part, Tensor]] = []
        for i, request in enumerate(batch.requests):
            if request.pooled is not None:
                part = batch.part(i)
                request.pooled.add(hidden[part.offset : part.offset + part.num_tokens])
                if part.end == self._rows.num_tokens[request.index]:
                    complete.append((part, request.pooled.vector()))
        result = StepResult(sampled_token_ids={})
        for part, vector in zip((part for part, _ in complete), unit_vectors([v for _, v in complete]), strict=True):
            is_finite = bool(np.isfinite(vector).all())
            self._rows.is_finite[part.request.index] = is_finite
            if is_finite:
                result.embeddings[part.request_id] = vector.tobytes()
            else:
                result.errors[part.request_id] = _EMBEDDING_NOT_FINITE
        return result

    def _broken_prompts(self, prompt_logprobs: dict[str, list[TokenLogprobs]]) -> dict[str, str]:
        """Requests with a NaN in their prompt's log-probabilities (-inf is a legal one)."""
        broken = [
            request_id
            for request_id, entries in prompt_logprobs.items()
            if any(math.isnan(entry.logprob) for entry in entries)
        ]
        for request_id in broken:
            self._rows.is_finite[self._requests[request_id].index] = False
        return dict.fromkeys(broken, _NOT_FINITE)


def _failures(requests: list[_Request], sampled: SampledRows) -> dict[int, str]:
    """Why no token was chosen, of the rows where none was."""
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
                failed.setdefault(i, _NO_CHOICE)
    return failed


def _advance(requests: list[_Request], taken: list[int], sampled: SampledRows) -> dict[int, str]:
    """Let rows that follow their tokens take them in; returns why, of those that could not."""
    failed = {}
    for i in taken:
        row = requests[i].row
        if row.follows_tokens:
            row.add(sampled.token_ids[i])
            if row.matcher is not None and row.matcher.error is not None:
                failed[i] = row.matcher.error
    return failed


def _sampled_result(
    request_ids: list[str], requests: list[_Request], sampled: SampledRows, failed: dict[int, str]
) -> StepResult:
    errors = {request_ids[i]: message for i, message in failed.items()}
    pairs = zip(request_ids, sampled.token_ids, strict=True)
    tokens = {request_id: [token_id] for request_id, token_id in pairs if request_id not in errors}
    entries = zip(request_ids, sampled.logprobs, strict=False)
    followed = [
        (request_ids[i], request.row)
        for i, request in enumerate(requests)
        if request.row.matcher is not None and i not in failed
    ]
    return StepResult(
        sampled_token_ids=tokens,
        logprobs={name: [entry] for name, entry in entries if entry is not None and name in tokens},
        errors=errors,
        finished=[request_id for request_id, row in followed if row.is_finished],
        steered=[request_id for request_id, row in followed if row.is_steered],
    )
