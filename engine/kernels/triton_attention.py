# ruff: noqa: N803, PLR0915, PLR0917
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""Attention over the paged cache in place, in Triton.

One program serves the query heads that share a KV head, for a few queries of one sequence and a part of its keys. Keys
lie `(block, row, kv_head, dim)`, and a block table says which block has which positions. Held to the definition by
Triton's interpreter and compiled for several GPUs; not yet run on one.

The running maximum and sum are those of FlashAttention (https://arxiv.org/abs/2205.14135); a sequence's keys are split
among programs as in Flash-Decoding (https://pytorch.org/blog/flash-decoding/).
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["table_stride", "first_seq", "num_splits"])
def attend_kernel(
    query,  # (num_tokens, num_heads, key_dim)
    keys,  # (num_blocks, block_size, num_kv_heads, key_dim)
    values,
    out,  # (num_tokens, num_heads, value_dim)
    partial,  # (num_tokens, num_heads, num_splits, value_dim + 2), if IS_SPLIT
    sinks,
    query_start,
    seq_lens,
    block_tables,
    scale,
    query_token,  # strides from here on
    query_head,
    out_token,
    out_head,
    key_slot,
    key_head,
    value_slot,
    value_head,
    table_stride,
    first_seq,
    num_splits,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,  # query heads for each KV head
    ROW_HEADS: tl.constexpr,  # rows for each query: GROUP, rounded up to a power of two
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,  # for each program
    KEYS: tl.constexpr,  # for each tile
    KEY_DIM: tl.constexpr,
    KEY_DIMS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """Grid: sequences from `first_seq` on, KV heads, tiles of queries times `num_splits`.

    A split leaves its weighted values, and the maximum and the sum of its weights, in `partial`.
    """
    seq = first_seq + tl.program_id(0)
    kv_head = tl.program_id(1)
    first_query = tl.program_id(2) // num_splits * QUERIES
    split = tl.program_id(2) % num_splits
    start = tl.load(query_start + seq)
    num_queries = tl.load(query_start + seq + 1) - start
    if first_query >= num_queries:
        return
    num_before = tl.load(seq_lens + seq) - num_queries

    rows = tl.arange(0, ROWS)
    row_query = first_query + rows // ROW_HEADS
    row_head = rows % ROW_HEADS
    is_row = (row_head < GROUP) & (row_query < num_queries)
    row_head += kv_head * GROUP
    position = num_before + row_query
    row_token = (start + row_query).to(tl.int64)
    key_column = tl.arange(0, KEY_DIMS)
    value_column = tl.arange(0, VALUE_DIMS)
    own_query = tl.load(
        query + (row_token * query_token + row_head * query_head)[:, None] + key_column[None, :],
        mask=is_row[:, None] & (key_column < KEY_DIM)[None, :],
        other=0.0,
    ).to(keys.dtype.element_ty)

    end = num_before + tl.minimum(first_query + QUERIES, num_queries)
    first_tile = 0
    if WINDOW > 0:
        first_tile = tl.maximum(0, num_before + first_query + 1 - WINDOW) // KEYS
    tiles_per_split = tl.cdiv(tl.cdiv(end, KEYS) - first_tile, num_splits)
    split_start = (first_tile + split * tiles_per_split) * KEYS
    split_end = tl.minimum(end, split_start + tiles_per_split * KEYS)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        sink = tl.load(sinks + row_head, mask=is_row, other=0.0).to(tl.float32)
        top = tl.where(split == 0, sink, top)
        total = tl.where(split == 0, total + 1.0, total)
    weighted = tl.zeros([ROWS, VALUE_DIMS], tl.float32)
    for first_key in range(split_start, split_end, KEYS):
        key = first_key + tl.arange(0, KEYS)
        is_key = key < split_end
        if WINDOW > 0:  # what no query sees may have been let go, and hold anything: a weight of 0 does not silence it
            is_key = is_key & (key >= num_before + first_query + 1 - WINDOW)
        block = tl.load(block_tables + seq.to(tl.int64) * table_stride + key // BLOCK_SIZE, mask=is_key, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE
        tile_keys = tl.load(
            keys + (slot * key_slot + kv_head * key_head)[None, :] + key_column[:, None],
            mask=is_key[None, :] & (key_column < KEY_DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(own_query, tile_keys, input_precision="ieee") * scale
        if SOFTCAP > 0:
            scores = SOFTCAP * (2 * tl.sigmoid(2 * scores / SOFTCAP) - 1)  # tanh
        is_seen = is_key[None, :] & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            is_seen = is_seen & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.where(is_seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp(scores - shift[:, None])
        rescale = tl.exp(top - shift)
        tile_values = tl.load(
            values + (slot * value_slot + kv_head * value_head)[:, None] + value_column[None, :],
            mask=is_key[:, None] & (value_column < VALUE_DIM)[None, :],
            other=0.0,
        )
        weighted = weighted * rescale[:, None] + tl.dot(
            weights.to(tile_values.dtype), tile_values, input_precision="ieee"
        )
        total = total * rescale + tl.sum(weights, 1)
        top = new_top

    is_stored = is_row[:, None] & (value_column < VALUE_DIM)[None, :]
    if IS_SPLIT:
        at = ((row_token * tl.num_programs(1) * GROUP + row_head) * num_splits + split) * (VALUE_DIM + 2)
        tl.store(partial + at[:, None] + value_column[None, :], weighted, mask=is_stored)
        tl.store(partial + at + VALUE_DIM, top, mask=is_row)
        tl.store(partial + at + VALUE_DIM + 1, total, mask=is_row)
    else:
        at = row_token * out_token + row_head * out_head
        tl.store(out + at[:, None] + value_column[None, :], weighted / total[:, None], mask=is_stored)


@triton.jit(do_not_specialize=["num_splits"])
def combine_kernel(
    partial,  # (num_tokens, num_heads, num_splits, value_dim + 2)
    out,
    out_token,
    out_head,
    num_splits,
    MAX_SPLITS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
):
    """Grid: tokens, heads. Puts together what the splits of `attend_kernel` left."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.arange(0, MAX_SPLITS)
    is_split = split < num_splits
    column = tl.arange(0, VALUE_DIMS)
    at = ((token * tl.num_programs(1) + head) * num_splits + split) * (VALUE_DIM + 2)
    top = tl.load(partial + at + VALUE_DIM, mask=is_split, other=float("-inf"))
    total = tl.load(partial + at + VALUE_DIM + 1, mask=is_split, other=0.0)
    weighted = tl.load(
        partial + at[:, None] + column[None, :],
        mask=is_split[:, None] & (column < VALUE_DIM)[None, :],
        other=0.0,
    )
    share = tl.exp(top - tl.max(top, 0))
    combined = tl.sum(weighted * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(out + token * out_token + head * out_head + column, combined, mask=column < VALUE_DIM)
