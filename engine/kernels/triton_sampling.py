# ruff: noqa: N803, PLR0124, PLR0917, SIM108
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""Sampling in Triton: what changes logits, the likeliest token or a draw, log-probabilities. One program for each row.

It chooses as `csrc/sampler.cpp` does: nothing is sorted, what top_k and top_p keep is decided by its smallest logit,
and a draw takes the first token, in the order of the vocabulary, at which the running sum of what is kept passes the
row's random number. Sums are float32 in each lane of a tile and among lanes, and float64 from tile to tile of a draw.
Held to the definition by Triton's interpreter and compiled for several GPUs; not yet run on one.
"""

import triton
import triton.language as tl

PROMPT_FLAG = tl.constexpr(1 << 30)
# Weights of logits that lie so many temperatures below the largest are 0 in float32.
NO_WEIGHT = tl.constexpr(104.0)
LOWEST = tl.constexpr(-3.402823466e38)


@triton.jit
def ordered(x):
    """Return integers that are ordered as the floats are."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def unordered(key):
    """Return the floats of which these are the integers."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def tile_of(values, first, vocab_size, TILE: tl.constexpr):
    """Return logits in float32, -inf behind the vocabulary."""
    column = first + tl.arange(0, TILE)
    return tl.load(values + column, mask=column < vocab_size, other=float("-inf")).to(tl.float32)


@triton.jit
def find_likeliest(values, vocab_size, TILE: tl.constexpr):
    """Return the largest logit, the first place that has it, and whether none is NaN."""
    lane = tl.arange(0, TILE)
    best = tl.full([TILE], float("-inf"), tl.float32)
    place = lane
    num_nan = tl.zeros([TILE], tl.int32)
    for first in range(0, vocab_size, TILE):
        x = tile_of(values, first, vocab_size, TILE)
        place = tl.where(x > best, first + lane, place)
        best = tl.maximum(best, x)
        num_nan += (x != x).to(tl.int32)
    top = tl.max(best, 0)
    return top, tl.min(tl.where(best == top, place, vocab_size - 1), 0), tl.max(num_nan, 0) == 0


@triton.jit
def weigh(
    values,
    vocab_size,
    pivots,
    low,
    high,
    top,
    inverse,
    BY_COUNT: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Return what logits from each of the pivots on weigh, the smallest from `low` on, and the largest up to `high`.

    They weigh 1, or their probability relative to that of the likeliest token.
    """
    total = tl.zeros([PIVOTS, TILE], tl.float32)
    smallest = tl.full([TILE], float("inf"), tl.float32)
    largest = tl.full([TILE], float("-inf"), tl.float32)
    for first in range(0, vocab_size, TILE):
        x = tile_of(values, first, vocab_size, TILE)
        if BY_COUNT:
            weight = tl.full([TILE], 1.0, tl.float32)
        else:
            weight = tl.exp((x - top) * inverse)
        total += tl.where(x[None, :] >= pivots[:, None], weight[None, :], 0.0)
        smallest = tl.minimum(smallest, tl.where(x >= low, x, float("inf")))
        largest = tl.maximum(largest, tl.where(x <= high, x, float("-inf")))
    return tl.sum(total, 1), tl.min(smallest, 0), tl.max(largest, 0)


@triton.jit
def threshold_of(
    values, vocab_size, wanted, lowest, top, inverse, BY_COUNT: tl.constexpr, TILE: tl.constexpr, PIVOTS: tl.constexpr
):
    """Return the largest logit so that it and all that are larger weigh `wanted` or more; `lowest` if there is none.

    Each pass over the row divides what is left by one more than there are pivots, and goes on between the smallest and
    the largest logit that are in it: it ends when these are one.
    """
    number = tl.arange(0, PIVOTS)
    low, high = ordered(lowest), ordered(top)
    while low < high:
        step = (high - low + PIVOTS) // (PIVOTS + 1)
        at = tl.minimum(low + step * (number + 1), high)
        weights, smallest, largest = weigh(
            values, vocab_size, unordered(at), unordered(low), unordered(high), top, inverse, BY_COUNT, TILE, PIVOTS
        )
        is_enough = weights >= wanted
        new_low = tl.max(tl.where(is_enough, at, low), 0)
        new_high = tl.min(tl.where(is_enough, high, at - 1), 0)
        low = tl.maximum(new_low, ordered(smallest))
        high = tl.minimum(new_high, ordered(largest))
    return unordered(tl.minimum(low, high))


