"""Products with packed weights: their numbers whatever the shape, and that a row is alone with itself."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orcinus.engine.cpu.native_linear import Kind, NativeLinear, PackedWeight
from orcinus.engine.kernels.library import Library
from tests.effort import scaled
from tests.unit.engine.cpu.kernel_choices import library_of, plain_choices

CHOICES = plain_choices()
BFLOAT16 = torch.bfloat16

pytestmark = pytest.mark.skipif(not CHOICES, reason="this CPU does not multiply what our kernels multiply")
each_kind = pytest.mark.parametrize("kind", ["bfloat16", "int8"])

in_use: list[str] = []


@pytest.fixture(autouse=True, scope="module", params=CHOICES or ["none"])
def kernels(request: pytest.FixtureRequest) -> None:
    in_use[:] = [request.param]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BFLOAT16)


def library() -> Library:
    """Return one of its own, of the kernels that are tested."""
    return library_of(in_use[0])


def layer(kind: Kind, weight: Tensor, bias: Tensor | None = None) -> NativeLinear:
    return NativeLinear(library(), kind, [weight], [bias])


def assert_near(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, kind: Kind) -> None:
    """To the product in float64: rounded once to bfloat16; in 8 bits, six times what rounding the factors does."""
    exact = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert got.shape == exact.shape
    x_size, weight_size = x.double().norm(dim=-1, keepdim=True), weight.double().norm(dim=1)
    allowed = exact.abs() * 2**-8 + x_size * weight_size * 2**-18
    if kind == "int8":
        x_step, weight_step = x.double().abs().amax(dim=-1, keepdim=True) / 127, weight.double().abs().amax(dim=1) / 127
        allowed += (x_step * weight_size + weight_step * x_size) * 6 / math.sqrt(12)
    assert bool(((got.double() - exact).abs() <= allowed).all())


@each_kind
@settings(max_examples=scaled(60))
@given(
    num_rows=st.integers(1, 40) | st.sampled_from([130, 500]),
    in_features=st.integers(1, 70) | st.sampled_from([127, 129, 255, 515]),
    out_features=st.integers(1, 70) | st.sampled_from([95, 97, 131, 320]),
    has_bias=st.booleans(),
    num_threads=st.integers(1, 3),
)
def test_products_of_any_shape_are_those_of_float64(
    kind: Kind, num_rows: int, in_features: int, out_features: int, has_bias: bool, num_threads: int
) -> None:
    x, weight = normal(num_rows, in_features), normal(out_features, in_features, seed=1)
    bias = normal(out_features, seed=2) if has_bias else None
    linear = layer(kind, weight, bias)
    linear._library.use_threads(num_threads, own=True)
    assert_near(linear(x), x, weight, bias, kind)


@each_kind
@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 14, 15, 28, 29, 449, 900])
def test_tiles_and_blocks_of_rows_leave_none_out(kind: Kind, num_rows: int) -> None:
    x, weight = normal(num_rows, 100), normal(160, 100, seed=1)
    assert_near(layer(kind, weight)(x), x, weight, None, kind)


@each_kind
def test_inputs_of_any_strides_and_dimensions(kind: Kind) -> None:
    weight = normal(48, 40, seed=1)
    linear = layer(kind, weight)
    wide = normal(6, 100)
    for x in (wide[:, 7:47], wide[::2, 50:90], normal(40, 6, seed=3).t(), wide[:1, :40].expand(5, 40), normal(40)):
        assert torch.equal(linear(x), linear(x.clone(memory_format=torch.contiguous_format)))
        assert_near(linear(x), x, weight, None, kind)
    cube = normal(2, 3, 40)
    assert torch.equal(linear(cube), linear(cube.view(6, 40)).view(2, 3, 48))


@each_kind
def test_float32_goes_in_and_out(kind: Kind) -> None:
    weight = normal(48, 40, seed=1)
    linear = layer(kind, weight)
    x = normal(3, 40)
    assert linear(x.float()).dtype is torch.float32
    assert torch.equal(linear(x.float()), linear(x).float())


@each_kind
@pytest.mark.parametrize("has_bias", [False, True])
def test_several_weights_as_one_give_what_they_give_apart(kind: Kind, has_bias: bool) -> None:
    weights = [normal(rows, 50, seed=rows) for rows in (33, 16, 7)]
    biases = [normal(weight.shape[0], seed=9) if has_bias else None for weight in weights]
    x = normal(5, 50)
    together = NativeLinear(library(), kind, weights, biases)(x)
    apart = [layer(kind, weight, bias)(x) for weight, bias in zip(weights, biases, strict=True)]
    assert torch.equal(together, torch.cat(apart, dim=1))


@each_kind
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [16, 48])
def test_weights_that_alternate_take_turns_by_sixteen_columns(kind: Kind, has_bias: bool, num_rows: int) -> None:
    weights = [normal(num_rows, 24, seed=seed) for seed in (1, 2)]
    biases = [normal(num_rows, seed=seed) if has_bias else None for seed in (3, 4)]
    mixed = NativeLinear(library(), kind, weights, biases)
    mixed.packed = PackedWeight(mixed._library, kind, weights, biases, alternates=True)
    x = normal(3, 24)
    first, second = (layer(kind, weight, bias)(x) for weight, bias in zip(weights, biases, strict=True))
    expected = torch.stack([first.view(3, -1, 16), second.view(3, -1, 16)], dim=2).view(3, -1)
    assert torch.equal(mixed(x), expected)


@each_kind
def test_weight_that_is_a_view_of_a_larger_one_is_packed_as_it_is(kind: Kind) -> None:
    wide, x = normal(40, 90, seed=1), normal(4, 33)
    for weight in (wide[::2, 5:38], normal(33, 20, seed=2).t()):
        assert torch.equal(layer(kind, weight)(x), layer(kind, weight.clone())(x))


@pytest.mark.parametrize("in_features", [1, 15, 32, 47])
@pytest.mark.parametrize("out_features", [1, 16, 31, 64, 65])
def test_weight_in_bfloat16_is_unpacked_exactly(in_features: int, out_features: int) -> None:
    weight = normal(out_features, in_features)
    linear = layer("bfloat16", weight)
    assert torch.equal(linear.weight, weight)
    ids = torch.tensor([out_features - 1, 0, out_features // 2, 0])
    assert torch.equal(linear.packed.rows(ids), weight[ids])


@pytest.mark.parametrize("in_features", [1, 15, 32, 47])
def test_weight_in_8_bits_is_unpacked_to_what_is_multiplied(in_features: int) -> None:
    weight = normal(37, in_features)
    step = weight.float().abs().amax(dim=1, keepdim=True) / 127
    off = (layer("int8", weight).weight.float() - weight.float()).abs()
    assert bool((off <= step / 2 + weight.float().abs() * 2**-8).all())


@each_kind
def test_packed_weight_says_how_many_bytes_it_has(kind: Kind) -> None:
    linear = layer(kind, normal(33, 5))
    lanes = {"bfloat16": 3, "int8": 2}[kind]
    assert linear.packed_bytes == linear.packed.nbytes == 64 * lanes * 4


@each_kind
def test_row_does_not_depend_on_the_others(kind: Kind) -> None:
    x, weight = normal(500, 67), normal(130, 67, seed=1)
    linear = layer(kind, weight)
    together = linear(x)
    for first, end in ((0, 1), (3, 4), (17, 40), (100, 230), (499, 500)):
        assert torch.equal(linear(x[first:end]), together[first:end])


@each_kind
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 31, 66])
def test_what_is_not_finite_stays_in_its_row_and_is_seen_there(kind: Kind, bad: float, column: int) -> None:
    x, weight = normal(20, 67), normal(40, 67, seed=1)
    linear = layer(kind, weight)
    expected = linear(x)
    x[11, column] = bad
    got = linear(x)
    assert not got[11].isfinite().any()
    others = [row for row in range(20) if row != 11]
    assert torch.equal(got[others], expected[others])


@each_kind
def test_weight_that_is_not_finite_makes_its_column_so(kind: Kind) -> None:
    x, weight = normal(3, 67), normal(40, 67, seed=1)
    expected = layer(kind, weight)(x)
    weight[13, 66] = torch.nan
    got = layer(kind, weight)(x)
    assert not got[:, 13].isfinite().any()
    others = [column for column in range(40) if column != 13]
    assert torch.equal(got[:, others], expected[:, others])


@each_kind
def test_rows_and_columns_of_zeros_give_zeros(kind: Kind) -> None:
    x, weight = normal(5, 33), normal(20, 33, seed=1)
    x[2], weight[7] = 0, 0
    got = layer(kind, weight)(x)
    assert not got[2].any()
    assert not got[:, 7].any()
    assert got[3].count_nonzero() == 19


@each_kind
def test_very_large_and_very_small_values_keep_their_scale(kind: Kind) -> None:
    x, weight = normal(4, 64), normal(20, 64, seed=1)
    expected = layer(kind, weight)(x).float()
    for scale in (2.0**100, 2.0**-100):
        assert torch.equal(layer(kind, weight)(x * scale).float(), expected * scale)
        assert torch.equal(layer(kind, weight * scale)(x).float(), expected * scale)


@each_kind
def test_no_rows_are_no_work(kind: Kind) -> None:
    """In a thread of its own too, which has no memory to work in yet."""
    linear = layer(kind, normal(20, 33))
    results: list[Tensor] = []
    thread = threading.Thread(target=lambda: results.append(linear(torch.empty(0, 33, dtype=BFLOAT16))))
    thread.start()
    thread.join()
    assert [tuple(out.shape) for out in results] == [(0, 20)]


def test_largest_sums_of_8_bits_do_not_overflow() -> None:
    """Every factor at its limit, in as many columns as 32 bits have room for."""
    count = 65536
    x, weight = torch.ones(1, count, dtype=BFLOAT16), torch.ones(2, count, dtype=BFLOAT16)
    weight[1] = -1
    assert layer("int8", weight)(x).tolist() == [[count, -count]]


@each_kind
def test_threads_of_either_kind_change_nothing_but_the_time(kind: Kind) -> None:
    weights = [normal(700, 130, seed=1)]
    for num_rows in (1, 16, 200):
        x = normal(num_rows, 130)
        linear = NativeLinear(library(), kind, weights, [None])
        alone = linear(x)
        for own in (True, False):
            linear._library.use_threads(3, own=own)
            packed_together = NativeLinear(linear._library, kind, weights, [None])
            assert torch.equal(linear(x), alone)
            assert torch.equal(packed_together(x), alone)
