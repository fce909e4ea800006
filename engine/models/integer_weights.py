"""Weights that checkpoints keep in integers: how AWQ, GPTQ and compressed-tensors lay them out in tensors.

A weight stands for `scale * (value - zero)`, with a scale and perhaps a zero point for each output and group of inputs.
Its values are unpacked some rows at a time, for kernels that multiply them in groups of 32, or dequantized. Knows
nothing of models and files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from orcinus.engine.cpu.grouped_weight import GroupedRows, GroupForm

_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns each four bits of a word are, the lowest first
_GROUP = 32  # of our kernels
_ROUNDING = 2.0**-11  # of a float16, relative
_LARGEST_HALF = 65504.0
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """Holds a weight (out_features, in_features) in integers without a sign.

    `read` returns some rows of values in uint8. `scales`, and `zeros` if they are not all the middle of the range, are
    (out_features, num_groups), and `group_of` (in_features,) says which group an input belongs to.
    """

    shape: tuple[int, int]
    bits: Literal[4, 8]
    read: Callable[[int, int], Tensor]
    scales: Tensor
    group_of: Tensor
    zeros: Tensor | None = None
    has_offsets: bool = False

    def raw(self) -> None:
        """Return that no kernel packs it as it is stored."""

    @property
    def form(self) -> GroupForm:
        """Return the form that our kernels multiply it in."""
        return GroupForm(self.bits, zero=self.middle, has_offsets=self.has_offsets)

    @property
    def order(self) -> Tensor | None:
        """Return the inputs in the order of their groups, (in_features,), or None if that is theirs."""
        return None if _are_in_runs(self.group_of) else torch.argsort(self.group_of, stable=True)

    @property
    def obstacle(self) -> str | None:
        """Return why no form holds it to within what a float16 rounds, None if one does."""
        order = self.order
        if order is not None and not _are_in_runs(self.group_of[order]):
            return f"a group has inputs that are no multiple of {_GROUP}"
        scales = self.scales.float()
        if not bool(((scales.half().float() - scales).abs() <= _ROUNDING * scales.abs()).all()):
            return "a scale is beyond float16"
        if self.zeros is not None and bool((self._offsets(0, self.shape[0]).abs() > _LARGEST_HALF).any()):
            return "an offset is beyond float16"
        return None

    @property
    def middle(self) -> int:
        """Return the middle of the range of values."""
        return 1 << (self.bits - 1)

    def with_offsets(self) -> "IntegerWeight":
        """Return the same in the form of weights that have zero points."""
        return replace(self, has_offsets=True)

    def part(self, first: int, end: int) -> GroupedRows:
        """Return some of the rows in groups of 32. Scales, and their products with zero points, become float16."""
        values, order = self.read(first, end), self.order
        groups = (self.group_of if order is None else self.group_of[order])[::_GROUP]
        scales = self.scales[first:end, groups].half()
        offsets = self._offsets(first, end)[:, groups].half() if self.has_offsets else None
        return GroupedRows(values if order is None else values[:, order], scales, offsets)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the whole weight."""
        whole = torch.empty(self.shape, dtype=dtype)
        for first in range(0, self.shape[0], _ROWS_AT_ONCE):
            end = min(first + _ROWS_AT_ONCE, self.shape[0])
            values = self.read(first, end).float()
            zeros = self.middle if self.zeros is None else self.zeros[first:end, self.group_of]
            whole[first:end] = (values - zeros) * self.scales[first:end, self.group_of].float()
        return whole

    def _offsets(self, first: int, end: int) -> Tensor:
        """Return what is taken off once scaled, (rows, num_groups): `scale * (zero - middle)`."""
        scales = self.scales[first:end].float()
        if self.zeros is None:
            return torch.zeros_like(scales)
        return (self.zeros[first:end].float() - self.middle) * scales


