"""From logits to tokens: a list of logits processors, then one draw per row, vectorized over the batch.

A processor that no row asked for costs nothing; an all-greedy batch is one argmax. The random number of a token is
a pure function of (seed, position), so what shares a row's batch never changes its draw. Knows nothing of the model,
the cache or how requests are scheduled; of a grammar it sees the tokens that may come next.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from orcinus.engine.grammar.masks import Matcher
from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.platform.device_copy import to_device, to_host
from orcinus.engine.sampling.row_maxima import row_maxima
from orcinus.engine.sampling_params import SamplingParams

# Rows of a vocabulary are looked at in blocks of as many tokens.
_BLOCK = 128
# Candidates looked at before a whole row is sorted for top_p: the first nearly always suffice, and are far cheaper.
_CANDIDATES = (64, 1024)
_MAX_TOP_K = 2**24  # exact in float32, and more than any vocabulary
# In float32 less would be nothing, or make of a logit what is not finite. The choice is the same as with any less.
_LEAST_DIVISOR = 1e-30


@dataclass(slots=True)
class SamplingRow:
    """What the sampler knows of one request. What follows its tokens is there only while the request asks for it."""

    sampling: SamplingParams
    seed: int
    num_prompt_tokens: int
    counts: "PenaltyCounts | None" = None
    bad_words: "BadWords | None" = None
    allowed: NDArray[np.int32] | None = None  # packed, as the mask of `matcher`
    matcher: Matcher | None = None
    # What a step asks of every row, found out once.
    is_random: bool = field(init=False)
    draws_by: tuple[float, float, float, float] = field(init=False)  # temperature, min_p, top_p, top_k
    min_position: int = field(init=False)  # before it no token may end the request

    def __post_init__(self) -> None:
        sampling = self.sampling
        self.is_random = not is_greedy(sampling)
        self.draws_by = draw_columns(sampling)
        self.min_position = self.num_prompt_tokens + sampling.min_tokens

    @property
    def is_plain(self) -> bool:
        """Whether all it asks for is the likeliest token."""
        return not self.is_random and self.sampling.logprobs is None

    @property
    def is_touched(self) -> bool:
        """Whether a processor changes its logits, other than for `min_tokens`."""
        remembers = self.counts is not None or self.bad_words is not None or self.matcher is not None
        return remembers or self.allowed is not None or bool(self.sampling.logit_bias)

    def add(self, token_id: int) -> None:
        """Take in the token that was chosen."""
        if self.counts is not None:
            self.counts.add(token_id)
        if self.bad_words is not None:
            self.bad_words.add(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow."""
        return self.matcher is not None and self.matcher.is_finished

    @property
    def is_steered(self) -> bool:
        """Whether a token was taken that had not been drawn."""
        return self.matcher is not None and self.matcher.is_steered

    def mask(self) -> NDArray[np.int32] | None:
        """A bit for each token that may come next; None if any may."""
        if self.matcher is None or self.allowed is None:
            return self.allowed if self.matcher is None else self.matcher.mask
        return self.allowed & self.matcher.mask


