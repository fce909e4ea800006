"""Sampling by the native kernel, on a CPU: how a batch's rows are laid out for one call of it.

It does what `processors` and `draw` do, row by row and without a copy of all logits. Knows nothing of what decides
whether it is used.
"""

from collections.abc import Sequence
from ctypes import addressof, c_void_p
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.kernels.library import Library, load_library
from orcinus.engine.kernels.structures import LogitChanges, Logprobs, Sampling
from orcinus.engine.sampling.draw import MIN_DIVISOR, uniforms
from orcinus.engine.sampling.row import SamplingRow

_LIKELIEST = (0.0, 0.0, 1.0, 0.0)  # draw parameters: a temperature of 0


def sampling_library(logits: Tensor) -> Library | None:
    """Return the library that can sample from these logits, or None."""
    return load_library() if logits.device.type == "cpu" else None


def readable(logits: Tensor) -> Tensor:
    """Return the logits as the kernel reads them: themselves if they are float32 or bfloat16 in whole rows."""
    if logits.dtype not in (torch.float32, torch.bfloat16):
        logits = logits.float()
    return logits if logits.stride(1) == 1 else logits.contiguous()


def choose(
    library: Library,
    logits: Tensor,
    rows: Sequence[SamplingRow],
    positions: NDArray[np.int64],
    eos_token_ids: Sequence[int],
) -> Tensor:
    """Choose a token for each row; returns tokens, whether logits are finite, and whether there is a choice (3, n).

    `logits` (n, vocab_size) are `readable`.
    """
    parameters = np.array([row.draw_parameters if row.is_random else _LIKELIEST for row in rows], dtype=np.float32)
    numbers = uniforms([row.seed for row in rows], positions)
    return sample_rows(library, logits, parameters, numbers, _Changes(rows, positions, eos_token_ids))


def sample_rows(
    library: Library,
    logits: Tensor,
    parameters: NDArray[np.float32],
    uniform: NDArray[np.float32],
    changes: "_Changes | None" = None,
) -> Tensor:
    """Do the same by the rows' draw parameters (n, 4), of which a temperature of 0 takes the likeliest token."""
    chosen = np.empty((3, len(parameters)), dtype=np.int64)
    library.sample(
        Sampling(
            **_described(logits, len(parameters)),
            parameters=parameters.ctypes.data,
            uniforms=uniform.ctypes.data,
            changes=None if changes is None else changes.address,
            tokens=chosen[0].ctypes.data,
            is_finite=chosen[1].ctypes.data,
            has_choice=chosen[2].ctypes.data,
        )
    )
    return torch.from_numpy(chosen)


def logprobs_of(
    library: Library, logits: Tensor, rows: NDArray[np.int64], tokens: NDArray[np.int64], num_top: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Return the log-probabilities of a token of each of those rows (n,), and ids and values of the best (n, num_top).

    `logits` (at least n, vocab_size) are `readable`.
    """
    shape = (len(rows), num_top)
    own, ids, best = np.empty(len(rows), np.float32), np.empty(shape, np.int64), np.empty(shape, np.float32)
    library.logprobs(
        Logprobs(
            **_described(logits, len(rows)),
            rows=rows.ctypes.data,
            tokens=tokens.ctypes.data,
            num_top=num_top,
            logprobs=own.ctypes.data,
            top_logprobs=best.ctypes.data,
            top_ids=ids.ctypes.data,
        )
    )
    return own, ids, best


def _described(logits: Tensor, num_rows: int) -> dict[str, int]:
    return {
        "logits": logits.data_ptr(),
        "num_rows": num_rows,
        "vocab_size": logits.shape[1],
        "stride": logits.stride(0),
        "is_bf16": logits.dtype is torch.bfloat16,
    }


class _Changes:
    """Holds what the rows do to their logits, as the kernel reads it, for as long as its call."""

    def __init__(self, rows: Sequence[SamplingRow], positions: NDArray[np.int64], eos_token_ids: Sequence[int]) -> None:
        self._arrays: list[NDArray[Any]] = []  # keeps alive what addresses are taken of
        self._eos_token_ids = eos_token_ids
        has_ended = positions >= np.array([row.min_position for row in rows])
        changed = {
            i: self._of(row, may_end=may_end)
            for i, (row, may_end) in enumerate(zip(rows, has_ended.tolist(), strict=True))
            if row.is_processed or not may_end
        }
        self._structures = list(changed.values())
        self._pointers = (c_void_p * len(rows))()
        for i, structure in changed.items():
            self._pointers[i] = addressof(structure)
        self.address = addressof(self._pointers) if changed else None

    def _of(self, row: SamplingRow, *, may_end: bool) -> LogitChanges:
        changes = LogitChanges()
        if row.counts is not None:
            self._add_penalties(changes, row)
        if row.sampling.logit_bias:
            bias = row.sampling.logit_bias
            changes.biased, changes.num_biased = self._tokens([*bias]), len(bias)
            changes.biases = self._address(np.array([*bias.values()], dtype=np.float32))
        if not may_end:
            ends = row.ends(self._eos_token_ids)
            changes.ends, changes.num_ends = self._tokens(ends), len(ends)
        if row.bad_words is not None:
            impossible = row.bad_words.last_tokens()
            changes.impossible, changes.num_impossible = self._tokens(impossible), len(impossible)
        if (mask := row.mask()) is not None:
            changes.mask = self._address(mask)
        return changes

    def _add_penalties(self, changes: LogitChanges, row: SamplingRow) -> None:
        assert row.counts is not None
        token_ids = row.counts.token_ids
        changes.penalized, changes.num_penalized = self._address(token_ids), len(token_ids)
        changes.counts = self._address(row.counts.counts)
        changes.repetition = max(row.sampling.repetition_penalty, MIN_DIVISOR)
        changes.frequency, changes.presence = row.sampling.frequency_penalty, row.sampling.presence_penalty

    def _tokens(self, token_ids: Sequence[int]) -> int:
        return self._address(np.array(token_ids, dtype=np.int64))

    def _address(self, array: NDArray[Any]) -> int:
        self._arrays.append(array)
        return array.ctypes.data
