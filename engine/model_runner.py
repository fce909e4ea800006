"""Executes plans: turns a `StepPlan` into flat tensors, runs the model once, and samples.

It keeps a copy of each running request's tokens and block table. It decides nothing: what runs, where keys and
values lie and when a request ends come from the scheduler; tokens are chosen by the sampler.
"""

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.attention import AttentionMetadata, PagedAttention, attending, batch_metadata
from engine.device import DeviceMonitor
from engine.language_model import LanguageModel
from engine.messages import NewRequest, ScheduledRequest, StepPlan, StepResult, TokenLogprobs
from engine.pooling import PooledPrompt, unit_vectors
from engine.sampler import BadWords, SampledRows, Sampler, SamplingRow, has_penalties, penalty_counts, token_logprobs
from engine.sampling_params import SamplingParams
from engine.token_masks import MaskFiller, pack_tokens

if TYPE_CHECKING:
    from engine.grammar import GrammarCompiler

# Rows of logits computed at a time for prompt_logprobs, so that memory does not grow with prompt x vocabulary.
_LOGPROB_ROWS = 256
_NOT_FINITE = "the model's logits are not finite"
_NO_CHOICE = "every token is ruled out by the request's own parameters"
_EMBEDDING_NOT_FINITE = "the model's embedding is not finite"


@dataclass(slots=True)
class _Request:
    """What the runner remembers of a request between steps. Arrays have room to grow; the counts say how full."""

    token_ids: NDArray[np.int64]
    num_tokens: int
    block_table: NDArray[np.int32]
    num_blocks: int
    row: SamplingRow
    pooled: PooledPrompt | None = None
    # Finite logits at the last token that was sampled from vouch for all keys and values that they came from. So does
    # a finite embedding.
    is_finite: bool = False

    def append(self, token_id: int) -> None:
        if self.num_tokens == len(self.token_ids):
            self.token_ids = np.concatenate([self.token_ids, np.empty_like(self.token_ids)])
        self.token_ids[self.num_tokens] = token_id
        self.num_tokens += 1
        self.row.add(token_id)

    def extend_blocks(self, block_ids: list[int]) -> None:
        needed = self.num_blocks + len(block_ids)
        if needed > len(self.block_table):
            grown = np.zeros(max(needed, 2 * len(self.block_table)), dtype=np.int32)
            grown[: self.num_blocks] = self.block_table[: self.num_blocks]
            self.block_table = grown
        self.block_table[self.num_blocks : needed] = block_ids
        self.num_blocks = needed


@dataclass(frozen=True, slots=True)
class _Part:
    """One request's share of a step, and where its tokens lie in the flat batch."""

    request_id: str
    request: _Request
    first: int  # position of its first token of this step
    num_tokens: int
    samples: bool
    offset: int  # of its first token in the flat batch

    @property
    def end(self) -> int:
        return self.first + self.num_tokens


