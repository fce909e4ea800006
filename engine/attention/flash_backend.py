"""The attention backend that hands the paged cache to FlashAttention, as torch brings it along.

Not yet run on a GPU.
"""

from collections.abc import Callable
from functools import cache

from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape
from orcinus.engine.attention.torch_backend import TorchBackend

_MAX_HEAD_DIM = 256
_HEAD_DIM_MULTIPLE = 8


class FlashBackend(TorchBackend):
    """FlashAttention over the paged cache in place, as torch ships it from 2.12 on. CUDA, float16 and bfloat16 only.

    Not yet run on a GPU. What it cannot do is left to `fallback`, which shares its layout: soft-capping, sinks, keys
    and values of different sizes, heads wider than 256 numbers or not in eights.
    """

    name = "flash-varlen"
    reads_foreign_rows = True  # until a run on a GPU shows that it does not
    block_size_multiple = 256  # FlashAttention 2 reads pages of multiples of 256 tokens

    def __init__(self, varlen_attn: Callable[..., Tensor], fallback: TorchBackend) -> None:
        super().__init__()
        self._varlen_attn = varlen_attn
        self.fallback = fallback

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        shape = LayerShape(layer.keys.shape[2], layer.keys.shape[3], layer.values.shape[3])
        if not can_attend(shape, spec):
            return self.fallback.attend(layer, query, spec, meta)
        return self._varlen_attn(
            query if query.stride(2) == 1 else query.contiguous(),
            layer.keys,
            layer.values,
            meta.query_start_tensor,
            meta.query_start_tensor,  # FlashAttention 2 wants one for keys too, and with a block table never reads it
            meta.max_query_len,
            meta.max_seq_len,
            scale=spec.scale,
            window_size=_window_size(spec, meta),
            enable_gqa=query.shape[1] != layer.keys.shape[2],
            seqused_k=meta.seq_lens_tensor,
            block_table=meta.block_tables,
        )


def can_attend(shape: LayerShape, spec: AttentionSpec) -> bool:
    """Return whether FlashAttention serves such a layer."""
    return (
        spec.softcap is None
        and spec.sinks is None
        and shape.key_dim == shape.value_dim
        and shape.key_dim <= _MAX_HEAD_DIM
        and shape.key_dim % _HEAD_DIM_MULTIPLE == 0
    )


def _window_size(spec: AttentionSpec, meta: AttentionMetadata) -> tuple[int, int]:
    """Return how many keys a query sees before and after its own; -1 is all of them.

    A step of single tokens has no keys after them, and only with no bound at all does FlashAttention 2 read the keys
    once for all query heads of a group.
    """
    if spec.window is not None and spec.window < meta.max_seq_len:
        return spec.window - 1, 0
    return (-1, -1) if meta.max_query_len == 1 else (-1, 0)


@cache
def paged_varlen_attn() -> Callable[..., Tensor] | None:
    """Return torch's `varlen_attn` if it is there and takes a block table (2.12 on)."""
    from importlib import import_module
    from inspect import signature

    try:
        function: Callable[..., Tensor] = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return function if "block_table" in signature(function).parameters else None