@dataclass(frozen=True, slots=True)
class FloatWeight:
    """Holds a weight (out_features, in_features) in 8-bit floats, with scales (rows, columns) of equal blocks each."""

    values: Tensor
    scales: Tensor
    obstacle: ClassVar[str | None] = "floats of 8 bits"

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the whole weight."""
        rows, columns = (size // blocks for size, blocks in zip(self.shape, self.scales.shape, strict=True))
        scales = self.scales.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return (self.values.float() * scales).to(dtype)


def awq_weight(tensors: Mapping[str, Tensor]) -> IntegerWeight | None:
    """Return a weight of AutoAWQ's `gemm` layout: eight outputs in a word (in_features, out_features / 8), or None."""
    words, zeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    in_features, out_features = words.shape[0], scales.shape[1]
    groups = scales.shape[0]
    if words.shape[1] * 8 != out_features or zeros.shape != (groups, words.shape[1]) or in_features % groups != 0:
        return None

    def unpack(packed: Tensor) -> Tensor:
        """Return (n, words) as (outputs, n), of which the words and not the values are turned."""
        turned = packed.t().contiguous()
        values = torch.empty(turned.shape[0], 8, turned.shape[1], dtype=torch.uint8)
        for place, column in enumerate(_AWQ_COLUMNS):
            values[:, column] = turned >> 4 * place & 15
        return values.flatten(0, 1)

    def read(first: int, end: int) -> Tensor:
        skipped = first % 8
        return unpack(words[:, first // 8 : -(-end // 8)])[skipped : skipped + end - first]

    group_of = _equal_groups(in_features, groups)
    weight = IntegerWeight((out_features, in_features), 4, read, scales.t(), group_of)
    return _with_zeros(weight, unpack(zeros))


def gptq_weight(tensors: Mapping[str, Tensor], bits: int, *, is_first_format: bool) -> IntegerWeight | None:
    """Return a weight of GPTQ's layout: several inputs in a word (in_features * bits / 32, out_features), or None.

    The first format has zero points less one, taken off before they were packed.
    """
    if bits not in (2, 4, 8):
        return None
    words, zeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    groups, out_features = scales.shape
    in_features = words.shape[0] * 32 // bits
    if words.shape[1] != out_features or zeros.shape[0] != groups or in_features % groups != 0:
        return None
    if is_first_format:
        zeros = zeros + sum(1 << shift for shift in range(0, 31, bits))
    group_of = _stated_groups(tensors.get("g_idx"), in_features, groups)
    if group_of is None:
        return None
    shift = 6 if bits == 2 else 0  # two bits in the middle of four

    def read(first: int, end: int) -> Tensor:
        return _unpacked(words[:, first:end].t(), bits) + shift

    points = _unpacked(zeros, bits)[:, :out_features].t() + shift
    weight = IntegerWeight((out_features, in_features), 8 if bits == 8 else 4, read, scales.t(), group_of)
    return _with_zeros(weight, points)


def packed_weight(tensors: Mapping[str, Tensor]) -> IntegerWeight | None:
    """Return a weight of compressed-tensors' `pack-quantized` layout, whose words have several inputs, or None."""
    words, scales = tensors["weight_packed"], tensors["weight_scale"]
    out_features, in_features = (int(size) for size in tensors["weight_shape"])
    widths: tuple[Literal[4, 8], ...] = (4, 8)
    bits = next((bits for bits in widths if words.shape == (out_features, -(-in_features * bits // 32))), None)
    group_of = _groups_of(tensors, out_features, in_features)
    if bits is None or group_of is None:
        return None
    zeros = tensors.get("weight_zero_point")
    if zeros is not None:
        zeros = _unpacked(zeros.t(), bits).t()[:out_features]
        if zeros.shape != scales.shape:
            return None

    def read(first: int, end: int) -> Tensor:
        return _unpacked(words[first:end], bits)[:, :in_features]

    weight = IntegerWeight((out_features, in_features), bits, read, _by_row(scales, out_features), group_of)
    return _with_zeros(weight, zeros)


def plain_weight(tensors: Mapping[str, Tensor]) -> IntegerWeight | FloatWeight | None:
    """Return a weight of 8 bits that are in no words, as compressed-tensors has them, or None."""
    weight, scales = tensors["weight"], tensors["weight_scale"]
    if weight.dim() != 2:
        return None
    shape = (weight.shape[0], weight.shape[1])
    if weight.dtype == torch.float8_e4m3fn:
        scales = scales if scales.dim() == 2 else scales.reshape(-1, 1)
        fits = all(size % blocks == 0 for size, blocks in zip(shape, scales.shape, strict=True))
        return FloatWeight(weight, scales) if fits else None
    group_of = _groups_of(tensors, *shape)
    if weight.dtype != torch.int8 or group_of is None:
        return None
    zeros = tensors.get("weight_zero_point")
    points = None if zeros is None else _by_row(zeros, shape[0]).to(torch.int16) + 128

    def read(first: int, end: int) -> Tensor:
        return weight[first:end].view(torch.uint8) ^ 0x80

    return _with_zeros(IntegerWeight(shape, 8, read, _by_row(scales, shape[0]), group_of), points)


def _with_zeros(weight: IntegerWeight, zeros: Tensor | None) -> IntegerWeight:
    """Return the weight with these zero points, unless they are all the middle of the range."""
    if zeros is None or bool((zeros == weight.middle).all()):
        return weight
    return replace(weight, zeros=zeros.to(torch.uint8), has_offsets=True)


def _groups_of(tensors: Mapping[str, Tensor], out_features: int, in_features: int) -> Tensor | None:
    """Return the group of each input, or None for scales that are laid out in another way."""
    scales = tensors["weight_scale"]
    if scales.numel() == 1 or scales.shape == (out_features,):
        return _equal_groups(in_features, 1)
    if scales.dim() != 2 or scales.shape[0] != out_features or in_features % scales.shape[1] != 0:
        return None
    stated = tensors.get("weight_g_idx")
    if stated is not None and int(stated.min()) < 0:
        stated = None  # written where nothing was put in order
    return _stated_groups(stated, in_features, scales.shape[1])


@cache
def _equal_groups(in_features: int, groups: int) -> Tensor:
    """Return the group of each input where groups are runs of as many, one tensor for all weights of a size."""
    return torch.arange(in_features) // (in_features // groups)


def _stated_groups(stated: Tensor | None, in_features: int, groups: int) -> Tensor | None:
    """Return the groups that a checkpoint states, if any, or None if these are no groups of such a weight."""
    equal = _equal_groups(in_features, groups)
    if stated is None or torch.equal(stated, equal.to(stated.dtype)):
        return equal
    group_of = stated.long()
    fits = group_of.shape == (in_features,) and 0 <= int(group_of.min()) <= int(group_of.max()) < groups
    return group_of if fits else None


def _by_row(scales: Tensor, out_features: int) -> Tensor:
    """Return scales of a whole tensor or of rows as (out_features, num_groups)."""
    return scales.reshape(-1, 1).expand(out_features, 1) if scales.dim() < 2 or scales.numel() == 1 else scales


def _are_in_runs(group_of: Tensor) -> bool:
    """Return whether each 32 inputs that lie together belong to one group."""
    firsts = group_of[::_GROUP].repeat_interleave(_GROUP)[: group_of.numel()]
    return bool((firsts == group_of).all())


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Return what is in words of 32 bits (rows, n), the lowest bits first, as (rows, n * 32 / bits) in uint8."""
    packed = words.contiguous().view(torch.uint8)
    if bits == 8:
        return packed
    shifts = range(0, 8, bits)
    return torch.stack([packed >> shift & (1 << bits) - 1 for shift in shifts], dim=-1).flatten(-2)
