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
    reads_foreign_rows = False
    _in_one_part = False  # whether a long sequence's keys are summed in one order

    def __init__(self, library: Library) -> None:
        self.name = f"native-{library.instruction_set}"
        self.library = library
        self._metas: dict[int, AttentionMetadata] = {}  # those that `_steps` tells of, by cache group
        self._steps: dict[int, Step] = {}

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
        keys, values = (_as_rows(tensor, layer.keys.dtype) for tensor in (keys, values))
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
        rows = _as_rows(query, layer.keys.dtype)
        out = rows.new_empty(*rows.shape[:2], layer.values.shape[-1])
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
            step = self._steps[group] = Step(in_one_part=self._in_one_part)
        return step


def _as_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in this dtype with its last dimension contiguous; its other strides may be anything."""
    if tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()
