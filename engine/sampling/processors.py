"""Logits processors: what a request's parameters and grammar do to its logits before a token is drawn.

Each processor changes the rows that ask for it in place, in one operation for the batch, and costs nothing if no row
does. It knows nothing of probabilities, random numbers and how requests are scheduled.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.platform.device_copy import to_device
from orcinus.engine.sampling.draw import MIN_DIVISOR
from orcinus.engine.sampling.history import PROMPT_FLAG, TokenHistory
from orcinus.engine.sampling.row import PenaltyCounts, SamplingRow
from orcinus.engine.sampling_params import SamplingParams

Processor = Callable[[Tensor, Sequence[SamplingRow], NDArray[np.int64], TokenHistory | None], None]
"""(logits (num_rows, vocab_size) in float32, the rows, the positions of their new tokens, what the device keeps of rows
that have a slot) -> None, in place.
"""


def processors(eos_token_ids: Sequence[int]) -> list[Processor]:
    """Return all processors in the order in which they apply."""
    return [apply_penalties, apply_logit_bias, MinTokens(eos_token_ids), apply_bad_words, apply_masks]


def are_processed(rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> bool:
    """Return whether a processor changes any row."""
    return any(row.is_processed for row in rows) or bool(_are_below_min(rows, positions).any())


def apply_penalties(
    logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64], history: TokenHistory | None = None
) -> None:
    """Apply the repetition penalty (CTRL: over prompt and output), then frequency and presence (OpenAI: the output).

    CTRL is https://arxiv.org/abs/1909.05858.
    """
    counted = [(i, row.counts, row.sampling) for i, row in enumerate(rows) if row.counts is not None]
    if counted:
        _penalize_listed(logits, counted)
    by_device = [i for i, row in enumerate(rows) if row.slot is not None and row.sampling.has_penalties]
    if by_device:
        assert history is not None
        _penalize_seen(logits, by_device, [rows[i] for i in by_device], history)


def _penalize_listed(logits: Tensor, counted: Sequence[tuple[int, PenaltyCounts, SamplingParams]]) -> None:
    """Change the logits of tokens that the host has counted."""
    sizes = [len(counts.token_ids) for _, counts, _ in counted]
    at = np.repeat([i for i, _, _ in counted], sizes)
    tokens = np.concatenate([counts.token_ids for _, counts, _ in counted])
    columns = np.repeat(_penalties([sampling for _, _, sampling in counted]), sizes, axis=0).T
    in_output = np.concatenate([counts.counts for _, counts, _ in counted])
    index, numbers, output = to_device(
        [np.stack([at, tokens]), np.ascontiguousarray(columns), in_output], logits.device
    )
    repetition, frequency, presence = numbers
    old = logits[index[0], index[1]]
    repeated = torch.where(old > 0, old / repetition, old * repetition)
    logits[index[0], index[1]] = repeated - frequency * output - presence * (output > 0)


def _penalize_seen(logits: Tensor, at: Sequence[int], rows: Sequence[SamplingRow], history: TokenHistory) -> None:
    """Change whole rows of logits, those at these places, by what the device has counted."""
    slots = np.array([row.slot for row in rows], dtype=np.int64)
    penalties = _penalties([row.sampling for row in rows])
    index, own_slots, numbers = to_device([np.array(at, dtype=np.int64), slots, penalties], logits.device)
    repetition, frequency, presence = numbers.unsqueeze(-1).unbind(1)
    seen, old = history.seen[own_slots], logits[index]
    output = (seen & (PROMPT_FLAG - 1)).float()
    repeated = torch.where(old > 0, old / repetition, old * repetition)
    logits[index] = torch.where(seen != 0, repeated, old) - frequency * output - presence * (output > 0)


def _penalties(sampling: Sequence[SamplingParams]) -> NDArray[np.float32]:
    """(num_rows, 3): repetition, frequency and presence penalty."""
    columns = [(max(s.repetition_penalty, MIN_DIVISOR), s.frequency_penalty, s.presence_penalty) for s in sampling]
    return np.array(columns, dtype=np.float32)


def apply_logit_bias(
    logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64], history: TokenHistory | None = None
) -> None:
    """Add each row's biases."""
    triples = [(i, token, bias) for i, row in enumerate(rows) for token, bias in row.sampling.logit_bias.items()]
    if not triples:
        return
    at, tokens, biases = zip(*triples, strict=True)
    index, added = to_device([np.array([at, tokens], dtype=np.int64), np.array(biases, np.float32)], logits.device)
    logits.index_put_((index[0], index[1]), added, accumulate=True)