class ModelRunner:
    """Executes plans for one model on one device. Used by one thread.

    `device_monitor` says how busy the device is. `make_compiler` is called when a request first brings a grammar.
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
        seed: int = 0,
    ) -> None:
        self.device_monitor: DeviceMonitor | None = device_monitor
        self._model = model
        self._attention = attention
        self._sampler = sampler
        self._block_size = block_size
        self._device = device
        self._make_compiler = make_compiler
        self._seed = seed
        self._masks = MaskFiller()
        self._requests: dict[str, _Request] = {}
        self._suspect_blocks: set[int] = set()

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        """Begin to compile the request's grammar, if it has one that is not at hand."""
        return None if sampling.grammar is None else self._grammars.prepare(sampling.grammar)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step: forget what was released, take in what is new, compute, sample.

        A request whose own logits are not finite, or whose parameters leave no token to choose, is named in `errors`;
        the others are not affected.
        """
        for request_id in plan.released:
            self._release(request_id)
        for new in plan.new_requests:
            self._requests[new.request_id] = self._request(new)
        if not plan.scheduled:
            return StepResult(sampled_token_ids={})
        parts = self._parts(plan.scheduled)
        self._start_masks(parts)
        hidden = self._run(parts)
        prompt_logprobs = self._prompt_logprobs(parts, hidden)
        errors = self._broken_prompts(parts, prompt_logprobs)
        embedded = self._embed(parts, hidden)
        result = self._sample([p for p in parts if p.samples and p.request_id not in errors], hidden)
        return StepResult(
            sampled_token_ids=result.sampled_token_ids,
            logprobs=result.logprobs,
            prompt_logprobs={k: v for k, v in prompt_logprobs.items() if k not in errors},
            errors=errors | embedded.errors | result.errors,
            finished=result.finished,
            steered=result.steered,
            embeddings=embedded.embeddings,
        )

    def _request(self, new: NewRequest) -> _Request:
        token_ids = np.array(new.token_ids, dtype=np.int64)
        row = self._row(new, token_ids)
        pooled = None if new.sampling.pooling is None else PooledPrompt(new.sampling.pooling)
        return _Request(token_ids, len(token_ids), np.zeros(16, dtype=np.int32), 0, row, pooled)

    def _row(self, new: NewRequest, token_ids: NDArray[np.int64]) -> SamplingRow:
        sampling, vocab_size = new.sampling, self._model.vocab_size
        output = new.token_ids[new.num_prompt_tokens :]
        row = SamplingRow(sampling, self._seed_of(new), new.num_prompt_tokens)
        if has_penalties(sampling):
            row.counts = penalty_counts(token_ids, new.num_prompt_tokens, vocab_size, self._device)
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

    def _start_masks(self, parts: list[_Part]) -> None:
        """What may come next is known before the model runs, and found out meanwhile."""
        matchers = [part.request.row.matcher for part in parts if part.samples]
        self._masks.start([matcher for matcher in matchers if matcher is not None and matcher.error is None])

    def _seed_of(self, new: NewRequest) -> int:
        if new.sampling.seed is not None:
            return new.sampling.seed
        digest = hashlib.blake2b(f"{self._seed} {new.request_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def _release(self, request_id: str) -> None:
        request = self._requests.pop(request_id, None)
        if request is not None and not request.is_finite:
            self._suspect_blocks.update(request.block_table[: request.num_blocks].tolist())

    def _parts(self, scheduled: list[ScheduledRequest]) -> list[_Part]:
        """Single tokens first: the attention takes them together."""
        parts = []
        offset = 0
        for item in sorted(scheduled, key=lambda item: item.num_tokens > 1):
            request = self._requests[item.request_id]
            self._scrub(request, item)
            request.extend_blocks(item.new_block_ids)
            assert item.num_computed_tokens + item.num_tokens <= request.num_tokens
            part = _Part(item.request_id, request, item.num_computed_tokens, item.num_tokens, item.samples, offset)
            assert part.end <= request.num_blocks * self._block_size
            parts.append(part)
            offset += item.num_tokens
        return parts

    def _scrub(self, request: _Request, item: ScheduledRequest) -> None:
        """Make blocks finite that may not be, before another request fills them.

        Not sooner: one with the same prompt may find them by its prefix, and has to break in the same way.
        """
        if not self._suspect_blocks:
            return
        num_found = max(0, item.num_computed_tokens // self._block_size - request.num_blocks)
        stale = self._suspect_blocks.intersection(item.new_block_ids[num_found:])
        if stale:
            self._attention.scrub(torch.tensor(sorted(stale), device=self._device))
            self._suspect_blocks -= stale

    def _run(self, parts: list[_Part]) -> Tensor:
        """(num_tokens, hidden_size)"""
        token_ids = np.concatenate([part.request.token_ids[part.first : part.end] for part in parts])
        positions = np.concatenate([np.arange(part.first, part.end, dtype=np.int64) for part in parts])
        self._attention.begin_step(self._metadata(parts))
        with attending(self._attention):
            return self._model.hidden_states(self._to_device(token_ids), self._to_device(positions))

    def _metadata(self, parts: list[_Part]) -> AttentionMetadata:
        width = math.ceil(max(part.end for part in parts) / self._block_size)
        tables = np.zeros((len(parts), width), dtype=np.int32)
        for row, part in zip(tables, parts, strict=True):
            used = math.ceil(part.end / self._block_size)
            row[:used] = part.request.block_table[:used]
        return batch_metadata([(p.first, p.end) for p in parts], tables, self._block_size, self._device)

    def _to_device(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _sample(self, parts: list[_Part], hidden: Tensor) -> StepResult:
        if not parts:
            return StepResult(sampled_token_ids={})
        last = np.array([part.offset + part.num_tokens - 1 for part in parts], dtype=np.int64)
        logits = self._model.logits(hidden[self._to_device(last)])
        rows = [part.request.row for part in parts]
        self._masks.wait()
        sampled = self._sampler.sample(logits, rows, [part.request.num_tokens for part in parts])
        tokens: dict[str, list[int]] = {}
        errors: dict[str, str] = {}
        for row, part in enumerate(parts):
            error = self._take_token(part.request, sampled, row)
            if error is None:
                tokens[part.request_id] = [sampled.token_ids[row]]
            else:
                errors[part.request_id] = error
        logprobs: dict[str, list[TokenLogprobs]] = {}
        for part, entry in zip(parts, sampled.logprobs, strict=False):
            if entry is not None and part.request_id in tokens:
                logprobs[part.request_id] = [entry]
        taken = [part for part in parts if part.request_id in tokens]
        return StepResult(
            sampled_token_ids=tokens,
            logprobs=logprobs,
            errors=errors,
            finished=[part.request_id for part in taken if part.request.row.is_finished],
            steered=[part.request_id for part in taken if part.request.row.is_steered],
        )

    @staticmethod
    def _take_token(request: _Request, sampled: SampledRows, row: int) -> str | None:
        """Append the token of one row; returns why it could not be."""
        request.is_finite = sampled.is_finite[row]
        matcher = request.row.matcher
        if not request.is_finite:
            return _NOT_FINITE
        if matcher is not None and matcher.error is not None:
            return matcher.error
        if not sampled.has_choice[row]:
            return _NO_CHOICE
        request.append(sampled.token_ids[row])
        return None if matcher is None else matcher.error

    def _prompt_logprobs(self, parts: list[_Part], hidden: Tensor) -> dict[str, list[TokenLogprobs]]:
        return {
            part.request_id: self._prompt_logprobs_of(part, num_top, hidden)
            for part in parts
            if (num_top := part.request.row.sampling.prompt_logprobs) is not None
            and part.first < part.request.row.num_prompt_tokens - 1
        }

    def _prompt_logprobs_of(self, part: _Part, num_top: int, hidden: Tensor) -> list[TokenLogprobs]:
        """Each position of the chunk tells of the prompt token after it; the last one of the prompt tells none."""
        last = min(part.end, part.request.row.num_prompt_tokens - 1)
        entries: list[TokenLogprobs] = []
        for first in range(part.first, last, _LOGPROB_ROWS):
            end = min(first + _LOGPROB_ROWS, last)
            rows = hidden[part.offset + first - part.first : part.offset + end - part.first]
            logprobs = torch.log_softmax(self._model.logits(rows).float(), dim=-1)
            tokens = self._to_device(part.request.token_ids[first + 1 : end + 1])
            entries += token_logprobs(logprobs, tokens, [num_top] * (end - first))
        return entries

    @staticmethod
    def _embed(parts: list[_Part], hidden: Tensor) -> StepResult:
        """Pool what was computed of prompts that are to be embedded, and give out those that are complete."""
        complete: list[tuple[_Part, Tensor]] = []
        for part in parts:
            if part.request.pooled is not None:
                vector = part.request.pooled.add(hidden[part.offset : part.offset + part.num_tokens])
                if part.end == part.request.num_tokens:
                    complete.append((part, vector))
        result = StepResult(sampled_token_ids={})
        for part, vector in zip((part for part, _ in complete), unit_vectors([v for _, v in complete]), strict=True):
            part.request.is_finite = bool(np.isfinite(vector).all())
            if part.request.is_finite:
                result.embeddings[part.request_id] = vector.tobytes()
            else:
                result.errors[part.request_id] = _EMBEDDING_NOT_FINITE
        return result

    @staticmethod
    def _broken_prompts(parts: list[_Part], prompt_logprobs: dict[str, list[TokenLogprobs]]) -> dict[str, str]:
        """Requests with a NaN in their prompt's log-probabilities (-inf is a legal one)."""
        errors = {}
        for part in parts:
            if any(math.isnan(entry.logprob) for entry in prompt_logprobs.get(part.request_id, [])):
                part.request.is_finite = False
                errors[part.request_id] = _NOT_FINITE
        return errors
