"""From logits to tokens: the logits processors, then the likeliest token or a draw for each row of the batch.

On a CPU one native call does all of it (`native`), row by row, and on a GPU a launch or two (`triton_sampler`). By
torch, for want of these, all rows are worked on together, and a processor that no row asks for costs nothing. Knows
nothing of the model, the cache or how requests are scheduled; of a grammar it sees the tokens that may come next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.kernels.library import Library
from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.platform.device_copy import to_device, to_host
from orcinus.engine.sampling import native
from orcinus.engine.sampling.draw import draw, uniforms
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.logprobs import RowLogprobs
from orcinus.engine.sampling.processors import apply_closing, are_processed, processors
from orcinus.engine.sampling.row import SamplingRow

if TYPE_CHECKING:
    from orcinus.engine.sampling.triton_sampler import TritonSampler


@dataclass(frozen=True, slots=True)
class SampledRows:
    """One entry per row. A token means nothing if `is_finite` is False, because the model's logits were broken, or if
    `has_choice` is False, because every token was ruled out.
    """

    token_ids: list[int]
    is_finite: list[bool]
    has_choice: list[bool]
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PendingSample:
    """The tokens on the device (num_rows,), and a function that waits for them and for all that goes with them."""

    tokens: Tensor
    wait: Callable[[], SampledRows]


class Sampler:
    """Chooses tokens for a batch. Rows of `logits` match `rows` and `positions` throughout. Used by one thread.

    A `triton_sampler` chooses those of rows whose penalties the device counts, and of rows that have none.
    """

    def __init__(self, eos_token_ids: Sequence[int], triton_sampler: "TritonSampler | None" = None) -> None:
        self._eos_token_ids = eos_token_ids
        self._triton_sampler = triton_sampler
        self._processors = processors(eos_token_ids)

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], positions: Sequence[int] | NDArray[np.int64]
    ) -> SampledRows:
        """Choose a token for each row of `logits` (num_rows, vocab_size), whose memory may be overwritten.

        `positions` are those of the new tokens: the number of tokens the request has.
        """
        return self.launch(logits, rows, positions).wait()

    def launch(
        self,
        logits: Tensor,
        rows: Sequence[SamplingRow],
        positions: Sequence[int] | NDArray[np.int64],
        history: TokenHistory | None = None,
    ) -> PendingSample:
        """Begin to `sample`, without waiting for the device unless a row has a grammar.

        `history` is that of rows with a slot.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if self._triton_sampler is not None and all(row.counts is None for row in rows):
            return self._launch_triton(self._triton_sampler, logits, rows, positions, history)
        library = native.sampling_library(logits)
        if library is not None and not any(row.reads_history for row in rows):
            return self._launch_native(library, native.readable(logits), rows, positions)
        is_processed = are_processed(rows, positions)
        if not is_processed and all(row.is_argmax_only for row in rows):
            best, tokens = _maxima(logits)
            finite = torch.isfinite(best)
            return _pending(torch.stack([tokens, finite, torch.ones_like(finite)]), list)
        logits = logits.float()
        finite = torch.isfinite(logits.amax(dim=-1))
        has_choice = torch.ones_like(finite)
        logprobs = RowLogprobs(logits, rows, is_overwritten=True)
        if is_processed:
            for process in self._processors:
                process(logits, rows, positions, history)
            has_choice = logits.amax(dim=-1) != -torch.inf
        tokens = _argmax_or_draw(logits, rows, positions)
        apply_closing(tokens, logits, rows, finite & has_choice)
        return _pending(torch.stack([tokens, finite, has_choice]), logprobs.of(tokens))

    def _launch_native(
        self, library: Library, logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64]
    ) -> PendingSample:
        chosen = native.choose(library, logits, rows, positions, self._eos_token_ids)
        tokens, finite, has_choice = chosen
        apply_closing(tokens, logits, rows, (finite & has_choice).bool())
        return _pending(chosen, RowLogprobs(logits, rows).of(tokens))

    def _launch_triton(
        self,
        triton_sampler: "TritonSampler",
        logits: Tensor,
        rows: Sequence[SamplingRow],
        positions: NDArray[np.int64],
        history: TokenHistory | None,
    ) -> PendingSample:
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        chosen, changed = triton_sampler.choose(
            logits, rows, positions, eos_token_ids=self._eos_token_ids, history=history
        )
        tokens, finite, has_choice = chosen
        apply_closing(tokens, changed, rows, (finite & has_choice).bool())
        return _pending(chosen, RowLogprobs(logits, rows, triton_sampler=triton_sampler).of(tokens))


def _argmax_or_draw(logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> Tensor:
    """Return the likeliest token of greedy rows and a drawn one of the others; some token where none is possible."""
    random_rows = [i for i, row in enumerate(rows) if row.is_random]
    if not random_rows:
        return _argmax(logits)
    drawn = [rows[i] for i in random_rows]
    uniform = uniforms([row.seed for row in drawn], positions[random_rows])
    parameters = np.array([row.draw_parameters for row in drawn], dtype=np.float32)
    if len(drawn) == len(rows):
        return draw(logits, parameters, uniform)
    tokens = _argmax(logits)
    (index,) = to_device([np.array(random_rows, dtype=np.int64)], logits.device)
    tokens[index] = draw(logits[index], parameters, uniform)
    return tokens


def _pending(chosen: Tensor, logprobs: Callable[[], list[TokenLogprobs | None]]) -> PendingSample:
    """Begin to copy everything to the host, in one piece: tokens, whether finite, whether there is a choice (3, n)."""
    copied = to_host(chosen)

    def wait() -> SampledRows:
        ((token_ids, is_finite, can_choose),) = copied()
        return SampledRows(token_ids, [*map(bool, is_finite)], [*map(bool, can_choose)], logprobs())

    return PendingSample(chosen[0], wait)


def _maxima(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's largest logit and a token that has it, in float32 the first. NaN counts as the largest."""
    if logits.dtype is torch.float32:
        return logits.amax(dim=-1), _argmax(logits)
    best, tokens = logits.max(dim=-1)
    return best, tokens


def _argmax(logits: Tensor) -> Tensor:
    """Return the first of the likeliest tokens of each row. By numpy on a CPU: several times as fast as torch."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)
