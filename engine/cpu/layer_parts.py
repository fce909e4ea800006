"""What a decoder layer is made of: finds its parts by the names that modelling code gives them.

A name says only what to try: whether a layer computes what its names promise is for `layer_replacement` to find out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.attention.interface import LayerShape
from orcinus.engine.cpu.grouped_weight import GroupedWeight
from orcinus.engine.cpu.joined_linear import LinearPart
from orcinus.engine.cpu.native_linear import NativeLinear, PackedWeight

_MOST_HIDDEN = 16384  # MOST_HIDDEN of decoder.cpp
_MOST_TAPS, _MOST_KEYS = 8, 512  # MOST_TAPS and MOST_KEYS of recurrent.cpp
# The names of each role, in any of the families that are known.
_NAMES = {
    "mixer": ("self_attn", "linear_attn", "conv"),
    "mlp": ("mlp", "feed_forward"),
    "mixer norm": ("input_layernorm", "operator_norm"),
    "mlp norm": ("post_attention_layernorm", "ffn_norm"),
    "out": ("o_proj", "out_proj"),
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "query norm": ("q_norm", "q_layernorm"),
    "key norm": ("k_norm", "k_layernorm"),
    "query, key, value": ("in_proj_qkv",),
    "output gate": ("in_proj_z", "g_proj"),
    "beta": ("in_proj_b", "b_proj"),
    "decay": ("in_proj_a", "a_proj"),
    "query, key, value, output gate": ("in_proj_qkvz",),
    "beta, decay": ("in_proj_ba",),
    "gates, input": ("in_proj",),
    "convolution": ("conv1d", "conv"),
    "output norm": ("norm", "o_norm"),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "w3"),
    "down": ("down_proj", "w2"),
}
_LAYER_ROLES = ("mixer", "mlp", "mixer norm", "mlp norm")
# What a gated delta net projects; the last has all that belongs to one head of keys side by side.
_OF_DELTA_NETS = (
    ("query, key, value", "output gate", "beta", "decay"),
    ("query", "key", "value", "output gate", "beta", "decay"),
    ("query, key, value, output gate", "beta, decay"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Says where a module is: whose child it is, and by which name.

    A product with `order` (out_features,) has its outputs in another order than our kernels.
    """

    owner: nn.Module
    name: str
    order: Tensor | None = None

    @property
    def module(self) -> Any:
        return getattr(self.owner, self.name)


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """Names what is in an attention module."""

    module: nn.Module
    projections: list[Place]  # of queries, keys and values
    out: Place
    query_norm: nn.Module | None
    key_norm: nn.Module | None

    @property
    def has_gate(self) -> bool:
        """Whether each head's query comes with as many numbers that gate what it attends to."""
        return bool(self.projections[0].module.out_features == 2 * self.out.module.in_features)

    def fits(self, shape: LayerShape) -> bool:
        query, key, value = (place.module for place in self.projections)
        num_values, head_dim, num_kv_heads = self.out.module.in_features, shape.key_dim, shape.num_kv_heads
        return (
            shape.value_dim == head_dim
            and key.out_features == value.out_features == num_kv_heads * head_dim
            and (query.out_features == num_values or self.has_gate)
            and num_values % (num_kv_heads * head_dim) == 0
            and all(norm is None or _is_norm(norm, head_dim) for norm in (self.query_norm, self.key_norm))
        )


@dataclass(frozen=True, slots=True)
class DeltaNetParts:
    """Names what is in a gated delta net; (key_heads, key_dim) and (heads, value_dim) are its keys and values."""

    module: nn.Module
    projections: list[Place]  # of queries, keys, values, gates of what comes out, betas, decays
    out: Place
    convolution: Any
    norm: Any
    key_heads: int
    key_dim: int
    heads: int
    value_dim: int

    def fits(self) -> bool:
        keys, values = self.key_heads * self.key_dim, self.heads * self.value_dim
        outputs = sum(place.module.out_features for place in self.projections)
        rates, offsets = (getattr(self.module, name, None) for name in ("A_log", "dt_bias"))
        return (
            self.key_dim <= _MOST_KEYS
            and self.out.module.in_features == values
            and outputs == 2 * keys + 2 * values + 2 * self.heads
            and isinstance(rates, Tensor)
            and isinstance(offsets, Tensor)
            and rates.shape == offsets.shape == (self.heads,)
            and _is_norm(self.norm, self.value_dim)
            and _is_convolution(self.convolution, 2 * keys + values)
        )