class MinTokens:
    """Rules out the tokens that would end a row which has fewer than its `min_tokens`."""

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = list(eos_token_ids)

    def __call__(
        self,
        logits: Tensor,
        rows: Sequence[SamplingRow],
        positions: NDArray[np.int64],
        history: TokenHistory | None = None,
    ) -> None:
        below = np.flatnonzero(_are_below_min(rows, positions)).tolist()
        pairs = [(i, token) for i in below for token in rows[i].ends(self._eos_token_ids)]
        # Finite: were every other token impossible, the row would still have one to draw.
        _fill(logits, pairs, torch.finfo(logits.dtype).min)


def apply_bad_words(
    logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64], history: TokenHistory | None = None
) -> None:
    """Make the tokens impossible that would complete a bad word."""
    both = enumerate(zip(rows, positions.tolist(), strict=True))
    watched = [(i, row, position) for i, (row, position) in both if row.bad_words is not None]
    entries = [(i, row, *entry) for i, row, position in watched for entry in row.impossible(position)]
    _fill(logits, [(i, token) for i, _, after, token in entries if after < 0], -torch.inf)
    depending = [(i, row.slot, after, token) for i, row, after, token in entries if after >= 0]
    if not depending:
        return
    assert history is not None
    (index,) = to_device([np.array(depending, dtype=np.int64).T], logits.device)
    row, slot, after, token = index
    most = torch.where(history.last_tokens[slot] == after, -torch.inf, torch.inf)
    # The smallest, as several words may end in one token.
    logits.view(-1).scatter_reduce_(0, row * logits.shape[1] + token, most, "amin")


def apply_masks(
    logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64], history: TokenHistory | None = None
) -> None:
    """Make the tokens impossible that a row's mask leaves out."""
    masks = [(i, mask) for i, row in enumerate(rows) if (mask := row.mask()) is not None]
    if not masks:
        return
    (packed,) = to_device([~np.stack([mask for _, mask in masks])], logits.device)
    unpack = unpack_bits if logits.device.type == "cpu" else unpack_bits_on_device
    forbidden = unpack(packed, logits.shape[-1])
    if len(masks) == len(rows):
        logits.masked_fill_(forbidden, -torch.inf)
        return
    (index,) = to_device([np.array([i for i, _ in masks], dtype=np.int64)], logits.device)
    logits[index] = logits[index].masked_fill_(forbidden, -torch.inf)


def apply_closing(tokens: Tensor, logits: Tensor, rows: Sequence[SamplingRow], can_draw: Tensor) -> None:
    """Replace, in place, tokens after which a grammar's text could not end in time, or beyond a thought's budget.

    A replacement that the logits or the row's other parameters rule out is not taken, unless it is the end of a
    thought. `can_draw` (num_rows,) is False for rows that failed, whose tokens mean nothing.
    """
    both = enumerate(row.matcher for row in rows)
    followed = [(i, matcher) for i, matcher in both if matcher is not None and matcher.may_replace]
    if not followed:
        return
    drawn: list[int] = tokens.tolist()
    is_drawn: list[bool] = can_draw.tolist()
    for i, matcher in followed:
        token_id = matcher.replacement_for(drawn[i]) if is_drawn[i] else drawn[i]
        if token_id == drawn[i] or token_id >= logits.shape[-1]:
            continue
        if matcher.overrules or (logits[i, token_id] != -torch.inf and not rows[i].rules_out(token_id)):
            tokens[i] = token_id


def unpack_bits(packed: Tensor, num_bits: int) -> Tensor:
    """Unpack (num_rows, num_words) to (num_rows, num_bits), the lowest bit first.

    By numpy, which is several times as fast as torch on a CPU.
    """
    bits = np.unpackbits(packed.numpy().view(np.uint8), axis=-1, count=num_bits, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)


def unpack_bits_on_device(packed: Tensor, num_bits: int) -> Tensor:
    """Do the same by torch, where words and not bits were sent to the device."""
    bits = packed.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=packed.device) & 1
    return bits.flatten(1)[:, :num_bits].bool()


def _are_below_min(rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    return positions < np.array([row.min_position for row in rows])


def _fill(logits: Tensor, pairs: Sequence[tuple[int, int]], value: float) -> None:
    """Set the logit of each (row, token)."""
    if not pairs:
        return
    (index,) = to_device([np.array(pairs, dtype=np.int64).T], logits.device)
    logits[index[0], index[1]] = value
