"""The attention backend that reads the paged cache in place on a GPU (`engine.kernels.triton_attention`).

Decides into how many programs a step falls. What the kernels read of a step is on the device, and no launch of single
tokens depends on how long their sequences are, so that it can be recorded and replayed. Not yet run on a GPU.
"""

import torch
import triton
from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.kernels.triton_attention import attend_kernel, combine_kernel

_MIN_ROWS = 16  # tl.dot takes no fewer
_CHUNK_ROWS = 64
_TILE_BYTES = 16 * 1024  # of keys, and of values
_MIN_KEYS, _MAX_KEYS = 16, 128
# Two tiles of keys and values on the way: 64 KiB, which every GPU since Volta has for a program.
_NUM_STAGES = 2
# Enough programs that on each multiprocessor some compute while others wait for memory.
_PROGRAMS_PER_MULTIPROCESSOR = 4
_MAX_SPLITS = 32


class TritonBackend(TorchBackend):
    """Reads the gathering backend's cache in place. Serves every kind of layer, dtype and block size that it does."""

    name = "triton"
    reads_foreign_rows = False

    def __init__(self, num_multiprocessors: int) -> None:
        super().__init__()
        self._num_programs = num_multiprocessors * _PROGRAMS_PER_MULTIPROCESSOR

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        out = query.new_empty(query.shape[0], query.shape[1], layer.values.shape[-1])
        if meta.num_decodes:
            self._attend_singles(layer, query, out, spec, meta)
        if meta.num_decodes < meta.num_seqs:
            _attend_chunks(layer, query, out, spec, meta)
        return out

    def _attend_singles(
        self, layer: LayerCache, query: Tensor, out: Tensor, spec: AttentionSpec, meta: AttentionMetadata
    ) -> None:
        num_kv_heads = layer.keys.shape[2]
        num_splits = split_count(meta.num_decodes * num_kv_heads, self._num_programs)
        grid = (meta.num_decodes, num_kv_heads, num_splits)
        row_heads = triton.next_power_of_2(query.shape[1] // num_kv_heads)
        shape = {"ROW_HEADS": row_heads, "ROWS": max(_MIN_ROWS, row_heads), "QUERIES": 1}
        if num_splits == 1:
            _launch(grid, layer, query, out, partial=None, spec=spec, meta=meta, first_seq=0, **shape)
            return
        # Of each split its weighted values, then the maximum and the sum of their weights.
        value_dim = out.shape[2]
        partial = query.new_empty(*out.shape[:2], num_splits, value_dim + 2, dtype=torch.float32)
        _launch(grid, layer, query, out, partial=partial, spec=spec, meta=meta, first_seq=0, **shape)
        combine_kernel[(meta.num_decodes, query.shape[1])](
            partial,
            out,
            out.stride(0),
            out.stride(1),
            num_splits,
            MAX_SPLITS=_MAX_SPLITS,
            VALUE_DIM=value_dim,
            VALUE_DIMS=triton.next_power_of_2(value_dim),
        )


def _attend_chunks(layer: LayerCache, query: Tensor, out: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> None:
    num_kv_heads = layer.keys.shape[2]
    row_heads = triton.next_power_of_2(query.shape[1] // num_kv_heads)
    rows = max(_CHUNK_ROWS, row_heads)
    num_queries = rows // row_heads
    grid = (meta.num_seqs - meta.num_decodes, num_kv_heads, triton.cdiv(meta.max_query_len, num_queries))
    shape = {"ROW_HEADS": row_heads, "ROWS": rows, "QUERIES": num_queries}
    _launch(grid, layer, query, out, partial=None, spec=spec, meta=meta, first_seq=meta.num_decodes, **shape)


def split_count(num_programs: int, wanted: int) -> int:
    """Return into how many parts each sequence's keys are split, so that about `wanted` programs run."""
    return min(_MAX_SPLITS, max(1, wanted // num_programs))


def keys_per_tile(dim: int, itemsize: int) -> int:
    return max(_MIN_KEYS, min(_MAX_KEYS, _TILE_BYTES // (dim * itemsize)))


def _launch(
    grid: tuple[int, int, int],
    layer: LayerCache,
    query: Tensor,
    out: Tensor,
    *,
    partial: Tensor | None,
    spec: AttentionSpec,
    meta: AttentionMetadata,
    first_seq: int,
    **shape: int,
) -> None:
    key_dim, value_dim = layer.keys.shape[3], layer.values.shape[3]
    key_dims, value_dims = (max(16, triton.next_power_of_2(dim)) for dim in (key_dim, value_dim))
    query = query if query.stride(2) == 1 else query.contiguous()
    attend_kernel[grid](
        query,
        layer.keys,
        layer.values,
        out,
        out if partial is None else partial,
        query if spec.sinks is None else spec.sinks,
        meta.query_start_tensor,
        meta.seq_lens_tensor,
        meta.block_tables,
        spec.scale,
        query.stride(0),
        query.stride(1),
        out.stride(0),
        out.stride(1),
        layer.keys.stride(1),
        layer.keys.stride(2),
        layer.values.stride(1),
        layer.values.stride(2),
        meta.block_tables.stride(0),
        first_seq,
        1 if partial is None else grid[2],
        BLOCK_SIZE=meta.block_size,
        GROUP=query.shape[1] // layer.keys.shape[2],
        KEYS=keys_per_tile(max(key_dims, value_dims), layer.keys.itemsize),
        KEY_DIM=key_dim,
        KEY_DIMS=key_dims,
        VALUE_DIM=value_dim,
        VALUE_DIMS=value_dims,
        WINDOW=spec.window or 0,
        SOFTCAP=spec.softcap or 0.0,
        HAS_SINKS=spec.sinks is not None,
        IS_SPLIT=partial is not None,
        num_stages=_NUM_STAGES,
        **shape,
    )
