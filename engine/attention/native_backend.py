"""The attention backend of CPUs: it reads and writes the paged cache in place, with the kernels of `engine.kernels`."""

from ctypes import addressof
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.engine.attention.cache import allocate_zeros, scrub_blocks
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape
from orcinus.engine.kernels.library import Library
from orcinus.engine.kernels.structures import Attention, Cache, Step

NATIVE_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class _NativeCache(LayerCache):
    native: Cache  # addresses of the two tensors


class NativeBackend:
    """Reads and writes the paged cache in place, on a CPU, with a kernel of our own (`engine/kernels`).

    Blocks are `(kv_heads, block_size, dim)`: the keys of one head are read one after the other.
    """

    block_size_multiple = 1

    def __init__(self, library: Library) -> None:
        self.name = f"native-{library.instruction_set}"
        self.library = library
        self._meta: AttentionMetadata | None = None
        self._step = Step()

    def allocate(
        self, shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        assert dtype in NATIVE_DTYPES
        base = (num_blocks, shape.num_kv_heads, block_size)
        keys, values = (allocate_zeros((*base, dim), dtype, device) for dim in (shape.key_dim, shape.value_dim))
        native = Cache(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            num_kv_heads=shape.num_kv_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
            is_bf16=dtype is torch.bfloat16,
        )
        return _NativeCache(keys, values, native)

    def scrub(self, layer: LayerCache, block_ids: Tensor) -> None:
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
        assert isinstance(layer, _NativeCache)
        rows, keys, values = (_as_rows(tensor, layer.keys.dtype) for tensor in (query, keys, values))
        num_tokens, num_heads, _ = rows.shape
        out = rows.new_empty(num_tokens, num_heads, layer.native.value_dim)
        sinks = None if spec.sinks is None else spec.sinks.float().contiguous()
        self.set_step(meta)
        call = self.call(layer, num_heads, spec)
        call.query, call.new_keys, call.new_values = rows.data_ptr(), keys.data_ptr(), values.data_ptr()
        call.out, call.out_token = out.data_ptr(), out.stride(0)
        call.query_token, call.query_head, _ = rows.stride()
        call.key_token, call.key_head, _ = keys.stride()
        call.value_token, call.value_head, _ = values.stride()
        call.sinks = None if sinks is None else sinks.data_ptr()
        self.library.attend(call)
        return out if out.dtype is query.dtype else out.to(query.dtype)

    def call(self, layer: LayerCache, num_heads: int, spec: AttentionSpec) -> Attention:
        """Return a layer's call without its tensors and sinks; it serves every step that `set_step` is given."""
        assert isinstance(layer, _NativeCache)
        return Attention(
            step=addressof(self._step),
            cache=addressof(layer.native),
            num_heads=num_heads,
            window=spec.window or 0,
            scale=spec.scale,
            softcap=spec.softcap or 0.0,
        )

    def set_step(self, meta: AttentionMetadata) -> None:
        """Write the step's addresses to where the calls of all layers find them, once per step."""
        if self._meta is meta:
            return
        self._meta = meta
        step = self._step
        step.num_tokens, step.num_seqs = meta.query_start[-1], meta.num_seqs
        step.block_size, step.table_stride = meta.block_size, meta.block_tables.stride(0)
        step.query_start, step.seq_lens = meta.query_start_tensor.data_ptr(), meta.seq_lens_tensor.data_ptr()
        step.block_tables, step.slots = meta.block_tables.data_ptr(), meta.slots.data_ptr()


def _as_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in this dtype with its last dimension contiguous; its other strides may be anything."""
    if tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()