@triton.jit
def total_of_top_k(values, vocab_size, kth, top_k, top, inverse, TILE: tl.constexpr, PIVOTS: tl.constexpr):
    """Return what the `top_k` likeliest tokens weigh, of which the last one's logit is given: it may have equals."""
    pivots = unordered(ordered(kth) + 1 + tl.zeros([PIVOTS], tl.int64))
    counts, _, _ = weigh(values, vocab_size, pivots, kth, kth, top, inverse, True, TILE, PIVOTS)
    masses, _, _ = weigh(values, vocab_size, pivots, kth, kth, top, inverse, False, TILE, PIVOTS)
    return tl.max(masses, 0) + (top_k - tl.max(counts, 0)) * tl.exp((kth - top) * inverse)


@triton.jit
def kept_weights(values, first, vocab_size, threshold, min_p, top, inverse, TILE: tl.constexpr):
    """Return probabilities relative to that of the likeliest token, 0 for what is not kept."""
    x = tile_of(values, first, vocab_size, TILE)
    weight = tl.exp((x - top) * inverse)
    return tl.where((x >= threshold) & (weight >= min_p), weight, 0.0)


@triton.jit
def place_past(sums, weights, target, SIZE: tl.constexpr):
    """Return the first place with a weight at which the running sum passes the target, or the last with a weight."""
    place = tl.arange(0, SIZE)
    passing = tl.min(tl.where((weights > 0) & (sums > target), place, SIZE), 0)
    return tl.minimum(passing, tl.max(tl.where(weights > 0, place, 0), 0))


