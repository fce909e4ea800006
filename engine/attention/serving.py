"""What transformers' modelling code calls at every attention layer, and what answers it.

transformers calls `attention_function` (registered as "orcinus_paged") from every attention layer. Whoever runs the
model says beforehand, with `attending`, who answers those calls. Knows nothing of requests, sampling or scheduling,
nor how the cache is laid out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.attention.dense import attend_dense, causal_mask, heads_first
from orcinus.engine.attention.interface import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    LayerAttention,
    LayerCache,
    LayerShape,
)
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.kernels.library import Attention

ATTENTION_NAME = "orcinus_paged"


_ATTENDING: ContextVar[LayerAttention] = ContextVar("attending")


@contextmanager
def attending(answer: LayerAttention) -> Iterator[None]:
    """Let `answer` serve the attention layers of any model that runs inside."""
    token = _ATTENDING.set(answer)
    try:
        yield
    finally:
        _ATTENDING.reset(token)


def answering() -> LayerAttention:
    """Who serves the attention layers of the model that runs now."""
    return _ATTENDING.get()


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
    """transformers' attention interface: `(1, heads, num_tokens, head_dim)` in, `(1, num_tokens, heads, dim)` out."""
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError("it attends with a mask of its own, not causally")
    if any(_unused.get(name) is not None for name in ("position_bias", "indices", "cache")):
        raise UnsupportedAttentionError("it adds a position bias or an index to attention")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    spec = AttentionSpec(scale, sliding_window, softcap, s_aux)
    out = answering()(module, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), spec)
    return out.unsqueeze(0), None


class UnsupportedAttentionError(Exception):
    """A model's attention cannot be served from a paged cache; the message completes "because ..."."""


class PagedAttention:
    """Serves the layers of one model from their caches. `begin_step` says where the tokens of the next run lie."""

    def __init__(self, backend: AttentionBackend, layers: dict[nn.Module, LayerCache]) -> None:
        self.backend = backend
        self._layers = layers
        self._meta: AttentionMetadata | None = None

    def begin_step(self, meta: AttentionMetadata) -> None:
        self._meta = meta

    def scrub(self, block_ids: Tensor) -> None:
        """Make the blocks of a request that went wrong safe for the next one."""
        for layer in self._layers.values():
            self.backend.scrub(layer, block_ids)

    def __call__(self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        assert self._meta is not None
        return self.backend.run(self._layers[module], query, keys, values, spec=spec, meta=self._meta)

    def native_call(self, module: nn.Module, spec: AttentionSpec, num_heads: int) -> Attention:
        """For code that calls the native kernels itself: a layer's call without its tensors, good for all steps."""
        assert isinstance(self.backend, NativeBackend)
        return self.backend.call(self._layers[module], num_heads, spec)

    def begin_native_step(self) -> None:
        """Let the calls of an earlier step serve this one."""
        assert self._meta is not None
        assert isinstance(self.backend, NativeBackend)
        self.backend.begin(self._meta)


class ShapeProbe:
    """Attends without a cache, over one sequence from its start, and notes each layer's shape and how it attends."""

    def __init__(self) -> None:
        self.shapes: dict[nn.Module, LayerShape] = {}
        self.specs: dict[nn.Module, AttentionSpec] = {}
        self.dtype: torch.dtype | None = None

    def __call__(self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        if module in self.shapes:
            raise UnsupportedAttentionError("one attention layer runs more than once per token")
        if keys.shape[0] != query.shape[0]:
            raise UnsupportedAttentionError("its keys are not those of its own tokens")
        self.shapes[module] = LayerShape(keys.shape[1], keys.shape[2], values.shape[2])
        self.dtype = keys.dtype
        self.specs[module] = spec
        length = query.shape[0]
        mask = causal_mask(length, length, spec.window, query.device)
        return attend_dense(heads_first(query), heads_first(keys), heads_first(values), mask, spec)
