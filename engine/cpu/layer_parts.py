"""What a decoder layer is made of: finds its parts by the names that modelling code gives them.

A name says only what to try: whether a layer computes what its names promise is for `layer_replacement` to find out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from orcinus.engine.attention.interface import LayerShape

MOST_HIDDEN = 16384  # MOST_HIDDEN of decoder.cpp
# The names of each role, in any of the families that are known.
_NAMES = {
    "mixer": ("self_attn",),
    "mlp": ("mlp", "feed_forward"),
    "mixer norm": ("input_layernorm", "operator_norm"),
    "mlp norm": ("post_attention_layernorm", "ffn_norm"),
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "out": ("o_proj", "out_proj"),
    "query norm": ("q_norm", "q_layernorm"),
    "key norm": ("k_norm", "k_layernorm"),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "w3"),
    "down": ("down_proj", "w2"),
}
_LAYER_ROLES = ("mixer", "mlp", "mixer norm", "mlp norm")


@dataclass(frozen=True, slots=True)
class Place:
    """Says where a module is: whose child it is, and by which name."""

    owner: nn.Module
    name: str

    @property
    def module(self) -> Any:
        return getattr(self.owner, self.name)


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Names the parts of one layer."""

    attention: nn.Module
    projections: list[Place]  # of queries, keys and values
    mixer_out: Place
    gate: Place
    up: Place
    down: Place
    mixer_norm: nn.Module
    mlp_norm: nn.Module
    query_norm: nn.Module | None
    key_norm: nn.Module | None

    @property
    def linears(self) -> list[Place]:
        return [*self.projections, self.mixer_out, self.gate, self.up, self.down]


def parts_of(layer: nn.Module) -> LayerParts | None:
    """Return the parts of a layer, if it is a layer, and has these alone."""
    found = {role: _child(layer, role) for role in _LAYER_ROLES}
    if None in found.values() or len(dict(layer.named_children())) != len(found):
        return None
    attention, mlp = found["mixer"], found["mlp"]
    projections = [_place(attention, role) for role in ("query", "key", "value", "out")]
    gated = [_place(mlp, role) for role in ("gate", "up", "down")]
    if None in (*projections, *gated):
        return None
    *inputs, out = projections
    gate, up, down = gated
    return LayerParts(
        attention=attention,
        projections=inputs,
        mixer_out=out,
        gate=gate,
        up=up,
        down=down,
        mixer_norm=found["mixer norm"],
        mlp_norm=found["mlp norm"],
        query_norm=_child(attention, "query norm"),
        key_norm=_child(attention, "key norm"),
    )


def has_gate(parts: LayerParts) -> bool:
    """Return whether each head's query comes with as many numbers that gate what it attends to."""
    query: Any = parts.projections[0].module
    return bool(query.out_features == 2 * parts.mixer_out.module.in_features)


def norm_eps(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def fits_kernels(parts: LayerParts, shape: LayerShape) -> bool:
    """Return whether the parts have types and sizes that our kernels work with."""
    linears: list[Any] = [place.module for place in parts.linears]
    if any(type(linear) is not nn.Linear or linear.weight.dtype is not torch.bfloat16 for linear in linears):
        return False
    query, key, value, out, gate, up, down = linears
    hidden, head_dim, num_kv_heads = query.in_features, shape.key_dim, shape.num_kv_heads
    return (
        shape.value_dim == head_dim
        and key.out_features == value.out_features == num_kv_heads * head_dim
        and (query.out_features == out.in_features or has_gate(parts))
        and out.in_features % (num_kv_heads * head_dim) == 0
        and gate.out_features == up.out_features == down.in_features
        and gate.out_features % 16 == 0
        and all(linear.in_features == hidden for linear in (key, value, gate, up))
        and out.out_features == down.out_features == hidden <= MOST_HIDDEN
        and all(_is_norm(norm, hidden) for norm in (parts.mixer_norm, parts.mlp_norm))
        and all(norm is None or _is_norm(norm, head_dim) for norm in (parts.query_norm, parts.key_norm))
    )


def _is_norm(norm: Any, width: int) -> bool:
    weight = getattr(norm, "weight", None)
    if weight is None or not (hasattr(norm, "variance_epsilon") or hasattr(norm, "eps")):
        return False
    return bool(
        weight.dtype is torch.bfloat16 and weight.is_contiguous() and weight.numel() == width and norm_eps(norm)
    )


def _child(owner: Any, role: str) -> Any:
    place = _place(owner, role)
    return None if place is None else place.module


def _place(owner: nn.Module, role: str) -> Any:
    """Return the place of a role in a module; None if nothing has one of its names."""
    children = dict(owner.named_children())
    return next((Place(owner, name) for name in _NAMES[role] if name in children), None)
