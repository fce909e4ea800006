"""The attention backend of CPUs: it reads and writes the paged cache in place, with the kernels of `engine.kernels`."""

from ctypes import addressof
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.engine.attention.cache import INT8_SCALE_BYTES, allocate_zeros, scrub_blocks
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape
from orcinus.engine.kernels.library import Library
from orcinus.engine.kernels.structures import Attention, Cache, Step

NATIVE_DTYPES = (torch.float32, torch.bfloat16)
_VECTOR = 16  # WIDTH of attention.cpp
_MOST_INT8_DIM = 512  # MOST_BYTES_DIM of attention.cpp


@dataclass(frozen=True, slots=True)
class _NativeCache(LayerCache):
    native: Cache  # addresses of the two tensors


class NativeBackend:
    """Reads and writes the paged cache in place, on a CPU, with a kernel of our own (`engine/kernels`).

    What it computes for a token depends on the token's own sequence alone, to the last bit. `Cache` of common.h says
    how blocks are laid out: interleaved where that can be, in rows where it cannot, which are gathered. With
    `stores_int8`, keys and values are rounded to 8 bits when they are written, and so attended to at once.
    """

    block_size_multiple = 1
    reads_foreign_rows = False

    def __init__(self, library: Library, *, stores_int8: bool = False) -> None:
        self.name = f"native-{library.instruction_set}"
        self.library = library
        self.stores_int8 = stores_int8
        self._metas: dict[int, AttentionMetadata] = {}  # those that `_steps` tells of, by cache group
        self._steps: dict[int, Step] = {}

    def allocate(
        self, shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        assert dtype in NATIVE_DTYPES
        if self.stores_int8:
            return _allocate_int8(shape, num_blocks, block_size, is_bf16=dtype is torch.bfloat16)
        is_interleaved = _can_interleave(shape, block_size, dtype)
        sizes = _interleaved(shape, block_size, dtype) if is_interleaved else _rows(shape, block_size)
        keys, values = (allocate_zeros((num_blocks, shape.num_kv_heads, *size), dtype, device) for size in sizes)
        native = Cache(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            num_kv_heads=shape.num_kv_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
            is_bf16=dtype is torch.bfloat16,
            is_interleaved=is_interleaved,
        )
        return _NativeCache(keys, values, native)

    def scrub(self, layer: LayerCache, block_ids: Tensor) -> None:
        if self.stores_int8:  # a scale may be NaN, and with a scale of 0 a number is 0
            layer.keys[block_ids], layer.values[block_ids] = 0, 0
            return
        scrub_blocks(layer, block_ids)

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
        keys, values = (_as_rows(tensor, _dtype_of(layer)) for tensor in (keys, values))
        call = self.call(layer, query.shape[1], spec, meta.group)
        call.new_keys, call.new_values = keys.data_ptr(), values.data_ptr()
        call.key_token, call.key_head, _ = keys.stride()
        call.value_token, call.value_head, _ = values.stride()
        return self._run(call, layer, query, spec, meta)

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        return self._run(self.call(layer, query.shape[1], spec, meta.group), layer, query, spec, meta)

    def _run(
        self, call: Attention, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata
    ) -> Tensor:
        rows = _as_rows(query, _dtype_of(layer))
        assert isinstance(layer, _NativeCache)
        out = rows.new_empty(*rows.shape[:2], layer.native.value_dim)
        sinks = None if spec.sinks is None else spec.sinks.float().contiguous()
        self.set_step(meta)
        call.query, call.out, call.out_token = rows.data_ptr(), out.data_ptr(), out.stride(0)
        call.query_token, call.query_head, _ = rows.stride()
        call.sinks = None if sinks is None else sinks.data_ptr()
        self.library.attend(call)
        return out if out.dtype is query.dtype else out.to(query.dtype)

    def call(self, layer: LayerCache, num_heads: int, spec: AttentionSpec, group: int = 0) -> Attention:
        """Return a layer's call without its tensors and sinks; it serves every step that `set_step` is given."""
        assert isinstance(layer, _NativeCache)
        return Attention(
            step=addressof(self._step_of(group)),
            cache=addressof(layer.native),
            num_heads=num_heads,
            window=spec.window or 0,
            scale=spec.scale,
            softcap=spec.softcap or 0.0,
        )

    def set_step(self, meta: AttentionMetadata) -> None:
        """Write the step's addresses to where the calls of all layers of the group find them, once per step."""
        if self._metas.get(meta.group) is meta:
            return
        self._metas[meta.group] = meta
        step = self._step_of(meta.group)
        step.num_tokens, step.num_seqs = meta.query_start[-1], meta.num_seqs
        step.block_size, step.table_stride = meta.block_size, meta.block_tables.stride(0)
        step.query_start, step.seq_lens = meta.query_start_tensor.data_ptr(), meta.seq_lens_tensor.data_ptr()
        step.block_tables, step.slots = meta.block_tables.data_ptr(), meta.slots.data_ptr()

    def _step_of(self, group: int) -> Step:
        step = self._steps.get(group)
        if step is None:
            step = self._steps[group] = Step()
        return step


def int8_obstacle(shape: LayerShape, block_size: int) -> str | None:
    """Return why a layer of this shape cannot store 8 bits in blocks of this size, or None."""
    if block_size % _VECTOR:
        return f"blocks have {block_size} tokens, and would need a multiple of {_VECTOR} (block_size)"
    for name, dim in (("keys", shape.key_dim), ("values", shape.value_dim)):
        if dim % _VECTOR or dim > _MOST_INT8_DIM:
            return f"its {name} have {dim} dimensions, and would need a multiple of {_VECTOR}, up to {_MOST_INT8_DIM}"
    return None


def _allocate_int8(shape: LayerShape, num_blocks: int, block_size: int, *, is_bf16: bool) -> LayerCache:
    assert int8_obstacle(shape, block_size) is None
    keys, values = (
        allocate_zeros(
            (num_blocks, shape.num_kv_heads, block_size * (dim + INT8_SCALE_BYTES)), torch.uint8, torch.device("cpu")
        )
        for dim in (shape.key_dim, shape.value_dim)
    )
    native = Cache(
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        num_kv_heads=shape.num_kv_heads,
        key_dim=shape.key_dim,
        value_dim=shape.value_dim,
        is_bf16=is_bf16,
        is_int8=True,
    )
    return _NativeCache(keys, values, native)


def _dtype_of(layer: LayerCache) -> torch.dtype:
    """Return what a layer's queries, keys and values are computed in."""
    assert isinstance(layer, _NativeCache)
    return torch.bfloat16 if layer.native.is_bf16 else torch.float32


def _as_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in this dtype with its last dimension contiguous; its other strides may be anything."""
    if tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _can_interleave(shape: LayerShape, block_size: int, dtype: torch.dtype) -> bool:
    whole_lanes = shape.key_dim % _per_lane(dtype) == 0
    return whole_lanes and block_size % _VECTOR == 0 and shape.value_dim % _VECTOR == 0


def _interleaved(shape: LayerShape, block_size: int, dtype: torch.dtype) -> tuple[tuple[int, int, int], ...]:
    """Return the sizes of a head's keys and values in a block, as products read them."""
    count = _per_lane(dtype)
    return (shape.key_dim // count, block_size, count), (block_size // count, shape.value_dim, count)


def _rows(shape: LayerShape, block_size: int) -> tuple[tuple[int, int], ...]:
    return (block_size, shape.key_dim), (block_size, shape.value_dim)


def _per_lane(dtype: torch.dtype) -> int:
    return 4 // dtype.itemsize
