"""Log-probabilities of the chosen and of the likeliest tokens, in the model's own distribution.

They are taken before temperature, penalties and masks. Knows nothing of how a token is chosen.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.kernels.library import Library
from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.platform.device_copy import to_device, to_host
from orcinus.engine.sampling import native
from orcinus.engine.sampling.row import SamplingRow

if TYPE_CHECKING:
    from orcinus.engine.sampling.triton_sampler import TritonSampler


class RowLogprobs:
    """The log-probabilities of the rows of a batch that ask for them; to be made before any processor runs."""

    def __init__(
        self,
        logits: Tensor,
        rows: Sequence[SamplingRow],
        *,
        is_overwritten: bool = False,
        triton_sampler: "TritonSampler | None" = None,
    ) -> None:
        """Keep what is needed of `logits` (num_rows, vocab_size): a copy if they are about to be overwritten."""
        self._is_copy = is_overwritten
        self._triton_sampler = triton_sampler
        self._num_rows = len(rows)
        self._counts = {i: row.sampling.logprobs for i, row in enumerate(rows) if row.sampling.logprobs is not None}
        self._logits = logits
        self._index = logits.new_empty(0)
        if self._counts:
            (self._index,) = to_device([np.array([*self._counts], dtype=np.int64)], logits.device)
            if is_overwritten:
                self._logits = logits[self._index]

    def of(self, tokens: Tensor) -> Callable[[], list[TokenLogprobs | None]]:
        """Return a function that waits for the entries of `tokens` (num_rows,): None for rows that ask for none."""
        if not self._counts:
            return list
        copied = self._entries(tokens[self._index], [*self._counts.values()])

        def wait() -> list[TokenLogprobs | None]:
            entries: list[TokenLogprobs | None] = [None] * self._num_rows
            for i, entry in zip(self._counts, copied(), strict=True):
                entries[i] = entry
            return entries

        return wait

    def _entries(self, tokens: Tensor, num_top: Sequence[int]) -> Callable[[], list[TokenLogprobs]]:
        if self._is_copy:
            return token_logprobs(self._logits, tokens, num_top)
        if self._triton_sampler is not None:
            return _by_triton(self._triton_sampler, self._logits, self._index, tokens, num_top)
        library = native.sampling_library(self._logits)
        assert library is not None, "only kernels leave logits as they are"
        return _natively(library, self._logits, self._index, tokens, num_top)


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: Sequence[int]) -> Callable[[], list[TokenLogprobs]]:
    """Return a function that waits for one entry a row: that of its token, and its `num_top` best.

    `logits` is (num_rows, vocab_size), `tokens` is (num_rows,).
    """
    if (library := native.sampling_library(logits)) is None:
        return _by_torch(logits.float(), tokens, num_top)
    return _natively(library, native.readable(logits), torch.arange(len(tokens)), tokens, num_top)


def _natively(
    library: Library, logits: Tensor, rows: Tensor, tokens: Tensor, num_top: Sequence[int]
) -> Callable[[], list[TokenLogprobs]]:
    width = min(max(num_top), logits.shape[-1])
    token_ids = tokens.contiguous().numpy()
    own, ids, best = native.logprobs_of(library, logits, rows.numpy(), token_ids, width)
    entries = _joined(token_ids.tolist(), own.tolist(), ids.tolist(), best.tolist(), num_top)
    return lambda: entries


def _by_triton(
    triton_sampler: "TritonSampler", logits: Tensor, rows: Tensor, tokens: Tensor, num_top: Sequence[int]
) -> Callable[[], list[TokenLogprobs]]:
    width = min(max(num_top), logits.shape[-1])
    own, ids, best = triton_sampler.logprobs_of(logits, rows, tokens, width)
    copied = to_host(tokens, own, ids, best)

    def wait() -> list[TokenLogprobs]:
        token_ids, own_values, top_ids, top_values = copied()
        return _joined(token_ids, own_values, top_ids, top_values, num_top)

    return wait


def _by_torch(logits: Tensor, tokens: Tensor, num_top: Sequence[int]) -> Callable[[], list[TokenLogprobs]]:
    logprobs = torch.log_softmax(logits, dim=-1)
    width = min(max(num_top), logprobs.shape[-1])
    values, indices = logprobs.topk(width, dim=-1)
    copied = to_host(tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), indices, values)

    def wait() -> list[TokenLogprobs]:
        if width and logprobs.device.type == "cpu":
            lowest_first_(indices.numpy(), logprobs.numpy(), values[:, -1].numpy())
        token_ids, own, ids, best = copied()
        return _joined(token_ids, own, ids, best, num_top)

    return wait


def _joined(
    tokens: list[int],
    logprobs: list[float],
    top_ids: list[list[int]],
    top_logprobs: list[list[float]],
    num_top: Sequence[int],
) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(token_id=token, logprob=logprob, top=list(zip(ids[:n], values[:n], strict=True)))
        for token, logprob, ids, values, n in zip(tokens, logprobs, top_ids, top_logprobs, num_top, strict=True)
    ]


def lowest_first_(best: NDArray[np.int64], logprobs: NDArray[np.float32], least: NDArray[np.float32]) -> None:
    """Put, in place, the lowest ids first among equally likely tokens of `best` (num_rows, count).

    `topk` leaves open which of them it takes, so that it depends on the shape of the batch. `least` (num_rows,) is the
    log-probability of each row's last entry. Not used on a GPU, where it would have to wait for the device.
    """
    for ids, row, threshold in zip(best, logprobs, least, strict=True):
        candidates = np.flatnonzero(row >= threshold)
        order = np.argsort(-row[candidates], kind="stable")[: len(ids)]
        ids[: len(order)] = candidates[order]  # of a row with NaN there may be fewer