@dataclass(frozen=True, slots=True)
class ConvolutionParts:
    """Names what is in a short convolution between two gates."""

    module: nn.Module
    projections: list[Place]  # of both gates and of what is convolved
    out: Place
    convolution: Any

    def fits(self) -> bool:
        width = self.out.module.in_features
        return self.projections[0].module.out_features == 3 * width and _is_convolution(self.convolution, width)


MixerParts = AttentionParts | DeltaNetParts | ConvolutionParts


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Names the parts of one layer. What is no gated MLP, such as experts, stays what it is."""

    mixer: MixerParts
    mlp: nn.Module
    gated: list[Place]  # gate, up and down of the MLP, or nothing
    mixer_norm: nn.Module
    mlp_norm: nn.Module

    @property
    def linears(self) -> list[Place]:
        """Return the products that a native layer computes."""
        return [*self.mixer.projections, self.mixer.out, *self.gated]

    def fits(self) -> bool:
        """Return whether the parts have types and sizes that our kernels work with, whatever mixes the tokens."""
        linears = [place.module for place in self.linears]
        if not all(_is_usable(place) for place in self.linears):
            return False
        projections, out = linears[: len(self.mixer.projections)], self.mixer.out.module
        hidden = out.out_features
        return (
            hidden <= _MOST_HIDDEN
            and _are_whole(self.mixer.projections)
            and _are_whole(self.gated[:2], alternates=True)
            and all(linear.in_features == hidden for linear in projections)
            and all(_is_norm(norm, hidden) for norm in (self.mixer_norm, self.mlp_norm))
            and (not self.gated or _is_gated(*(place.module for place in self.gated), hidden=hidden))
        )


def parts_of(layer: nn.Module) -> LayerParts | None:
    """Return the parts of a layer, if it is a layer, and has these alone."""
    found = _all_of(layer, _LAYER_ROLES)
    if found is None or len(dict(layer.named_children())) != len(found):
        return None
    module, mlp, mixer_norm, mlp_norm = (place.module for place in found)
    mixer = _delta_net(module) or _convolution(module) or _attention(module)
    gated = _all_of(mlp, ("gate", "up", "down")) or []
    return None if mixer is None else LayerParts(mixer, mlp, gated, mixer_norm, mlp_norm)


def is_in_groups(module: Any) -> bool:
    """Return whether the weight of a layer has been packed in groups when it was loaded."""
    linear = module.joined.linear if isinstance(module, LinearPart) else module
    return isinstance(linear, NativeLinear) and isinstance(linear.packed, GroupedWeight)


def packed_weight_of(places: Sequence[Place], *, alternates: bool = False) -> PackedWeight | GroupedWeight | None:
    """Return the weight of a product that is packed already, for all of these layers and no others, or None."""
    modules = [place.module for place in places]
    if len(modules) == 1 and isinstance(modules[0], NativeLinear):
        return modules[0].packed
    joined = {module.joined for module in modules if isinstance(module, LinearPart)}
    if len(joined) != 1:
        return None
    (product,) = joined
    is_whole = [getattr(module, "index", None) for module in modules] == list(range(len(product.sizes)))
    if not is_whole or product.alternates != alternates or not isinstance(product.linear, NativeLinear):
        return None
    return product.linear.packed


def _are_whole(places: Sequence[Place], *, alternates: bool = False) -> bool:
    """Return whether layers that are parts of a product follow one another in its order, all of it."""
    runs = groupby(places, lambda place: getattr(place.module, "joined", None))
    return all(product is None or packed_weight_of([*own], alternates=alternates) is not None for product, own in runs)


def _is_usable(place: Place) -> bool:
    """Return whether a product is one that native layers have: plain in bfloat16, or packed already."""
    if isinstance(place.module, NativeLinear | LinearPart):
        return place.order is None
    return type(place.module) is nn.Linear and place.module.weight.dtype is torch.bfloat16


def norm_eps(norm: Any) -> float:
    """Return what a norm adds to the mean square, 0.0 if it does not tell."""
    eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    return float(eps) if isinstance(eps, int | float) else 0.0


def _attention(module: nn.Module) -> AttentionParts | None:
    found = _all_of(module, ("query", "key", "value", "out"))
    if found is None:
        return None
    *projections, out = found
    return AttentionParts(module, projections, out, _child(module, "query norm"), _child(module, "key norm"))


def _delta_net(module: Any) -> DeltaNetParts | None:
    projections = next(filter(None, (_all_of(module, roles) for roles in _OF_DELTA_NETS)), None)
    others = _all_of(module, ("out", "convolution", "output norm"))
    if projections is None or others is None:
        return None
    out, convolution, norm = others
    names = ("num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim")
    sizes = [size for name in names if isinstance(size := getattr(module, name, None), int) and size > 0]
    if len(sizes) < len(names) or sizes[2] % sizes[0] != 0:
        return None
    if len(projections) == 2:
        orders = _orders_by_key_head(*sizes)
        projections = [Place(module, place.name, order) for place, order in zip(projections, orders, strict=True)]
    return DeltaNetParts(module, projections, out, convolution.module, norm.module, *sizes)


def _orders_by_key_head(key_heads: int, key_dim: int, heads: int, value_dim: int) -> tuple[Tensor, Tensor]:
    """Return where queries, keys, values and gates lie, all of each in turn, and where betas and decays do."""
    keys, values = key_dim, heads // key_heads * value_dim
    wide = torch.arange(key_heads * 2 * (keys + values)).view(key_heads, -1)
    narrow = torch.arange(2 * heads).view(key_heads, 2, -1)
    firsts = (0, keys, 2 * keys, 2 * keys + values, 2 * keys + 2 * values)
    whole = torch.cat([wide[:, first:end].flatten() for first, end in pairwise(firsts)])
    return whole, narrow.transpose(0, 1).flatten()


def _convolution(module: nn.Module) -> ConvolutionParts | None:
    found = _all_of(module, ("gates, input", "out", "convolution"))
    if found is None or len(dict(module.named_children())) > len(found) + 1:  # its states may be one more
        return None
    projection, out, convolution = found
    return ConvolutionParts(module, [projection], out, convolution.module)


def _is_gated(gate: Any, up: Any, down: Any, *, hidden: int) -> bool:
    width = down.in_features
    return (
        _can_take_turns(gate, up)
        and gate.out_features == up.out_features == width
        and width % 16 == 0
        and gate.in_features == up.in_features == down.out_features == hidden
    )


def _can_take_turns(gate: Any, up: Any) -> bool:
    """Return whether two layers are one product already, or will be."""
    return not any(isinstance(linear, NativeLinear) for linear in (gate, up))


def _is_norm(norm: Any, width: int) -> bool:
    weight = getattr(norm, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.dtype is torch.bfloat16
        and weight.is_contiguous()
        and weight.numel() == width
        and norm_eps(norm) > 0
    )


def _is_convolution(convolution: Any, width: int) -> bool:
    weight = getattr(convolution, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.dtype is torch.bfloat16
        and weight.is_contiguous()
        and weight.dim() == 3
        and weight.shape[:2] == (width, 1)
        and weight.shape[2] <= _MOST_TAPS
    )


def _child(owner: nn.Module, role: str) -> Any:
    place = _place(owner, role)
    return None if place is None else place.module


def _all_of(owner: nn.Module, roles: tuple[str, ...]) -> list[Place] | None:
    """Return the places of the roles, or None if one is missing."""
    places = [place for role in roles if (place := _place(owner, role)) is not None]
    return places if len(places) == len(roles) else None


def _place(owner: nn.Module, role: str) -> Place | None:
    children = dict(owner.named_children())
    return next((Place(owner, name) for name in _NAMES[role] if name in children), None)
