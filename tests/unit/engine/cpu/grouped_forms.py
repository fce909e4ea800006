"""Weights in groups of every form, with numbers at random and what they stand for, for tests of their products."""

from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.engine.cpu.grouped_weight import COLUMN_INT4, INT4, INT8, GroupedRows, GroupForm
from orcinus.engine.kernels.library import GROUPED_KERNELS

_E2M1 = (12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)  # twice the number, and 12
_UNEVEN = (1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241)

FORMS = {
    "int4": INT4,
    "int8": INT8,
    "4 bits with offsets": GroupForm(4, has_offsets=True),
    "8 bits with offsets": GroupForm(8, zero=128, has_offsets=True),
    "4 bits, two levels, offsets": GroupForm(4, scales="two-level", has_offsets=True),
    "8 bits, two levels, offsets": GroupForm(8, zero=100, scales="two-level", has_offsets=True),
    "5 bits": GroupForm(8, zero=16, value_bits=5),
    "5 bits, two levels, offsets": GroupForm(8, scales="two-level", has_offsets=True, value_bits=5),
    "6 bits, two levels, sixteens": GroupForm(8, size=16, zero=32, scales="two-level", value_bits=6),
    "8 bits, two levels, sixteens": GroupForm(8, size=16, zero=32, scales="two-level"),
    "4 bits, two levels, sixteens": GroupForm(4, size=16, zero=4, scales="two-level"),
    "4 bits, sixteens with offsets": GroupForm(4, size=16, has_offsets=True),
    "exponents": GroupForm(4, zero=12, scales="exponent", table=_E2M1),
    "column, sixteens": COLUMN_INT4,
    "column": GroupForm(4, zero=8, scales="column"),
    "table": GroupForm(4, zero=128, table=_UNEVEN),
    "table, sixteens with offsets": GroupForm(4, size=16, zero=128, table=_UNEVEN, has_offsets=True),
}


@dataclass(frozen=True)
class Numbers:
    """Holds a weight in groups, and the same in float64."""

    rows: GroupedRows
    exact: Tensor


def random_numbers(form: GroupForm, out_features: int, in_features: int, seed: int = 0) -> Numbers:
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    groups, blocks = form.num_groups(in_features), form.num_blocks(in_features)
    high = 16 if form.bits == 4 else min(2**form.value_bits, form.zero + 128)
    values = integers(0, high, out_features, in_features).to(torch.uint8)
    scales = offsets = scale_parts = offset_parts = column_scales = None
    if form.has_wide_scales:
        scales = (torch.rand(out_features, blocks, generator=generator) * 0.05 + 0.001).to(torch.float16)
        offsets = torch.randn(out_features, blocks, generator=generator).to(torch.float16) * 0.1
    if form.scales == "two-level":
        scale_parts = integers(-128, 128, out_features, groups).to(torch.int8).view(torch.uint8)
        offset_parts = integers(0, 256, out_features, groups).to(torch.uint8)
    if form.scales == "exponent":
        scale_parts = integers(115, 130, out_features, groups).to(torch.uint8)
        scale_parts[0, 0] = 0
    if form.scales == "column":
        scale_parts = integers(-15, 16, out_features, groups).to(torch.int8).view(torch.uint8)
        column_scales = torch.rand(out_features, generator=generator) * 0.05 + 0.001
    if not form.has_offsets:
        offsets = offset_parts = None
    rows = GroupedRows(values, scales, offsets, scale_parts, offset_parts, column_scales)
    return Numbers(rows, exact_weight(form, rows))


def exact_weight(form: GroupForm, rows: GroupedRows) -> Tensor:
    """(out_features, in_features) in float64, by what the form says."""
    groups = form.num_groups(rows.shape[1])

    def of_groups(wide: Tensor | None, parts: Tensor | None) -> Tensor:
        if form.scales == "exponent":
            assert parts is not None
            return torch.where(parts == 0, 0.0, 2.0 ** (parts.double() - 127))
        if form.scales == "column":
            assert parts is not None
            assert rows.column_scales is not None
            return parts.double() * rows.column_scales.double().unsqueeze(1)
        assert wide is not None
        factors = wide.double().repeat_interleave(form.groups_of_block, dim=1)[:, :groups]
        return factors if parts is None else factors * parts.double()

    def of_inputs(numbers: Tensor) -> Tensor:
        return numbers.repeat_interleave(form.size, dim=1)[:, : rows.shape[1]]

    signed = None if rows.scale_parts is None else rows.scale_parts
    if signed is not None and form.scales in ("two-level", "column"):
        signed = signed.view(torch.int8)
    values = rows.values.double() if form.table is None else torch.tensor(form.table).double()[rows.values.long()]
    exact = (values - form.zero) * of_inputs(of_groups(rows.scales, signed))
    return exact - of_inputs(of_groups(rows.offsets, rows.offset_parts)) if form.has_offsets else exact


def rounded_rows(x: Tensor, form: GroupForm) -> Tensor:
    """Rows (count, in_features) as they are multiplied: 8 bits and a scale for each group, or row, in float64."""
    count, width = x.shape
    size = width if form.scales == "column" else form.size
    padded = torch.zeros(count, -(-width // size) * size)
    padded[:, :width] = x.float()
    groups = padded.view(count, -1, size)
    largest = groups.abs().amax(dim=2, keepdim=True)
    factors = torch.where(largest > 2.0**-110, torch.full_like(largest, 127) / largest, 0.0)
    return ((groups * factors).round().double() * (largest / 127.0).double()).view(count, -1)[:, :width]


def in_bfloat16(form: GroupForm, kernel: int) -> bool:
    """Whether rows and weights are multiplied in bfloat16 and not in integers."""
    return kernel == GROUPED_KERNELS.index("amx") and form.scales != "column"


def bfloat16_weight(exact: Tensor) -> Tensor:
    """Weights as matrix units multiply them: float32 to the nearest bfloat16, from the middle up in size; float64."""
    bits = exact.float().contiguous().view(torch.int32) + 0x8000
    return (bits & -0x10000).view(torch.float32).double()


def assert_product(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, form: GroupForm, kernel: int) -> None:
    """Compare with float64, of what is multiplied: of integers, sums of groups in float32, each with four roundings.

    Of bfloat16 each product is one in float32. Then there is one rounding to bfloat16.
    """
    is_plain, width = in_bfloat16(form, kernel), x.shape[1]
    rows, weight = (x.double(), bfloat16_weight(weight)) if is_plain else (rounded_rows(x, form), weight)
    exact = torch.nn.functional.linear(rows, weight, None if bias is None else bias.double())
    # What is multiplied before an offset is taken off may be larger than what is left.
    size = rows.abs() @ weight.abs().t() + 2 * rows.abs().sum(dim=1, keepdim=True) * weight.abs().amax(dim=1)
    roundings = (width if is_plain else form.num_groups(width)) + 8
    allowed = exact.abs() * 2**-8 + size * roundings * 2**-23
    assert got.shape == exact.shape
    assert bool(((got.double() - exact).abs() <= allowed).all())
