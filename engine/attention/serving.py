"""What transformers' modelling code calls at every attention layer, and what answers it.

transformers calls `attention_function` (registered as "orcinus_paged") from every attention layer; the attention of the
current `StepContext` answers. Knows nothing of requests, sampling or scheduling, nor how the cache is laid out.
"""

from collections.abc import Iterable
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
from orcinus.engine.attention.step_context import StepContext, current_step
from orcinus.engine.kernels.structures import Attention

ATTENTION_NAME = "orcinus_paged"
# What modelling code may hand to attention besides queries, keys and values. A tensor without elements is none of it.
_UNSERVED = {
    "position_bias": "a bias that depends on positions",
    "indices": "an index of the keys that count",
    "block_indices": "an index of the keys that count",
    "cache": "a cache of its own",
}


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
    if not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError("it attends in both directions, not to earlier tokens alone")
    if attention_mask is not None and attention_mask.numel() > 0:
        raise UnsupportedAttentionError("it attends with a mask of its own, which is not the causal one")
    for name, what in _UNSERVED.items():
        if (extra := _unused.get(name)) is not None and not (isinstance(extra, Tensor) and extra.numel() == 0):
            raise UnsupportedAttentionError(f"it attends with {what} ({name})")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    spec = AttentionSpec(scale, sliding_window, softcap, s_aux)
    attend = current_step().attention
    out = attend(module, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), spec)
    return out.unsqueeze(0), None


class UnsupportedAttentionError(Exception):
    """Says why a model's attention cannot be served from a paged cache; the message completes "because ..."."""


class LaterCall(nn.Module):
    """Stands for a later call of a layer that attends several times per token: the key to what that call stores."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = (layer,)  # not a part of this module

    @property
    def layer(self) -> nn.Module:
        return self._layer[0]


class PagedAttention:
    """Serves the layers of one model from their caches; where a step's tokens lie is in the current `StepContext`."""

    def __init__(self, backend: AttentionBackend, layers: dict[nn.Module, PagedLayer]) -> None:
        self.backend = backend
        self._layers = layers
        self._calls = _calls_of(layers)
        self._num_calls: dict[nn.Module, int] = {}  # in the current step, of layers that are called several times
        self._step: StepContext | None = None

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
        step = current_step()
        if module in self._calls:
            module = self._next_call(module, step)
        layer = self._layers[module]
        meta = step.metadata[layer.group]
        if layer.only_reads:
            return self.backend.attend(layer.cache, query, spec, meta)
        if layer.latents is None:
            return self.backend.run(layer.cache, query, keys, values, spec=spec, meta=meta)
        out = self.backend.run(layer.cache, layer.latents.queries(query), keys, values, spec=spec, meta=meta)
        return layer.latents.results(out)

    def _next_call(self, module: nn.Module, step: StepContext) -> nn.Module:
        if step is not self._step:
            self._step = step
            self._num_calls.clear()
        number = self._num_calls.get(module, 0)
        calls = self._calls[module]
        if number == len(calls):
            raise UnsupportedAttentionError(f"one attention layer runs more often than {len(calls)} times per token")
        self._num_calls[module] = number + 1
        return calls[number]

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
        self._called: set[nn.Module] = set()
        self._owners: dict[tuple[object, ...], nn.Module] = {}
        self._kept_alive: list[Tensor] = []  # so that nothing else comes to lie where they are

    def __call__(self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        if module in self._called:
            module = LaterCall(module)
        self._called.add(module)
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

    def take_in(self, other: "ProbingAttention") -> None:
        """Add what another one has noted of layers that run after these."""
        self.kv |= other.kv
        self.specs |= other.specs
        self.num_heads |= other.num_heads


def _calls_of(layers: Iterable[nn.Module]) -> dict[nn.Module, list[nn.Module]]:
    """Return the calls of each layer that has several, in turn, each of which has a cache of its own."""
    calls: dict[nn.Module, list[nn.Module]] = {}
    for key in layers:
        if isinstance(key, LaterCall):
            calls.setdefault(key.layer, [key.layer]).append(key)
    return calls


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
