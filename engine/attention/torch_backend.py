"""The attention backend of every device: it gathers each sequence's blocks and attends with torch's own operations."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.engine.attention.cache import allocate_zeros, scrub_blocks
from orcinus.engine.attention.dense import attend_dense, causal_mask, heads_first, scaled_dot_product
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape

# Rows of a decode batch are gathered together while the longest needs at most this many times the blocks of the
# shortest: padding stays below half of the work, and a batch falls into few groups.
_MAX_PADDING_RATIO = 2


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Names sequences of similar length that decode together, in any order."""

    rows: Tensor  # (n,) int64, into the step's sequences
    blocks: Tensor  # (n * num_blocks,) int64
    mask: Tensor  # (n, 1, 1, num_blocks * block_size)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Locates one sequence with several queries."""

    start: int
    end: int
    blocks: Tensor  # (num_blocks,) int64
    num_keys: int  # within the gathered blocks
    mask: Tensor  # (queries, num_keys)


@dataclass(frozen=True, slots=True)
class _GatherPlan:
    decodes: list[DecodeGroup]
    chunks: list[_Chunk]


class TorchBackend:
    """Gathers each sequence's blocks, then attends with torch's own operations. Runs on every device.

    Blocks are `(block_size, kv_heads, dim)`, so that gathered blocks are one sequence without another copy.
    """

    name = "torch"
    block_size_multiple = 1
    reads_foreign_rows = True
    stores_int8 = False

    def __init__(self) -> None:
        self._gathers: dict[tuple[int, int | None], tuple[AttentionMetadata, _GatherPlan]] = {}  # by group and window

    def allocate(
        self, shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        base = (num_blocks, block_size, shape.num_kv_heads)
        keys, values = (allocate_zeros((*base, dim), dtype, device) for dim in (shape.key_dim, shape.value_dim))
        return LayerCache(keys, values)

    def run(
        self,
        layer: LayerCache,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        spec: AttentionSpec,
        meta: AttentionMetadata,
    ) -> Tensor:
        self.write(layer, keys, values, meta)
        return self.attend(layer, query, spec, meta)

    def write(self, layer: LayerCache, keys: Tensor, values: Tensor, meta: AttentionMetadata) -> None:
        layer.keys.flatten(0, 1).index_copy_(0, meta.slots, keys.to(layer.keys.dtype))
        layer.values.flatten(0, 1).index_copy_(0, meta.slots, values.to(layer.values.dtype))

    def scrub(self, layer: LayerCache, block_ids: Tensor) -> None:
        scrub_blocks(layer, block_ids)

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        gathers = self._gathers_of(meta, spec.window)
        out = query.new_empty(query.shape[0], query.shape[1], layer.values.shape[-1])
        for group in gathers.decodes:
            out[group.rows] = self._attend_decodes(layer, query[group.rows], group, spec)
        for chunk in gathers.chunks:
            out[chunk.start : chunk.end] = self._attend_chunk(layer, query, chunk, spec)
        return out

    def _gathers_of(self, meta: AttentionMetadata, window: int | None) -> _GatherPlan:
        """Return the index tensors that all layers of a step with this window share."""
        if meta.is_recorded:
            raise RuntimeError("which blocks are gathered is decided on the host, at each step anew")
        last, gathers = self._gathers.get((meta.group, window), (None, None))
        if gathers is None or last is not meta:
            chunks = [_chunk(meta, i, window) for i in range(meta.num_decodes, meta.num_seqs)]
            gathers = _GatherPlan(self._groups_of(meta, window), chunks)
            self._gathers[meta.group, window] = meta, gathers
        return gathers

    def _groups_of(self, meta: AttentionMetadata, window: int | None) -> list[DecodeGroup]:
        return _decode_groups(meta, window)

    @staticmethod
    def _attend_decodes(layer: LayerCache, query: Tensor, group: DecodeGroup, spec: AttentionSpec) -> Tensor:
        n, num_heads, _ = query.shape
        keys = layer.keys.index_select(0, group.blocks).view(n, -1, *layer.keys.shape[2:]).transpose(1, 2)
        values = layer.values.index_select(0, group.blocks).view(n, -1, *layer.values.shape[2:]).transpose(1, 2)
        num_kv_heads = keys.shape[1]
        # The heads that share a KV head are its query rows: keys and values are read once for all of them.
        grouped = query.view(n, num_kv_heads, num_heads // num_kv_heads, -1)
        sinks = None if spec.sinks is None else spec.sinks.view(1, num_kv_heads, -1, 1)
        return scaled_dot_product(grouped, keys, values, group.mask, spec=spec, sinks=sinks).reshape(n, num_heads, -1)

    @staticmethod
    def _attend_chunk(layer: LayerCache, query: Tensor, chunk: _Chunk, spec: AttentionSpec) -> Tensor:
        keys = layer.keys.index_select(0, chunk.blocks).flatten(0, 1)[: chunk.num_keys]
        values = layer.values.index_select(0, chunk.blocks).flatten(0, 1)[: chunk.num_keys]
        rows = query[chunk.start : chunk.end]
        return attend_dense(heads_first(rows), heads_first(keys), heads_first(values), chunk.mask, spec)


def _first_block(first_query: int, window: int | None, block_size: int) -> int:
    """Return the first block that a query at this position, or any later one, can see."""
    return 0 if window is None else max(0, first_query + 1 - window) // block_size


def _chunk(meta: AttentionMetadata, i: int, window: int | None) -> _Chunk:
    start, end, seq_len = meta.query_start[i], meta.query_start[i + 1], meta.seq_lens[i]
    first = _first_block(seq_len - (end - start), window, meta.block_size)
    last = math.ceil(seq_len / meta.block_size)
    num_keys = seq_len - first * meta.block_size
    mask = causal_mask(end - start, num_keys, window, meta.slots.device)
    return _Chunk(start, end, meta.block_tables[i, first:last].long(), num_keys, mask)


def decode_spans(meta: AttentionMetadata, window: int | None) -> list[tuple[int, int, int]]:
    """Return (number of blocks, first block, sequence) of each sequence that decodes."""
    spans = []
    for i in range(meta.num_decodes):
        first = _first_block(meta.seq_lens[i] - 1, window, meta.block_size)
        spans.append((math.ceil(meta.seq_lens[i] / meta.block_size) - first, first, i))
    return spans


def _decode_groups(meta: AttentionMetadata, window: int | None) -> list[DecodeGroup]:
    groups: list[list[tuple[int, int, int]]] = []
    for span in sorted(decode_spans(meta, window)):
        if not groups or span[0] > _MAX_PADDING_RATIO * groups[-1][0][0]:
            groups.append([])
        groups[-1].append(span)
    return [decode_group(meta, group, window) for group in groups]


def decode_group(meta: AttentionMetadata, spans: list[tuple[int, int, int]], window: int | None) -> DecodeGroup:
    """Return the group of these `decode_spans`, which are given shortest first."""
    device = meta.slots.device
    longest = spans[-1][0]
    rows = torch.tensor([i for _, _, i in spans], device=device)
    firsts = torch.tensor([first for _, first, _ in spans], device=device)
    columns = firsts.unsqueeze(1) + torch.arange(longest, device=device)
    ends = meta.seq_lens_tensor[rows].unsqueeze(1)
    # Padding repeats a block of the same sequence: a weight of 0 does not silence another one's NaN.
    columns = torch.minimum(columns, (ends - 1) // meta.block_size)
    blocks = meta.block_tables[rows.unsqueeze(1), columns].long().flatten()
    positions = firsts.unsqueeze(1) * meta.block_size + torch.arange(longest * meta.block_size, device=device)
    mask = positions < ends
    if window is not None:
        mask &= positions >= ends - window
    return DecodeGroup(rows, blocks, mask[:, None, None, :])