class PenaltyCounts:
    """The tokens that a request's penalties look at, each once, and how often the output has them.

    A few hundred of them, where a vocabulary has a hundred thousand. Kept only while a penalty is on.
    """

    __slots__ = ("_counts", "_indices", "_token_ids")

    def __init__(self, prompt_token_ids: Iterable[int], output_token_ids: Iterable[int]) -> None:
        self._indices: dict[int, int] = {token_id: i for i, token_id in enumerate(dict.fromkeys(prompt_token_ids))}
        self._token_ids = np.array([*self._indices, 0], dtype=np.int64)  # with room to grow
        self._counts = np.zeros(len(self._token_ids), dtype=np.float32)
        for token_id in output_token_ids:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Count a token of the output."""
        index = self._indices.setdefault(token_id, len(self._indices))
        if index == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._token_ids[index] = token_id
        self._counts[index] += 1

    @property
    def token_ids(self) -> NDArray[np.int64]:
        return self._token_ids[: len(self._indices)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """As many as `token_ids`; 0 for a token that only the prompt has."""
        return self._counts[: len(self._indices)]


class BadWords:
    """Token sequences that must not come up, and as much of the output as it takes to see one coming."""

    def __init__(self, words: Sequence[tuple[int, ...]], output_token_ids: Sequence[int]) -> None:
        self._words = words
        self._recent = deque(output_token_ids, maxlen=max(map(len, words)))

    def add(self, token_id: int) -> None:
        self._recent.append(token_id)

    def last_tokens(self) -> list[int]:
        """Those that would complete a word now."""
        recent = tuple(self._recent)
        return [word[-1] for word in self._words if len(word) == 1 or recent[1 - len(word) :] == word[:-1]]


@dataclass(frozen=True, slots=True)
class SampledRows:
    """One entry per row. The token means nothing where `is_finite` is False, because the model's logits were broken,
    or `has_choice` is, because every token was ruled out.
    """

    token_ids: list[int]
    is_finite: list[bool]
    has_choice: list[bool]
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)


def is_greedy(sampling: SamplingParams) -> bool:
    return sampling.is_greedy or sampling.top_k == 1


@dataclass(frozen=True, slots=True)
class ChosenTokens:
    """The tokens on the device (num_rows,), and a function that waits for them and says what is to be said of them."""

    tokens: Tensor
    wait: Callable[[], SampledRows]


def penalty_counts(sampling: SamplingParams, token_ids: Sequence[int], num_prompt_tokens: int) -> PenaltyCounts | None:
    """Counts of a request that may already have generated tokens (resumed, or back from preemption); None without need.

    Only the repetition penalty looks at the prompt.
    """
    if not sampling.has_penalties:
        return None
    prompt = token_ids[:num_prompt_tokens] if sampling.repetition_penalty != 1 else []
    return PenaltyCounts(prompt, token_ids[num_prompt_tokens:])


class Sampler:
    """Used by one thread. Rows of `logits` match `rows` and `positions` throughout."""

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = list(eos_token_ids)
        self._processors: list[Callable[[Tensor, Sequence[SamplingRow], NDArray[np.int64]], None]] = [
            apply_penalties,
            apply_logit_bias,
            self._mask_until_min_tokens,
            rule_out_bad_words,
            apply_masks,
        ]

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], positions: Sequence[int] | NDArray[np.int64]
    ) -> SampledRows:
        """One token for each row of `logits` (num_rows, vocab_size), whose memory it may overwrite.

        `positions` are those of the new tokens: the number of tokens the request has.
        """
        return self.choose(logits, rows, positions).wait()

    def choose(
        self, logits: Tensor, rows: Sequence[SamplingRow], positions: Sequence[int] | NDArray[np.int64]
    ) -> ChosenTokens:
        """`sample`, without waiting for the device unless a row has a grammar."""
        positions = np.asarray(positions, dtype=np.int64)
        is_touched = _is_touched(rows, positions)
        if not is_touched and all(row.is_plain for row in rows):
            best, tokens = _maxima(logits)
            finite = torch.isfinite(best)
            return _chosen(tokens, finite, torch.ones_like(finite), list)
        logits = logits.float()
        finite = torch.isfinite(logits.amax(dim=-1))
        has_choice = torch.ones_like(finite)
        logprobs = self._raw_log_softmax(logits, rows)
        if is_touched:
            for process in self._processors:
                process(logits, rows, positions)
            has_choice = logits.amax(dim=-1) != -torch.inf
        tokens = _choose(logits, rows, positions)
        lead_to_ends(tokens, logits, rows, finite & has_choice)
        return _chosen(tokens, finite, has_choice, _chosen_logprobs(logprobs, rows, tokens))

    @staticmethod
    def _raw_log_softmax(logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], Tensor]:
        """Before any processor: log-probabilities are those of the model's own distribution."""
        wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None]
        if not wanted:
            return wanted, logits[:0]
        (index,) = to_device([np.array(wanted, dtype=np.int64)], logits.device)
        return wanted, torch.log_softmax(logits[index], dim=-1)

    def _mask_until_min_tokens(self, logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> None:
        """Rows below `min_tokens` cannot sample a token that would end them: one scatter for the batch."""
        below = np.flatnonzero(_is_below_min(rows, positions)).tolist()
        pairs = [(i, token) for i in below for token in self._stops(rows[i].sampling)]
        # Finite: were every other token impossible, the row would still have one to draw.
        _fill(logits, pairs, torch.finfo(logits.dtype).min)

    def _stops(self, sampling: SamplingParams) -> list[int]:
        return [*sampling.stop_token_ids, *([] if sampling.ignore_eos else self._eos_token_ids)]


def _choose(logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> Tensor:
    """The likeliest token of greedy rows, and a drawn one of the others; some token where none can be drawn."""
    random_rows = [i for i, row in enumerate(rows) if row.is_random]
    if not random_rows:
        return likeliest(logits)
    drawn = [rows[i] for i in random_rows]
    uniform = uniforms([row.seed for row in drawn], positions[random_rows])
    columns = np.array([row.draws_by for row in drawn], dtype=np.float32)
    if len(drawn) == len(rows):
        return draw(logits, columns, uniform)
    tokens = likeliest(logits)
    (at,) = to_device([np.array(random_rows, dtype=np.int64)], logits.device)
    tokens[at] = draw(logits[at], columns, uniform)
    return tokens


def _chosen(
    tokens: Tensor, finite: Tensor, has_choice: Tensor, logprobs: Callable[[], list[TokenLogprobs | None]]
) -> ChosenTokens:
    """To the host in one piece."""
    copied = to_host(torch.stack([tokens, finite, has_choice]))

    def wait() -> SampledRows:
        ((token_ids, is_finite, can_choose),) = copied()
        return SampledRows(token_ids, [*map(bool, is_finite)], [*map(bool, can_choose)], logprobs())

    return ChosenTokens(tokens, wait)


def _maxima(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the largest value and its place. NaN is larger than all."""
    if logits.dtype is torch.float32:
        return logits.amax(dim=-1), likeliest(logits)
    return row_maxima(logits)


def likeliest(logits: Tensor) -> Tensor:
    """The first of the likeliest tokens of each row. On a CPU by numpy: several times as fast as torch."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def _fill(logits: Tensor, pairs: Sequence[tuple[int, int]], value: float) -> None:
    """Set the logit of each (row, token)."""
    if not pairs:
        return
    (index,) = to_device([np.array(pairs, dtype=np.int64).T], logits.device)
    logits[index[0], index[1]] = value


def _is_touched(rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> bool:
    """Whether any processor changes any row."""
    return any(row.is_touched for row in rows) or bool(_is_below_min(rows, positions).any())


def _is_below_min(rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    return positions < np.array([row.min_position for row in rows])


def apply_penalties(logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> None:
    """Repetition (CTRL: over prompt and output), then frequency and presence (OpenAI: over the output)."""
    counted = [(i, row.counts, row.sampling) for i, row in enumerate(rows) if row.counts is not None]
    if not counted:
        return
    sizes = [len(counts.token_ids) for _, counts, _ in counted]
    at = np.repeat([i for i, _, _ in counted], sizes)
    tokens = np.concatenate([counts.token_ids for _, counts, _ in counted])
    penalties = [
        (max(s.repetition_penalty, _LEAST_DIVISOR), s.frequency_penalty, s.presence_penalty) for _, _, s in counted
    ]
    columns = np.repeat(np.array(penalties, dtype=np.float32), sizes, axis=0).T
    in_output = np.concatenate([counts.counts for _, counts, _ in counted])
    index, numbers, output = to_device(
        [np.stack([at, tokens]), np.ascontiguousarray(columns), in_output], logits.device
    )
    repetition, frequency, presence = numbers
    chosen = logits[index[0], index[1]]
    repeated = torch.where(chosen > 0, chosen / repetition, chosen * repetition)
    logits[index[0], index[1]] = repeated - frequency * output - presence * (output > 0)


def apply_logit_bias(logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> None:
    """Add each row's biases: one scatter for the batch."""
    triples = [(i, token, bias) for i, row in enumerate(rows) for token, bias in row.sampling.logit_bias.items()]
    if not triples:
        return
    at, tokens, biases = zip(*triples, strict=True)
    index, added = to_device([np.array([at, tokens], dtype=np.int64), np.array(biases, np.float32)], logits.device)
    logits.index_put_((index[0], index[1]), added, accumulate=True)


def rule_out_bad_words(logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> None:
    """Make impossible what would complete a bad word: one scatter for the batch."""
    watched = [(i, row.bad_words) for i, row in enumerate(rows) if row.bad_words is not None]
    _fill(logits, [(i, token) for i, bad_words in watched for token in bad_words.last_tokens()], -torch.inf)


def apply_masks(logits: Tensor, rows: Sequence[SamplingRow], positions: NDArray[np.int64]) -> None:
    """Leave each row the tokens of its mask: one operation for the batch."""
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


def lead_to_ends(tokens: Tensor, logits: Tensor, rows: Sequence[SamplingRow], can_draw: Tensor) -> None:
    """Replace, in place, tokens after which a text could not end in time, unless another parameter rules that out."""
    followed = [(i, row.matcher) for i, row in enumerate(rows) if row.matcher is not None]
    if not followed:
        return
    drawn: list[int] = tokens.tolist()
    is_drawn: list[bool] = can_draw.tolist()
    for i, matcher in followed:
        chosen = matcher.choose(drawn[i]) if is_drawn[i] else drawn[i]
        if chosen != drawn[i] and chosen < logits.shape[-1] and logits[i, chosen] != -torch.inf:
            tokens[i] = chosen


def unpack_bits(packed: Tensor, num_bits: int) -> Tensor:
    """(num_rows, num_words) to (num_rows, num_bits), the lowest bit first. By numpy: several times as fast as torch."""
    bits = np.unpackbits(packed.numpy().view(np.uint8), axis=-1, count=num_bits, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)


def unpack_bits_on_device(packed: Tensor, num_bits: int) -> Tensor:
    """The same by torch: a device is sent words, not bits."""
    bits = packed.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=packed.device) & 1
    return bits.flatten(1)[:, :num_bits].bool()


def draw_columns(sampling: SamplingParams) -> tuple[float, float, float, float]:
    """Temperature, min_p, top_p and top_k, as `draw` wants them."""
    temperature = max(sampling.temperature, _LEAST_DIVISOR)
    return temperature, sampling.min_p, sampling.top_p, float(min(sampling.top_k, _MAX_TOP_K))


def draw(logits: Tensor, columns: NDArray[np.float32], uniform: NDArray[np.float32]) -> Tensor:
    """Sample each row of (num_rows, vocab_size) by its `draw_columns`: within its top_k, top_p and min_p.

    top_p counts what top_k left, and min_p is relative to the most likely token. `uniform` is in [0, 1). A row that has
    no distribution gives some token.
    """
    parameters, numbers = to_device([columns, uniform], logits.device)
    probs = _relative_probs(logits, parameters[:, :1])
    truncated = np.flatnonzero((columns[:, 2] < 1) | (columns[:, 3] > 0))
    if len(truncated) == len(columns):
        truncate_(probs, columns[:, 3], columns[:, 2])
    elif len(truncated):
        (index,) = to_device([truncated], logits.device)
        probs[index] = truncate_(probs[index], columns[truncated, 3], columns[truncated, 2])
    if (columns[:, 1] > 0).any():
        drop_below_(probs, parameters[:, 1:2])
    return invert_cdf(probs, numbers).clamp(max=logits.shape[1] - 1)


def _relative_probs(logits: Tensor, temperature: Tensor) -> Tensor:
    """Relative to the most likely token, which has 1; zeros behind the vocabulary fill the last block."""
    num_rows, vocab_size = logits.shape
    probs = logits.new_empty(num_rows, -(-vocab_size // _BLOCK) * _BLOCK)
    probs[:, vocab_size:] = 0.0
    scaled = probs[:, :vocab_size]
    torch.sub(logits, logits.amax(dim=-1, keepdim=True), out=scaled)
    scaled.div_(temperature).exp_()
    return probs


def truncate_(probs: Tensor, top_k: NDArray[Any], top_p: NDArray[np.float32]) -> Tensor:
    """Zero all but each row's `top_k` likeliest tokens, and of these all but the fewest that reach `top_p`.

    `top_k` below 1 is no limit. Always keeps the likeliest token, and every token as likely as the last one kept:
    which of several equals a sort puts first depends on what shares the batch.
    """
    width = probs.shape[1]
    limits = np.where(top_k > 0, np.minimum(top_k, width), width).astype(np.int64)
    limit, share = to_device([limits[:, np.newaxis], np.asarray(top_p)[:, np.newaxis]], probs.device)
    find = thresholds_by_candidates if probs.device.type == "cpu" else thresholds_by_bits
    return drop_below_(probs, find(probs, limit, share))


def thresholds_by_candidates(probs: Tensor, limit: Tensor, share: Tensor) -> Tensor:
    """The smallest probability kept, (num_rows, 1), found among the largest of each row, mostly a few of them."""
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
    """The same bit by bit, as numbers that are not negative are ordered: more work, and the host waits for none."""
    kth = _largest_float(lambda least: (probs >= least).sum(dim=-1, keepdim=True) >= limit, len(probs), probs.device)
    above = probs > kth
    num_ties = limit - above.sum(dim=-1, keepdim=True)
    total = _mass(probs, above) + num_ties * kth.double()
    wanted = torch.where(share < 1, share * total, torch.inf)
    return _largest_float(
        lambda least: (least <= kth) | (_mass(probs, probs >= least) >= wanted), len(probs), probs.device
    )


def _largest_float(is_small_enough: Callable[[Tensor], Tensor], num_rows: int, device: torch.device) -> Tensor:
    """(num_rows, 1), each the largest number below 2 for which that holds; it holds for 0."""
    bits = torch.zeros(num_rows, 1, dtype=torch.int32, device=device)
    for bit in range(29, -1, -1):
        more = bits | (1 << bit)
        bits = torch.where(is_small_enough(more.view(torch.float32)), more, bits)
    return bits.view(torch.float32)


def _mass(probs: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, probs, 0.0).sum(dim=-1, keepdim=True, dtype=torch.float64)


def drop_below_(probs: Tensor, thresholds: Tensor) -> Tensor:
    """Zero what is smaller than its row's threshold (num_rows, 1).

    On a CPU row by row, which is ten times as fast: there comparisons with a column are made one by one.
    """
    if probs.device.type != "cpu":
        return probs.masked_fill_(probs < thresholds, 0.0)
    highest_dropped: list[float] = torch.nextafter(thresholds, torch.tensor(-torch.inf)).flatten().tolist()
    for row, highest in zip(probs, highest_dropped, strict=True):
        torch.threshold_(row, highest, 0.0)
    return probs


def _largest(probs: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, in order. Few of many are in as many blocks, those with the largest maxima."""
    blocks = _blocks(probs)
    if 2 * count > blocks.shape[1]:
        return (
            probs.topk(count, dim=-1).values if count < probs.shape[1] else probs.sort(dim=-1, descending=True).values
        )
    best = blocks.amax(dim=-1).topk(count, dim=-1).indices
    candidates = blocks.gather(1, best.unsqueeze(-1).expand(-1, -1, _BLOCK))
    return candidates.flatten(1).topk(count, dim=-1).values


def _blocks(probs: Tensor) -> Tensor:
    """(num_rows, num_blocks, tokens of a block)"""
    padding = -probs.shape[1] % _BLOCK
    padded = pad(probs, (0, padding)) if padding else probs
    return padded.view(len(probs), -1, _BLOCK)


def _last_kept(values: Tensor, total: Tensor, limit: Tensor, top_p: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The probability (num_rows, 1) of the last token kept, found in `values`, the likeliest ones in order.

    Also says of which rows (num_rows,) they were enough to decide.
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
    """The token at which the running sum of `probs` passes `uniform` of its total; never one of probability 0.

    In vocabulary order: sorted order would change the draw whenever two likely tokens swap places by rounding. First
    the block, then the token in it.
    """
    blocks = _blocks(probs)
    cdf = blocks.sum(dim=-1).cumsum(dim=-1)
    target = _below(uniform.to(cdf.dtype).unsqueeze(-1) * cdf[:, -1:], cdf)
    block = torch.searchsorted(cdf, target, right=True).clamp(max=cdf.shape[1] - 1)  # beyond it only of NaN
    before = torch.where(block > 0, cdf.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK)).squeeze(1).cumsum(dim=-1)
    token = torch.searchsorted(inside, _below(target - before, inside), right=True)
    return (block * _BLOCK + token).squeeze(-1)


def _below(target: Tensor, cdf: Tensor) -> Tensor:
    """Never as much as the whole, by rounding."""
    total = cdf[:, -1:]
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))


_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: Sequence[int], positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
    """A number in [0, 1) for each (seed, position): SplitMix64's finalizer as a counter-based generator.

    https://doi.org/10.1145/2714064.2660195. 24 bits, so that the number is exact in float32.
    """
    seed = np.array([s & 0xFFFF_FFFF_FFFF_FFFF for s in seeds], dtype=np.uint64)
    counter = np.asarray(positions).astype(np.uint64)
    bits = _mix(_mix(seed + _GOLDEN) + (counter + np.uint64(1)) * _GOLDEN)
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _chosen_logprobs(
    logprobs: tuple[list[int], Tensor], rows: Sequence[SamplingRow], tokens: Tensor
) -> Callable[[], list[TokenLogprobs | None]]:
    wanted, table = logprobs
    if not wanted:
        return list
    counts = [rows[i].sampling.logprobs or 0 for i in wanted]
    (index,) = to_device([np.array(wanted, dtype=np.int64)], tokens.device)
    copied = token_logprobs(table, tokens[index], counts)

    def wait() -> list[TokenLogprobs | None]:
        entries: list[TokenLogprobs | None] = [None] * len(rows)
        for i, entry in zip(wanted, copied(), strict=True):
            entries[i] = entry
        return entries

    return wait


def token_logprobs(logprobs: Tensor, tokens: Tensor, num_top: Sequence[int]) -> Callable[[], list[TokenLogprobs]]:
    """For each row of (num_rows, vocab_size) log-probabilities, its token's and the `num_top` best.

    What is returned waits for them to come from the device.
    """
    width = min(max(num_top), logprobs.shape[-1])
    values, indices = logprobs.topk(width, dim=-1)
    copied = to_host(tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), indices, values)

    def wait() -> list[TokenLogprobs]:
        if width and logprobs.device.type == "cpu":
            lowest_first_(indices.numpy(), logprobs.numpy(), values[:, -1].numpy())
        return [
            TokenLogprobs(token_id=token, logprob=logprob, top=list(zip(ids[:n], vals[:n], strict=True)))
            for token, logprob, ids, vals, n in zip(*copied(), num_top, strict=True)
        ]

    return wait


def lowest_first_(best: NDArray[np.int64], logprobs: NDArray[np.float32], least: NDArray[np.float32]) -> None:
    """Of equally likely tokens let those with the lowest ids be among the (num_rows, count) best, and come first.

    `topk` leaves open which, and then it depends on the shape of the batch. On a GPU it is left at that: to look for
    them would be to wait for it.
    """
    for ids, row, threshold in zip(best, logprobs, least, strict=True):
        candidates = np.flatnonzero(row >= threshold)
        order = np.argsort(-row[candidates], kind="stable")[: len(ids)]
        ids[: len(order)] = candidates[order]  # of a row with NaN there may be fewer
