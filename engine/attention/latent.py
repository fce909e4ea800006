"""Multi-head latent attention over a cache of latents, of which a token has one for all heads.

A layer of this kind (DeepSeek-V2, https://arxiv.org/abs/2405.04434) makes the keys and values of all heads of one
latent by a linear layer, in `expand_kv`. The same comes of multiplying queries by the keys' part of its weight before
attention, and what is attended to by the values' part after it. So all heads share one key, the latent with the rotary
part behind it, and one value, the latent. Whether a layer expands so is told by what it computes, not by its class.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.attention.interface import LayerShape
from orcinus.engine.platform.memory import MappedFiles

_EXPANSION = "expand_kv"  # what transformers' classes call it; they cache what it is given
# Of the largest number, against what the layer's own code made of the latents.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class Expansion:
    """Holds what a layer expanded in a run of its own code, (1, heads, num_tokens, dim) each, and by which layer."""

    latents: Tensor
    rotary: Tensor
    keys: Tensor
    values: Tensor
    linears: tuple[nn.Linear, ...]


class LatentWeights(nn.Module):
    """Multiplies queries and results, (num_tokens, num_heads, dim), by the halves of an expanding layer's weight."""

    def __init__(self, keys: Tensor, values: Tensor, rotary_dim: int) -> None:
        """Take the weight's parts, (num_heads, key_dim, rank), of keys without rotary part, and (.., rank, value_dim).

        Both are copied: torch multiplies a few rows by a part of a tensor several times slower.
        """
        super().__init__()
        self.keys = nn.Parameter(keys.clone(memory_format=torch.contiguous_format), requires_grad=False)
        self.values = nn.Parameter(values.clone(memory_format=torch.contiguous_format), requires_grad=False)
        self._rotary_dim = rotary_dim

    @property
    def shape(self) -> LayerShape:
        """Return what is cached of a token."""
        rank = self.keys.shape[2]
        return LayerShape(1, rank + self._rotary_dim, rank)

    def queries(self, query: Tensor) -> Tensor:
        """Return queries of latents, (num_tokens, num_heads, rank + rotary_dim)."""
        plain, rotary = torch.split(query, [self.keys.shape[1], self._rotary_dim], dim=-1)
        latent = torch.bmm(plain.transpose(0, 1), self.keys)
        return torch.cat([latent.transpose(0, 1), rotary], dim=-1)

    def results(self, out: Tensor) -> Tensor:
        """Return (num_tokens, num_heads, value_dim) of what was attended to, (num_tokens, num_heads, rank)."""
        return torch.bmm(out.transpose(0, 1), self.values).transpose(0, 1)


@contextmanager
def record_expansions(causal_lm: nn.Module) -> Iterator[dict[nn.Module, Expansion]]:
    """Record what each layer with latents expands in the run that is made inside."""
    expansions: dict[nn.Module, Expansion] = {}
    layers: list[Any] = [module for module in causal_lm.modules() if callable(getattr(module, _EXPANSION, None))]
    for layer in layers:
        setattr(layer, _EXPANSION, _Recorder(layer, expansions))
    try:
        yield expansions
    finally:
        for layer in layers:
            delattr(layer, _EXPANSION)


class _Recorder:
    def __init__(self, layer: Any, expansions: dict[nn.Module, Expansion]) -> None:
        self._layer, self._expansions = layer, expansions
        self._expand = getattr(layer, _EXPANSION)

    def __call__(self, latents: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        used: list[nn.Linear] = []
        linears = [child for child in self._layer.modules() if isinstance(child, nn.Linear)]
        hooks = [linear.register_forward_hook(lambda linear, *_: used.append(linear)) for linear in linears]
        try:
            keys, values = self._expand(latents, rotary)
        finally:
            for hook in hooks:
                hook.remove()
        self._expansions[self._layer] = Expansion(latents, rotary, keys, values, tuple(used))
        return keys, values


def cache_latents(layer: Any, expansion: Expansion) -> LatentWeights | None:
    """Have a layer cache its latents, if that is what it expands by a weight; else return None, and change nothing.

    The linear layer that expanded is taken out: its weight is in what is returned, a part of the layer.
    """
    weights = _weights_of(expansion)
    if weights is None:
        return None
    (linear,) = expansion.linears
    MappedFiles().release(linear.weight)
    for parent in layer.modules():
        for name, child in list(parent.named_children()):
            if child is linear:
                delattr(parent, name)
    layer.latent_weights = weights
    setattr(layer, _EXPANSION, _as_they_are)
    return weights


def _as_they_are(latents: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
    """Return the one key and value of all heads, (1, 1, num_tokens, dim) each."""
    return torch.cat([latents, rotary], dim=-1), latents


def _weights_of(expansion: Expansion) -> LatentWeights | None:
    if len(expansion.linears) != 1 or not _has_one_head(expansion.latents) or not _has_one_head(expansion.rotary):
        return None
    linear: Any = expansion.linears[0]
    num_heads, rotary_dim, rank = expansion.keys.shape[1], expansion.rotary.shape[3], expansion.latents.shape[3]
    key_dim, value_dim = expansion.keys.shape[3] - rotary_dim, expansion.values.shape[3]
    if linear.bias is not None or linear.weight.shape != (num_heads * (key_dim + value_dim), rank):
        return None
    keys, values = torch.split(linear.weight.detach().view(num_heads, -1, rank), [key_dim, value_dim], dim=1)
    weights = LatentWeights(keys, values.transpose(1, 2), rotary_dim)
    return weights if _are_right(weights, expansion) else None


def _has_one_head(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.shape[:2] == (1, 1)


def _are_right(weights: LatentWeights, expansion: Expansion) -> bool:
    """Return whether the weights make of the latents what the layer's own code made of them."""
    plain = torch.matmul(expansion.latents[0], weights.keys.transpose(1, 2))  # (heads, num_tokens, key_dim)
    keys = torch.cat([plain, expansion.rotary[0].expand(len(plain), -1, -1)], dim=-1)
    values = torch.matmul(expansion.latents[0], weights.values)
    return _is_close(keys, expansion.keys[0]) and _is_close(values, expansion.values[0])


def _is_close(made: Tensor, own: Tensor) -> bool:
    error = float((made.float() - own.float()).abs().max())
    return error <= _TOLERANCE.get(own.dtype, 0.0) * float(own.float().abs().max())
