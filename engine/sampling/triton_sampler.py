"""Sampling by the Triton kernels (`engine.kernels.triton_sampling`): how a batch's rows are laid out for their launch.

It does what `processors` and `draw` do, row by row, in at most two launches. Knows nothing of what decides whether it
is used. Not yet run on a GPU.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.kernels.triton_sampling import change_kernel, choose_kernel, logprobs_kernel
from orcinus.engine.platform.device_copy import to_device
from orcinus.engine.sampling.draw import MIN_DIVISOR, uniforms
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.row import SamplingRow

_LIKELIEST = (0.0, 0.0, 1.0, 0.0)  # draw parameters: a temperature of 0
_TILE = 4096
_PIVOTS = 8  # a pass over a row divides by one more; a tile of sums for each is in registers
_NUM_WARPS = 16
_LIST = 128


class TritonSampler:
    """Used by one thread. `tile` logits are looked at together: a power of two."""

    def __init__(self, tile: int = _TILE) -> None:
        self._tile = tile

    def choose(
        self,
        logits: Tensor,
        rows: Sequence[SamplingRow],
        positions: NDArray[np.int64],
        *,
        eos_token_ids: Sequence[int],
        history: TokenHistory | None,
    ) -> tuple[Tensor, Tensor]:
        """Choose a token for each row of `logits` (n, vocab_size), whose rows are contiguous.

        Returns tokens, whether logits are finite, and whether there is a choice (3, n); and the logits as the rows'
        parameters change them.
        """
        changes = _Changes(rows, positions, eos_token_ids)
        parameters = np.array([row.draw_parameters if row.is_random else _LIKELIEST for row in rows], dtype=np.float32)
        numbers = uniforms([row.seed for row in rows], positions)
        own_parameters, own_numbers, *arrays = to_device([parameters, numbers, *changes.arrays], logits.device)
        chosen = torch.empty(3, len(rows), dtype=torch.int64, device=logits.device)
        if arrays:
            logits = self._change(logits, chosen, arrays, history)
        self._choose(logits, own_parameters, own_numbers, chosen, is_changed=bool(arrays))
        return chosen, logits

    def _choose(self, logits: Tensor, parameters: Tensor, numbers: Tensor, chosen: Tensor, *, is_changed: bool) -> None:
        vocab_size = logits.shape[1]
        choose_kernel[(len(logits),)](
            logits,
            parameters,
            numbers,
            chosen,
            logits.stride(0),
            vocab_size,
            IS_CHANGED=is_changed,
            TILE=self._tile,
            TILES=triton.next_power_of_2(triton.cdiv(vocab_size, self._tile)),
            PIVOTS=_PIVOTS,
            num_warps=_NUM_WARPS,
        )

    def _change(self, logits: Tensor, chosen: Tensor, arrays: list[Tensor], history: TokenHistory | None) -> Tensor:
        values = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        nothing = torch.zeros(1, dtype=torch.int64, device=logits.device)
        has_counts = history is not None and history.is_counting
        change_kernel[(len(logits),)](
            logits,
            values,
            chosen,
            history.seen if history is not None and has_counts else nothing.int(),
            nothing if history is None else history.last_tokens,
            *arrays,
            logits.stride(0),
            logits.shape[1],
            TILE=self._tile,
            LIST=_LIST,
            num_warps=_NUM_WARPS,
            enable_fp_fusion=False,  # so that each logit is what the processors make of it
        )
        return values

    def logprobs_of(self, logits: Tensor, rows: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-probabilities of a token of each of those rows (n,), and ids and values of the best.

        These are (n, num_top); of equally likely tokens those with the lower ids are told, and first.
        """
        shape = len(rows), num_top
        own = torch.empty(len(rows), dtype=torch.float32, device=logits.device)
        ids = torch.zeros(shape, dtype=torch.int64, device=logits.device)
        best = torch.full(shape, torch.nan, dtype=torch.float32, device=logits.device)
        logprobs_kernel[(len(rows),)](
            logits,
            rows,
            tokens,
            own,
            best,
            ids,
            logits.stride(0),
            logits.shape[1],
            num_top,
            TILE=self._tile,
            PIVOTS=_PIVOTS,
            num_warps=_NUM_WARPS,
        )
        best, order = best.sort(dim=-1, descending=True, stable=True)
        return own, ids.gather(-1, order), best


class _Changes:
    """Lays out what the rows do to their logits, for `change_kernel`; `arrays` is empty if none does anything."""

    def __init__(self, rows: Sequence[SamplingRow], positions: NDArray[np.int64], eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = eos_token_ids
        self._rows = np.full((len(rows), 6), -1, dtype=np.int32)
        self._rows[:, :2] = 0
        self._penalties = np.zeros((len(rows), 3), dtype=np.float32)
        self._penalties[:, 0] = 1.0
        self._masks: list[NDArray[np.int32]] = []
        self._tokens: list[int] = []
        self._biases: list[float] = []
        self._after: list[int] = []
        has_ended = (positions >= np.array([row.min_position for row in rows])).tolist()
        is_changed = False
        for i, row in enumerate(rows):
            if row.is_processed or not has_ended[i]:
                is_changed = True
                self._add_row(i, row, int(positions[i]), may_end=has_ended[i])
            else:
                self._rows[i, 3:] = len(self._tokens)
        self.arrays = self._as_arrays() if is_changed else []

    def _as_arrays(self) -> list[np.ndarray]:
        masks = np.concatenate(self._masks) if self._masks else np.zeros(1, dtype=np.int32)
        return [
            self._rows,
            self._penalties,
            masks,
            np.array(self._tokens or [-1], dtype=np.int64),
            np.array(self._biases or [0.0], dtype=np.float32),
            np.array(self._after or [-1], dtype=np.int64),
        ]

    def _add_row(self, i: int, row: SamplingRow, position: int, *, may_end: bool) -> None:
        columns, sampling = self._rows[i], row.sampling
        if row.slot is not None:
            columns[0] = row.slot
        if sampling.has_penalties:
            assert row.slot is not None, "penalties are counted where the kernel reads them"
            columns[1] = 1
            repetition = max(sampling.repetition_penalty, MIN_DIVISOR)
            self._penalties[i] = repetition, sampling.frequency_penalty, sampling.presence_penalty
        if (mask := row.mask()) is not None:
            columns[2] = sum(map(len, self._masks))
            self._masks.append(mask)
        for token, bias in sampling.logit_bias.items():
            self._add_entry(token, bias=bias)
        columns[3] = len(self._tokens)
        for token in [] if may_end else row.ends(self._eos_token_ids):
            self._add_entry(token)
        columns[4] = len(self._tokens)
        for after, token in row.impossible(position):
            self._add_entry(token, after=after)
        columns[5] = len(self._tokens)

    def _add_entry(self, token: int, *, bias: float = 0.0, after: int = -1) -> None:
        self._tokens.append(token)
        self._biases.append(bias)
        self._after.append(after)