@triton.jit
def draw(values, vocab_size, threshold, min_p, uniform, top, inverse, TILE: tl.constexpr, TILES: tl.constexpr):
    """Return the token at which the running sum of what is kept passes `uniform` of its total."""
    number = tl.arange(0, TILES)
    weights = tl.zeros([TILES], tl.float32)
    for first in range(0, vocab_size, TILE):
        kept = kept_weights(values, first, vocab_size, threshold, min_p, top, inverse, TILE)
        weights = tl.where(number == first // TILE, tl.sum(kept, 0), weights)
    sums = tl.cumsum(weights.to(tl.float64), 0)
    target = uniform.to(tl.float64) * tl.max(sums, 0)
    tile = place_past(sums, weights, target, TILES)
    before = tl.sum(tl.where(number == tile - 1, sums, 0.0), 0)
    kept = kept_weights(values, tile * TILE, vocab_size, threshold, min_p, top, inverse, TILE)
    return tile * TILE + place_past(tl.cumsum(kept.to(tl.float64), 0), kept, target - before, TILE)


@triton.jit
def smallest_kept(values, vocab_size, top_p, top_k, top, inverse, TILE: tl.constexpr, PIVOTS: tl.constexpr):
    """Return the smallest logit that top_k and top_p keep and that weighs anything; top_p counts what top_k left."""
    lowest = top - float("inf")
    floor = top - NO_WEIGHT / inverse
    kth = lowest
    if (top_k > 0) & (top_k < vocab_size):
        kth = threshold_of(values, vocab_size, top_k, lowest, top, inverse, True, TILE, PIVOTS)
    threshold = tl.maximum(kth, floor)
    if top_p < 1:
        if kth >= floor:
            total = total_of_top_k(values, vocab_size, kth, top_k, top, inverse, TILE, PIVOTS)
        else:
            pivots = floor + tl.zeros([PIVOTS], tl.float32)
            masses, _, _ = weigh(values, vocab_size, pivots, top, top, top, inverse, False, TILE, PIVOTS)
            total = tl.max(masses, 0)
        threshold = threshold_of(values, vocab_size, top_p * total, threshold, top, inverse, False, TILE, PIVOTS)
    return threshold


@triton.jit
def choose_kernel(
    logits,  # (num_rows, vocab_size), of any dtype
    parameters,  # (num_rows, 4): temperature (0: the likeliest token), min_p, top_p, top_k (below 1: no limit)
    uniforms,  # (num_rows,) in [0, 1)
    chosen,  # (3, num_rows): the token, whether logits are finite, whether there is a choice
    row_stride,
    vocab_size,
    IS_CHANGED: tl.constexpr,  # then `change_kernel` has said whether logits are finite
    TILE: tl.constexpr,
    TILES: tl.constexpr,  # at least as many as a row has
    PIVOTS: tl.constexpr,
):
    """Grid: rows. Choose a token of each."""
    row = tl.program_id(0)
    values = logits + row.to(tl.int64) * row_stride
    temperature = tl.load(parameters + row * 4)
    min_p = tl.minimum(tl.load(parameters + row * 4 + 1), 1.0)
    top_p = tl.load(parameters + row * 4 + 2)
    top_k = tl.load(parameters + row * 4 + 3)
    top, token, has_no_nan = find_likeliest(values, vocab_size, TILE)
    is_finite = has_no_nan & (top > float("-inf")) & (top < float("inf"))
    if (temperature > 0) & is_finite:
        inverse = tl.div_rn(1.0, temperature)
        threshold = smallest_kept(values, vocab_size, top_p, top_k, top, inverse, TILE, PIVOTS)
        uniform = tl.load(uniforms + row)
        token = draw(values, vocab_size, threshold, min_p, uniform, top, inverse, TILE, TILES)
    num_rows = tl.num_programs(0)
    tl.store(chosen + row, token.to(tl.int64))
    if IS_CHANGED:
        tl.store(chosen + 2 * num_rows + row, (top != float("-inf")).to(tl.int64))
    else:
        tl.store(chosen + num_rows + row, is_finite.to(tl.int64))
        tl.store(chosen + 2 * num_rows + row, tl.full([], 1, tl.int64))


@triton.jit
def bits_of(masks, mask, num_masked, tokens):
    """Return whether a row's mask, which is of so many tokens or of none, allows these."""
    words = tl.load(masks + mask + (tokens >> 5), mask=(tokens >= 0) & (tokens < num_masked), other=-1)
    return ((words >> (tokens & 31)) & 1) != 0


@triton.jit
def penalized(x, seen, repetition, frequency, presence):
    """Repetition penalty (CTRL, https://arxiv.org/abs/1909.05858), then frequency and presence penalty (OpenAI)."""
    count = (seen & (PROMPT_FLAG - 1)).to(tl.float32)
    repeated = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    return tl.where(seen != 0, repeated, x) - frequency * count - tl.where(count > 0, presence, 0.0)


@triton.jit
def add_biases(values, tokens, biases, start, end, vocab_size, LIST: tl.constexpr):
    for first in range(start, end, LIST):
        at = first + tl.arange(0, LIST)
        token = tl.load(tokens + at, mask=at < end, other=-1)
        is_token = (token >= 0) & (token < vocab_size)
        bias = tl.load(biases + at, mask=is_token, other=0.0)
        tl.store(values + token, tl.load(values + token, mask=is_token, other=0.0) + bias, mask=is_token)


@triton.jit
def put_off_ends(values, tokens, start, end, masks, mask, num_masked, vocab_size, LIST: tl.constexpr):
    """Leave ends a finite logit: were every other token impossible, the row would still have one to draw."""
    for first in range(start, end, LIST):
        at = first + tl.arange(0, LIST)
        token = tl.load(tokens + at, mask=at < end, other=-1)
        is_token = (token >= 0) & (token < vocab_size) & bits_of(masks, mask, num_masked, token)
        tl.store(values + token, tl.full([LIST], LOWEST, tl.float32), mask=is_token)


@triton.jit
def rule_out(values, tokens, after, last_token, start, end, vocab_size, LIST: tl.constexpr):
    for first in range(start, end, LIST):
        at = first + tl.arange(0, LIST)
        token = tl.load(tokens + at, mask=at < end, other=-1)
        needed = tl.load(after + at, mask=at < end, other=-1)
        is_ruled_out = (token >= 0) & (token < vocab_size) & ((needed < 0) | (needed == last_token))
        tl.store(values + token, tl.full([LIST], float("-inf"), tl.float32), mask=is_ruled_out)


@triton.jit
def change_kernel(
    logits,  # (num_rows, vocab_size), of any dtype
    values,  # (num_rows, vocab_size) in float32: where the changed logits go
    chosen,  # (3, num_rows): whether logits are finite goes to the second row
    seen,  # (num_slots, vocab_size): how often the output has a token, and PROMPT_FLAG if the prompt has it
    last_tokens,  # (num_slots,)
    rows,  # (num_rows, 6): slot, whether it has penalties, first word of its mask or -1, ends of its three lists
    penalties,  # (num_rows, 3): repetition, frequency, presence
    masks,  # packed, a bit for each token
    tokens,  # of the lists, row by row: biased ones, ends that may not come yet, impossible ones
    biases,  # of all entries of the lists
    after,  # of all entries: the token after which it is impossible, or -1
    row_stride,
    vocab_size,
    TILE: tl.constexpr,
    LIST: tl.constexpr,
):
    """Grid: rows. Copy logits in float32, changed as the processors of `engine.sampling.processors` do."""
    row = tl.program_id(0)
    own, source = values + row.to(tl.int64) * vocab_size, logits + row.to(tl.int64) * row_stride
    slot = tl.load(rows + row * 6).to(tl.int64)
    num_counted = tl.load(rows + row * 6 + 1) * vocab_size  # all or none
    mask = tl.load(rows + row * 6 + 2).to(tl.int64)
    num_masked = tl.where(mask >= 0, vocab_size, 0)
    repetition = tl.load(penalties + row * 3)
    frequency = tl.load(penalties + row * 3 + 1)
    presence = tl.load(penalties + row * 3 + 2)
    is_broken = tl.zeros([TILE], tl.int32)
    best = tl.full([TILE], float("-inf"), tl.float32)
    for first in range(0, vocab_size, TILE):
        column = first + tl.arange(0, TILE)
        is_token = column < vocab_size
        x = tile_of(source, first, vocab_size, TILE)
        is_broken |= ((x != x) | (x == float("inf"))).to(tl.int32)
        best = tl.maximum(best, x)
        counts = tl.load(seen + slot * vocab_size + column, mask=column < num_counted, other=0)
        x = penalized(x, counts, repetition, frequency, presence)
        x = tl.where(bits_of(masks, mask, num_masked, column), x, float("-inf"))
        tl.store(own + column, x, mask=is_token)
    is_finite = (tl.max(is_broken, 0) == 0) & (tl.max(best, 0) > float("-inf"))
    tl.store(chosen + tl.num_programs(0) + row, is_finite.to(tl.int64))
    tl.debug_barrier()  # what follows writes where other threads have written
    first_biased = tl.load(rows + row * 6 - 1, mask=row > 0, other=0)  # the end of the lists of the row before
    first_end = tl.load(rows + row * 6 + 3)
    add_biases(own, tokens, biases, first_biased, first_end, vocab_size, LIST)
    tl.debug_barrier()
    first_impossible = tl.load(rows + row * 6 + 4)
    put_off_ends(own, tokens, first_end, first_impossible, masks, mask, num_masked, vocab_size, LIST)
    tl.debug_barrier()
    last_token = tl.load(last_tokens + slot)
    rule_out(own, tokens, after, last_token, first_impossible, tl.load(rows + row * 6 + 5), vocab_size, LIST)


@triton.jit
def logprobs_kernel(
    logits,  # (at least so many rows, vocab_size), of any dtype
    rows,  # (num_rows,): which rows
    tokens,  # (num_rows,)
    logprobs,  # (num_rows,)
    top_logprobs,  # (num_rows, num_top): the likeliest, larger ones before equals, each in the order of the vocabulary
    top_ids,
    row_stride,
    vocab_size,
    num_top,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Grid: rows. The logarithm of a token's probability is its logit less that of the sum of all exponentials."""
    number = tl.program_id(0)
    values = logits + tl.load(rows + number).to(tl.int64) * row_stride
    top, _likeliest, has_no_nan = find_likeliest(values, vocab_size, TILE)
    is_finite = has_no_nan & (top > float("-inf")) & (top < float("inf"))
    total = tl.zeros([TILE], tl.float32)
    for first in range(0, vocab_size, TILE):
        total += tl.exp(tile_of(values, first, vocab_size, TILE) - top)
    normalizer = top.to(tl.float64) + tl.log(tl.sum(total, 0).to(tl.float64))
    normalizer = tl.where(is_finite, normalizer, float("nan"))
    token = tl.load(tokens + number)
    own = tl.load(values + token).to(tl.float64)
    tl.store(logprobs + number, (own - normalizer).to(tl.float32))
    if (num_top > 0) & is_finite:
        wanted = num_top.to(tl.float32)
        last = threshold_of(values, vocab_size, wanted, top - float("inf"), top, 1.0, True, TILE, PIVOTS)
        pivots = unordered(ordered(last) + 1 + tl.zeros([PIVOTS], tl.int64))
        counts, _, _ = weigh(values, vocab_size, pivots, last, last, top, 1.0, True, TILE, PIVOTS)
        num_larger, num_equal = 0, tl.max(counts, 0).to(tl.int32)
        for first in range(0, vocab_size, TILE):
            column = first + tl.arange(0, TILE)
            x = tile_of(values, first, vocab_size, TILE)
            is_larger = (x > last).to(tl.int32)
            is_equal = ((x == last) & (column < vocab_size)).to(tl.int32)
            place = tl.where(
                is_larger != 0, num_larger + tl.cumsum(is_larger, 0) - 1, num_equal + tl.cumsum(is_equal, 0) - 1
            )
            is_kept = (is_larger + is_equal > 0) & (place < num_top)
            at = number.to(tl.int64) * num_top + place
            tl.store(top_ids + at, column.to(tl.int64), mask=is_kept)
            tl.store(top_logprobs + at, (x.to(tl.float64) - normalizer).to(tl.float32), mask=is_kept)
            num_larger += tl.sum(is_larger, 0)
            num_equal += tl.sum(is_equal, 0)
