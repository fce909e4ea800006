"""Products by matrix units (AMX): near to float64, each row alike whatever the others, and the integers' exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.engine.cpu.native_linear import Kind, NativeLinear
from orcinus.engine.kernels.library import load_library
from tests.effort import scaled
from tests.unit.engine.cpu.kernel_choices import library_of
from tests.unit.engine.cpu.test_native_linear import assert_near, normal

BEST = load_library()
# Widths in whole tiles, of either kind: 16 lanes of two or four numbers.
WIDTHS = (64, 128, 448)
DOTS, UNITS = 3, 4  # AVX512_DOTS and MATRIX_UNITS_KERNEL of linear.h

pytestmark = pytest.mark.skipif(BEST is None or not BEST.has_matrix_units, reason="this CPU has no matrix units")
each_kind = pytest.mark.parametrize("kind", ["bfloat16", "int8"])


def layer(kind: Kind, weight: Tensor, bias: Tensor | None = None, *, has_units: bool = True) -> NativeLinear:
    linear = NativeLinear(library_of("amx" if has_units else "avx512-bf16"), kind, [weight], [bias])
    assert linear.packed.native.kernel == (UNITS if has_units else DOTS)
    return linear


@each_kind
@settings(max_examples=scaled(60))
@given(
    num_rows=st.integers(1, 70) | st.sampled_from([130, 449, 500]),
    in_features=st.sampled_from(WIDTHS),
    out_features=st.integers(1, 70) | st.sampled_from([95, 97, 320]),
    has_bias=st.booleans(),
    num_threads=st.integers(1, 3),
)
def test_products_are_those_of_float64(
    kind: Kind, num_rows: int, in_features: int, out_features: int, has_bias: bool, num_threads: int
) -> None:
    x, weight = normal(num_rows, in_features), normal(out_features, in_features, seed=1)
    bias = normal(out_features, seed=2) if has_bias else None
    linear = layer(kind, weight, bias)
    linear._library.use_threads(num_threads, own=True)
    assert_near(linear(x), x, weight, bias, kind)


@each_kind
@settings(max_examples=scaled(40))
@given(first=st.integers(0, 499), count=st.integers(1, 70))
def test_row_does_not_depend_on_the_others(kind: Kind, first: int, count: int) -> None:
    x, weight = normal(500, 128), normal(130, 128, seed=1)
    linear = layer(kind, weight)
    assert torch.equal(linear(x[first : first + count]), linear(x)[first : first + count])


@pytest.mark.parametrize("num_rows", [1, 16, 17, 32, 33, 500])
def test_integers_are_those_of_the_vectors(num_rows: int) -> None:
    x, weight, bias = normal(num_rows, 448), normal(131, 448, seed=1), normal(131, seed=2)
    assert torch.equal(layer("int8", weight, bias)(x), layer("int8", weight, bias, has_units=False)(x))


@each_kind
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 15, 16, 33])
def test_what_is_not_finite_stays_in_its_row_and_is_seen_there(kind: Kind, bad: float, row: int) -> None:
    x, weight = normal(34, 64), normal(40, 64, seed=1)
    linear = layer(kind, weight)
    expected = linear(x)
    x[row, 63] = bad
    got = linear(x)
    others = [other for other in range(34) if other != row]
    assert not got[row].isfinite().any()
    assert torch.equal(got[others], expected[others])


@pytest.mark.parametrize(("kind", "in_features"), [("bfloat16", 48), ("bfloat16", 65), ("int8", 96), ("int8", 33)])
def test_weights_that_are_not_whole_tiles_are_left_to_vectors(kind: Kind, in_features: int) -> None:
    x, weight = normal(40, in_features), normal(40, in_features, seed=1)
    linear = NativeLinear(library_of("amx"), kind, [weight], [None])
    assert linear.packed.native.kernel == DOTS
    assert_near(linear(x), x, weight, None, kind)
