"""The attention backend that hands the paged cache to FlashAttention, as torch brings it along.

Not yet run on a GPU.
"""

from collections.abc import Callable
from functools import cache

from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache
from orcinus.engine.attention.torch_backend import TorchBackend


class FlashBackend(TorchBackend):
    """FlashAttention over the paged cache in place, as torch 2.13 ships it. CUDA, float16 and bfloat16 only.

    Not yet run on a GPU. What it cannot do (soft-capping, sinks, keys and values of different sizes) is left to
    `fallback`, which shares its layout.
    """

    name = "flash-varlen"
    block_size_multiple = 256  # FlashAttention 2 reads pages of multiples of 256 tokens

    def __init__(self, varlen_attn: Callable[..., Tensor], fallback: TorchBackend) -> None:
        super().__init__()
        self._varlen_attn = varlen_attn
        self.fallback = fallback

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        if spec.softcap is not None or spec.sinks is not None or layer.keys.shape != layer.values.shape:
            return self.fallback.attend(layer, query, spec, meta)
        return self._varlen_attn(
            query,
            layer.keys,
            layer.values,
            meta.query_start_tensor,
            None,
            meta.max_query_len,
            max(meta.seq_lens),
            scale=spec.scale,
            window_size=(-1 if spec.window is None else spec.window - 1, 0),
            enable_gqa=query.shape[1] != layer.keys.shape[2],
            seqused_k=meta.seq_lens_tensor,
            block_table=meta.block_tables,
        )


@cache
def paged_varlen_attn() -> Callable[..., Tensor] | None:
    """torch's `varlen_attn` if it is there and takes a block table (2.13 on)."""
    from importlib import import_module
    from inspect import signature

    try:
        function: Callable[..., Tensor] = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return function if "block_table" in signature(function).parameters else None
