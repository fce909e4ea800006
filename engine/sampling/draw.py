"""The draw of a token: temperature, truncation by top_k, top_p and min_p, and the random number.

The random number of a token is a pure function of (seed, position), so that whatever shares a row's batch never
changes its draw. It knows nothing of penalties, of grammars and of what a batch is made of: it sees logits and numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from orcinus.engine.platform.device_copy import to_device
from orcinus.engine.sampling_params import SamplingParams

# A smaller divisor would be zero in float32, or overflow a logit. It would choose no other token.
MIN_DIVISOR = 1e-30
_MAX_TOP_K = 2**24  # exact in float32, and more than any vocabulary
# Rows of a vocabulary are looked at in blocks of as many tokens.
_BLOCK = 128
# Candidates looked at before a whole row is sorted for top_p: the first nearly always suffice, and are far cheaper.
_CANDIDATES = (64, 1024)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: Sequence[int], positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a number in [0, 1) for each (seed, position): SplitMix64's finalizer as a counter-based generator.

    https://doi.org/10.1145/2714064.2660195. It has 24 bits, so that it is exact in float32.
    """
    seed = np.array([s & 0xFFFF_FFFF_FFFF_FFFF for s in seeds], dtype=np.uint64)
    counter = np.asarray(positions).astype(np.uint64)
    bits = _mix(_mix(seed + _GOLDEN) + (counter + np.uint64(1)) * _GOLDEN)
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def draw_parameters(sampling: SamplingParams) -> tuple[float, float, float, float]:
    """Return temperature, min_p, top_p and top_k within the ranges of float32: a row of what `draw` takes."""
    temperature = max(sampling.temperature, MIN_DIVISOR)
    return temperature, sampling.min_p, sampling.top_p, float(min(sampling.top_k, _MAX_TOP_K))


def draw(logits: Tensor, parameters: NDArray[np.float32], uniform: NDArray[np.float32]) -> Tensor:
    """Draw a token (num_rows,) of each row of `logits` (num_rows, vocab_size).

    `parameters` (num_rows, 4) are those of `draw_parameters`: top_p counts what top_k left, and min_p is relative to
    the likeliest token. `uniform` (num_rows,) is in [0, 1). A row that has no distribution gives some token.
    """
    temperature, min_p, numbers = to_device([parameters[:, :1], parameters[:, 1:2], uniform], logits.device)
    probs = _relative_probs(logits, temperature)
    truncated = np.flatnonzero((parameters[:, 2] < 1) | (parameters[:, 3] > 0))
    if len(truncated) == len(parameters):
        truncate_(probs, parameters[:, 3], parameters[:, 2])
    elif len(truncated):
        (index,) = to_device([truncated], logits.device)
        probs[index] = truncate_(probs[index], parameters[truncated, 3], parameters[truncated, 2])
    if (parameters[:, 1] > 0).any():
        drop_below_(probs, min_p)
    return invert_cdf(probs, numbers).clamp(max=logits.shape[1] - 1)


