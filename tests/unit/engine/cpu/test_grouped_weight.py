"""Products with weights in groups: near to float64, and the same bits whoever is beside, and whatever multiplies.

Matrix units multiply most forms in bfloat16, with the bits of plain weights in that.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.engine.cpu.grouped_weight import COLUMN_INT4, INT4, INT8, GroupedRows, GroupedWeight, GroupForm
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import GROUPED_KERNELS, Library, load_library
from tests.effort import scaled
from tests.unit.engine.cpu.grouped_forms import (
    FORMS,
    assert_product,
    bfloat16_weight,
    exact_weight,
    in_bfloat16,
    random_numbers,
)

BEST = load_library()
BFLOAT16 = torch.bfloat16
# Those that this CPU has: with AVX-512 it need not have AVX2's form of VNNI.
LEVELS = [] if BEST is None else [(level, vnni) for level in range(5) for vnni in (False, True)]
KERNELS = [] if BEST is None else sorted({Library(library_path(), n, has_vnni=v).grouped_kernel for n, v in LEVELS})

pytestmark = pytest.mark.skipif(BEST is None, reason="there is no library here")
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=[GROUPED_KERNELS[kernel] for kernel in KERNELS])
UNITS = GROUPED_KERNELS.index("amx")
needs_units = pytest.mark.skipif(UNITS not in KERNELS, reason="this CPU has no matrix units")
rounded_form = pytest.mark.parametrize("form", [INT4, INT8, COLUMN_INT4], ids=["int4", "int8", "column"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BFLOAT16)


def library(kernel: int | None = None, num_threads: int = 1) -> Library:
    """One of its own, whose kernels and threads no other test changes."""
    own = Library(library_path())
    own.use_threads(num_threads, own=True)
    if kernel is not None:
        own.grouped_kernel = kernel
    return own


def layer(
    form: GroupForm, weight: Tensor | GroupedRows, bias: Tensor | None = None, kernel: int | None = None
) -> NativeLinear:
    return NativeLinear(library(kernel), form, [weight], [bias])


def weight_of(linear: NativeLinear) -> Tensor:
    assert isinstance(linear.packed, GroupedWeight)
    return linear.packed.exact_rows(torch.arange(linear.out_features))


@each_form
@settings(max_examples=scaled(25))
@given(
    num_rows=st.integers(1, 40) | st.sampled_from([64, 130, 230]),
    in_features=st.integers(1, 70) | st.sampled_from([255, 256, 257, 600, 1100]),
    out_features=st.integers(1, 70) | st.sampled_from([95, 97, 160]),
    has_bias=st.booleans(),
    num_threads=st.integers(1, 3),
)
def test_products_of_any_shape_are_those_of_float64(
    form: GroupForm, num_rows: int, in_features: int, out_features: int, has_bias: bool, num_threads: int
) -> None:
    numbers = random_numbers(form, out_features, in_features)
    x, bias = normal(num_rows, in_features), normal(out_features, seed=2) if has_bias else None
    own = library(None, num_threads)
    linear = NativeLinear(own, form, [numbers.rows], [bias])
    assert_product(linear(x), x, numbers.exact, bias, form, own.grouped_kernel)


@each_form
@settings(max_examples=scaled(10))
@given(
    num_rows=st.integers(1, 20) | st.sampled_from([33, 130]),
    in_features=st.sampled_from([1, 31, 64, 256, 300, 544]),
    out_features=st.sampled_from([1, 17, 32, 65]),
)
def test_kernels_of_every_instruction_set_give_the_same_bits(
    form: GroupForm, num_rows: int, in_features: int, out_features: int
) -> None:
    numbers, x = random_numbers(form, out_features, in_features), normal(num_rows, in_features)
    bias = normal(out_features, seed=2)
    of_integers = [kernel for kernel in KERNELS if not in_bfloat16(form, kernel)]
    first, *others = (layer(form, numbers.rows, bias, kernel)(x) for kernel in of_integers)
    assert_product(first, x, numbers.exact, bias, form, of_integers[0])
    assert all(torch.equal(first, other) for other in others)


@needs_units
@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if in_bfloat16(form, UNITS)])
@settings(max_examples=scaled(10))
@given(
    num_rows=st.integers(1, 70) | st.sampled_from([130, 449, 600]),
    in_features=st.sampled_from([16, 17, 31, 32, 64, 256, 288, 300, 1088]),
    out_features=st.sampled_from([1, 17, 32, 65, 200]),
)
def test_matrix_units_give_the_bits_of_a_plain_weight(
    name: str, num_rows: int, in_features: int, out_features: int
) -> None:
    form = FORMS[name]
    numbers, x = random_numbers(form, out_features, in_features), normal(num_rows, in_features)
    bias = normal(out_features, seed=2)
    widen = (0, -in_features % 32)  # units take plain weights of whole tiles alone
    plain = torch.nn.functional.pad(bfloat16_weight(numbers.exact).to(BFLOAT16), widen)
    expected = NativeLinear(library(UNITS), "bfloat16", [plain], [bias])(torch.nn.functional.pad(x, widen))
    assert torch.equal(layer(form, numbers.rows, bias, UNITS)(x), expected)


@needs_units
@pytest.mark.parametrize("bits", [0x7FFF, 0xFFFF, 0x7E00, 0x7C00])
def test_scale_that_is_not_finite_is_seen_by_matrix_units(bits: int) -> None:
    """Of any bits that stand for no number: rounding must not carry them over into one."""
    rows = random_numbers(INT4, 40, 64).rows
    assert rows.scales is not None
    rows.scales.view(torch.int16)[7, 1] = bits - 0x10000 if bits > 0x7FFF else bits
    got = layer(INT4, rows, kernel=UNITS)(normal(20, 64))
    assert not got[:, 7].isfinite().any()
    assert got[:, :7].isfinite().all()


@each_form
def test_row_does_not_depend_on_the_others(form: GroupForm) -> None:
    """Few and many are multiplied in different ways."""
    x, linear = normal(500, 320), layer(form, random_numbers(form, 100, 320).rows)
    together = linear(x)
    for first, end in ((0, 1), (3, 4), (17, 40), (100, 111), (100, 112), (100, 330), (499, 500)):
        assert torch.equal(linear(x[first:end]), together[first:end])


@each_form
@pytest.mark.parametrize("in_features", [1, 16, 33, 256, 300])
def test_what_was_packed_is_unpacked_exactly(form: GroupForm, in_features: int) -> None:
    numbers = random_numbers(form, 67, in_features)
    linear = layer(form, numbers.rows)
    assert torch.equal(weight_of(linear), numbers.exact.float())
    assert torch.equal(linear.weight, numbers.exact.float().bfloat16())
    ids = torch.tensor([66, 0, 31, 0])
    assert torch.equal(linear.packed.rows(ids), numbers.exact.float()[ids].bfloat16())


@each_form
def test_several_weights_as_one_give_what_they_give_apart(form: GroupForm) -> None:
    parts = [random_numbers(form, rows, 80, seed=rows).rows for rows in (33, 16, 7)]
    x = normal(5, 80)
    together = NativeLinear(library(), form, parts, [None] * 3)(x)
    assert torch.equal(together, torch.cat([layer(form, part)(x) for part in parts], dim=1))


@each_form
@pytest.mark.parametrize("has_bias", [False, True])
def test_weights_that_alternate_take_turns_by_sixteen_columns(form: GroupForm, has_bias: bool) -> None:
    parts = [random_numbers(form, 48, 64, seed=seed).rows for seed in (1, 2)]
    biases = [normal(48, seed=seed) if has_bias else None for seed in (3, 4)]
    mixed = NativeLinear(library(), form, parts, biases)
    mixed.packed = GroupedWeight(mixed._library, form, parts, biases, alternates=True)
    x = normal(3, 64)
    first, second = (layer(form, part, bias)(x) for part, bias in zip(parts, biases, strict=True))
    expected = torch.stack([first.view(3, -1, 16), second.view(3, -1, 16)], dim=2).view(3, -1)
    assert torch.equal(mixed(x), expected)


@each_form
@each_kernel
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row_and_is_seen_there(form: GroupForm, kernel: int, bad: float) -> None:
    x, linear = normal(20, 67), layer(form, random_numbers(form, 40, 67).rows, kernel=kernel)
    expected = linear(x)
    for column in (0, 31, 66):
        poisoned = x.clone()
        poisoned[11, column] = bad
        got = linear(poisoned)
        assert not got[11].isfinite().any()
        others = [row for row in range(20) if row != 11]
        assert torch.equal(got[others], expected[others])


@each_kernel
@rounded_form
def test_weight_that_is_not_finite_makes_its_column_so(form: GroupForm, kernel: int) -> None:
    x, weight = normal(20, 67), normal(40, 67, seed=1)
    expected = layer(form, weight, kernel=kernel)(x)
    weight[13, 66], weight[14, 3] = torch.nan, torch.inf
    got = layer(form, weight, kernel=kernel)(x)
    assert not got[:, [13, 14]].isfinite().any()
    others = [column for column in range(40) if column not in (13, 14)]
    assert torch.equal(got[:, others], expected[:, others])


@rounded_form
def test_rounding_gives_the_same_bits_on_every_instruction_set(form: GroupForm) -> None:
    weight = normal(70, 300, seed=1) * torch.logspace(-6, 3, 70).to(BFLOAT16).unsqueeze(1)
    first, *others = (weight_of(layer(form, weight, kernel=kernel)) for kernel in KERNELS)
    assert all(torch.equal(first, other) for other in others)


@rounded_form
def test_rounding_errs_by_no_more_than_half_a_step_where_nothing_is_cut_off(form: GroupForm) -> None:
    weight = normal(40, 256, seed=1)
    step = weight.float().view(40, -1, form.size).abs().amax(dim=2, keepdim=True) / (7 if form.bits == 4 else 127)
    off = (weight_of(layer(form, weight)) - weight.float()).view(40, -1, form.size).abs()
    limit = 1.1 if form.bits == 4 else 0.5  # the search cuts off the largest, if the others gain by that
    assert bool((off <= step * limit * 1.01).all())


def test_search_of_scales_is_better_than_the_largest_alone() -> None:
    weight = normal(64, 512, seed=1)
    groups = weight.float().view(64, -1, 32)
    scale = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True)) / -8
    plain = (groups / scale).round().clamp(-8, 7) * scale
    found = weight_of(layer(INT4, weight)).view(64, -1, 32)
    error, plain_error = ((numbers - groups).square().mean() for numbers in (found, plain))
    assert error < 0.92 * plain_error
    assert bool(((found - groups).square().sum(dim=2) <= (plain - groups).square().sum(dim=2) * 1.001).all())


def test_integers_of_a_columns_scale_for_sixteen_inputs_are_nearer_than_float16_for_thirty_two() -> None:
    weight = normal(64, 1024, seed=1)
    columns, groups = (
        (weight_of(layer(form, weight)) - weight.float()).square().mean() for form in (COLUMN_INT4, INT4)
    )
    assert columns < 0.87 * groups


@each_kernel
@rounded_form
def test_rows_and_columns_of_zeros_give_zeros(form: GroupForm, kernel: int) -> None:
    x, weight = normal(5, 33), normal(20, 33, seed=1)
    x[2], weight[7] = 0, 0
    got = layer(form, weight, kernel=kernel)(x)
    assert not got[2].any()
    assert not got[:, 7].any()
    assert got[3].count_nonzero() == 19


@each_kernel
@pytest.mark.parametrize("form", [FORMS["8 bits with offsets"], INT8, INT4, COLUMN_INT4, FORMS["column"]])
def test_largest_sums_do_not_overflow(form: GroupForm, kernel: int) -> None:
    """Every value and every integer of a row at its limit, of either sign."""
    width = 4096
    values = torch.stack([torch.full((width,), value) for value in (0, 2**form.bits - 1)]).to(torch.uint8)
    ones = torch.ones(2, width // 32, dtype=torch.float16)
    rows = GroupedRows(values, ones, ones * 0 if form.has_offsets else None)
    if form.scales == "column":
        parts = torch.full((2, width // form.size), 15, dtype=torch.uint8)
        rows = GroupedRows(values, scale_parts=parts, column_scales=torch.ones(2))
    x = torch.ones(2, width, dtype=BFLOAT16) * torch.tensor([[1.0], [-1.0]]).to(BFLOAT16)
    got = layer(form, rows, kernel=kernel)(x)
    assert torch.equal(got, (x.double() @ exact_weight(form, rows).t()).to(BFLOAT16))


@rounded_form
def test_inputs_of_any_strides_and_types(form: GroupForm) -> None:
    linear, wide = layer(form, normal(48, 40, seed=1)), normal(6, 100)
    for x in (wide[:, 7:47], wide[::2, 50:90], normal(40, 6, seed=3).t(), wide[:1, :40].expand(5, 40), normal(40)):
        assert torch.equal(linear(x), linear(x.clone(memory_format=torch.contiguous_format)))
    x = normal(3, 40)
    assert torch.equal(linear(x.float()), linear(x).float())
    assert linear(x[:0]).shape == (0, 48)


@rounded_form
def test_threads_change_nothing_but_the_time(form: GroupForm) -> None:
    weight, x = normal(700, 130, seed=1), normal(40, 130)
    alone, *others = (NativeLinear(library(None, count), form, [weight], [None])(x) for count in (1, 2, 3))
    assert all(torch.equal(alone, other) for other in others)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4", 4.5),
        ("int8", 8.5),
        ("4 bits with offsets", 5.0),
        ("4 bits, two levels, offsets", 4.625),
        ("8 bits, two levels, sixteens", 8.5625),
        ("exponents", 4.25),
        ("column, sixteens", 4.5),
    ],
)
def test_forms_take_what_they_say(name: str, bits: float) -> None:
    form = FORMS[name]
    assert form.bits_per_weight == bits
    packed = GroupedWeight(library(), form, [random_numbers(form, 64, 512).rows], [None])
    assert packed.nbytes == 64 * 512 * bits / 8


def test_rows_that_are_not_of_the_form_are_refused() -> None:
    rows = random_numbers(INT4, 8, 64).rows
    with pytest.raises(ValueError, match=r"scales of a weight in groups must have .* \(\(8, 2\), 2\), not"):
        layer(INT4, GroupedRows(rows.values, torch.ones(8, 2)))
    with pytest.raises(ValueError, match="offsets of a weight in groups must have"):
        layer(FORMS["4 bits with offsets"], rows)
