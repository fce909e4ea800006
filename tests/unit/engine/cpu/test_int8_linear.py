"""8-bit products with torch's operations: their numbers, and that they are those of our own kernels."""

import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.cpu.int8_linear import Int8Linear, joined_bias
from orcinus.engine.cpu.native_linear import NativeLinear, PackedWeight, can_multiply
from orcinus.engine.kernels.library import load_library

LIBRARY = load_library()
BFLOAT16 = torch.bfloat16
SHAPES = [(1, 1, 1), (1, 64, 48), (3, 67, 33), (8, 515, 70), (40, 31, 129), (130, 96, 64)]

needs_kernels = pytest.mark.skipif(
    LIBRARY is None or not can_multiply(LIBRARY, "int8"), reason="our kernels do not multiply int8 on this CPU"
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BFLOAT16)


def native(weight: Tensor, bias: Tensor | None = None) -> NativeLinear:
    assert LIBRARY is not None
    return NativeLinear(LIBRARY, "int8", [weight], [bias])


def assert_within_one_rounding(got: Tensor, wanted: Tensor) -> None:
    """Sums are exact; a multiplication may be joined with the addition that follows, which rounds once less."""
    torch.testing.assert_close(got, wanted, rtol=2**-7, atol=1e-30)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("num_rows", "in_features", "out_features"), SHAPES)
def test_products_are_near_to_those_of_float64(
    num_rows: int, in_features: int, out_features: int, has_bias: bool
) -> None:
    x, weight = normal(num_rows, in_features), normal(out_features, in_features, seed=1)
    bias = normal(out_features, seed=2) if has_bias else None
    exact = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    sizes = x.double().norm(dim=1, keepdim=True) * weight.double().norm(dim=1)
    error = (Int8Linear([weight], [bias])(x).double() - exact).abs()
    assert bool((error <= 2**-8 * exact.abs() + 0.03 * sizes).all())
    assert num_rows == 1 or bool(error.any())


@needs_kernels
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("num_rows", "in_features", "out_features"), SHAPES)
def test_numbers_are_those_of_our_kernels(num_rows: int, in_features: int, out_features: int, has_bias: bool) -> None:
    x, weight = normal(num_rows, in_features), normal(out_features, in_features, seed=1)
    bias = normal(out_features, seed=2) if has_bias else None
    plain, ours = Int8Linear([weight], [bias]), native(weight, bias)
    assert torch.equal(plain.weight, ours.weight)
    assert isinstance(ours.packed, PackedWeight)
    assert torch.equal(plain._scales.squeeze(1), ours.packed._scales[:out_features])
    if has_bias:
        assert_within_one_rounding(plain(x), ours(x))
    else:
        assert torch.equal(plain(x), ours(x))


@needs_kernels
def test_halves_are_rounded_alike() -> None:
    """Values that lie in the middle between two integers, on both sides of zero."""
    row = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 62.5], dtype=BFLOAT16)
    weight = torch.eye(8, dtype=BFLOAT16)
    expected = [127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 62.0]
    for linear in (Int8Linear([weight], [None]), native(weight)):
        assert linear(row).tolist() == expected
    for linear in (Int8Linear([row.unsqueeze(0)], [None]), native(row.unsqueeze(0))):
        assert linear(weight).squeeze(1).tolist() == expected


def test_several_weights_as_one_give_what_they_give_apart() -> None:
    weights = [normal(rows, 50, seed=rows) for rows in (33, 16, 7)]
    biases = [normal(weight.shape[0], seed=9) for weight in weights]
    x = normal(2, 5, 50)
    apart = [Int8Linear([weight], [bias])(x) for weight, bias in zip(weights, biases, strict=True)]
    assert torch.equal(Int8Linear(weights, biases)(x), torch.cat(apart, dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16])
def test_result_has_the_inputs_dtype_and_dimensions(dtype: torch.dtype) -> None:
    linear = Int8Linear([normal(6, 8).to(dtype)], [None])
    out = linear(normal(2, 3, 8, seed=1).to(dtype))
    assert out.dtype is dtype
    assert out.shape == (2, 3, 6)
    assert linear(torch.empty(0, 8, dtype=dtype)).shape == (0, 6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row_and_is_seen_there(bad: float) -> None:
    x, linear = normal(6, 33), Int8Linear([normal(20, 33, seed=1)], [None])
    expected = linear(x)
    x[2, 5] = bad
    got = linear(x)
    assert not got[2].isfinite().any()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(got[others], expected[others])


def test_rows_and_columns_of_zeros_give_zeros() -> None:
    x, weight = normal(4, 33), normal(20, 33, seed=1)
    x[2], weight[7] = 0, 0
    got = Int8Linear([weight], [None])(x)
    assert not got[2].any()
    assert not got[:, 7].any()


def test_row_does_not_depend_on_the_others() -> None:
    x, linear = normal(50, 67), Int8Linear([normal(40, 67, seed=1)], [None])
    together = linear(x)
    assert all(torch.equal(linear(x[i : i + 1]), together[i : i + 1]) for i in range(50))


def test_weights_take_half_of_what_they_took() -> None:
    weight = normal(64, 48)
    assert 2 * Int8Linear([weight], [None]).packed_bytes == weight.nbytes


def test_biases_are_joined_or_absent() -> None:
    assert joined_bias([None, None]) is None
    joined = joined_bias([torch.zeros(2), torch.ones(3)])
    assert joined is not None
    assert joined.tolist() == [0, 0, 1, 1, 1]