def _relative_probs(logits: Tensor, temperature: Tensor) -> Tensor:
    """Return probabilities relative to that of the likeliest token, with zeros behind the vocabulary up to a block."""
    num_rows, vocab_size = logits.shape
    probs = logits.new_empty(num_rows, -(-vocab_size // _BLOCK) * _BLOCK)
    probs[:, vocab_size:] = 0.0
    scaled = probs[:, :vocab_size]
    torch.sub(logits, logits.amax(dim=-1, keepdim=True), out=scaled)
    scaled.div_(temperature).exp_()
    return probs


def truncate_(probs: Tensor, top_k: NDArray[Any], top_p: NDArray[np.float32]) -> Tensor:
    """Zero all but each row's `top_k` likeliest tokens, and of these all but the fewest that reach `top_p`.

    `probs` is (num_rows, width), and `top_k` below 1 is no limit. The likeliest token is always kept, and so is every
    token as likely as the last one kept: which of several equals a sort puts first depends on what shares the batch.
    """
    width = probs.shape[1]
    limits = np.where(top_k > 0, np.minimum(top_k, width), width).astype(np.int64)
    limit, share = to_device([limits[:, np.newaxis], np.asarray(top_p)[:, np.newaxis]], probs.device)
    find = thresholds_by_candidates if probs.device.type == "cpu" else thresholds_by_bits
    return drop_below_(probs, find(probs, limit, share))


def thresholds_by_candidates(probs: Tensor, limit: Tensor, share: Tensor) -> Tensor:
    """Return the smallest probability kept (num_rows, 1), looked for among the few largest, then among more."""
    num_rows, width = probs.shape
    totals = _blocks(probs).sum(dim=-1).double().sum(dim=-1, keepdim=True)
    thresholds = probs.new_empty(num_rows, 1)
    rows = torch.arange(num_rows, device=probs.device)
    for count in (*_CANDIDATES, width):
        own = probs if len(rows) == num_rows else probs[rows]
        last, is_enough = _last_kept(_largest(own, min(count, width)), totals[rows], limit[rows], share[rows], width)
        thresholds[rows] = last
        rows = rows[~is_enough]
        if not len(rows):
            break
    return thresholds


def thresholds_by_bits(probs: Tensor, limit: Tensor, share: Tensor) -> Tensor:
    """Return the same, found bit by bit: more work, of which the host waits for none.

    Floats that are not negative are ordered as their bits are.
    """
    kth = _largest_float(lambda least: (probs >= least).sum(dim=-1, keepdim=True) >= limit, len(probs), probs.device)
    above = probs > kth
    num_ties = limit - above.sum(dim=-1, keepdim=True)
    total = _mass(probs, above) + num_ties * kth.double()
    wanted = torch.where(share < 1, share * total, torch.inf)
    return _largest_float(
        lambda least: (least <= kth) | (_mass(probs, probs >= least) >= wanted), len(probs), probs.device
    )


def _largest_float(is_small_enough: Callable[[Tensor], Tensor], num_rows: int, device: torch.device) -> Tensor:
    """Return (num_rows, 1), each the largest number below 2 that is small enough; 0 always is."""
    bits = torch.zeros(num_rows, 1, dtype=torch.int32, device=device)
    for bit in range(29, -1, -1):
        more = bits | (1 << bit)
        bits = torch.where(is_small_enough(more.view(torch.float32)), more, bits)
    return bits.view(torch.float32)


def _mass(probs: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, probs, 0.0).sum(dim=-1, keepdim=True, dtype=torch.float64)


def drop_below_(probs: Tensor, thresholds: Tensor) -> Tensor:
    """Zero what is smaller than its row's threshold (num_rows, 1).

    It goes row by row on a CPU, which is ten times as fast: torch compares with a column one number at a time.
    """
    if probs.device.type != "cpu":
        return probs.masked_fill_(probs < thresholds, 0.0)
    highest_dropped: list[float] = torch.nextafter(thresholds, torch.tensor(-torch.inf)).flatten().tolist()
    for row, highest in zip(probs, highest_dropped, strict=True):
        torch.threshold_(row, highest, 0.0)
    return probs


def _largest(probs: Tensor, count: int) -> Tensor:
    """Return the `count` largest of each row, in order: few of them lie in the `count` blocks of the largest maxima."""
    blocks = _blocks(probs)
    if 2 * count > blocks.shape[1]:
        return probs.topk(count, dim=-1).values if count < probs.shape[1] else _sorted(probs)
    best = blocks.amax(dim=-1).topk(count, dim=-1).indices
    candidates = blocks.gather(1, best.unsqueeze(-1).expand(-1, -1, _BLOCK))
    return candidates.flatten(1).topk(count, dim=-1).values


def _sorted(probs: Tensor) -> Tensor:
    """Return each row of a CPU's probabilities in descending order. By numpy, which is ten times as fast as torch."""
    return torch.from_numpy(np.sort(probs.numpy(), axis=-1)[:, ::-1].copy())


def _blocks(probs: Tensor) -> Tensor:
    """Return a view (num_rows, num_blocks, _BLOCK), zeros behind the last number."""
    padding = -probs.shape[1] % _BLOCK
    padded = pad(probs, (0, padding)) if padding else probs
    return padded.view(len(probs), -1, _BLOCK)


def _last_kept(values: Tensor, total: Tensor, limit: Tensor, top_p: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the probability (num_rows, 1) of the last token kept, and which rows (num_rows,) have it in `values`.

    `values` are the likeliest of each row, in order; they may be too few to decide.
    """
    is_allowed = torch.arange(values.shape[-1], device=values.device) < limit
    allowed = torch.where(is_allowed, values, 0.0).double()
    is_whole = limit <= values.shape[-1]
    total = torch.where(is_whole, allowed.sum(dim=-1, keepdim=True), total)
    reached = allowed.cumsum(dim=-1)
    keep = is_allowed & ((reached - allowed < top_p * total) | (top_p >= 1))
    is_enough = is_whole | ((limit == width) & ~(reached[:, -1:] < top_p * total))  # NaN, too, needs no more
    last = keep.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return values.gather(-1, last), is_enough.squeeze(1)


def invert_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return the token at which the running sum of `probs` passes `uniform` of its total, never one of probability 0.

    The sum runs in vocabulary order: sorted order would change the draw whenever two likely tokens swap places by
    rounding. The block is found first, then the token in it. A device that sums in parallel may have a running sum
    that grows or shrinks by rounding where nothing is added, so only what weighs something is looked at.
    """
    blocks = _blocks(probs)
    weights = blocks.sum(dim=-1)
    cdf = weights.cumsum(dim=-1, dtype=torch.float64)
    target = uniform.double().unsqueeze(-1) * cdf[:, -1:]
    block = first_past(cdf, weights, target)
    before = torch.where(block > 0, cdf.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK)).squeeze(1)
    token = first_past(inside.cumsum(dim=-1, dtype=torch.float64), inside, target - before)
    return (block * _BLOCK + token).squeeze(-1)


def first_past(sums: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Return the first place (num_rows, 1) with a weight at which the running sum passes the target.

    Where rounding lets none pass it is the last place with a weight, and 0 where there is no weight at all.
    """
    places = torch.arange(weights.shape[1], device=weights.device)
    has_weight = weights > 0
    passing = torch.where(has_weight & (sums > target), places, weights.shape[1]).amin(dim=-1, keepdim=True)
    last = torch.where(has_weight, places, 0).amax(dim=-1, keepdim=True)
    return torch.minimum(passing, last)
