"""What transformers' modelling code calls at every attention layer, and what answers it.

transformers calls `attention_function` (registered as "orcinus_paged") from every attention layer; the attention of the
current `StepContext` answers. Knows nothing of requests, sampling or scheduling, nor how the cache is laid out.
"""

from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.attention.dense import attend_dense, causal_mask, heads_first
from orcinus.engine.attention.interface import (
    AttentionBackend,
    AttentionSpec,
    KVCacheSpec,
    LayerShape,
    PagedLayer,
)
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.step_context import current_step
from orcinus.engine.kernels.structures import Attention

ATTENTION_NAME = "orcinus_paged"


def attention_function(  # noqa: PLR0917 (the signature is transformers')
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks: `(1, heads, num_tokens, head_dim)` in, `(1, num_tokens, heads, dim)` out."""
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError("it attends with a mask of its own, not causally")
    if any(_unused.get(name) is not None for name in ("position_bias", "indices", "cache")):
        raise UnsupportedAttentionError("it adds a position bias or an index to attention")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    spec = AttentionSpec(scale, sliding_window, softcap, s_aux)
    attend = current_step().attention
    out = attend(module, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), spec)
    return out.unsqueeze(0), None


class UnsupportedAttentionError(Exception):
    """Says why a model's attention cannot be served from a paged cache; the message completes "because ..."."""


class PagedAttention:
    """Serves the layers of one model from their caches; where a step's tokens lie is in the current `StepContext`."""

    def __init__(self, backend: AttentionBackend, layers: dict[nn.Module, PagedLayer]) -> None:
        self.backend = backend
        self._layers = layers

    @property
    def reads_foreign_rows(self) -> bool:
        """Whether blocks that may hold what is no finite number must be scrubbed before another sequence gets them."""
        return self.backend.reads_foreign_rows

    def scrub(self, block_ids: Tensor, group: int = 0) -> None:
        """Make the blocks of a request that went wrong safe for the next one."""
        for layer in self._layers.values():
            if layer.group == group and not layer.only_reads:
                self.backend.scrub(layer.cache, block_ids)

    def __call__(self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        layer = self._layers[module]
        meta = current_step().metadata[layer.group]
        if layer.only_reads:
            return self.backend.attend(layer.cache, query, spec, meta)
        return self.backend.run(layer.cache, query, keys, values, spec=spec, meta=meta)

    def native_call(self, module: nn.Module, spec: AttentionSpec, num_heads: int) -> Attention:
        """Return a layer's native call without its tensors, good for all steps: for code that calls the kernels."""
        assert isinstance(self.backend, NativeBackend)
        layer = self._layers[module]
        assert not layer.only_reads
        return self.backend.call(layer.cache, num_heads, spec, layer.group)

    def set_native_step(self) -> None:
        """Let the calls of an earlier step serve the current one."""
        assert isinstance(self.backend, NativeBackend)
        for meta in current_step().metadata:
            self.backend.set_step(meta)


class ProbingAttention:
    """Attends without a cache, over one sequence from its start, and notes how each layer attends and what it stores.

    A layer whose keys and values lie where those of an earlier one with the same window lie has them from that one.
    """

    def __init__(self) -> None:
        self.kv: dict[nn.Module, KVCacheSpec] = {}
        self.specs: dict[nn.Module, AttentionSpec] = {}
        self.num_heads: dict[nn.Module, int] = {}
        self.dtype: torch.dtype | None = None
        self._owners: dict[tuple[object, ...], nn.Module] = {}
        self._kept_alive: list[Tensor] = []  # so that nothing else comes to lie where they are

    def __call__(self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        if module in self.kv:
            raise UnsupportedAttentionError("one attention layer runs more than once per token")
        if keys.shape[0] != query.shape[0]:
            raise UnsupportedAttentionError("its keys are not those of its own tokens")
        owner = self._owners.setdefault((*_place(keys), *_place(values), spec.window), module)
        self._kept_alive += [keys, values]
        shape = LayerShape(keys.shape[1], keys.shape[2], values.shape[2])
        self.kv[module] = KVCacheSpec(shape, source=None if owner is module else owner)
        self.dtype = keys.dtype
        self.specs[module] = spec
        self.num_heads[module] = query.shape[1]
        length = query.shape[0]
        mask = causal_mask(length, length, spec.window, query.device)
        return attend_dense(heads_first(query), heads_first(keys), heads_first(values), mask, spec)


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
